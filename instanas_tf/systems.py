"""Variants as the files that ship, and what they take end to end.

Parts are measured alone, in a loop. In a variant they take turns, so none of them finds its
weights in the cache, and something decides between them: a variant takes longer than the sum
of its parts. By how much is measured here, on images of the validation split.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

from export import convert, deploy, graphs, worker
from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.models.expert import static_network
from instanas_tf.pipeline import decide, evaluate, variants
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.spaces.space import SearchSpace

Measuring = Callable[[], contextlib.AbstractContextManager]
_REFERENCE = "reference"
_REMEDY = "delete it and run --stage=route again"


def system(
    variant: variants.Variant,
    paths: dict[str, pathlib.Path],
    folder: pathlib.Path,
    images: np.ndarray,
    runtime: str,
) -> tuple[worker.System, worker.System | None]:
    """A variant as it ships, and its front alone; what is not yet converted is, and checked.

    Args:
        variant: of a run.
        paths: files of the run's whole experts by name.
        folder: where files are written.
        images: raw pixels [n, H, W, 3] on which files are compared with Keras.
        runtime: see `export.runtime.find_runtime`.

    Raises:
        ModelError: a file answers something else than Keras.
    """
    deployed = deploy.deploy(variant)
    own = {
        f"{variant.name}_{name}": (name, model)
        for name, model in deployed.models.items()
        if name == deploy.CONTROLLER or deployed.feature_shape is not None
    }
    models = {key: model for key, (_, model) in own.items()}
    size = variant.space.image_size
    inputs = {key: deployed.inputs(name, size) for key, (name, _) in own.items()}
    made = convert.write_models(models, folder, inputs)
    name = f"{variant.name}_{deploy.CONTROLLER}"
    front = made.get(name)
    if front is not None:
        convert.check({name: models[name]}, {name: front}, images, runtime)
    tails = {key: model for key, model in models.items() if "features" in inputs[key]}
    if tails:
        features = convert.outputs_of(deployed.front, images)["features"]
        convert.check(tails, {key: made[key] for key in tails}, features, runtime)
    experts = tuple(made.get(f"{variant.name}_{n}", paths[n]) for n in variant.expert_names)
    whole = worker.System(variant.name, experts, front, deployed.rules)
    return whole, worker.System(name, (front,)) if front else None


class Stopwatch:
    """Times variants as a whole, beside the reference network and in turn with it.

    A variant that was timed before is not timed again; see `systems.json` in the folder of
    the parts.

    Args:
        content: of the experts, as in `experts.json`.
        config: of the run; as many images and rounds as in the evaluation.
        measured: latencies of the parts.
        pixels: of the validation split, [n, H, W, 3].
        workdir: of the run.
        measuring: makes a context that is held while something is timed.
    """

    CHECK_IMAGES = 4

    def __init__(
        self,
        content: dict[str, Any],
        config: ConfigDict,
        measured: decide.Measured,
        pixels: np.ndarray,
        workdir: WorkDir,
        measuring: Measuring = contextlib.nullcontext,
    ):
        self.content, self.config, self.measured = content, config, measured
        self.workdir, self.measuring = workdir, measuring
        count = min(len(pixels), config.evaluate.timed_images)
        self.picked = np.unique(np.linspace(0, len(pixels) - 1, count, dtype=int))
        self.pixels = pixels[self.picked]
        self.path = workdir.parts / "systems.json"
        self.known = _known(self.path)

    def overheads(
        self, entries: list[dict[str, Any]], chosen: list[decide.Candidate]
    ) -> list[float]:
        """What each variant takes end to end, divided by the sum of its parts.

        Both are shares of the reference network, measured in the same process.

        Args:
            entries: of `experts.json`; their names differ.
            chosen: what they were made from.

        Raises:
            InstanasError: a file fails.
        """
        keys = [_key(entry) for entry in entries]
        fresh = [e for e, key in zip(entries, keys, strict=True) if key not in self.known]
        if fresh:
            self._time(fresh)
        found = []
        for key, candidate in zip(keys, chosen, strict=True):
            parts_ms = decide.costs_ms(candidate, self.measured)[self.picked].mean()
            found.append(self.known[key] / (parts_ms / self.measured.reference))
        return found

    def _time(self, entries: list[dict[str, Any]]) -> None:
        """Times some variants and writes down what share of the reference they take."""
        with tempfile.TemporaryDirectory(prefix="systems") as temporary:
            folder = pathlib.Path(temporary)
            runtime = self.config.latency.runtime
            models = self._models(entries)
            size = self.pixels.shape[1]
            paths = convert.write_models(models, folder, {n: (1, size, size, 3) for n in models})
            systems = [worker.System(_REFERENCE, (paths[_REFERENCE],))]
            for entry in entries:
                variant = variants.Variant(entry, self.content, self.workdir)
                checked = self.pixels[: self.CHECK_IMAGES]
                systems.append(system(variant, paths, folder, checked, runtime)[0])
            with self.measuring():
                timed = worker.timings(
                    systems,
                    self.pixels,
                    rounds=self.config.evaluate.rounds,
                    seed=self.config.seed,
                    threads=self.config.latency.threads,
                    runtime=runtime,
                )
        ms = {name: evaluate.mean_latency_ms(rows) for name, rows in timed.items()}
        for entry in entries:
            self.known[_key(entry)] = ms[entry["name"]] / ms[_REFERENCE]
        files.write_json(self.path, self.known)

    def _models(self, entries: list[dict[str, Any]]) -> dict[str, keras.Model]:
        """The reference network and the whole experts that some variants may run."""
        content = self.content
        space = SearchSpace.from_json(content["space"])
        policy = space.single_op_policy(space.reference_op)
        indices = sorted({index for entry in entries for index in entry["experts"]})
        networks = {_REFERENCE: static_network(space, policy, content["mean"], content["std"])}
        for index in indices:
            networks[variants.expert_name(index)] = variants.expert(index, content, self.workdir)
        return {name: graphs.Classifier(network) for name, network in networks.items()}


def _key(entry: dict[str, Any]) -> str:
    """The same for entries that run the same parts by the same rules."""
    return files.digest([entry[name] for name in ("experts", "routing", "controller", "biases")])


def _known(path: pathlib.Path) -> dict[str, float]:
    """What was timed before, by the key of the variant.

    Raises:
        InputError: the file is damaged.
    """
    found = files.read_json(path, _REMEDY) if path.exists() else {}
    numbers = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(ratio, float) and ratio > 0 for ratio in numbers):
        raise InputError(f"{path} is damaged (no shares above 0 by name); {_REMEDY}")
    return found
