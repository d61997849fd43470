"""A Keras model becomes a `.tflite` file, and the file is run and compared."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.lite.python.convert_phase import ConverterError
from tqdm import tqdm

from export import flatbuffer, tolerances, worker
from export.quantize import Quantization
from export.tolerances import TOLERANCES, Tolerance, differs
from instanas_tf import files, startup
from instanas_tf.errors import ModelError

# The shape of the only input, of floats, or what each of them is by name.
Inputs = Sequence[int] | Mapping[str, tf.TensorSpec]


def to_tflite(
    model: keras.Model,
    inputs: Inputs,
    quantization: Quantization | None = None,
    output: str = "probabilities",
) -> bytes:
    """Converts a model for inputs of fixed shapes, built-in ops only.

    The file has one signature, `flatbuffer.SIGNATURE`, which keeps the names of inputs and
    outputs.

    Args:
        model: its call takes `training`; one output, or a dict of outputs.
        inputs: shape with the batch of a float32 input, such as (1, 32, 32, 3), whose name is
            that of the model's own if that is `features`, else `images`; or name -> shape and
            type, for a model that takes a dict if there are several.
        quantization: how it is quantised, with this model's inputs; None: not at all.
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
    gives = sorted(function.structured_outputs)
    (quantization or Quantization()).configure(converter, next(iter(specs)), gives)
    try:
        with startup.quiet_stderr(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Statistics for quantized inputs")  # From images.
            content = converter.convert()
    except (ConverterError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{model.name} cannot be converted ({reason}); use layers that TFLite has ops for"
        ) from error
    # The converter writes a signature for a SavedModel alone, and orders outputs by their names.
    return flatbuffer.sign(content, sorted(specs), gives)


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


def outputs_of(
    model: keras.Model, inputs: np.ndarray | Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Outputs [n, ...] of a model by name, a single one as `probabilities`.

    Args:
        model: as for `to_tflite`.
        inputs: raw pixels [n, H, W, 3], features [n, h, w, c], or all inputs by name.
    """
    if isinstance(inputs, Mapping):
        given = {name: tf.constant(values) for name, values in inputs.items()}
    else:
        given = tf.constant(inputs, tf.float32)
    outputs = model(given, training=False)
    outputs = outputs if isinstance(outputs, dict) else {"probabilities": outputs}
    return {name: np.asarray(values) for name, values in outputs.items()}


def check(
    models: Mapping[str, keras.Model],
    paths: Mapping[str, pathlib.Path],
    inputs: np.ndarray | Mapping[str, np.ndarray],
    runtime: str = "auto",
    mode: str = "none",
    bundle: bool = False,
) -> dict[str, Tolerance]:
    """Runs every file with a TFLite runtime, in a subprocess, and compares with Keras.

    Args:
        models: name -> model.
        paths: name -> its file.
        inputs: what the models take: raw pixels [n, H, W, 3], features [n, h, w, c], or all
            inputs by name.
        runtime: see `export.runtime.find_runtime`.
        mode: of quantisation; see `export.tolerances`.
        bundle: the files are bundles, of which the signatures are compared that are called
            like the models.

    Returns:
        Name -> the largest differences of a float output, and the smallest share of images
        with the same top class.

    Raises:
        ModelError: a file fails to run, lacks an output, or differs by more than its mode
            allows; or, without quantisation, names another expert where that does not account
            for it.
    """
    found = worker.every_output(paths, inputs, runtime, bundle)
    return {
        name: _compare(name, outputs_of(model, inputs), found[name], model, mode)
        for name, model in models.items()
    }


def _compare(
    name: str,
    expected: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    model: keras.Model,
    mode: str,
) -> Tolerance:
    if set(found) != set(expected):
        raise ModelError(
            f"{name}.tflite must have the outputs {sorted(expected)}. Received: {sorted(found)}; "
            "nothing was exported"
        )
    worst = [
        tolerances.compare(mode, values, found[key], name, key)
        for key, values in expected.items()
        if values.dtype.kind == "f"
    ]
    if "expert" in expected and mode == "none":
        _check_choice(name, expected["scores"] - model.biases, found["expert"])
    if "next" in expected and not np.array_equal(expected["next"], found["next"]):
        raise differs(name, "in the expert that follows (no difference is")
    return Tolerance(
        max((item.largest for item in worst), default=0.0),
        max((item.mean for item in worst), default=0.0),
        min((item.top_class for item in worst), default=1.0),
    )


def _check_choice(name: str, scores: np.ndarray, chosen: np.ndarray) -> None:
    """Refuses a choice that is worse than the best by more than both scores may be off."""
    tolerance = 2.0 * TOLERANCES["none"].largest * max(1.0, float(np.max(np.abs(scores))))
    count = scores.shape[1]
    for row, index in zip(scores, chosen, strict=True):
        if not 0 <= index < count or row[index] < np.max(row) - tolerance:
            raise differs(
                name, f"in its choice: expert {index}, not {np.argmax(row)} (only a tie is"
            )


def write_models(
    models: Mapping[str, keras.Model],
    folder: pathlib.Path,
    inputs: Mapping[str, Inputs],
    quantizations: Mapping[str, Quantization] | None = None,
) -> dict[str, pathlib.Path]:
    """Converts models into `folder`, with a progress bar.

    Args:
        models: name -> model.
        folder: where `NAME.tflite` goes.
        inputs: name -> what it takes; see `to_tflite`.
        quantizations: name -> how it is quantised, if it is.

    Returns:
        Name -> path.
    """
    paths = {}
    for name, model in tqdm(models.items(), desc="converting", unit="model", disable=None):
        paths[name] = folder / f"{name}.tflite"
        quantization = (quantizations or {}).get(name)
        files.write_bytes(paths[name], to_tflite(model, inputs[name], quantization))
    return paths
