"""Schedules: progress of a stage (0 to 1) -> number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Schedule = Callable[[float], float]


def knots(points: Sequence[tuple[float, float]]) -> Schedule:
    """Straight lines between (progress, value) points; constant outside them.

    Args:
        points: at least one point, progress within [0, 1] and never falling.

    Raises:
        ValueError: no point, or progress that falls or leaves [0, 1].
    """
    xs = [float(x) for x, _ in points]
    ys = [float(y) for _, y in points]
    if not xs or min(xs) < 0 or max(xs) > 1 or sorted(xs) != xs:
        raise ValueError(
            "`points` must be (progress, value) pairs, progress in [0, 1] and never falling. "
            f"Received: {points}"
        )
    return lambda progress: float(np.interp(progress, xs, ys))


def cosine(start: float) -> Schedule:
    """From `start` to 0 along half a cosine."""
    return lambda progress: start * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def steps(start: float, drops: Sequence[float], factor: float = 0.1) -> Schedule:
    """`start`, multiplied by `factor` at each progress in `drops`."""
    return lambda progress: start * factor ** sum(progress >= drop for drop in drops)


LEARNING_RATES: dict[str, Callable[[float], Schedule]] = {
    "cosine": cosine,
    "step": lambda start: steps(start, (0.5, 0.75)),
    "constant": lambda start: steps(start, ()),
}
