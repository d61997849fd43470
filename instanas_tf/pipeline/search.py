"""Stage 3: drive the search, keep every epoch's controller, pick the variants."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
from ml_collections import ConfigDict

from instanas_tf.errors import InputError
from instanas_tf.latency import LatencyTable
from instanas_tf.models.training import sgd
from instanas_tf.pipeline import callbacks, data, fitting
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set, rewards, schedules
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


def check_targets(config: ConfigDict, table: LatencyTable) -> None:
    """Refuses targets that no network of the space can meet, before hours are spent on them.

    Raises:
        InputError: says what range can be met.
    """
    anchors = [policy for _, policy in expert_set.anchors(table.space)]
    latencies = table.static_ms(np.stack(anchors)) / table.reference_ms
    low, high = float(latencies.min()), float(latencies.max())
    asked = config.target_ms / table.reference_ms or min(config.variants.targets)
    if asked < _SLACK * low:
        raise InputError(
            f"a mean latency of {asked:.2f} of the reference network "
            f"({asked * table.reference_ms:.3f} ms) cannot be met: the networks of this space "
            f"take {low:.2f} to {high:.2f}; set config.variants.targets or config.target_ms "
            "within that"
        )


def search(config: ConfigDict, images: data.ImageData, workdir: WorkDir) -> None:
    """Runs stage 3 and leaves `checkpoints/search.weights.h5` and the controllers."""
    space = fitting.make_space(config, images.num_classes)
    table = LatencyTable.load(workdir.latency_table, space, config.controller.kind)
    check_targets(config, table)
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


_SLACK = 0.85  # The table over-predicts sparse networks by up to so much.
_WANTED = {"val_latency_ratio", "val_accuracy"}


def pick_epochs(rows: list[dict], targets: tuple[float, ...]) -> list[int]:
    """Picks, for each target, the best epoch of the search on the validation split.

    Best is the highest accuracy among the epochs that meet the target (2 % over it count
    as met), the later of equals; if none meets it, the cheapest epoch.

    Args:
        rows: of `metrics.jsonl`.
        targets: mean latencies, as shares of the reference network's.

    Returns:
        Different epochs, from 1, ascending.

    Raises:
        InputError: there is no epoch of a search, or no target.
    """
    epochs = [row for row in rows if row["stage"] == "search" and _WANTED <= row.keys()]
    if not epochs or not targets:
        raise InputError(
            "metrics.jsonl holds no epoch of a search, or config.variants.targets is empty; "
            "run --stage=search first"
        )
    picked = set()
    for target in targets:
        met = [row for row in epochs if row["val_latency_ratio"] <= 1.02 * target]
        if met:
            best = max(met, key=lambda row: (row["val_accuracy"], row["epoch"]))
        else:
            best = min(epochs, key=lambda row: (row["val_latency_ratio"], -row["epoch"]))
        picked.add(int(best["epoch"]))
    return sorted(picked)
