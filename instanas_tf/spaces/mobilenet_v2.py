"""The MobileNetV2-based spaces of InstaNAS for 32, 64 and 224 px, and two small ones.

Source: InstaNAS (arXiv 1811.10201) and its official code; the layout and the rounding of
channels are those of MobileNetV2 (arXiv 1801.04381).
"""

from __future__ import annotations

import dataclasses

from instanas_tf.spaces.space import CellSpec, OpSpec, SearchSpace

MAX_WIDTH = 8
INSTANAS_OPS = (
    OpSpec("ir3_e6", "inverted_residual", kernel=3, expansion=6),
    OpSpec("ir3_e3", "inverted_residual", kernel=3, expansion=3),
    OpSpec("ir5_e6", "inverted_residual", kernel=5, expansion=6),
    OpSpec("ir5_e3", "inverted_residual", kernel=5, expansion=3),
    OpSpec("basic", "basic", kernel=3),
)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A space before width and classes: stages are (channels, cells, stride)."""

    image_size: int
    stem: tuple[int, int]
    stages: tuple[tuple[int, int, int], ...]
    head_channels: int
    default_op: str
    ops: tuple[OpSpec, ...] = INSTANAS_OPS


def _mobilenet_v2(image_size: int, stem_stride: int, second_stride: int) -> _Layout:
    stages = (
        (16, 1, 1),
        (24, 2, second_stride),
        (32, 3, 2),
        (64, 4, 2),
        (96, 3, 1),
        (160, 3, 2),
        (320, 1, 1),
    )
    return _Layout(image_size, (32, stem_stride), stages, 1280, "basic")


LAYOUTS = {
    "mobilenet_v2_32": _mobilenet_v2(32, stem_stride=1, second_stride=1),
    "mobilenet_v2_64": _mobilenet_v2(64, stem_stride=1, second_stride=2),
    "mobilenet_v2_224": _mobilenet_v2(224, stem_stride=2, second_stride=2),
    # For 16 px images and small budgets. `ir3_e3` is its cheapest op, and so its default.
    "mobilenet_v2_16": _Layout(
        16, (16, 1), ((16, 1, 1), (24, 2, 2), (32, 2, 2), (64, 2, 1)), 256, "ir3_e3"
    ),
    # For tests: seconds to build, yet with every kind of op and of cell.
    "tiny": _Layout(
        8,
        (8, 1),
        ((8, 1, 1), (16, 2, 2)),
        16,
        "ir3_e3",
        (INSTANAS_OPS[0], INSTANAS_OPS[1], INSTANAS_OPS[4]),
    ),
}


def round_channels(channels: float, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor`, never more than 10 % down (MobileNetV2's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def get(name: str, width: float = 1.0, num_classes: int = 10, merge: str = "sum") -> SearchSpace:
    """Returns a search space by name.

    Args:
        name: `mobilenet_v2_32`, `_64`, `_224`, `mobilenet_v2_16`, or `tiny` for tests.
        width: multiplies all channels, rounded to multiples of 8; the head shrinks never,
            and grows above 1, as in MobileNetV2.
        num_classes: N.
        merge: `sum` as published, or `shortcut`; see `SearchSpace`.

    Raises:
        ValueError: an unknown name, or a width that is not positive.
    """
    if name not in LAYOUTS:
        raise ValueError(f"`name` must be one of {sorted(LAYOUTS)}. Received: name={name!r}")
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(
            f"`width` must be above 0 and at most {MAX_WIDTH}. Received: width={width}"
        )
    layout = LAYOUTS[name]
    stem, stem_stride = round_channels(layout.stem[0] * width), layout.stem[1]
    channels, size, cells = stem, -(-layout.image_size // stem_stride), []
    for stage_channels, count, stage_stride in layout.stages:
        out = round_channels(stage_channels * width)
        for position in range(count):
            cell = CellSpec(channels, out, stage_stride if position == 0 else 1, size)
            cells.append(cell)
            channels, size = out, cell.out_size
    return SearchSpace(
        name=name,
        image_size=layout.image_size,
        stem_channels=stem,
        stem_stride=stem_stride,
        cells=tuple(cells),
        ops=layout.ops,
        default_op=layout.default_op,
        head_channels=round_channels(layout.head_channels * max(1.0, width)),
        num_classes=num_classes,
        merge=merge,
    )
