"""Runs `.tflite` files in a process of its own, since runtimes and TensorFlow do not mix.

    python -m export.worker JOB.json

The parent's functions (`outputs`, `answers`, `timings`) write the job and its arrays to a temporary
folder, start the process and read the arrays that it leaves.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from export.bundled import SignatureModel
from export.routed import Routed, Rules
from export.runtime import TfliteModel
from instanas_tf import children
from instanas_tf.errors import CommandError, InputError, InstanasError, ModelError

_ONLY = "images"  # Name of the array where there is one input, whatever files call it.
WARM_UP_RUNS = 20  # The first runs of a model are slower.


@dataclasses.dataclass(frozen=True)
class System:
    """Something that answers for an image: one file, or experts with rules.

    Attributes:
        name: of the system.
        models: its one file, or its experts from cheap to dear.
        controller: the file that runs before the experts; None if there is none.
        rules: which experts run; None: the controller names one, or, without a controller,
            the system is a single file.

    Raises:
        ValueError: the parts are not those that the rules speak of.
    """

    name: str
    models: tuple[pathlib.Path, ...]
    controller: pathlib.Path | None = None
    rules: Rules | None = None

    def __post_init__(self):
        if self.rules is None and self.controller is not None:
            object.__setattr__(self, "rules", Rules.named(len(self.models)))
        if self.rules is not None:
            self.rules.require_parts(self.controller is not None, len(self.models))
        elif len(self.models) != 1:
            raise ValueError(
                f"`rules` must be given for a system of several files. Received: {self}"
            )

    def to_json(self) -> dict[str, Any]:
        """For a job."""
        return {
            "name": self.name,
            "controller": str(self.controller) if self.controller else None,
            "models": [str(path) for path in self.models],
            "rules": self.rules.to_json("job") if self.rules else None,
        }


def outputs(
    paths: dict[str, pathlib.Path], images: np.ndarray, runtime: str = "auto"
) -> dict[str, np.ndarray]:
    """First float output of every file for every image.

    Args:
        paths: name -> file.
        images: what the files take: raw pixels [n, H, W, 3], or features [n, h, w, c].
        runtime: see `export.runtime.find_runtime`.

    Returns:
        Name -> [n, ...].

    Raises:
        InstanasError: a file fails (exit code 5), or no runtime is installed.
    """
    return _run(_files_job("outputs", paths, runtime), images)


def every_output(
    paths: Mapping[str, pathlib.Path],
    inputs: np.ndarray | Mapping[str, np.ndarray],
    runtime: str = "auto",
    bundle: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """All outputs of every file for every row of the inputs.

    Args:
        paths: name -> file.
        inputs: what the files take: raw pixels [n, H, W, 3], features [n, h, w, c], or all
            inputs by name.
        runtime: see `export.runtime.find_runtime`.
        bundle: the files are bundles, of which the signatures run that are called like `paths`.

    Returns:
        Name -> name of the output -> [n, ...].

    Raises:
        InstanasError: a file fails (exit code 5), or no runtime is installed.
    """
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in paths}
    job = _files_job("every_output", paths, runtime) | {"bundle": bundle}
    for key, rows in _run(job, inputs).items():
        name, _, output = key.rpartition("/")
        found[name][output] = rows
    return found


def answers(
    systems: Sequence[System], images: np.ndarray, runtime: str = "auto"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What every system says of every image.

    Args:
        systems: their names differ.
        images: raw pixels [n, H, W, 3].
        runtime: see `export.runtime.find_runtime`.

    Returns:
        Name -> (class int [n], which experts ran bool [n, E]). E of a single file is 1.

    Raises:
        InstanasError: a file fails (exit code 5), or no runtime is installed.
        InputError: a system's files are not what its rules speak of.
    """
    job = {
        "task": "answers",
        "runtime": runtime,
        "threads": 1,
        "systems": [system.to_json() for system in systems],
    }
    found = _run(job, images)
    return {
        system.name: (found[f"classes_{index}"], found[f"ran_{index}"])
        for index, system in enumerate(systems)
    }


def timings(
    systems: Sequence[System],
    images: np.ndarray,
    *,
    rounds: int,
    seed: int,
    threads: int = 1,
    runtime: str = "auto",
) -> dict[str, np.ndarray]:
    """Latency of each system on each image, all in one process and interleaved.

    Each round visits the images in order; for each image all systems run in a fresh random
    order, so that drift and disturbance meet all alike.

    Args:
        systems: what is compared.
        images: raw pixels [n, H, W, 3].
        rounds: passes over the images.
        seed: of the order.
        threads: of the runtime.
        runtime: see `export.runtime.find_runtime`.

    Returns:
        Name -> milliseconds [rounds, n], from setting the input to what says the class.

    Raises:
        InstanasError: a file fails (exit code 5), or no runtime is installed.
    """
    job = {
        "task": "timings",
        "runtime": runtime,
        "threads": threads,
        "rounds": rounds,
        "seed": seed,
        "systems": [system.to_json() for system in systems],
    }
    return _run(job, images)


def _files_job(task: str, paths: Mapping[str, pathlib.Path], runtime: str) -> dict[str, Any]:
    models = {name: str(path) for name, path in paths.items()}
    return {"task": task, "runtime": runtime, "models": models}


