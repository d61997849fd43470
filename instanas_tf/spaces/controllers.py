"""The controllers that may be built, as plain data; `models/controller.py` builds them."""

from __future__ import annotations

import dataclasses

from instanas_tf.spaces.size import Size, conv_bn
from instanas_tf.spaces.space import SearchSpace

KINDS = ("half", "small", "wide", "published")  # From cheap to dear.


@dataclasses.dataclass(frozen=True)
class ControllerSpec:
    """A residual network with one block of two 3x3 convolutions a stage.

    Attributes:
        input_pool: factor by which the image is average-pooled first.
        stem_kernel: side of the first convolution's kernel.
        stem_stride: its stride.
        stem_pool: whether a 3x3 max-pool of stride 2 follows.
        widths: channels of the stages; the stem has those of the first.
        strides: stride of each stage.
        projection: shortcuts are 1x1 convolutions where the shape changes; else they are
            average-pooled and padded with zero channels.
    """

    input_pool: int
    stem_kernel: int
    stem_stride: int
    stem_pool: bool
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    projection: bool


_SMALL = ControllerSpec(1, 3, 2, False, (8, 16, 32), (1, 2, 2), False)
_SCALED = {  # For about 32 px; larger images are pooled more.
    "half": dataclasses.replace(_SMALL, input_pool=2),
    "small": _SMALL,
    "wide": dataclasses.replace(_SMALL, widths=(16, 32, 64)),
}
_PUBLISHED = ControllerSpec(1, 3, 1, False, (16, 32, 64), (1, 2, 2), False)
_PUBLISHED_224 = ControllerSpec(2, 7, 2, True, (16, 32, 64, 128), (1, 2, 2, 2), True)


def get(kind: str, image_size: int) -> ControllerSpec:
    """The controller of a kind for images of a size.

    Args:
        kind: `small`: images pooled to about 32 px, a stride-2 stem and widths 8, 16, 32;
            less than a tenth of the MACs of `published`. `half`: `small` at half the
            resolution. `wide`: `small` with widths 16, 32, 64.
        image_size: height and width of the image, in pixels.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={kind!r}")
    if kind in _SCALED:
        spec = _SCALED[kind]
        return dataclasses.replace(spec, input_pool=spec.input_pool * max(1, image_size // 32))
    return _PUBLISHED_224 if image_size >= 128 else _PUBLISHED


def trunk_size(spec: ControllerSpec, image_size: int) -> Size:
    """MACs and trainable parameters of all but the last, linear layer.

    Args:
        spec: the network; it ends in `spec.widths[-1]` features.
        image_size: height and width of the image, in pixels.
    """
    size = -(-image_size // spec.input_pool)
    size = -(-size // spec.stem_stride)
    total = conv_bn(size, spec.stem_kernel, 3, spec.widths[0])
    size = -(-size // 2) if spec.stem_pool else size
    channels = spec.widths[0]
    for width, stride in zip(spec.widths, spec.strides, strict=True):
        size = -(-size // stride)
        total += conv_bn(size, 3, channels, width) + conv_bn(size, 3, width, width)
        if spec.projection and (stride != 1 or channels != width):
            total += conv_bn(size, 1, channels, width)
        channels = width
    return total


def controller_size(spec: ControllerSpec, space: SearchSpace) -> Size:
    """MACs and trainable parameters of a controller for a space."""
    channels, bits = spec.widths[-1], space.num_cells * space.num_ops
    linear = Size(channels * bits, channels * bits + bits)
    return trunk_size(spec, space.image_size) + linear
