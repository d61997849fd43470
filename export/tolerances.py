"""How far a file may be from its Keras model: the tolerances of every mode, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from instanas_tf.errors import ModelError

PROBABILITY_SCALE = 1.0 / 256.0  # What one step of a uint8 probability is worth.


class Tolerance(NamedTuple):
    """What a mode of quantisation may change, or what it did change.

    Attributes:
        largest: difference of a float output, relative to its largest absolute value (at
            least 1).
        mean: the same, averaged over all numbers of the output.
        top_class: share of the images whose largest probability, or score, is that of the same
            class, or expert; allowed is this much or more.
    """

    largest: float
    mean: float
    top_class: float


# Few numbers of an int8 graph may be far off: those of images that leave the ranges of the
# representative set. docs/quantization.md has what was measured.
TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        "none": Tolerance(1e-4, 1e-4, 0.0),
        "fp16": Tolerance(1e-2, 1e-2, 0.0),
        "dynamic": Tolerance(0.25, 0.02, 0.97),
        "int8": Tolerance(np.inf, 0.02, 0.97),
    }
)


FEWEST_IMAGES = 50  # On fewer the share of a top class says nothing.


def difference(expected: np.ndarray, found: np.ndarray, reduce=np.max) -> float:
    """Largest difference, relative to the largest absolute value (at least 1).

    Args:
        expected: numbers of any shape.
        found: of the same shape.
        reduce: `np.max`, or `np.mean` for the mean difference.
    """
    return float(reduce(np.abs(found - expected))) / max(1.0, float(np.max(np.abs(expected))))


def differs(name: str, how: str) -> ModelError:
    """The error of a file that is not its Keras model."""
    return ModelError(
        f"{name}.tflite differs from the Keras model {how} allowed); nothing was exported. Report "
        "this with the versions of tensorflow and of the TFLite runtime"
    )


def compare(
    mode: str,
    expected: np.ndarray,
    found: np.ndarray,
    name: str = "model",
    output: str = "probabilities",
) -> Tolerance:
    """Compares one float output of a file with that of its Keras model.

    Args:
        mode: of quantisation, one of `TOLERANCES`.
        expected: of the Keras model, float [n, ...]. Of few images the shares are coarse: int8
            is compared on the whole validation split, and on fewer than `FEWEST_IMAGES` the
            top class is not looked at.
        found: of the file, [n, ...]; uint8 is taken as probabilities in steps of 1/256.
        name: of the file, without its suffix.
        output: which one it is. Only `probabilities` are held to the top class: a quantised
            controller may name another expert, and the accuracy of the whole variant says what
            that costs. Its `scores` may jump where the image changes little, so quantised ones
            are held to the mean alone.

    Returns:
        What was found; `top_class` is 1 where there is no class or expert.

    Raises:
        ModelError: the file differs by more than its mode allows.
        ValueError: an unknown mode, or arrays of different shapes.
    """
    if mode not in TOLERANCES:
        raise ValueError(f"`mode` must be one of {sorted(TOLERANCES)}. Received: {mode!r}")
    if expected.shape != found.shape or not len(expected):
        raise ValueError(
            f"`found` must be of the shape {expected.shape} of `expected`, at least one row. "
            f"Received: {found.shape}"
        )
    if found.dtype == np.uint8:
        found = found.astype(np.float32) * PROBABILITY_SCALE
    allowed = TOLERANCES[mode]
    largest, mean = difference(expected, found), difference(expected, found, np.mean)
    if not largest <= allowed.largest and (mode == "none" or output != "scores"):
        raise differs(name, f"by {largest:.2g} (at most {allowed.largest:g} is")
    if not mean <= allowed.mean:
        raise differs(name, f"by {mean:.2g} in the mean (at most {allowed.mean:g} is")
    if expected.ndim != 2:
        return Tolerance(largest, mean, 1.0)
    share = float(np.mean(np.argmax(expected, axis=-1) == np.argmax(found, axis=-1)))
    is_held = output == "probabilities" and len(found) >= FEWEST_IMAGES
    if is_held and share < allowed.top_class:
        raise ModelError(
            f"{name}.tflite ranks another class first than the Keras model for {1 - share:.1%} of "
            f"{len(found)} images (at most {1 - allowed.top_class:.0%} is allowed); nothing was "
            "exported. Use --quantize=fp16, or train for longer"
        )
    return Tolerance(largest, mean, share)
