"""What expert_count.py compares: the K experts that a finished search leaves, for any K.

Everything that takes long is kept in files, so that an interrupted command goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from export import convert, manifest
from export.bench import bench
from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.latency import LatencyTable
from instanas_tf.models.expert import build_expert, recalibrate, static_network
from instanas_tf.models.supernet import Supernet
from instanas_tf.pipeline import (
    callbacks,
    choice,
    config_files,
    data,
    decide,
    evaluate,
    finetune,
    fitting,
    yardstick,
)
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import cascades, medoids, schedules

REFERENCE = "reference"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose search is done.

    Attributes:
        config: of the run.
        images: its dataset.
        table: its latency table.
        supernet: with whatever weights were loaded last.
        workdir: of the run, read only.
        out: the folder that is written.
        say: told in a line what is going on.
    """

    config: ConfigDict
    images: data.ImageData
    table: LatencyTable
    supernet: Supernet
    workdir: WorkDir
    out: pathlib.Path
    say: Callable[[str], None]

    @functools.cached_property
    def batches(self) -> list[np.ndarray]:
        """What experts are recalibrated on."""
        return finetune.recalibration_batches(self.config, self.images)


@dataclasses.dataclass(frozen=True)
class Pool:
    """What experts are chosen among.

    Attributes:
        candidates: n different policies, and what each is worth.
        required: indices of those that are chosen where there is room for all of them.
    """

    candidates: medoids.Candidates
    required: tuple[int, ...]

    def choose(self, count: int) -> list[int]:
        """Indices of the K experts, from cheap to dear."""
        required = self.required if len(self.required) <= count else ()
        return medoids.choose_medoids(self.candidates, count, required=required).tolist()


def open_run(workdir: WorkDir, out: pathlib.Path, say: Callable[[str], None]) -> Run:
    """Reads a run; writes nothing.

    Args:
        workdir: of the run, whose search is done.
        out: the folder that will be written.
        say: told in a line what is going on.

    Raises:
        InputError: its config, dataset or latency table cannot be used.
    """
    config = config_files.from_json(workdir.config)
    images = data.load(config.data, config.seed)
    space = fitting.make_space(config, images.num_classes)
    table = LatencyTable.load(workdir.latency_table, space, config.controller.kind)
    return Run(config, images, table, fitting.make_supernet(config, images), workdir, out, say)


def judged_pool(run: Run, largest: int) -> Pool:
    """The candidates of the run, judged once for all K; the file `pool.json` keeps them.

    Raises:
        InputError: there are fewer than `largest`, or the file is of another search.
    """
    path, space = run.out / "pool.json", run.table.space
    made_of = [run.workdir.weights("search"), run.workdir.latency_table]
    origin = [files.sha256(source) for source in made_of]
    if not path.exists():
        epochs = list(range(1, run.config.search.epochs + 1))
        found = choice.visited(epochs, run.config, run.images, run.workdir)
        policies, wanted, required = choice.candidates(found, run.config, space)
        _check_largest(largest, len(policies))
        run.say(f"judging {len(policies)} policies")
        callbacks.load_weights(run.supernet, run.workdir.weights("search"))
        accuracy = choice.judge(run.supernet, policies, run.images.validation)
        latency_ms = np.asarray(run.table.static_ms(policies), float)
        content = {
            "origin": origin,
            "policies": [space.policy_names(policy) for policy in policies],
            "weights": choice.wanted(wanted, accuracy, latency_ms).tolist(),
            "accuracy": accuracy.tolist(),
            "latency_ms": latency_ms.tolist(),
            "required": [int(index) for index in required],
        }
        files.write_json(path, content)
    content = files.read_json(path, "choose another --out")
    try:
        numbers = [np.array(content[key]) for key in ("weights", "accuracy", "latency_ms")]
        policies = np.stack([space.policy_from_names(names) for names in content["policies"]])
        pool = Pool(medoids.Candidates(policies, *numbers), tuple(content["required"]))
        is_ours = content["origin"] == origin
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}); choose another --out") from error
    if not is_ours:
        raise InputError(f"{path} is of another search; delete {run.out} or choose another --out")
    _check_largest(largest, len(policies))
    return pool


def _check_largest(largest: int, candidates: int) -> None:
    if largest > candidates:
        raise InputError(
            f"--counts must be at most {candidates}, the different candidates that the search "
            f"left. Received: {largest}"
        )


