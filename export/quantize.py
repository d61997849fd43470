"""Quantisation of exported graphs: what the converter is told, and the images it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np
import tensorflow as tf

from instanas_tf.errors import InputError
from instanas_tf.pipeline import pools
from instanas_tf.pipeline.splits import Split

MODES = ("none", "fp16", "dynamic", "int8")
IOS = ("float", "uint8")
REPRESENTATIVE_IMAGES = 200  # More do not change the accuracy; see docs/quantization.md.
FEWEST_IMAGES = 50
_PIECES = 10  # Of a streamed split that images are taken from.
# What is uint8 where that is asked for; features, scores and votes stay as they are.
_IMAGES, _PROBABILITIES = "images", "probabilities"


@dataclasses.dataclass(frozen=True, eq=False)
class Quantization:
    """How a graph is quantised.

    Attributes:
        mode: `none`; `fp16`, weights alone; `dynamic`, int8 weights and ranges found as the
            graph runs; `int8`, integers throughout.
        io: `float`, or with `int8` also `uint8`: images and probabilities are uint8.
        representative: with `int8`, inputs of the graph that show its ranges: raw pixels
            [n, H, W, 3] of the training split, or features [n, h, w, c]; None otherwise.

    Raises:
        ValueError: the attributes do not go together.
    """

    mode: str = "none"
    io: str = "float"
    representative: np.ndarray | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"`mode` must be one of {MODES}. Received: {self.mode!r}")
        if self.io not in IOS or (self.io == "uint8" and self.mode != "int8"):
            raise ValueError(
                "`io` must be 'float', or 'uint8' with mode 'int8'. "
                f"Received: {self.io!r} with mode {self.mode!r}"
            )
        if (self.representative is not None) != (self.mode == "int8"):
            raise ValueError(
                "`representative` must be given for mode 'int8' and for no other. "
                f"Received: {type(self.representative).__name__} with mode {self.mode!r}"
            )
        if self.representative is None:
            return
        shape = np.shape(self.representative)
        if len(shape) != 4 or shape[0] < 1 or not np.isfinite(self.representative).all():
            raise ValueError(
                f"`representative` must be finite numbers [n, h, w, c]. Received: shape {shape}"
            )

    def shown(self, representative: np.ndarray) -> Quantization:
        """The same for a graph with other inputs, such as the features of a front."""
        if self.mode != "int8":
            return self
        return dataclasses.replace(self, representative=representative)

    def dtype(self, name: str) -> tf.DType:
        """What a graph's float input or output of this name becomes: uint8 or float32."""
        is_uint8 = self.io == "uint8" and name in (_IMAGES, _PROBABILITIES)
        return tf.uint8 if is_uint8 else tf.float32

    def configure(
        self, converter: tf.lite.TFLiteConverter, takes: str, gives: Collection[str]
    ) -> None:
        """Gives a converter its settings.

        The graph that decides, of a few numbers, is not for this: it is converted in float,
        and takes what `dtype("probabilities")` says.

        Args:
            converter: of a graph with one input.
            takes: name of the input, `images` or `features`.
            gives: names of the outputs; with `probabilities` there is no other.
        """
        builtins = tf.lite.OpsSet.TFLITE_BUILTINS
        converter.target_spec.supported_ops = [builtins]
        if self.mode == "none":
            return
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        # Scales per channel in dense layers need a runtime of 2.17; in convolutions any has them.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        if self.mode == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        if self.mode == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: self._rows(takes)
            converter.inference_input_type = self.dtype(takes)
            if _PROBABILITIES in gives:
                converter.inference_output_type = self.dtype(_PROBABILITIES)

    def _rows(self, takes: str) -> Iterator[list[np.ndarray]]:
        """The representative inputs one by one, always in the same order."""
        rows = np.array(self.representative, np.float32)
        if takes == _IMAGES:  # So that one step of a uint8 image is one step of a pixel.
            rows[0, 0, 0], rows[-1, -1, -1] = 0.0, 255.0
        for row in rows:
            yield [row[None]]


def representative_images(split: Split, count: int = REPRESENTATIVE_IMAGES) -> np.ndarray:
    """Images that show an int8 graph its ranges, evenly spaced over the training split.

    Args:
        split: the training images.
        count: how many.

    Returns:
        Raw pixels, uint8 [count, S, S, 3]; the same for the same split.

    Raises:
        InputError: fewer are asked for than `FEWEST_IMAGES`, or more than there are.
    """
    if count < FEWEST_IMAGES:
        raise InputError(
            f"the representative set must have at least {FEWEST_IMAGES} images. Received: {count}"
        )
    if split.count < count:
        raise InputError(
            f"int8 needs {count} training images that show its ranges. Received: "
            f"{split.count} in the training split; use more images, or --quantize=fp16"
        )
    if split.is_streamed:  # Reading few pieces is faster than reading all of it.
        pieces = np.array_split(np.arange(split.count), _PIECES)
        shares = np.diff(np.arange(_PIECES + 1) * count // _PIECES)
        positions = np.concatenate([p[:n] for p, n in zip(pieces, shares, strict=True)])
    else:
        positions = np.arange(count) * split.count // count
    return pools.collect(split.pool, split.indices[positions])[0]
