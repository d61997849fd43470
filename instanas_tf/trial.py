"""One trial of a hyperparameter search: all stages but the comparison, then what it is worth."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import keras
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from export import convert, graphs, manifest
from export.bench import bench
from instanas_tf import files, measure, route
from instanas_tf.errors import DiskError, InputError, ModelError
from instanas_tf.models.expert import static_network
from instanas_tf.pipeline import (
    data,
    finetune,
    fitting,
    objectives,
    pretrain,
    search,
    variants,
    workdir,
)
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.route import OutOfReachError
from instanas_tf.spaces.space import SearchSpace

OUTCOME = "outcome.json"
_NOT_THE_TRIAL = (OSError, tf.errors.ResourceExhaustedError)  # What ends the whole search.
_NUMBERS = ("accuracy", "controller_ms", "latency_ms", "reference_ms")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial is worth, or why it failed.

    Attributes:
        accuracy: of the selected variant on the validation split.
        controller_ms: of what names the expert, as measured; 0 for a cascade without it.
        latency_ms: mean over the validation split, controller included, by what was measured.
        reference_ms: of the reference network, as measured.
        reason: why the trial failed; empty if it did not.
    """

    accuracy: float = 0.0
    controller_ms: float = 0.0
    latency_ms: float = 0.0
    reference_ms: float = 0.0
    reason: str = ""

    @property
    def latency_ratio(self) -> float:
        """Mean latency as a share of the reference network's."""
        return self.latency_ms / self.reference_ms

    def value(self, objective: str, target: float) -> float:
        """The value of one of `objectives.OBJECTIVES`."""
        return objectives.value(objective, self.accuracy, self.latency_ratio, target)


def read_outcome(root: pathlib.Path) -> Outcome | None:
    """The outcome of a trial; None if there is none yet.

    Raises:
        InputError: it is damaged.
    """
    path = root / OUTCOME
    if not path.exists():
        return None
    remedy = "start the search anew in another --workdir"
    content = files.read_json(path, remedy)
    try:
        found = Outcome(**content)
        if not found.reason:
            found.value("score", 1.0)
            sum(getattr(found, name) for name in _NUMBERS)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error
    return found


def run(
    config: ConfigDict,
    reference: ConfigDict,
    images: data.ImageData,
    place: WorkDir,
    tables: WorkDir,
) -> Outcome:
    """Runs the stages that are left of a trial, and says what came out.

    The test split is not looked at. A trial whose training fails, or whose experts cannot
    meet a target, has an outcome too, with the reason, so that it is not tried again.

    Args:
        config: with the trial's hyperparameters.
        reference: the config without them, whose reference network latencies are shares of;
            so a trial of another width is compared with the same network.
        images: the dataset.
        place: the trial's work directory.
        tables: holds the latency tables that trials share.

    Raises:
        InstanasError: what would meet the next trial as well: bad input, a device that does
            not answer, a disk that is full.
    """
    found = read_outcome(place.root)
    if found:
        return found
    workdir.open_workdir(place.root, config)
    with workdir.waiting(place):
        workdir.start(place, config)
        keras.utils.clear_session(free_memory=True)
        try:
            _run_stages(config, images, place, tables)
            found = _outcome(config, reference, images, place, tables)
        except (ModelError, OutOfReachError) as error:
            if isinstance(error, DiskError) or isinstance(error.__cause__, _NOT_THE_TRIAL):
                raise
            found = Outcome(reason=str(error))
        files.write_json(place.root / OUTCOME, dataclasses.asdict(found))
    return found


def _run_stages(
    config: ConfigDict, images: data.ImageData, place: WorkDir, tables: WorkDir
) -> None:
    """Runs the stages that are left, each from its last epoch."""
    stages = {
        "pretrain": lambda: pretrain.pretrain(config, images, place),
        "measure": lambda: share_table(config, images.num_classes, place, tables),
        "search": lambda: search.search(config, images, place),
        "finetune": lambda: finetune.finetune(config, images, place),
        # One process measures at a time.
        "route": lambda: route.route(
            config, images, place, logging.info, lambda: workdir.waiting(tables)
        ),
    }
    for name, stage in stages.items():
        if place.is_done(name):
            continue
        try:
            stage()
        except tf.errors.OpError as error:
            raise ModelError(
                f"{name} was stopped by TensorFlow ({str(error).splitlines()[0]})"
            ) from error
        fitting.finish(name, place)


def share_table(config: ConfigDict, num_classes: int, place: WorkDir, tables: WorkDir) -> None:
    """Gives a trial its latency table: that of an earlier trial, or one measured now.

    What is in a table depends on the space, the controller, the number of experts and how it
    is measured, and on no other hyperparameter.
    """
    space = fitting.make_space(config, num_classes)
    how = {
        "space": space.hash,
        "controller": config.controller.kind,
        "experts": config.experts.count,
        "latency": config.latency.to_dict(),
        "seed": config.seed,
    }
    shared = WorkDir(tables.root / files.digest(how)[:16])
    with workdir.waiting(tables):
        if not shared.latency_table.exists():
            measure.measure(config, space, shared, config.latency.device)
    files.write_bytes(place.latency_table, shared.latency_table.read_bytes())


def _outcome(
    config: ConfigDict,
    reference: ConfigDict,
    images: data.ImageData,
    place: WorkDir,
    tables: WorkDir,
) -> Outcome:
    """What the selected variant of a trial is worth."""
    variant = variants.pick(place)
    entry, content = variant.entry, variant.content
    reference_ms = content["reference_latency_ms"]
    space = fitting.make_space(reference, images.num_classes)
    if space != variant.space:
        reference_ms = _measured_ms(space, config, images, place, tables)
    controllers_ms = content["controllers_ms"]
    return Outcome(
        accuracy=entry["validation_accuracy"],
        controller_ms=controllers_ms[entry["controller"]] if entry["controller"] else 0.0,
        latency_ms=entry["validation_latency_ms"],
        reference_ms=reference_ms,
    )


def _measured_ms(
    space: SearchSpace, config: ConfigDict, images: data.ImageData, place: WorkDir, tables: WorkDir
) -> float:
    """Measures the reference network of a space that is not the trial's."""
    policy = space.single_op_policy(space.reference_op)
    models: dict[str, keras.Model] = {
        "reference": graphs.Classifier(static_network(space, policy, images.mean, images.std))
    }
    with tempfile.TemporaryDirectory(prefix="trial") as temporary:
        folder = pathlib.Path(temporary)
        shape = (1, images.image_size, images.image_size, 3)
        paths = convert.write_models(models, folder, {name: shape for name in models})
        entries = [manifest.entry(name, "probe", path) for name, path in paths.items()]
        listed = manifest.write(folder, entries)
        out = place.root / "measured" / "measurements.jsonl"
        with workdir.waiting(tables):
            (row,) = bench(listed, out, config.latency, config.latency.device)
    return float(row["median_ms"])
