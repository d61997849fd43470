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
from instanas_tf.models.controller import Controller
from instanas_tf.search import expert_set

FLOAT_TOLERANCE = 1e-4  # Of outputs, relative to their largest absolute value (at least 1).


class DeployedController(keras.Model):
    """images -> index of the expert to run: what ships as `controller.tflite`.

    Args:
        controller: the trained controller.
        experts: 0/1 [E, L, K].

    Returns from a call:
        `expert`: int32 [B]; `scores`: float [B, E].
    """

    def __init__(self, controller: Controller, experts: np.ndarray, **kwargs):
        super().__init__(**kwargs)
        self.controller = controller
        self.experts = np.asarray(experts, np.float32)
        self.built = True

    def call(self, images):
        """See the class."""
        logits = self.controller.logits(images, training=False)
        scores = expert_set.scores(logits, self.experts, self.controller.space)
        # Not `keras.ops.argmax`, whose care for negative zero needs ops outside TFLite's.
        return {"expert": tf.argmax(scores, axis=-1, output_type=tf.int32), "scores": scores}


def to_tflite(model: keras.Model, input_shape: Sequence[int]) -> bytes:
    """Converts a model for inputs of one fixed shape, float32, built-in ops only.

    Args:
        model: called with `training=False` semantics.
        input_shape: with the batch, such as (1, 32, 32, 3).

    Raises:
        ModelError: the converter cannot express the model.
    """

    @tf.function(input_signature=[tf.TensorSpec(tuple(input_shape), tf.float32, name="images")])
    def serve(images):
        if isinstance(model, DeployedController):
            return model(images)
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


def outputs_of(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Float outputs [n, ...] of a model for images [n, H, W, 3]: logits, or scores."""
    outputs = model(tf.constant(images, tf.float32))
    return np.asarray(outputs["scores"] if isinstance(outputs, dict) else outputs)


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
        images: raw pixels [n, H, W, 3] to compare on.
        runtime: see `export.runtime.find_runtime`.

    Returns:
        Name -> largest difference, relative to the largest absolute output (at least 1).

    Raises:
        ModelError: a file fails to run, or differs by more than `FLOAT_TOLERANCE`.
    """
    found = worker.outputs(paths, images, runtime)
    differences = {}
    for name, model in models.items():
        expected = outputs_of(model, images)
        scale = max(1.0, float(np.max(np.abs(expected))))
        differences[name] = float(np.max(np.abs(found[name] - expected))) / scale
        if not differences[name] <= FLOAT_TOLERANCE:
            raise ModelError(
                f"{name}.tflite differs from the Keras model by {differences[name]:.2g} "
                f"(at most {FLOAT_TOLERANCE:g} is allowed); nothing was exported. Report this "
                "with the versions of tensorflow and of the TFLite runtime"
            )
    return differences


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
