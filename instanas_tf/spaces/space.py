"""Search spaces as plain data, and the one rule for a cell in which no op is on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from instanas_tf import files

MERGES = ("sum", "shortcut")
KINDS = ("inverted_residual", "basic")


@dataclasses.dataclass(frozen=True)
class OpSpec:
    """One candidate op of a cell.

    Attributes:
        name: the word used everywhere for it, such as `ir3_e6`.
        kind: `inverted_residual` or `basic`; names a layer of `models/blocks.py`.
        kernel: side of the (depthwise) convolution's kernel.
        expansion: factor of the hidden channels; 1 for `basic`.
    """

    name: str
    kind: str
    kernel: int = 3
    expansion: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={self.kind!r}")
        if self.kernel < 1 or self.kernel % 2 == 0 or self.expansion < 1:
            raise ValueError(
                "`kernel` must be odd and positive and `expansion` positive. "
                f"Received: kernel={self.kernel}, expansion={self.expansion}"
            )


@dataclasses.dataclass(frozen=True)
class CellSpec:
    """One position of the backbone.

    Attributes:
        in_channels: channels that enter.
        out_channels: channels that leave.
        stride: 1 or 2, of the op that changes the size.
        size: height and width of the map that enters, in pixels.
    """

    in_channels: int
    out_channels: int
    stride: int
    size: int

    def __post_init__(self) -> None:
        if self.stride not in (1, 2):
            raise ValueError(f"`stride` must be 1 or 2. Received: stride={self.stride}")
        if min(self.in_channels, self.out_channels, self.size) < 1:
            raise ValueError(f"Channels and size must be positive. Received: {self}")

    @property
    def out_size(self) -> int:
        """Height and width of the map that leaves, in pixels (padding `same`)."""
        return -(-self.size // self.stride)

    @property
    def keeps_shape(self) -> bool:
        """Whether the identity could stand in for the cell."""
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Everything that may be built: L cells with the same K candidate ops each.

    Attributes:
        name: the name that `instanas_tf.spaces.get` knows it by.
        image_size: height and width of the input, in pixels.
        stem_channels: channels of the 3x3 convolution in front.
        stem_stride: its stride.
        cells: the L cells, first to last.
        ops: the K ops, in the order of a policy's last axis.
        default_op: name of the op that a cell falls back to when none is on and the
            identity does not fit.
        reference_op: name of the op that, alone in every cell, makes the MobileNetV2 that
            latencies are compared with.
        head_channels: channels of the 1x1 convolution behind.
        num_classes: N.
        merge: `sum`: outputs of the ops are summed and each inverted residual carries its
            own shortcut (as published); `shortcut`: one shortcut a cell, and the mean of
            the ops in cells that change the shape.
    """

    name: str
    image_size: int
    stem_channels: int
    stem_stride: int
    cells: tuple[CellSpec, ...]
    ops: tuple[OpSpec, ...]
    default_op: str
    head_channels: int
    num_classes: int
    merge: str = "sum"
    reference_op: str = "ir3_e6"

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise ValueError(f"`merge` must be one of {MERGES}. Received: merge={self.merge!r}")
        if self.num_classes < 2:
            raise ValueError(
                f"`num_classes` must be at least 2. Received: num_classes={self.num_classes}"
            )
        if not self.cells or not self.ops:
            raise ValueError("A space needs at least one cell and one op.")
        if len(set(self.op_names)) != len(self.ops):
            raise ValueError(f"Names of ops must differ. Received: {self.op_names}")
        for op_name in (self.default_op, self.reference_op):
            if op_name not in self.op_names:
                raise ValueError(
                    "`default_op` and `reference_op` must be among "
                    f"{self.op_names}. Received: {op_name!r}"
                )
        for before, after in zip(self.cells, self.cells[1:], strict=False):
            if (before.out_channels, before.out_size) != (after.in_channels, after.size):
                raise ValueError(f"Cells do not fit together. Received: {before} then {after}")
        if self.cells[0].in_channels != self.stem_channels:
            raise ValueError("The first cell must take the stem's channels.")

    @property
    def num_cells(self) -> int:
        """L."""
        return len(self.cells)

    @property
    def num_ops(self) -> int:
        """K."""
        return len(self.ops)

    @property
    def op_names(self) -> tuple[str, ...]:
        """The K names, in the order of a policy's last axis."""
        return tuple(op.name for op in self.ops)

    @property
    def fallback(self) -> np.ndarray:
        """Float32 [L, K]: the default op of each cell that cannot be skipped, else 0."""
        one_hot = np.array([name == self.default_op for name in self.op_names], np.float32)
        needed = np.array([not cell.keeps_shape for cell in self.cells], np.float32)
        return needed[:, None] * one_hot[None, :]

    def effective(self, policy: Any) -> Any:
        """The ops that really run: the rule for the empty cell, stated here alone.

        A cell in which no op is on is the identity if it keeps its shape, else it runs
        the space's default op. Written with arithmetic operators only, so that it serves
        NumPy arrays and tensors of any backend; and multilinear in the bits, so that for
        independent probabilities it gives the exact probability that each op runs.

        Args:
            policy: 0/1 bits or probabilities, [..., L, K].

        Returns:
            The same shape; the default op is on where an empty cell needs it.
        """
        empty = 1.0
        for k in range(self.num_ops):
            empty = empty * (1.0 - policy[..., k])
        return policy + empty[..., None] * self.fallback

    def single_op_policy(self, op_name: str) -> np.ndarray:
        """Float32 [L, K]: the named op, and it alone, on in every cell."""
        one_hot = np.array([name == op_name for name in self.op_names], np.float32)
        if not one_hot.any():
            raise ValueError(f"`op_name` must be one of {self.op_names}. Received: {op_name!r}")
        return np.tile(one_hot, (self.num_cells, 1))

    def policy_names(self, policy: np.ndarray) -> list[list[str]]:
        """A policy as the names of the ops on in each cell, for files that people read."""
        return [
            [name for name, bit in zip(self.op_names, cell, strict=True) if bit > 0.5]
            for cell in np.asarray(policy)
        ]

    def policy_from_names(self, names: list[list[str]]) -> np.ndarray:
        """The inverse of `policy_names`: float32 [L, K].

        Raises:
            ValueError: a wrong number of cells, or an op that the space does not have.
        """
        if len(names) != self.num_cells:
            raise ValueError(f"Expected {self.num_cells} cells. Received: {len(names)}")
        unknown = sorted({name for cell in names for name in cell} - set(self.op_names))
        if unknown:
            raise ValueError(f"Ops must be among {self.op_names}. Received: {unknown}")
        return np.array(
            [[float(name in cell) for name in self.op_names] for cell in names], np.float32
        )

    def to_json(self) -> dict[str, Any]:
        """The space as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SearchSpace:
        """The inverse of `to_json`."""
        cells = tuple(CellSpec(**cell) for cell in value["cells"])
        ops = tuple(OpSpec(**op) for op in value["ops"])
        return cls(**{**value, "cells": cells, "ops": ops})

    @property
    def hash(self) -> str:
        """SHA-256 of the space, to tell tables and checkpoints of other spaces apart."""
        return files.digest(self.to_json())
