"""One `.tflite` file in whichever TFLite runtime is installed; NumPy is all else it needs."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib

import numpy as np

from instanas_tf.errors import InputError, ModelError

RUNTIMES = {
    "tflite_runtime": "tflite_runtime.interpreter",
    "ai_edge_litert": "ai_edge_litert.interpreter",
}


def find_runtime(name: str = "auto") -> str:
    """The module of an installed runtime.

    Args:
        name: `auto` for the first that is installed, or one of `RUNTIMES`.

    Raises:
        InputError: an unknown name.
        ModelError: it is not installed; says what to install.
    """
    if name != "auto" and name not in RUNTIMES:
        raise InputError(f"runtime must be auto or one of {sorted(RUNTIMES)}. Received: {name!r}")
    for package in RUNTIMES if name == "auto" else (name,):
        if importlib.util.find_spec(package) is not None:
            return RUNTIMES[package]
    wanted = "a TFLite runtime" if name == "auto" else name
    raise ModelError(
        f"{wanted} is not installed; pip install tflite-runtime (Linux, Python up to 3.11) or "
        "pip install ai-edge-litert"
    )


class TfliteModel:
    """A loaded model that takes one image at a time.

    Args:
        path: the `.tflite` file.
        threads: of the runtime.
        runtime: see `find_runtime`.

    Raises:
        ModelError: the file cannot be loaded.
    """

    def __init__(self, path: pathlib.Path, threads: int = 1, runtime: str = "auto"):
        module = importlib.import_module(find_runtime(runtime))
        try:
            self._interpreter = module.Interpreter(str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                f"{path} cannot be loaded ({str(error).splitlines()[0]}); export it again"
            ) from error
        self._input = self._interpreter.get_input_details()[0]
        self._outputs = self._interpreter.get_output_details()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input, with the batch of 1."""
        return tuple(int(size) for size in self._input["shape"])

    def output_index(self, kind: str) -> int:
        """Index of the first output of a NumPy kind: `i` an integer, `f` a float.

        Raises:
            ModelError: the file has none.
        """
        for output in self._outputs:
            if np.dtype(output["dtype"]).kind == kind:
                return int(output["index"])
        raise ModelError(f"the model has no output of kind {kind!r}; export it again")

    def output_width(self, kind: str) -> int:
        """Size of the last axis of the first output of a kind; see `output_index`."""
        index = self.output_index(kind)
        shape = next(item["shape"] for item in self._outputs if item["index"] == index)
        return int(shape[-1])

    def run_one(self, image: np.ndarray, output_index: int) -> np.ndarray:
        """One output, by `output_index`, for one float32 image [1, H, W, 3]."""
        self._interpreter.set_tensor(self._input["index"], image)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(output_index)
