"""A Keras model becomes a `.tflite` file, and the file is run and compared."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.lite.python.convert_phase import ConverterError
from tqdm import tqdm

from export import worker
from instanas_tf import files
from instanas_tf.errors import ModelError

FLOAT_TOLERANCE = 1e-4  # Of outputs, relative to their largest absolute value (at least 1).


class DeployedFront(keras.Model):
    """images -> features that the experts go on from, and which of them runs first.

    Args:
        front: images -> features [B, h, w, c]; None: the router looks at the images.
        router: features, or images -> scores [B, E]; None: the first expert is constant.
        biases: [E], taken off the scores: the price times the cost of each expert; None
            for none.

    Returns from a call:
        `features` if there is a front; with a router, `expert`: int32 [B], the largest
        of `scores - biases`, and `scores`: float [B, E].

    Raises:
        ValueError: neither front nor router, or biases that are not finite, have another
            number of entries than the scores, or have no router.
    """

    def __init__(
        self,
        front: keras.Model | None,
        router: keras.Model | None,
        biases: np.ndarray | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if front is None and router is None:
            raise ValueError("`front` or `router` must be a model. Received: None for both")
        self.front = front
        self.router = router
        self.biases = np.asarray(0.0 if biases is None else biases, np.float32)
        if biases is not None and router is None:
            raise ValueError(f"`biases` must be None without a router. Received: {biases}")
        if biases is not None and self.biases.ndim != 1 or not np.isfinite(self.biases).all():
            raise ValueError(f"`biases` must be finite numbers [E]. Received: {biases}")
        self.built = True

    def call(self, images, training=None):
        """See the class."""
        found = {}
        features = images
        if self.front is not None:
            features = found["features"] = self.front(images, training=training)
        if self.router is not None:
            scores = self.router(features, training=training)
            if self.biases.shape not in ((), (scores.shape[-1],)):
                raise ValueError(
                    f"`biases` must be [{scores.shape[-1]}], as the scores. "
                    f"Received: shape {self.biases.shape}"
                )
            found |= {"expert": _best(scores - self.biases), "scores": scores}
        return found


def _best(scores):
    """Index of the largest score of each row, int32 [B]."""
    # Not `keras.ops.argmax`, whose care for negative zero needs ops outside TFLite's.
    return tf.argmax(scores, axis=-1, output_type=tf.int32)


def to_tflite(model: keras.Model, input_shape: Sequence[int]) -> bytes:
    """Converts a model for inputs of one fixed shape, float32, built-in ops only.

    Args:
        model: its call takes `training`; one output, or a dict of outputs that differ in kind
            (integer or float) or in the number of axes, by which alone the file tells them.
        input_shape: with the batch, such as (1, 32, 32, 3).

    Raises:
        ModelError: the converter cannot express the model.
    """

    @tf.function(input_signature=[tf.TensorSpec(tuple(input_shape), tf.float32, name="images")])
    def serve(images):
        return model(images, training=False)

    converter = _converter(serve.get_concrete_function())
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        return converter.convert()
    except (ConverterError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{model.name} cannot be converted ({reason})") from error


def _converter(function) -> tf.lite.TFLiteConverter:
    """A converter of a function with its weights frozen.

    Given the object that holds the variables, the converter saves and loads a whole
    SavedModel, which takes three times as long; without it, it warns.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return tf.lite.TFLiteConverter.from_concrete_functions([function])
    finally:
        logging.set_verbosity(verbosity)


def outputs_of(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs [n, ...] of a model by name, a single one as `logits`.

    Args:
        model: as for `to_tflite`.
        images: what it takes: raw pixels [n, H, W, 3], or features [n, h, w, c].
    """
    outputs = model(tf.constant(images, tf.float32), training=False)
    outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
    return {name: np.asarray(values) for name, values in outputs.items()}


def check(
    models: dict[str, keras.Model],
    paths: dict[str, pathlib.Path],
    images: np.ndarray,
    runtime: str = "auto",
) -> dict[str, float]:
    """Runs every file with a TFLite runtime, in a subprocess, and compares with Keras.

    Args:
        models: name -> model.
        paths: name -> its file.
        images: what the models take: raw pixels [n, H, W, 3], or features [n, h, w, c].
        runtime: see `export.runtime.find_runtime`.

    Returns:
        Name -> largest difference of a float output, relative to the largest absolute value
        of that output (at least 1).

    Raises:
        ModelError: a file fails to run, lacks an output, or differs by more than
            `FLOAT_TOLERANCE`; or it names another expert where that tolerance does not
            account for it.
    """
    found = worker.every_output(paths, images, runtime)
    differences = {}
    for name, model in models.items():
        expected = outputs_of(model, images)
        rows = {
            key: found[name].get((item.dtype.kind, item.ndim)) for key, item in expected.items()
        }
        missing = [key for key, values in rows.items() if values is None]
        if missing or len(found[name]) != len(expected):
            raise ModelError(
                f"{name}.tflite must have the outputs {sorted(expected)}, told by kind and number "
                f"of axes. Received: {sorted(found[name])}; nothing was exported"
            )
        floats = [key for key, values in expected.items() if values.dtype.kind == "f"]
        differences[name] = float(
            np.max([0.0, *(_difference(expected[k], rows[k]) for k in floats)])
        )
        if not differences[name] <= FLOAT_TOLERANCE:
            raise _differs(name, f"by {differences[name]:.2g} (at most {FLOAT_TOLERANCE:g} is")
        if "expert" in expected:
            _check_choice(name, expected["scores"] - model.biases, rows["expert"])
    return differences


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Largest difference, relative to the largest absolute value (at least 1)."""
    return float(np.max(np.abs(found - expected))) / max(1.0, float(np.max(np.abs(expected))))


def _check_choice(name: str, scores: np.ndarray, chosen: np.ndarray) -> None:
    """Refuses a choice that is worse than the best by more than both scores may be off."""
    tolerance = 2.0 * FLOAT_TOLERANCE * max(1.0, float(np.max(np.abs(scores))))
    count = scores.shape[1]
    for row, index in zip(scores, chosen, strict=True):
        if not 0 <= index < count or row[index] < np.max(row) - tolerance:
            raise _differs(
                name, f"in its choice: expert {index}, not {np.argmax(row)} (only a tie is"
            )


def _differs(name: str, how: str) -> ModelError:
    return ModelError(
        f"{name}.tflite differs from the Keras model {how} allowed); nothing was exported. Report "
        "this with the versions of tensorflow and of the TFLite runtime"
    )


def write_models(models: dict[str, keras.Model], folder: pathlib.Path, input_shapes) -> dict:
    """Converts models into `folder`, with a progress bar.

    Args:
        models: name -> model.
        folder: where `NAME.tflite` goes.
        input_shapes: name -> input shape with the batch.

    Returns:
        Name -> path.
    """
    paths = {}
    for name, model in tqdm(models.items(), desc="converting", unit="model", disable=None):
        paths[name] = folder / f"{name}.tflite"
        files.write_bytes(paths[name], to_tflite(model, input_shapes[name]))
    return paths
