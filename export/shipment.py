"""What is to leave a run: variants with their experts, or one static network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from export import deploy
from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.pipeline import variants
from instanas_tf.pipeline.workdir import WorkDir


@dataclasses.dataclass(frozen=True)
class Shipment:
    """What is to be written.

    Attributes:
        parts: the files by name.
        systems: the variants by name, complete.
        names: those of each variant's files.
        entries: what the manifest says of each variant.
        details: what it says of each expert file, by its name.
        selected: the variant to run unless an app says otherwise.
        content: `experts.json` of the run.
    """

    parts: dict[str, deploy.Part]
    systems: dict[str, deploy.Deployed]
    names: dict[str, deploy.Names]
    entries: dict[str, dict[str, Any]]
    details: dict[str, dict[str, Any]]
    selected: str
    content: dict[str, Any]


def verdict(workdir: WorkDir, name: str) -> dict[str, Any] | None:
    """What the comparison on the test split says of a variant; None if there was none yet.

    Raises:
        InputError: `results.json` is damaged.
    """
    if not workdir.results.exists():
        return None
    remedy = "delete it and run --stage=evaluate again"
    results = files.read_json(workdir.results, remedy)
    try:
        found = next(item for item in results["variants"] if item["name"] == name)
        wanted = found["static_instead"]
        instead = next(item for item in results["static"] if item["name"] == wanted)
        sum([instead["validation_accuracy"], instead["latency_ms"]])
        if not isinstance(found["pays"], bool) or not isinstance(found["sentence"], str):
            raise ValueError(found["sentence"])
    except (ArithmeticError, LookupError, StopIteration, TypeError, ValueError) as error:
        raise InputError(f"{workdir.results} is damaged ({error!r}); {remedy}") from error
    return found


def of_variants(chosen: Sequence[variants.Variant], indices: Sequence[int] | None) -> Shipment:
    """Some variants of a run.

    Args:
        chosen: the variants, at least one.
        indices: of the experts that are written; None: all that the variants run.

    Raises:
        InputError: the run's files are damaged.
    """
    content = chosen[0].content
    made: dict = {}
    systems = {variant.name: deploy.deploy(variant, made) for variant in chosen}
    parts, names = deploy.gather(systems, chosen[0].space.image_size)
    if indices is not None:
        wanted = {"", *map(variants.expert_name, indices)}
        parts = {name: part for name, part in parts.items() if part.origin in wanted}
    of_experts = {item["name"]: item for item in content["experts"]}
    details = {}
    for name, part in parts.items():
        if part.origin:
            item = of_experts[part.origin]
            details[name] = {key: value for key, value in item.items() if key != "name"}
    entries = {}
    for variant in chosen:
        entry = variant.entry
        entries[variant.name] = {
            "kind": variant.kind,
            "target": entry["target"],
            "complete": all(name in parts for name in names[variant.name].experts),
            "shares": entry["shares"],
            "validation_accuracy": entry["validation_accuracy"],
            "routing": systems[variant.name].rules.to_json(variant.kind),
        }
    whole = [name for name, entry in entries.items() if entry["complete"]] or list(entries)
    selected = content["selected"] if content["selected"] in whole else whole[0]
    return Shipment(parts, systems, names, entries, details, selected, content)


def static(instead_of: variants.Variant, name: str) -> Shipment:
    """The static network that is better than a variant.

    Raises:
        InputError: the run's files are damaged.
    """
    workdir, content = instead_of.workdir, instead_of.content
    results = files.read_json(workdir.results, "run --stage=evaluate again")
    item = next(item for item in results["static"] if item["name"] == name)
    network = variants.static(item, content, workdir)
    system = deploy.Deployed.static(name, network, len(instead_of.labels))
    parts, names = deploy.gather({name: system}, instead_of.space.image_size)
    entry = {
        "kind": "static",
        "target": None,
        "complete": True,
        "shares": [1.0],
        "validation_accuracy": item["validation_accuracy"],
        "routing": system.rules.to_json("static"),
    }
    details = {
        "validation_accuracy": item["validation_accuracy"],
        "predicted_latency_ms": item["latency_ms"],
    }
    return Shipment(parts, {name: system}, names, {name: entry}, {name: details}, name, content)
