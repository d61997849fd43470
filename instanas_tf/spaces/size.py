"""Multiply-accumulates (MACs) and trainable parameters of a space, by arithmetic alone.

Counted are convolutions and linear layers; parameters include the scale and offset of
batch normalisation. Source of the golden numbers in the tests: InstaNAS, arXiv 1811.10201,
and its official code.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from instanas_tf.spaces.space import CellSpec, OpSpec, SearchSpace


@dataclasses.dataclass(frozen=True)
class Size:
    """What a part of a network costs: `macs` for one image, and trainable `params`."""

    macs: int
    params: int

    def __add__(self, other: Size) -> Size:
        return Size(self.macs + other.macs, self.params + other.params)


def conv_bn(size: int, kernel: int, in_channels: int, out_channels: int) -> Size:
    """A convolution without bias to a `size` x `size` map, then batch normalisation."""
    weights = kernel * kernel * in_channels * out_channels
    return Size(size * size * weights, weights + 2 * out_channels)


def op_size(cell: CellSpec, op: OpSpec) -> Size:
    """Size of one op in one cell."""
    if op.kind == "basic":
        first = conv_bn(cell.out_size, op.kernel, cell.in_channels, cell.out_channels)
        return first + conv_bn(cell.out_size, op.kernel, cell.out_channels, cell.out_channels)
    hidden = cell.in_channels * op.expansion
    expand = conv_bn(cell.size, 1, cell.in_channels, hidden)
    weights = op.kernel * op.kernel * hidden
    depthwise = Size(cell.out_size**2 * weights, weights + 2 * hidden)
    return expand + depthwise + conv_bn(cell.out_size, 1, hidden, cell.out_channels)


def stem_size(space: SearchSpace) -> Size:
    """Size of the 3x3 convolution in front of the cells."""
    return conv_bn(space.cells[0].size, 3, 3, space.stem_channels)


def head_size(space: SearchSpace) -> Size:
    """Size of the 1x1 convolution and the classifier behind the cells."""
    last = space.cells[-1]
    linear = space.head_channels * space.num_classes
    return conv_bn(last.out_size, 1, last.out_channels, space.head_channels) + Size(
        linear, linear + space.num_classes
    )


def op_macs(space: SearchSpace) -> np.ndarray:
    """Int64 [L, K]: MACs of each op in each cell."""
    return np.array([[op_size(c, op).macs for op in space.ops] for c in space.cells], np.int64)


def policy_macs(space: SearchSpace, policy: np.ndarray) -> int:
    """MACs of the network that one policy [L, K] describes, stem and head included."""
    cells = float(np.sum(space.effective(np.asarray(policy, np.float64)) * op_macs(space)))
    return round(cells) + stem_size(space).macs + head_size(space).macs


def supernet_params(space: SearchSpace) -> int:
    """Trainable parameters of the whole supernet."""
    ops = sum(op_size(cell, op).params for cell in space.cells for op in space.ops)
    return ops + stem_size(space).params + head_size(space).params
