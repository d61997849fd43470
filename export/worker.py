"""Runs `.tflite` files in a process of its own, since runtimes and TensorFlow do not mix.

    python -m export.worker JOB.json

The parent's functions (`outputs`, `timings`) write the job and its arrays to a temporary
folder, start the process and read the arrays that it leaves.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from export.predictor import Routed
from export.runtime import TfliteModel
from instanas_tf import children
from instanas_tf.errors import CommandError, InstanasError, ModelError


@dataclasses.dataclass(frozen=True)
class System:
    """Something that answers for an image: one file, or a controller with experts.

    Attributes:
        name: of the system.
        models: its one file, or its experts.
        controller: None for a single file.
    """

    name: str
    models: tuple[pathlib.Path, ...]
    controller: pathlib.Path | None = None


def outputs(
    paths: dict[str, pathlib.Path], images: np.ndarray, runtime: str = "auto"
) -> dict[str, np.ndarray]:
    """First float output of every file for every image.

    Args:
        paths: name -> file.
        images: raw pixels [n, H, W, 3].
        runtime: see `export.runtime.find_runtime`.

    Returns:
        Name -> [n, ...].

    Raises:
        InstanasError: a file fails (exit code 5), or no runtime is installed.
    """
    job = {
        "task": "outputs",
        "runtime": runtime,
        "models": {name: str(path) for name, path in paths.items()},
    }
    return _run(job, images)


def choices(controllers: dict[str, pathlib.Path], images: np.ndarray, runtime: str = "auto"):
    """Index of the expert that each controller names for each image: name -> int [n]."""
    job = {
        "task": "choices",
        "runtime": runtime,
        "models": {name: str(path) for name, path in controllers.items()},
    }
    return _run(job, images)


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
        Name -> milliseconds [rounds, n], from setting the input to reading the logits.

    Raises:
        InstanasError: a file fails (exit code 5), or no runtime is installed.
    """
    job = {
        "task": "timings",
        "runtime": runtime,
        "threads": threads,
        "rounds": rounds,
        "seed": seed,
        "systems": [
            {
                "name": system.name,
                "controller": str(system.controller) if system.controller else None,
                "models": [str(path) for path in system.models],
            }
            for system in systems
        ],
    }
    return _run(job, images)


def _run(job: dict[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    """Runs a job in a subprocess."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        np.save(root / "images.npy", images)
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
    kind = "i" if job["task"] == "choices" else "f"
    found = {}
    for name, path in job["models"].items():
        model = TfliteModel(pathlib.Path(path), runtime=job["runtime"])
        index = model.output_index(kind)
        rows = [model.run_one(image[None].astype(np.float32), index) for image in images]
        found[name] = np.concatenate(rows)
    return found


def _timings_task(job: dict[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    loaded: dict[str, TfliteModel] = {}

    def load(path: str) -> TfliteModel:
        if path not in loaded:
            loaded[path] = TfliteModel(pathlib.Path(path), job["threads"], job["runtime"])
        return loaded[path]

    runs = []
    for system in job["systems"]:
        models = [load(path) for path in system["models"]]
        if system["controller"]:
            runs.append(Routed(load(system["controller"]), models).run)
        else:
            runs.append(_single(models[0]))
    generator = np.random.default_rng(job["seed"])
    measured = np.zeros((len(runs), job["rounds"], len(images)))
    for image in images[:20]:  # Warm-up: the first runs of a model are slower.
        for run in runs:
            run(image[None].astype(np.float32))
    for round_index in range(job["rounds"]):
        for position, image in enumerate(images):
            batch = image[None].astype(np.float32)
            for system in generator.permutation(len(runs)):
                start = time.perf_counter()
                runs[system](batch)
                measured[system, round_index, position] = time.perf_counter() - start
    return {system["name"]: measured[index] * 1e3 for index, system in enumerate(job["systems"])}


def _single(model: TfliteModel):
    index = model.output_index("f")
    return lambda image: model.run_one(image, index)


TASKS = {"outputs": _outputs_task, "choices": _outputs_task, "timings": _timings_task}


def main(argv: Sequence[str]) -> int:
    """Runs one job; 0, or the exit code of what went wrong."""
    job_path = pathlib.Path(argv[1])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    images = np.load(job_path.parent / "images.npy", allow_pickle=False)
    try:
        found = TASKS[job["task"]](job, images)
    except InstanasError as error:
        sys.stderr.write(f"export.worker: {error}\n")
        return error.exit_code
    np.savez(job_path.parent / "outputs.npz", **found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