def measure(run: Run, pool: Pool, indices: list[int]) -> dict[str, float]:
    """Milliseconds of the reference network and of some candidates, all measured in one go.

    Weights do not matter for latency, so each policy is converted once for all K and epochs.
    """
    out, folder, space = run.out / "measurements.jsonl", run.out / "tflite", run.table.space
    before = _medians(out) if out.exists() else {}
    wanted = {REFERENCE, *map(candidate_name, indices)}
    if wanted <= before.keys():
        return before
    wanted |= before.keys()  # Times of two goes are not compared.
    models = {
        candidate_name(index): build_expert(run.supernet, policy)
        for index, policy in enumerate(pool.candidates.policies)
        if candidate_name(index) in wanted
    }
    run.say(f"converting and measuring {len(models)} experts")
    reference = space.single_op_policy(space.reference_op)
    models[REFERENCE] = static_network(space, reference, run.images.mean, run.images.std)
    paths = {name: folder / f"{name}.tflite" for name in sorted(models)}
    left = {name: model for name, model in models.items() if not paths[name].exists()}
    image = (1, space.image_size, space.image_size, 3)
    convert.write_models(left, folder, dict.fromkeys(left, image))
    entries = [manifest.entry(name, "probe", path) for name, path in paths.items()]
    listed = manifest.write(folder, entries)
    with tempfile.TemporaryDirectory(prefix="expert_count") as temporary:
        fresh = pathlib.Path(temporary) / out.name
        bench(listed, fresh, run.config.latency, run.config.latency.device)
        files.write_text(out, fresh.read_text("utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    return _medians(out)


def _medians(path: pathlib.Path) -> dict[str, float]:
    """Milliseconds by the name of the file that was measured."""
    rows = files.read_json_lines(path, "delete it to measure again")
    try:
        return {row["model"]: float(row["median_ms"]) for row in rows}
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}); delete it to measure again") from error


def candidate_name(index: int) -> str:
    """Of a candidate, in files."""
    return f"policy_{index:03d}"


def names_of(run: Run, pool: Pool, indices: list[int]) -> list[list[list[str]]]:
    """The ops of some candidates by name, as `experts.json` states policies."""
    return [run.table.space.policy_names(pool.candidates.policies[index]) for index in indices]


def measured_of(ms: dict[str, float], indices: list[int]) -> decide.Measured:
    """The latencies of some candidates, whole experts only."""
    experts_ms = np.array([ms[candidate_name(index)] for index in indices])
    return decide.Measured(experts_ms, None, {}, ms[REFERENCE])


def cascade_of(
    run: Run, pool: Pool, indices: list[int], measured: decide.Measured, target: float, epochs: int
) -> dict[str, Any] | None:
    """What `outcome` gives for the K experts, out of a file if it was asked for before."""
    settings = run.config.route
    asked = [indices, measured.experts.tolist(), measured.reference, target]
    digest = files.digest([*asked, settings.longest, list(settings.weight_powers)])
    place = WorkDir(run.out / f"epochs_{epochs}" / f"k_{len(indices):02d}")
    path = place.root / "cascade.json"
    if path.exists():
        content = files.read_json(path, "delete it")
        if isinstance(content, dict) and content.get("digest") == digest:
            return content["cascade"]
    logits = answers(run, pool, indices, place, epochs)
    probabilities = {split: cascades.softmax(rows) for split, rows in logits.items()}
    found = outcome(
        probabilities["validation"],
        fitting.labels_of(run.images.validation),
        probabilities["test"],
        fitting.labels_of(run.images.test),
        measured,
        target * measured.reference,
        longest=settings.longest,
        powers=settings.weight_powers,
        seed=run.config.seed,
    )
    files.write_json(path, {"digest": digest, "cascade": found})
    return found


