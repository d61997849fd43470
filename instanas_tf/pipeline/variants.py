"""The variants of a finished run: policies, controller and experts with their weights."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.models.expert import (
    copy_layers,
    front_network,
    rest_network,
    static_network,
)
from instanas_tf.pipeline import callbacks, data, routers
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import cascades
from instanas_tf.spaces import controllers, get
from instanas_tf.spaces.space import SearchSpace

FORMAT = "instanas_tf/experts"
VERSION = 2
KINDS = ("search", "image", "features", "cascade", "start")
_RULES = {"kind", "first", "following", "thresholds", "weights", "features"}
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
    def kind(self) -> str:
        """Who decides: one of `KINDS`."""
        return self.entry["kind"]

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return SearchSpace.from_json(self.content["space"])

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return self.content["labels"]

    @property
    def indices(self) -> list[int]:
        """Which of the run's experts it may run, from cheap to dear."""
        return self.entry["experts"]

    @property
    def expert_names(self) -> list[str]:
        """Their names, such as `expert_00`."""
        return [expert_name(index) for index in self.indices]

    @property
    def policies(self) -> np.ndarray:
        """Theirs, float 0/1 [E, L, K]."""
        return policies(self.content)[self.indices]

    @property
    def rules(self) -> dict[str, Any]:
        """How they are run, by position in `indices`: the manifest's `routing`."""
        return self.entry["routing"]

    @property
    def split_after(self) -> int | None:
        """Cells that run in front of the decision and are shared; None without a front."""
        return self.content["shared_cells"] if self.rules["features"] else None

    def front(self) -> keras.Model | None:
        """Images -> features that all experts go on from; None if they start from the image."""
        if self.split_after is None:
            return None
        return front(self.content, self.workdir)

    def router(self) -> keras.Model | None:
        """images, or features, -> scores of all the run's experts; None in a plain cascade."""
        name = self.entry["controller"]
        return routers.load(name, self.content, self.workdir) if name else None

    def expert(self, index: int) -> keras.Model:
        """An expert by its index in the run: image -> logits, whole."""
        return expert(index, self.content, self.workdir)

    def tail(self, index: int) -> keras.Model:
        """What ships of an expert: all of it, or what comes behind the front."""
        whole = self.expert(index)
        if self.split_after is None:
            return whole
        rest = rest_network(self.space, policies(self.content)[index], self.split_after)
        copy_layers(whole, rest)
        return rest


def expert_name(index: int) -> str:
    """The name of an expert in files."""
    return f"expert_{index:02d}"


def policies(content: dict[str, Any]) -> np.ndarray:
    """Of all experts of a run, float 0/1 [E, L, K]."""
    space = SearchSpace.from_json(content["space"])
    return np.stack([space.policy_from_names(e["policy"]) for e in content["experts"]])


def header(space: SearchSpace, images: data.ImageData, config: ConfigDict) -> dict[str, Any]:
    """What `experts.json` says of a run beside its experts."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "space": space.to_json(),
        "mean": list(images.mean),
        "std": list(images.std),
        "labels": list(images.labels),
        "controller": config.controller.kind,
    }


def expert(index: int, content: dict[str, Any], workdir: WorkDir) -> keras.Model:
    """An expert, normalisation recalibrated."""
    space = SearchSpace.from_json(content["space"])
    policy = policies(content)[index]
    network = static_network(space, policy, content["mean"], content["std"])
    callbacks.load_weights(network, workdir.weights(expert_name(index)))
    return network


def static(item: dict[str, Any], content: dict[str, Any], workdir: WorkDir) -> keras.Model:
    """A static network that results are held against, by its entry in `results.json`.

    Raises:
        InputError: its weights are missing or damaged.
    """
    name = item["name"]
    names = [expert["name"] for expert in content["experts"]]
    if name in names:
        return expert(names.index(name), content, workdir)
    space = SearchSpace.from_json(content["space"])
    if "expert" in item:
        policy = policies(content)[item["expert"]]
    else:
        space = get(space.name, item["width"], space.num_classes, space.merge)
        policy = space.single_op_policy(space.reference_op)
    network = static_network(space, policy, content["mean"], content["std"])
    callbacks.load_weights(network, workdir.weights(name))
    return network


def front(content: dict[str, Any], workdir: WorkDir) -> keras.Model:
    """Images -> features after the cells that all experts share, and the stem."""
    space = SearchSpace.from_json(content["space"])
    made = front_network(
        space, policies(content)[0], content["mean"], content["std"], content["shared_cells"]
    )
    copy_layers(expert(0, content, workdir), made)
    return made


def read(workdir: WorkDir) -> dict[str, Any]:
    """The content of `experts.json`, checked.

    Raises:
        InputError: there is none yet, or it is damaged.
    """
    if not workdir.experts.exists():
        raise InputError(f"{workdir.root} holds no experts yet; {_REMEDY}")
    return _checked(workdir.experts, _check)


def read_trained(workdir: WorkDir) -> dict[str, Any]:
    """What stage 4 left: the experts, before anybody decides which of them run.

    Raises:
        InputError: it is missing or damaged.
    """
    return _checked(workdir.trained, _check_experts)


def _checked(path: pathlib.Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The content of a JSON file that a function looked at.

    Raises:
        InputError: it is missing or damaged.
    """
    content = files.read_json(path, "delete it and train again")
    try:
        check(content)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}); delete it and train again") from error
    return content


