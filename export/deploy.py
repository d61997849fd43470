"""The models of a variant as they ship: what decides, and the experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from export.convert import Inputs
from export.graphs import Classifier, Decide, DeployedFront
from export.routed import Rules
from instanas_tf.errors import InputError
from instanas_tf.pipeline.variants import Variant

CONTROLLER = "controller"
DECIDE = "decide"
EXPERT = "expert"


@dataclasses.dataclass(frozen=True)
class Deployed:
    """What ships of a variant.

    Attributes:
        front: image -> features and the first expert, or one of them; None in a cascade of
            whole experts.
        experts: image, or features, -> probabilities; by name, from cheap to dear.
        feature_shape: of the features [h, w, c]; None if the experts start from the image.
        rules: which of them run.
        classes: N.
    """

    front: keras.Model | None
    experts: dict[str, keras.Model]
    feature_shape: tuple[int, int, int] | None
    rules: Rules
    classes: int

    @classmethod
    def static(cls, name: str, network: keras.Model, classes: int) -> Deployed:
        """One network for all images."""
        return cls(None, {name: Classifier(network)}, None, Rules(0, (-1,), (0.0,)), classes)

    @property
    def decide(self) -> Decide | None:
        """What says whether another expert runs; None if only one does."""
        return Decide(self.rules, self.classes) if self.rules.is_cascade else None

    @property
    def models(self) -> dict[str, keras.Model]:
        """Front and experts by the names of their files."""
        return ({CONTROLLER: self.front} if self.front is not None else {}) | self.experts

    def inputs(self, name: str, image_size: int) -> dict[str, tf.TensorSpec]:
        """What one of `models` takes, by name, with the batch of 1."""
        if self.feature_shape is None or name == CONTROLLER:
            return {"images": tf.TensorSpec((1, image_size, image_size, 3), tf.float32)}
        return {"features": tf.TensorSpec((1, *self.feature_shape), tf.float32)}


def deploy(
    variant: Variant, made: dict[tuple[int, int | None], keras.Model] | None = None
) -> Deployed:
    """The models of a variant of a finished run.

    Args:
        variant: of a run.
        made: experts that other variants have brought along, by index and the number of cells
            in front; more are added.
    """
    made = {} if made is None else made
    shared, router = variant.front(), variant.router()
    front = None
    if router is not None:
        front = DeployedFront(shared, router, variant.entry["biases"])
    elif shared is not None:
        front = DeployedFront(shared, None)
    experts = {}
    for name, index in zip(variant.expert_names, variant.indices, strict=True):
        key = index, variant.split_after
        if key not in made:
            made[key] = Classifier(variant.tail(index))
        experts[name] = made[key]
    shape = tuple(variant.content["feature_shape"]) if shared is not None else None
    try:
        rules = Rules.from_json(variant.rules)
    except ValueError as error:
        where = f"{variant.workdir.experts} is damaged (variant {variant.name}: {error})"
        raise InputError(f"{where}; delete it and train again") from error
    return Deployed(front, experts, shape, rules, len(variant.labels))


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of an export, before it is written.

    Attributes:
        kind: `controller`, `expert` or `decide`.
        model: of Keras.
        inputs: what it takes, by name.
        origin: name of the expert in the run; empty for what is no expert.
    """

    kind: str
    model: keras.Model
    inputs: Inputs
    origin: str = ""


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a variant's files.

    Attributes:
        controller: None if there is none.
        decide: None if there is none.
        experts: from cheap to dear.
    """

    controller: str | None
    decide: str | None
    experts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return dataclasses.asdict(self) | {"experts": list(self.experts)}


def gather(
    found: Mapping[str, Deployed], image_size: int
) -> tuple[dict[str, Part], dict[str, Names]]:
    """The files of some variants; experts that several of them run are there once.

    Experts that go on from features are called `tail_00` and so on where whole ones ship too.

    Args:
        found: variants by name.
        image_size: H and W.

    Returns:
        Files by name, and the names of each variant's files.
    """
    mixed = len({one.feature_shape is None for one in found.values()}) > 1
    parts: dict[str, Part] = {}
    names = {}
    for variant, one in found.items():
        suffix = f"_{variant}" if len(found) > 1 else ""
        controller, decide = None, None
        if one.front is not None:
            controller = CONTROLLER + suffix
            parts[controller] = Part(CONTROLLER, one.front, one.inputs(CONTROLLER, image_size))
        if (graph := one.decide) is not None:
            decide = DECIDE + suffix
            parts[decide] = Part(DECIDE, graph, graph.inputs_by_name)
        experts = []
        for origin, model in one.experts.items():
            is_tail = mixed and one.feature_shape is not None
            name = origin.replace(EXPERT, "tail", 1) if is_tail else origin
            parts[name] = Part(EXPERT, model, one.inputs(origin, image_size), origin)
            experts.append(name)
        names[variant] = Names(controller, decide, tuple(experts))
    return dict(sorted(parts.items())), names