def _run(
    job: dict[str, Any], inputs: np.ndarray | Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Runs a job in a subprocess."""
    arrays = inputs if isinstance(inputs, Mapping) else {_ONLY: inputs}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        np.savez(root / "inputs.npz", **arrays)
        (root / "job.json").write_text(json.dumps(job), encoding="utf-8")
        done = children.run_module("export.worker", str(root / "job.json"))
        if done.returncode != 0:
            raise _failure(done)
        with np.load(root / "outputs.npz", allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _failure(done: subprocess.CompletedProcess) -> InstanasError:
    """The error that a worker ended with; a crash names its last line."""
    prefix = "export.worker: "
    lines = done.stderr.strip().splitlines()
    said = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    if said:
        return CommandError(said[-1], done.returncode)
    last = lines[-1] if lines else "it said nothing"
    return ModelError(f"the TFLite runtime ended with exit code {done.returncode} ({last})")


def _outputs_task(job: dict[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for name, path in job["models"].items():
        model = TfliteModel(pathlib.Path(path), runtime=job["runtime"])
        index = (model.find("u", 2) or model.output("f")).index
        rows = [model.run_one(image, index) for image in _rows(images, model.input_dtype)]
        found[name] = np.concatenate(rows)
    return found


def _every_output_task(
    job: dict[str, Any], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {}
    for name, path in job["models"].items():
        if job["bundle"]:
            model = SignatureModel(pathlib.Path(path), name, runtime=job["runtime"])
        else:
            model = TfliteModel(pathlib.Path(path), runtime=job["runtime"])
        for row in range(len(next(iter(inputs.values())))):
            given = {key: values[row : row + 1] for key, values in inputs.items()}
            if _ONLY in given:
                outputs = model.run_named(given[_ONLY])
            else:
                outputs = model.run_named(given)
            for output, values in outputs.items():
                found.setdefault(f"{name}/{output}", []).append(values)
    return {key: np.concatenate(rows) for key, rows in found.items()}


def _answers_task(job: dict[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    load = _loader(job)
    found = {}
    for number, system in enumerate(job["systems"]):
        routed = _routed(system, load)
        classes = np.zeros(len(images), int)
        ran = np.zeros((len(images), len(system["models"])), bool)
        for position, image in enumerate(_rows(images, routed.image_dtype)):
            votes, experts = routed.vote(image)
            classes[position] = votes.argmax()
            ran[position, list(experts)] = True
        found |= {f"classes_{number}": classes, f"ran_{number}": ran}
    return found


def _timings_task(job: dict[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    load = _loader(job)
    runs, dtypes = [], []
    for system in job["systems"]:  # Rules may leave out some models on the first images.
        for path in filter(None, (system["controller"], *system["models"])):
            model = load(path)
            for _ in range(WARM_UP_RUNS):
                model.invoke(np.zeros(model.input_shape, model.input_dtype))
        if system["rules"]:
            routed = _routed(system, load)
            runs.append(routed.vote)
            dtypes.append(routed.image_dtype)
        else:
            model = load(system["models"][0])
            runs.append(_single(model))
            dtypes.append(model.input_dtype)
    generator = np.random.default_rng(job["seed"])
    measured = np.zeros((len(runs), job["rounds"], len(images)))
    for image in images[:WARM_UP_RUNS]:
        for run, dtype in zip(runs, dtypes, strict=True):
            run(image[None].astype(dtype))
    for round_index in range(job["rounds"]):
        for position, image in enumerate(images):
            batches = {dtype: image[None].astype(dtype) for dtype in set(dtypes)}
            for system in generator.permutation(len(runs)):
                batch = batches[dtypes[system]]
                start = time.perf_counter()
                runs[system](batch)
                measured[system, round_index, position] = time.perf_counter() - start
    return {system["name"]: measured[index] * 1e3 for index, system in enumerate(job["systems"])}


def _rows(images: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Images one by one, each as a batch of 1."""
    return (image[None].astype(dtype) for image in images)


def _loader(job: dict[str, Any]) -> Callable[[str], TfliteModel]:
    """Loads a file for all systems that share it."""
    return functools.cache(
        lambda path: TfliteModel(pathlib.Path(path), job["threads"], job["runtime"])
    )


def _routed(system: dict[str, Any], load: Callable[[str], TfliteModel]) -> Routed:
    front = load(system["controller"]) if system["controller"] else None
    try:
        rules = Rules.from_json(system["rules"]) if system["rules"] else Rules(0, (-1,), (0.0,))
        return Routed(front, [load(path) for path in system["models"]], rules)
    except ValueError as error:
        raise InputError(f"{system['name']}: {error}") from error


def _single(model: TfliteModel) -> Callable[[np.ndarray], np.ndarray]:
    index = (model.find("u", 2) or model.output("f")).index
    return lambda image: model.run_one(image, index)


TASKS = {
    "outputs": _outputs_task,
    "answers": _answers_task,
    "timings": _timings_task,
}


def main(argv: Sequence[str]) -> int:
    """Runs one job; 0, or the exit code of what went wrong."""
    job_path = pathlib.Path(argv[1])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    with np.load(job_path.parent / "inputs.npz", allow_pickle=False) as content:
        inputs = {name: content[name] for name in content.files}
    try:
        if job["task"] == "every_output":
            found = _every_output_task(job, inputs)
        else:
            found = TASKS[job["task"]](job, inputs[_ONLY])
    except InstanasError as error:
        sys.stderr.write(f"export.worker: {error}\n")
        return error.exit_code
    np.savez(job_path.parent / "outputs.npz", **found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