def _check_experts(content: dict[str, Any]) -> None:
    """Looks at everything that a reader of the experts relies on; raises if it is not there."""
    if (content["format"], content["version"]) != (FORMAT, VERSION):
        raise ValueError(f"format {content['format']}, version {content['version']}")
    space = SearchSpace.from_json(content["space"])
    controllers.get(content["controller"], space.image_size)
    for name, size in (("mean", 3), ("std", 3), ("labels", space.num_classes)):
        if len(content[name]) != size:
            raise ValueError(f"{name} must have {size} entries")
    if not all(isinstance(label, str) for label in content["labels"]):
        raise ValueError("labels must be text")
    numbers = [*content["mean"], *content["std"], *content["epochs"]]
    numbers += [content["unique_policies"], content["varying_bits"]]
    for index, item in enumerate(content["experts"]):
        if item["name"] != expert_name(index):
            raise ValueError(f"expert {item['name']!r} at position {index}")
        space.policy_from_names(item["policy"])
        numbers += [item["predicted_latency_ms"], item["validation_accuracy"]]
    sum(numbers)
    if not content["experts"]:
        raise ValueError("there is no expert")


def _check(content: dict[str, Any]) -> None:
    """The same for the whole of `experts.json`."""
    _check_experts(content)
    sum(item["measured_latency_ms"] for item in content["experts"])
    sum([content["asked"]["target_ms"], *content["feature_shape"]])
    known = content["controllers_ms"]
    sum(known.values())
    if not {entry["controller"] for entry in content["variants"]} <= {"", *known}:
        raise ValueError("a variant with an unknown controller")
    if not 0 <= content["shared_cells"] <= len(content["space"]["cells"]):
        raise ValueError(f"shared_cells {content['shared_cells']!r}")
    names = [_check_variant(entry, len(content["experts"])) for entry in content["variants"]]
    if content["selected"] not in names or len(set(names)) != len(names):
        raise ValueError(f"selected {content['selected']!r} among {names}")


def _check_variant(entry: dict[str, Any], count: int) -> str:
    """Checks one variant and returns its name."""
    sum([entry["target"], entry["price"], entry["validation_accuracy"]])
    sum([entry["validation_latency_ms"], entry["budget_ms"]])
    sum(entry["biases"])
    indices, rules = entry["experts"], entry["routing"]
    if set(rules) != _RULES or not isinstance(rules["kind"], str):
        raise ValueError(f"routing with {sorted(rules)}")
    if len(entry["shares"]) != len(indices) or not isinstance(entry["candidates"], list):
        raise ValueError(f"shares {entry['shares']!r}")
    sum(entry["shares"])
    if sorted(set(indices)) != indices or not all(0 <= i < count for i in indices) or not indices:
        raise ValueError(f"experts {indices!r}")
    cascades.Cascade(tuple(rules["following"]), tuple(rules["thresholds"]), tuple(rules["weights"]))
    if len(rules["following"]) != len(indices):
        raise ValueError(f"rules for {len(rules['following'])} experts, not {len(indices)}")
    if not isinstance(rules["features"], bool) or entry["kind"] not in KINDS:
        raise ValueError(f"kind {entry['kind']!r}")
    if rules["first"] is None and not entry["controller"]:
        raise ValueError("nobody names the first expert")
    if entry["controller"] and len(entry["biases"]) != len(indices):
        raise ValueError(f"biases {entry['biases']!r}")
    named = rules["first"] is None
    if not named and not (type(rules["first"]) is int and 0 <= rules["first"] < len(indices)):
        raise ValueError(f"first {rules['first']!r}")
    if not isinstance(entry["name"], str):
        raise ValueError("a variant needs a name")
    return entry["name"]


def read_chosen(path: pathlib.Path, space: SearchSpace) -> dict[str, Any]:
    """The experts chosen for a run, checked; see `choice.choose`.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = files.read_json(path, "run --stage=finetune again")
    try:
        for names in content["policies"]:
            space.policy_from_names(names)
        sum([content["unique_policies"], content["varying_bits"], *content["epochs"]])
        if not content["policies"] or not content["epochs"]:
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
