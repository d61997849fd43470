"""A Keras model becomes a `.tflite` file, and the file is run and compared."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.lite.python.convert_phase import ConverterError
from tqdm import tqdm

from export import flatbuffer, worker
from instanas_tf import files
from instanas_tf.errors import ModelError

# The shape of the only input, of floats, or what each of them is by name.
Inputs = Sequence[int] | Mapping[str, tf.TensorSpec]
FLOAT_TOLERANCE = 1e-4  # Of outputs, relative to their largest absolute value (at least 1).


def to_tflite(
    model: keras.Model,
    inputs: Inputs,
    output: str = "probabilities",
) -> bytes:
    """Converts a model for inputs of fixed shapes, built-in ops only.

    The file has one signature, `flatbuffer.SIGNATURE`, which keeps the names of inputs and
    outputs.

    Args:
        model: its call takes `training`; one output, or a dict of outputs that differ in kind
            (integer or float) or in the number of axes, by which alone the file's tensors tell
            them.
        inputs: shape with the batch of a float32 input, such as (1, 32, 32, 3), whose name is
            that of the model's own if that is `features`, else `images`; or name -> shape and
            type, for a model that takes a dict if there are several.
        output: name of a single output.

    Raises:
        ModelError: the converter cannot express the model.
    """
    if not isinstance(inputs, Mapping):
        inputs = {_input_name(model): tf.TensorSpec(tuple(inputs), tf.float32)}
    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()}

    @tf.function(input_signature=[specs])
    def serve(values):
        given = values if len(values) > 1 else next(iter(values.values()))
        outputs = model(given, training=False)
        return outputs if isinstance(outputs, dict) else {output: outputs}

    function = serve.get_concrete_function()
    converter = _converter(function)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        content = converter.convert()
    except (ConverterError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{model.name} cannot be converted ({reason})") from error
    # The converter writes a signature for a SavedModel alone, and orders outputs by their names.
    return flatbuffer.sign(content, sorted(specs), sorted(function.structured_outputs))


def _input_name(model: keras.Model) -> str:
    """`features` for a model that goes on from a front, else `images`."""
    names = [tensor.name for tensor in getattr(model, "inputs", None) or ()]
    return "features" if names == ["features"] else "images"


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
    """Outputs [n, ...] of a model by name, a single one as `output`.

    Args:
        model: as for `to_tflite`.
        images: what it takes: raw pixels [n, H, W, 3], or features [n, h, w, c].
    """
    outputs = model(tf.constant(images, tf.float32), training=False)
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
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


def write_models(
    models: dict[str, keras.Model], folder: pathlib.Path, inputs: Mapping[str, Inputs]
) -> dict[str, pathlib.Path]:
    """Converts models into `folder`, with a progress bar.

    Args:
        models: name -> model.
        folder: where `NAME.tflite` goes.
        inputs: name -> what it takes; see `to_tflite`.

    Returns:
        Name -> path.
    """
    paths = {}
    for name, model in tqdm(models.items(), desc="converting", unit="model", disable=None):
        paths[name] = folder / f"{name}.tflite"
        files.write_bytes(paths[name], to_tflite(model, inputs[name]))
    return paths
