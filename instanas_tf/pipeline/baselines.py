"""The networks that results stand beside, trained alone with the budget of a variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf.latency import LatencyTable
from instanas_tf.pipeline import data, evaluate, variants
from instanas_tf.pipeline.pretrain import train_alone, weight_epochs
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.spaces import get

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Alone:
    """A static network that was trained by itself.

    Attributes:
        name: in `results.json`.
        network: the trained model.
    """

    name: str
    network: keras.Model


def references(
    config: ConfigDict, images: data.ImageData, workdir: WorkDir, say: Say
) -> list[Alone]:
    """The reference op in every cell, at several widths, trained with a variant's budget."""
    found = []
    for factor in config.evaluate.baseline_widths:
        width = config.space.width * factor
        space = get(config.space.name, width, images.num_classes, config.space.merge)
        policy = space.single_op_policy(space.reference_op)
        name = f"mobilenet_v2_{round(width, 3)}"
        if not workdir.weights(name).exists():
            say(f"training {name} alone, {weight_epochs(config)} epochs")
        found.append(Alone(name, train_alone(name, space, policy, config, images, workdir)))
    return found


def twins(
    config: ConfigDict,
    images: data.ImageData,
    workdir: WorkDir,
    found: list[variants.Variant],
    table: LatencyTable,
    say: Say,
) -> dict[str, Alone]:
    """For each variant a static network of the same latency, trained alone.

    It is the dearest of the variant's experts, by the table, whose latency is at most the
    variant's mean, controller included.
    """
    trained: dict[str, Alone] = {}
    of_variant = {}
    for variant in found:
        latencies = table.static_ms(variant.policies)
        index = evaluate.closest_below(latencies, variant.entry["predicted_latency_ms"])
        policy = variant.policies[index]
        name = f"alone_{files.digest(table.space.policy_names(policy))[:8]}"
        if name not in trained:
            if not workdir.weights(name).exists():
                say(f"training expert_{index:02d} of variant {variant.name} alone")
            network = train_alone(name, table.space, policy, config, images, workdir)
            trained[name] = Alone(name, network)
        of_variant[variant.name] = trained[name]
    return of_variant


def train(
    config: ConfigDict, images: data.ImageData, workdir: WorkDir, say: Say
) -> tuple[list[Alone], dict[str, Alone]]:
    """Trains what is not yet trained.

    Args:
        config: of the run.
        images: the dataset.
        workdir: of a run whose variants are made.
        say: told in a line what is going on.

    Returns:
        The references of all widths, and for each variant its twin.
    """
    table = LatencyTable.load(workdir.latency_table)
    static = references(config, images, workdir, say)
    return static, twins(config, images, workdir, variants.load(workdir), table, say)
