"""What leaves a run: the files of a variant, or of one static network, in a folder."""

from __future__ import annotations

import dataclasses
import pathlib
from importlib import metadata
from typing import Any

import numpy as np

from export import convert, deploy, manifest
from export.bench import bench
from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.pipeline import checks, variants
from instanas_tf.pipeline.workdir import WorkDir

PACKAGES = ("tensorflow", "keras", "numpy", "tflite-runtime", "ai-edge-litert")
_CHECK_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Shipment:
    """What is to be written.

    Attributes:
        deployed: the models and their rules.
        variant: the variant, or the one that was found not to pay.
        kind: who decides, or `static`.
        complete: how many experts the rules speak of.
        details: what the manifest says of each file, by its name.
        content: what it says beside.
    """

    deployed: deploy.Deployed
    variant: variants.Variant
    kind: str
    complete: int
    details: dict[str, dict[str, Any]]
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
    except (LookupError, StopIteration, TypeError, ValueError) as error:
        raise InputError(f"{workdir.results} is damaged ({error!r}); {remedy}") from error
    return found


def variant(chosen: variants.Variant, indices: list[int]) -> Shipment:
    """A variant with some of its experts.

    Raises:
        InputError: the run's files are damaged.
    """
    deployed = deploy.deploy(chosen)
    kept = {variants.expert_name(index) for index in indices}
    experts = {name: model for name, model in deployed.experts.items() if name in kept}
    entry, content = chosen.entry, chosen.content
    details = {}
    for index, share in zip(chosen.indices, entry["shares"], strict=True):
        item = content["experts"][index]
        details[item["name"]] = {**item, "share": share}
    if entry["controller"]:
        predicted = content["controllers_ms"][entry["controller"]]
        details[deploy.CONTROLLER] = {"predicted_latency_ms": predicted}
    return Shipment(
        deployed=dataclasses.replace(deployed, experts=experts),
        variant=chosen,
        kind=chosen.kind,
        complete=len(chosen.indices),
        details=details,
        content={
            "variant": chosen.name,
            "validation_accuracy": entry["validation_accuracy"],
            "predicted_latency_ms": entry["validation_latency_ms"],
        },
    )


def static(instead_of: variants.Variant, name: str) -> Shipment:
    """The static network that is better than a variant.

    Raises:
        InputError: the run's files are damaged.
    """
    workdir = instead_of.workdir
    results = files.read_json(workdir.results, "run --stage=evaluate again")
    item = next(item for item in results["static"] if item["name"] == name)
    network = variants.static(item, instead_of.content, workdir)
    details = {
        "validation_accuracy": item["validation_accuracy"],
        "predicted_latency_ms": item["latency_ms"],
    }
    return Shipment(
        deployed=deploy.Deployed.static(name, network),
        variant=instead_of,
        kind="static",
        complete=1,
        details={name: details},
        content={"variant": None, **details},
    )


def write(shipment: Shipment, out: pathlib.Path) -> list[list[str]]:
    """Converts, checks and measures, then puts the folder in its place.

    Args:
        shipment: what to write.
        out: the folder; an earlier export there is replaced as a whole.

    Returns:
        Rows of the closing table.

    Raises:
        ModelError: a file differs from Keras, no runtime, or the disk is full.
        InputError: the run's files are damaged.
    """
    with files.folder_replacing(out) as staging:
        return _fill(shipment, staging)


def _fill(shipment: Shipment, folder: pathlib.Path) -> list[list[str]]:
    """Writes all files of an export into a folder."""
    of_variant, deployed = shipment.variant, shipment.deployed
    config = checks.from_json(of_variant.workdir.config)
    size = of_variant.space.image_size
    shapes = {name: deployed.input_shape(name, size) for name in deployed.models}
    paths = convert.write_models(deployed.models, folder, shapes)
    differences = _check(deployed, paths, size, config.latency.runtime)
    content = {
        "dataset": config.data.name,
        "experts": shipment.complete,
        "input": {
            "shape": [1, size, size, 3],
            "dtype": "float32",
            "color": "RGB",
            "range": [0, 255],
            "normalization": "inside the model",
        },
        "routing": deployed.rules.to_json(shipment.kind),
        "labels": of_variant.labels,
        "quantize": "none",
        "space": {"name": of_variant.space.name, "hash": of_variant.space.hash},
        "tools": _versions(),
        **shipment.content,
    }

    def entries(measured_ms: dict[str, float]) -> list[dict[str, Any]]:
        found = []
        for name, path in paths.items():
            details = {k: v for k, v in shipment.details.get(name, {}).items() if k != "name"}
            details["measured_latency_ms"] = measured_ms.get(name)
            details["largest_difference_from_keras"] = differences[name]
            kind = "controller" if name == deploy.CONTROLLER else "expert"
            found.append(manifest.entry(name, kind, path, **details))
        return found

    # The bench reads a manifest, so the first one lacks only what the bench finds.
    path = manifest.write(folder, entries({}), **content)
    measured = bench(path, folder / "measurements.jsonl", config.latency, config.latency.device)
    content |= {"device": measured[0]["device"], "runtime": measured[0]["runtime"]}
    rows = entries({row["model"]: row["median_ms"] for row in measured})
    manifest.write(folder, rows, **content)
    return [_row(item) for item in rows]


def _check(
    deployed: deploy.Deployed, paths: dict[str, pathlib.Path], size: int, runtime: str
) -> dict[str, float]:
    """Compares all files with Keras; see `convert.check`."""
    shape = (_CHECK_IMAGES, size, size, 3)
    images = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    found, inputs = {}, images
    if deployed.front is not None:
        name = deploy.CONTROLLER
        found = convert.check({name: deployed.front}, {name: paths[name]}, images, runtime)
    if deployed.feature_shape is not None:
        inputs = convert.outputs_of(deployed.front, images)["features"]
    own = {name: paths[name] for name in deployed.experts}
    return found | convert.check(deployed.experts, own, inputs, runtime)


def _row(item: dict[str, Any]) -> list[str]:
    """One line of the closing table."""
    accuracy, predicted = item.get("validation_accuracy"), item.get("predicted_latency_ms")
    return [
        item["name"],
        f"{item['bytes'] / 1024:.0f}",
        "" if predicted is None else f"{predicted:.3f}",
        f"{item['measured_latency_ms']:.3f}",
        "" if accuracy is None else f"{accuracy:.4f}",
    ]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
