"""The networks that results stand beside, trained alone with the budget of the experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf.pipeline import data, variants
from instanas_tf.pipeline.pretrain import train_alone, weight_epochs
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.spaces import get
from instanas_tf.spaces.space import SearchSpace

Say = Callable[[str], None]
_TWIN_SEED = 7  # Added to the config's seed.


@dataclasses.dataclass(frozen=True)
class Alone:
    """A static network that was trained by itself.

    Attributes:
        name: in `results.json`.
        network: the trained model.
        width: of its space, if that is not the run's.
    """

    name: str
    network: keras.Model
    width: float | None = None


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
        network = train_alone(name, space, policy, config, images, workdir)
        found.append(Alone(name, network, width))
    return found


def alone(
    config: ConfigDict, images: data.ImageData, workdir: WorkDir, content: dict[str, Any], say: Say
) -> dict[int, Alone]:
    """Some of a run's experts, each trained by itself, by index.

    They are `config.evaluate.alone` of them, evenly from the cheapest to the dearest; 0: all.
    """
    policies = variants.policies(content)
    count = config.evaluate.alone or len(policies)
    picked = np.unique(np.linspace(0, len(policies) - 1, min(count, len(policies))).round())
    space = SearchSpace.from_json(content["space"])
    found = {}
    for index in picked.astype(int).tolist():
        name = f"alone_{files.digest(space.policy_names(policies[index]))[:8]}"
        if not workdir.weights(name).exists():
            say(f"training {variants.expert_name(index)} alone, {weight_epochs(config)} epochs")
        network = train_alone(name, space, policies[index], config, images, workdir)
        found[index] = Alone(name, network)
    return found


def seed_twin(
    config: ConfigDict, images: data.ImageData, workdir: WorkDir, content: dict[str, Any], say: Say
) -> Alone:
    """The cheapest expert once more, trained by itself from another seed."""
    space = SearchSpace.from_json(content["space"])
    policy = variants.policies(content)[0]
    name = f"twin_{files.digest(space.policy_names(policy))[:8]}"
    if not workdir.weights(name).exists():
        say(f"training {variants.expert_name(0)} alone from another seed, as a control")
    return Alone(name, train_alone(name, space, policy, config, images, workdir, seed=_TWIN_SEED))


def train(
    config: ConfigDict, images: data.ImageData, workdir: WorkDir, say: Say
) -> tuple[list[Alone], dict[int, Alone], Alone]:
    """Trains what is not yet trained.

    Args:
        config: of the run.
        images: the dataset.
        workdir: of a run whose experts are trained.
        say: told in a line what is going on.

    Returns:
        The references of all widths, experts trained alone by index, and the seed twin of the
        cheapest.
    """
    content = variants.read_trained(workdir)
    common = (config, images, workdir)
    static = references(*common, say)
    return static, alone(*common, content, say), seed_twin(*common, content, say)
