"""The models of a variant as they ship: the deciding controller and the experts."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from export.convert import DeployedController
from instanas_tf.pipeline.variants import Variant


def models(variant: Variant, names: Sequence[str] | None = None) -> dict[str, keras.Model]:
    """`controller` and the experts of a variant, by the names of their files.

    Args:
        variant: of a finished run.
        names: which of them; None for all.
    """
    found: dict[str, keras.Model] = {}
    if names is None or "controller" in names:
        found["controller"] = DeployedController(variant.controller(), variant.policies)
    for index, name in enumerate(variant.expert_names):
        if names is None or name in names:
            found[name] = variant.expert(index)
    return found