def answers(
    run: Run, pool: Pool, indices: list[int], place: WorkDir, epochs: int
) -> dict[str, np.ndarray]:
    """Logits [E, n, N] of the K experts on `validation` and `test`, each expert's in a file.

    Without training an expert answers the same whatever K is, and does it once.
    """
    folder = (place.root if epochs else place.root.parent) / "answers"
    paths = {index: folder / f"{candidate_name(index)}.npz" for index in indices}
    left = [index for index, path in paths.items() if not path.exists()]
    if left:
        run.say(f"running {len(left)} experts on the validation and test split")
        load_weights(run, pool.candidates.policies[indices], place, epochs)
    for index in left:
        network = build_expert(run.supernet, pool.candidates.policies[index])
        recalibrate(network, run.batches)
        splits = {"validation": run.images.validation, "test": run.images.test}
        logits = {name: fitting.predict(network, split) for name, split in splits.items()}
        with files.replacing(paths[index], suffix=".npz") as temporary:
            np.savez(temporary, **logits)
    rows = [_read_answers(path) for path in paths.values()]
    return {name: np.stack([row[name] for row in rows]) for name in ("validation", "test")}


def _read_answers(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as content:
            return {name: content[name] for name in ("validation", "test")}
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it and run the same command again"
        ) from error


def load_weights(run: Run, experts: np.ndarray, place: WorkDir, epochs: int) -> None:
    """Gives the supernet the search's weights, or those trained for some experts from there on.

    Args:
        run: whose supernet it is.
        experts: 0/1 [E, L, K], from cheap to dear.
        place: where the training lies; it goes on from its last checkpoint.
        epochs: of the training; 0 for none.
    """
    left = place.weights(finetune.STAGE)
    if epochs and left.exists():
        callbacks.load_weights(run.supernet, left)
        return
    callbacks.load_weights(run.supernet, run.workdir.weights("search"))
    if not epochs:
        return
    run.say(f"training {len(experts)} experts together")
    config = run.config.copy_and_resolve_references()
    config.finetune.rule = "sandwich"
    model = finetune.make_training(config, run.images, run.supernet, experts, (), place)
    rate = model.objectives()[0].optimizer.learning_rate
    fitting.fit(
        model,
        finetune.STAGE,
        epochs=epochs,
        images=run.images,
        config=config,
        workdir=place,
        schedule=[(rate, schedules.cosine(config.finetune.learning_rate))],
        batch_size=config.finetune.batch_size,
    )
    fitting.leave_weights(run.supernet, finetune.STAGE, place)


def outcome(
    validation: np.ndarray,
    validation_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    measured: decide.Measured,
    budget_ms: float,
    *,
    longest: int,
    powers: Sequence[float],
    seed: int,
) -> dict[str, Any] | None:
    """The best cascade of some experts within a budget, and what it does on the test split.

    Args:
        validation: softmax [E, n, N], on which the cascade and the single expert are chosen.
        validation_labels: [n].
        test: softmax [E, m, N].
        test_labels: [m].
        measured: latencies.
        budget_ms: what an image may cost on average on the validation split.
        longest: experts that may run for an image.
        powers: of latency, tried as the experts' weights in the mean.
        seed: of the interval of the gain.

    Returns:
        As JSON: accuracies and mean latencies of the cascade and of the best single expert
        within the budget, and the gain over the envelope of the E experts and their mixtures;
        None if every expert is dearer than the budget.
    """
    ms = measured.experts
    found = decide.cascade(validation, validation_labels, measured, budget_ms, longest, powers)
    if not found:
        return None
    best = decide.pick(found, 0.0)
    ran = cascades.run(best.cascade, test, np.full(len(test_labels), best.first))
    hits, shares = ran.classes == test_labels, ran.ran.mean(axis=0)
    mean_ms, accuracy = float(shares @ ms), float(np.mean(hits))
    own_hits = test.argmax(axis=-1) == test_labels
    points = [
        yardstick.StaticPoint(str(index), own, float(ms[index]))
        for index, own in enumerate(own_hits)
    ]
    gain = yardstick.routing_gain(hits, mean_ms, points, seed=seed)
    affordable = np.flatnonzero(ms <= budget_ms)
    on_validation = np.mean(validation.argmax(axis=-1) == validation_labels, axis=-1)
    single = int(affordable[np.argmax(on_validation[affordable])])
    return {
        "accuracy": accuracy,
        "accuracy_standard_error": evaluate.standard_error(accuracy, len(hits)),
        "mean_latency_ms": mean_ms,
        "validation_accuracy": best.accuracy,
        "validation_latency_ms": best.mean_ms,
        "experts": decide.reachable(best),
        "shares": shares.tolist(),
        "rules": best.cascade.to_json(),
        "single": {
            "expert": single,
            "accuracy": points[single].accuracy,
            "latency_ms": points[single].latency_ms,
        },
        "gain": gain.to_json() if gain else None,
    }
