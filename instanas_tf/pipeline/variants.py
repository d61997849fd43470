"""The variants of a finished run: policies, controller and experts with their weights."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np

from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.models.controller import Controller
from instanas_tf.models.expert import static_network
from instanas_tf.pipeline import callbacks
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.spaces import controllers
from instanas_tf.spaces.space import SearchSpace

FORMAT = "instanas_tf/experts"
VERSION = 1
_REMEDY = "train first: python -m instanas_tf.train"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One point of the trade-off, as `experts.json` describes it.

    Attributes:
        entry: its JSON object.
        content: the whole file.
        workdir: where its weights lie.
    """

    entry: dict[str, Any]
    content: dict[str, Any]
    workdir: WorkDir

    @property
    def name(self) -> str:
        """Its letter: A, B, C and so on."""
        return self.entry["name"]

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return SearchSpace.from_json(self.content["space"])

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return self.content["labels"]

    @property
    def expert_names(self) -> list[str]:
        """`expert_00`…, from cheap to dear."""
        return [expert["name"] for expert in self.entry["experts"]]

    @property
    def policies(self) -> np.ndarray:
        """Float 0/1 [E, L, K]."""
        space = self.space
        return np.stack([space.policy_from_names(e["policy"]) for e in self.entry["experts"]])

    def controller(self) -> Controller:
        """The trained controller."""
        content = self.content
        controller = Controller(self.space, content["controller"], content["mean"], content["std"])
        callbacks.load_weights(controller, self.workdir.weights(f"{self.name}_controller"))
        return controller

    def expert(self, index: int) -> keras.Model:
        """An expert, normalisation recalibrated."""
        content = self.content
        network = static_network(self.space, self.policies[index], content["mean"], content["std"])
        path = self.workdir.weights(f"{self.name}_{self.expert_names[index]}")
        callbacks.load_weights(network, path)
        return network


def read(workdir: WorkDir) -> dict[str, Any]:
    """The content of `experts.json`, checked.

    Raises:
        InputError: there is none yet, or it is damaged.
    """
    if not workdir.experts.exists():
        raise InputError(f"{workdir.root} holds no experts yet; {_REMEDY}")
    content = files.read_json(workdir.experts, "delete it and train again")
    try:
        _check(content)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{workdir.experts} is damaged ({error!r}); delete it and train again"
        ) from error
    return content


def _check(content: dict[str, Any]) -> None:
    """Looks at everything that a reader of `experts.json` relies on; raises if it is not there."""
    if (content["format"], content["version"]) != (FORMAT, VERSION):
        raise ValueError(f"format {content['format']}, version {content['version']}")
    space = SearchSpace.from_json(content["space"])
    controllers.get(content["controller"], space.image_size)
    for name, size in (("mean", 3), ("std", 3), ("labels", space.num_classes)):
        if len(content[name]) != size:
            raise ValueError(f"{name} must have {size} entries")
    if not all(isinstance(label, str) for label in content["labels"]):
        raise ValueError("labels must be text")
    sum([*content["mean"], *content["std"]])
    names = [_check_variant(entry, space) for entry in content["variants"]]
    if content["selected"] not in names or len(set(names)) != len(names):
        raise ValueError(f"selected {content['selected']!r} among {names}")


def _check_variant(entry: dict[str, Any], space: SearchSpace) -> str:
    """Checks one variant and returns its name."""
    numbers = [entry[name] for name in ("predicted_latency_ms", "target", "epoch")]
    numbers += [entry["unique_policies"], entry["varying_bits"]]
    numbers += [entry["validation_accuracy"]["recalibrated"]]
    for index, expert in enumerate(entry["experts"]):
        if expert["name"] != f"expert_{index:02d}":
            raise ValueError(f"expert {expert['name']!r} at position {index}")
        space.policy_from_names(expert["policy"])
        numbers += [expert[name] for name in ("predicted_latency_ms", "share")]
        numbers += [expert["validation_accuracy"]]
    sum(numbers)
    if not entry["experts"] or not isinstance(entry["name"], str):
        raise ValueError("a variant needs a name and experts")
    return entry["name"]


def read_entry(path: pathlib.Path, space: SearchSpace) -> dict[str, Any]:
    """The entry of one finished variant, checked.

    Raises:
        InputError: it is damaged.
    """
    entry = files.read_json(path, "delete it to make the variant again")
    try:
        _check_variant(entry, space)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}); delete it to make the variant again"
        ) from error
    return entry


def read_chosen(path: pathlib.Path, space: SearchSpace) -> dict[str, Any]:
    """The experts chosen for a variant, checked; see `finetune.choose`.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = files.read_json(path, "run --stage=finetune again")
    try:
        for names in content["policies"]:
            space.policy_from_names(names)
        sum([content["unique_policies"], content["varying_bits"], content["epoch"]])
        if not content["policies"]:
            raise ValueError("there is none")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}); delete it to choose the experts again"
        ) from error
    return content


def load(workdir: WorkDir) -> list[Variant]:
    """All variants of a run.

    Raises:
        InputError: there is no `experts.json`, or it is damaged.
    """
    content = read(workdir)
    return [Variant(entry, content, workdir) for entry in content["variants"]]


def pick(workdir: WorkDir, name: str = "") -> Variant:
    """One variant by name; the one selected on validation if the name is empty.

    Raises:
        InputError: there is no such variant.
    """
    found = {variant.name: variant for variant in load(workdir)}
    wanted = name or read(workdir)["selected"]
    if wanted not in found:
        raise InputError(f"--variant={wanted} is not one of {sorted(found)} of {workdir.root}")
    return found[wanted]
