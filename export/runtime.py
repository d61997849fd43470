"""One `.tflite` file in whichever TFLite runtime is installed; NumPy is all else it needs."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

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


def installed() -> list[str]:
    """The runtimes that are installed, by the names that `find_runtime` takes."""
    return [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Output(NamedTuple):
    """One output of a model.

    Attributes:
        index: for `TfliteModel.read`.
        kind: of NumPy: `i` an integer, `u` a uint8, `f` a float.
        shape: with the batch of 1.
    """

    index: int
    kind: str
    shape: tuple[int, ...]


class TfliteModel:
    """A loaded model that takes one image, or the features of one, at a time.

    Args:
        path: the `.tflite` file.
        threads: of the runtime.
        runtime: see `find_runtime`.

    Attributes:
        path: as given.
        input_shape: with the batch of 1.
        input_dtype: float32, or uint8 in a file of integers.
        outputs: what `invoke` computes.

    Raises:
        ModelError: the file cannot be loaded.
    """

    def __init__(self, path: pathlib.Path, threads: int = 1, runtime: str = "auto"):
        name = find_runtime(runtime)
        try:
            module = importlib.import_module(name)
        except (ImportError, AttributeError) as error:  # Built for another NumPy, for example.
            raise ModelError(
                f"{name} does not load ({_first_line(error)}); install it again, or remove it"
            ) from error
        try:
            interpreter = module.Interpreter(**self._source(path), num_threads=threads)
            interpreter.allocate_tensors()
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{path} cannot be loaded by {name} ({_first_line(error)}); export it again, or "
                "install a newer runtime"
            ) from error
        self.path = path
        details = interpreter.get_input_details()[0]
        self.input_shape = tuple(int(size) for size in details["shape"])
        self.input_dtype = np.dtype(details["dtype"])
        self.outputs = tuple(
            Output(int(item["index"]), np.dtype(item["dtype"]).kind, tuple(map(int, item["shape"])))
            for item in interpreter.get_output_details()
        )
        self._input = details["index"]
        self._interpreter = interpreter

    def _source(self, path: pathlib.Path) -> dict[str, Any]:
        """What the runtime is told to load."""
        return {"model_path": str(path)}

    def find(self, kind: str, rank: int | None = None) -> Output | None:
        """The first output of a kind, and of as many axes as `rank`; None if there is none."""
        for output in self.outputs:
            if output.kind == kind and rank in (None, len(output.shape)):
                return output
        return None

    def output(self, kind: str, rank: int | None = None) -> Output:
        """As `find`.

        Raises:
            ModelError: the file has none.
        """
        found = self.find(kind, rank)
        if found is None:
            axes = "" if rank is None else f" with {rank} axes"
            raise ModelError(f"the model has no output of kind {kind!r}{axes}; export it again")
        return found

    def invoke(self, image: np.ndarray) -> None:
        """Runs the model on an array of its shape and dtype; then `read` what is wanted."""
        self._interpreter.set_tensor(self._input, image)
        self._interpreter.invoke()

    def read(self, index: int) -> np.ndarray:
        """A copy of the output with this `Output.index`, as the last `invoke` left it."""
        return self._interpreter.get_tensor(index)

    def run_one(self, image: np.ndarray, index: int) -> np.ndarray:
        """`invoke`, then `read`."""
        self._interpreter.set_tensor(self._input, image)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(index)

    def run_named(self, inputs: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, through the file's signature; slower than `run_one`.

        Args:
            inputs: by name, or of the only one; converted to what the file takes.
        """
        runner = self._interpreter.get_signature_runner()
        wanted = runner.get_input_details()
        if not isinstance(inputs, Mapping):
            inputs = dict.fromkeys(wanted, inputs)
        given = {name: inputs[name].astype(item["dtype"]) for name, item in wanted.items()}
        return {name: np.array(values) for name, values in runner(**given).items()}
