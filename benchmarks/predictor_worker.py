"""Times a predictor beside the bare calls of its runtime; a process without TensorFlow.

    python -m benchmarks.predictor_worker RUNTIME ROUNDS IMAGES SEED FOLDER ...

A first predictor is watched: which interpreters it sets, invokes and reads, in which order and
with which arrays. A second one of the same export is timed, and so are the same calls on the
same interpreters, one after the other with nothing in between. The last line is one JSON object:
for each folder's name the figures that `predictor_overhead.py` explains.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from export.predictor import Predictor
from export.runtime import find_runtime

WARM_UP_PASSES = 5


class Call(NamedTuple):
    """One call of an interpreter.

    Attributes:
        interpreter: its number, in the order in which they were made.
        name: of the method.
        arguments: of the method.
    """

    interpreter: int
    name: str
    arguments: tuple[Any, ...]


@contextlib.contextmanager
def replaced(module: Any, made: list[Any], calls: list[Call] | None) -> Iterator[None]:
    """Puts a class of interpreters that are listed, and watched if wanted, into a runtime.

    Args:
        module: of the runtime.
        made: gets every interpreter.
        calls: gets every call that moves data or computes; None: nothing is watched.
    """
    original = module.Interpreter

    class Listed(original):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            source = arguments[0] if arguments else options.get("model_path", "")
            self.file = pathlib.Path(source).name if isinstance(source, str) else ""
            self.number = len(made)
            made.append(self)

    class Watched(Listed):
        def set_tensor(self, index, value):
            calls.append(Call(self.number, "set_tensor", (index, np.array(value))))
            super().set_tensor(index, value)

        def invoke(self):
            calls.append(Call(self.number, "invoke", ()))
            super().invoke()

        def get_tensor(self, index):
            calls.append(Call(self.number, "get_tensor", (index,)))
            return super().get_tensor(index)

    module.Interpreter = Listed if calls is None else Watched
    try:
        yield
    finally:
        module.Interpreter = original


def watch(module: Any, folder: pathlib.Path, runtime: str, images: np.ndarray) -> list[list[Call]]:
    """The calls that a predictor makes for each image.

    Raises:
        RuntimeError: it computes by other methods than those that are watched.
    """
    calls: list[Call] = []
    found = []
    with replaced(module, [], calls):
        predictor = Predictor(folder, runtime=runtime)
        for image in images:
            calls.clear()
            predictor.predict(image)
            found.append(list(calls))
    if not all(any(call.name == "invoke" for call in one) for one in found):
        raise RuntimeError("the predictor computes by other methods than `Interpreter.invoke`")
    return found


def replay(calls: list[Call], interpreters: list[Any]) -> Callable[[], None]:
    """A function that makes these calls and nothing else."""
    steps = [(getattr(interpreters[call.interpreter], call.name), call.arguments) for call in calls]

    def run() -> None:
        for method, arguments in steps:
            method(*arguments)

    return run


def measure(
    folder: pathlib.Path, runtime: str, rounds: int, count: int, seed: int
) -> dict[str, float]:
    """Overheads of an export's predictor.

    Args:
        folder: of the export.
        runtime: see `export.runtime.find_runtime`.
        rounds: how often each image is timed.
        count: number of images, uint8 noise.
        seed: of the images and of the order.

    Returns:
        Shares, such as 0.05 for 5 %, and `bare_ms`.
    """
    generator = np.random.default_rng(seed)
    module = importlib.import_module(find_runtime(runtime))
    shape = Predictor(folder, runtime=runtime).image_shape
    images = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    watched = watch(module, folder, runtime, images)
    made: list[Any] = []
    with replaced(module, made, None):
        predictor = Predictor(folder, runtime=runtime)
        for image in images:
            predictor.predict(image)
    tasks = {("batch", 0): lambda: predictor.predict(images)}
    for number, (image, calls) in enumerate(zip(images, watched, strict=True)):
        invokes = [call for call in calls if call.name == "invoke"]
        tasks["predict", number] = lambda image=image: predictor.predict(image)
        tasks["bare", number] = replay(calls, made)
        tasks["invoke", number] = replay(invokes, made)
    seconds = time_all(tasks, rounds, generator)

    def total(kind: str) -> float:
        return sum(value for (name, _), value in seconds.items() if name == kind)

    return {
        "overhead": total("predict") / total("bare") - 1.0,
        "overhead_batch": total("batch") / total("bare") - 1.0,
        "overhead_over_invoke": total("predict") / total("invoke") - 1.0,
        "overhead_us": (total("predict") - total("bare")) / count * 1e6,
        "bare_ms": total("bare") / count * 1e3,
    }


def time_all(
    tasks: dict[Any, Callable[[], Any]], rounds: int, generator: np.random.Generator
) -> dict[Any, float]:
    """Median seconds of each task over rounds that visit all in a fresh random order.

    Seconds of this thread, which is the only one at work: what others take from it does not count.
    """
    names = list(tasks)
    found = np.zeros((rounds, len(names)))
    for number in range(-WARM_UP_PASSES, rounds):
        for index in generator.permutation(len(names)).tolist():
            task = tasks[names[index]]
            start = time.thread_time()
            task()
            found[max(number, 0), index] = time.thread_time() - start
    return dict(zip(names, np.median(found, axis=0).tolist(), strict=True))


def main(argv: list[str]) -> int:
    """Measures all folders and prints the JSON object."""
    runtime, rounds, count, seed, *folders = argv[1:]
    paths = [pathlib.Path(folder) for folder in folders]
    found = {
        path.name: measure(path, runtime, int(rounds), int(count), int(seed)) for path in paths
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
