"""The models of a variant as they ship: the deciding controller and the experts."""

from __future__ import annotations

import keras

from export.convert import DeployedController
from instanas_tf.pipeline.variants import Variant


def models(variant: Variant) -> dict[str, keras.Model]:
    """`controller` and every expert of a variant, by the names of their files."""
    found: dict[str, keras.Model] = {
        "controller": DeployedController(variant.controller(), variant.policies)
    }
    for index, name in enumerate(variant.expert_names):
        found[name] = variant.expert(index)
    return found
