"""Writes what leaves a run: files, checked and measured, and the manifest that describes them."""

from __future__ import annotations

import pathlib
from importlib import metadata
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from export import convert, deploy, manifest, worker
from export.bench import bench
from export.shipment import Shipment
from instanas_tf import files
from instanas_tf.pipeline import data, evaluate
from instanas_tf.spaces.space import SearchSpace

PACKAGES = ("tensorflow", "keras", "numpy", "tflite-runtime", "ai-edge-litert")
_CHECK_IMAGES = 8
_TIMED_IMAGES, _ROUNDS = 200, 3  # Of the validation split, for the latency of a variant.


def write(
    shipment: Shipment, images: data.ImageData, config: ConfigDict, out: pathlib.Path
) -> list[list[str]]:
    """Converts, checks and measures, then puts the folder in its place.

    Args:
        shipment: what to write.
        images: of the run; validation images are used.
        config: of the run.
        out: the folder; an earlier export there is replaced as a whole.

    Returns:
        Rows of the closing table.

    Raises:
        ModelError: a file differs from Keras, no runtime, or the disk is full.
        InputError: the run's files are damaged.
    """
    with files.folder_replacing(out) as staging:
        return _fill(shipment, images, config, staging)


def _fill(
    shipment: Shipment, images: data.ImageData, config: ConfigDict, folder: pathlib.Path
) -> list[list[str]]:
    """Writes all files of an export into a folder."""
    parts = shipment.parts
    paths = convert.write_models(
        {name: part.model for name, part in parts.items()},
        folder,
        {name: part.inputs for name, part in parts.items()},
    )
    validation = data.to_arrays(images.validation)[0]
    picked = np.linspace(0, len(validation) - 1, min(len(validation), _TIMED_IMAGES), dtype=int)
    pixels = validation[np.unique(picked)]
    runtime = config.latency.runtime
    differences = _check(shipment, paths, pixels[:_CHECK_IMAGES], runtime)
    latencies = _latencies(shipment, paths, pixels, config)
    content = _content(shipment, config)

    def entries(measured_ms: dict[str, float]) -> list[dict[str, Any]]:
        found = []
        for name, path in paths.items():
            details = dict(shipment.details.get(name, {}))
            details["measured_latency_ms"] = measured_ms.get(name)
            details["largest_difference_from_keras"] = differences.get(name)
            found.append(manifest.entry(name, parts[name].kind, path, **details))
        return found

    # The bench reads a manifest, so the first one lacks only what the bench finds.
    path = manifest.write(folder, entries({}), **content)
    measured = bench(path, folder / "measurements.jsonl", config.latency, config.latency.device)
    content |= {"device": measured[0]["device"], "runtime": measured[0]["runtime"]}
    content["variants"] = [
        {"name": name, **shipment.names[name].to_json(), **entry, **latencies.get(name, {})}
        for name, entry in shipment.entries.items()
    ]
    rows = entries({row["model"]: row["median_ms"] for row in measured})
    manifest.write(folder, rows, **content)
    return [_row(item) for item in rows]


def _content(shipment: Shipment, config: ConfigDict) -> dict[str, Any]:
    """What the manifest says of the whole export."""
    space = shipment.content["space"]
    size = space["image_size"]
    return {
        "dataset": config.data.name,
        "input": {
            "shape": [1, size, size, 3],
            "dtype": "float32",
            "color": "RGB",
            "range": [0, 255],
            "normalization": "inside the model",
        },
        "labels": shipment.content["labels"],
        "quantize": "none",
        "io": "float",
        "space": {"name": space["name"], "hash": SearchSpace.from_json(space).hash},
        "tools": _versions(),
        "selected": shipment.selected,
    }


def _check(
    shipment: Shipment, paths: dict[str, pathlib.Path], images: np.ndarray, runtime: str
) -> dict[str, float]:
    """Compares all files with Keras; see `convert.check`."""
    features = {}
    for variant, system in shipment.systems.items():
        if system.feature_shape is not None:
            front = convert.outputs_of(system.front, images)
            for name in shipment.names[variant].experts:
                features[name] = front["features"]
    found = {}
    whole, tails = {}, {}
    for name, part in shipment.parts.items():
        if part.kind != deploy.DECIDE:
            (tails if name in features else whole)[name] = part.model
    for models, inputs in ((whole, images), (tails, next(iter(features.values()), None))):
        if models:
            found |= convert.check(models, {n: paths[n] for n in models}, inputs, runtime)
    return found


def _latencies(
    shipment: Shipment, paths: dict[str, pathlib.Path], pixels: np.ndarray, config: ConfigDict
) -> dict[str, dict[str, float]]:
    """Of each complete variant, what an image takes end to end on this host, in ms."""
    systems = []
    for name, system in shipment.systems.items():
        names = shipment.names[name]
        if all(expert in paths for expert in names.experts):
            experts = tuple(paths[expert] for expert in names.experts)
            front = paths[names.controller] if names.controller else None
            systems.append(worker.System(name, experts, front, system.rules))
    if not systems:
        return {}
    timed = worker.timings(
        systems,
        pixels,
        rounds=_ROUNDS,
        seed=config.seed,
        threads=config.latency.threads,
        runtime=config.latency.runtime,
    )
    found = {}
    for name, rows in timed.items():
        of_images = np.median(rows, axis=0)
        found[name] = {
            "mean_latency_ms": evaluate.mean_latency_ms(rows),
            "p95_latency_ms": float(np.percentile(of_images, 95)),
            "worst_latency_ms": float(np.max(of_images)),
        }
    return found


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
