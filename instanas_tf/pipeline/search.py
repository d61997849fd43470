"""Stage 3: drive the search, keep every epoch's controller, pick the variants."""

from __future__ import annotations

import dataclasses

import keras
from ml_collections import ConfigDict

from instanas_tf.errors import InputError
from instanas_tf.latency import LatencyTable
from instanas_tf.models.training import sgd
from instanas_tf.pipeline import callbacks, data, fitting
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import rewards, schedules
from instanas_tf.search.instance_aware import InstaNAS, SearchSettings


def search_settings(config: ConfigDict) -> SearchSettings:
    """The search's knobs out of a config."""
    recipe = config.search[config.search.recipe]
    names = {field.name for field in dataclasses.fields(SearchSettings)}
    chosen = {name: recipe[name] for name in names if name in recipe}
    smoothing = config.train.label_smoothing
    return SearchSettings(recipe=config.search.recipe, label_smoothing=smoothing, **chosen)


def make_search(config: ConfigDict, images: data.ImageData, table: LatencyTable) -> InstaNAS:
    """A fresh search model with built optimizers; in the scope of a cluster if there is one."""
    settings = config.search
    supernet = fitting.make_supernet(config, images)
    controller = fitting.make_controller(config, images)
    adam = keras.optimizers.Adam(settings.controller_learning_rate)
    adam.build(controller.trainable_variables)
    weights = sgd(
        settings.supernet_learning_rate,
        settings.supernet_weight_decay,
        supernet.trainable_variables,
    )
    return InstaNAS(
        supernet,
        controller,
        table,
        search_settings(config),
        adam,
        weights,
        config.train.clip_norm,
        config.seed,
    )


def schedule(model: InstaNAS, config: ConfigDict, table: LatencyTable) -> list:
    """What changes with the stage's progress: α, target, window and learning rate."""
    settings = config.search
    recipe = settings[settings.recipe]

    def window(progress: float) -> tuple[float, float]:
        return rewards.window(
            table.l_max_ms,
            table.l_base_ms,
            table.l_min_ms,
            progress,
            start=recipe.upper_start,
            end=recipe.upper_end,
            guard=recipe.lower_guard,
        )

    every = settings.controller_decay_epochs
    drops = [e / settings.epochs for e in range(every, settings.epochs, every)] if every else []
    rate = schedules.steps(settings.controller_learning_rate, drops)
    pairs = [
        (model.controller_optimizer.learning_rate, rate),
        (model.alpha, schedules.knots(recipe.alpha)),
    ]
    if settings.recipe == "published":
        pairs.append((model.window_ms, window))
    else:
        pairs.append((model.target, schedules.knots(recipe.target)))
    return pairs


def search(config: ConfigDict, images: data.ImageData, workdir: WorkDir) -> None:
    """Runs stage 3 and leaves `checkpoints/search.weights.h5` and the controllers."""
    space = fitting.make_space(config, images.num_classes)
    table = LatencyTable.load(workdir.latency_table, space, config.controller.kind)
    with workdir.cluster.scope():
        model = make_search(config, images, table)
    callbacks.load_weights(model.supernet, workdir.weights("pretrain"))
    fitting.fit(
        model,
        "search",
        epochs=config.search.epochs,
        images=images,
        config=config,
        workdir=workdir,
        schedule=schedule(model, config, table),
        extra=[callbacks.KeepController(model.controller, workdir.controller)],
        batch_size=config.search.batch_size,
    )
    fitting.leave_weights(model.supernet, "search", workdir)


@dataclasses.dataclass(frozen=True)
class Pick:
    """An epoch of the search that became a variant.

    Attributes:
        name: A, B, C… from the largest target to the smallest.
        target: mean greedy latency asked for, as a share of the reference network's.
        epoch: from 1.
        latency_ratio: mean greedy latency on the validation split, same unit.
        accuracy: greedy accuracy on the validation split at that epoch.
    """

    name: str
    target: float
    epoch: int
    latency_ratio: float
    accuracy: float


_WANTED = {"val_latency_ratio", "val_accuracy"}


def pick_variants(rows: list[dict], targets: tuple[float, ...]) -> list[Pick]:
    """Picks, for each target, the best epoch on the validation split.

    Best is the highest accuracy among the epochs that meet the target (2 % over it count
    as met), the later of equals; if none meets it, the cheapest epoch. Targets that pick
    the same epoch make one variant.

    Args:
        rows: of `metrics.jsonl`.
        targets: mean latencies, as shares of the reference network's.

    Raises:
        InputError: there is no epoch of a search, or no target.
    """
    epochs = [row for row in rows if row["stage"] == "search" and _WANTED <= row.keys()]
    if not epochs or not targets:
        raise InputError(
            "metrics.jsonl holds no epoch of a search, or config.variants.targets is empty; "
            "run --stage=search first"
        )
    picks: list[Pick] = []
    for target in sorted(targets, reverse=True):
        met = [row for row in epochs if row["val_latency_ratio"] <= 1.02 * target]
        if met:
            best = max(met, key=lambda row: (row["val_accuracy"], row["epoch"]))
        else:
            best = min(epochs, key=lambda row: (row["val_latency_ratio"], -row["epoch"]))
        if best["epoch"] not in {pick.epoch for pick in picks}:
            picks.append(
                Pick(
                    name=chr(ord("A") + len(picks)),
                    target=target,
                    epoch=best["epoch"],
                    latency_ratio=best["val_latency_ratio"],
                    accuracy=best["val_accuracy"],
                )
            )
    return picks
