"""The models of a variant as they ship: what decides, and the experts."""

from __future__ import annotations

import dataclasses

import keras

from export.convert import DeployedFront
from export.routed import Rules
from instanas_tf.pipeline.variants import Variant

CONTROLLER = "controller"


@dataclasses.dataclass(frozen=True)
class Deployed:
    """What ships of a variant.

    Attributes:
        front: image -> features and the first expert, or one of them; None in a cascade of
            whole experts.
        experts: image, or features, -> logits; by name, from cheap to dear.
        feature_shape: of the features [h, w, c]; None if the experts start from the image.
        rules: which of them run.
    """

    front: keras.Model | None
    experts: dict[str, keras.Model]
    feature_shape: tuple[int, int, int] | None
    rules: Rules

    @classmethod
    def static(cls, name: str, network: keras.Model) -> Deployed:
        """One network for all images."""
        return cls(None, {name: network}, None, Rules(0, (-1,), (0.0,)))

    @property
    def models(self) -> dict[str, keras.Model]:
        """All of them by the names of their files."""
        return ({CONTROLLER: self.front} if self.front is not None else {}) | self.experts

    def input_shape(self, name: str, image_size: int) -> tuple[int, int, int, int]:
        """Of one of the models, with the batch of 1."""
        if self.feature_shape is None or name == CONTROLLER:
            return (1, image_size, image_size, 3)
        return (1, *self.feature_shape)


def deploy(variant: Variant) -> Deployed:
    """The models of a variant of a finished run."""
    shared, router = variant.front(), variant.router()
    front = None
    if router is not None:
        front = DeployedFront(shared, router, variant.entry["biases"])
    elif shared is not None:
        front = DeployedFront(shared, None)
    experts = {
        name: variant.tail(index)
        for name, index in zip(variant.expert_names, variant.indices, strict=True)
    }
    shape = tuple(variant.content["feature_shape"]) if shared is not None else None
    return Deployed(front, experts, shape, Rules.from_json(variant.rules))
