"""Writes what leaves a run: files, checked and measured, and the manifest that describes them."""

from __future__ import annotations

import dataclasses
import pathlib
from importlib import metadata
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from export import bundle, deploy, inspect_file, judge, manifest
from export.bench import bench
from export.convert import write_models
from export.quantize import REPRESENTATIVE_IMAGES, Quantization, representative_images
from export.shipment import Shipment
from instanas_tf import files
from instanas_tf.pipeline import data
from instanas_tf.spaces.space import SearchSpace

PACKAGES = ("tensorflow", "keras", "numpy", "tflite-runtime", "ai-edge-litert")


@dataclasses.dataclass(frozen=True)
class Options:
    """How an export is written.

    Attributes:
        quantize: one of `export.quantize.MODES`.
        io: one of `export.quantize.IOS`.
        bundle: whether one file with all graphs is written too.
        representative: training images that show an int8 file its ranges.
    """

    quantize: str = "none"
    io: str = "float"
    bundle: bool = True
    representative: int = REPRESENTATIVE_IMAGES


@dataclasses.dataclass(frozen=True)
class Written:
    """What an export says when it is done.

    Attributes:
        rows: of the closing table: file, KiB, predicted ms, measured ms, accuracy, and how that
            of the float model differs.
        losses: a line for each file and variant that quantisation costs more than a point.
        runtime: name of the TFLite runtime that latencies were measured with.
    """

    rows: list[list[str]]
    losses: list[str]
    runtime: str


def write(
    shipment: Shipment,
    images: data.ImageData,
    config: ConfigDict,
    options: Options,
    out: pathlib.Path,
) -> Written:
    """Converts, checks and measures, then puts the folder in its place.

    Args:
        shipment: what to write.
        images: of the run; images of the training split show int8 files their ranges, and
            files are judged on the validation split.
        config: of the run.
        options: how it is written.
        out: the folder; an earlier export there is replaced as a whole.

    Raises:
        ModelError: a file differs from Keras, no runtime, or the disk is full.
        InputError: the run's files are damaged, or too few training images for int8.
    """
    quantizations = _quantizations(shipment, images, options)
    with files.folder_replacing(out) as staging:
        return _fill(shipment, images, config, options, quantizations, staging)


def _quantizations(
    shipment: Shipment, images: data.ImageData, options: Options
) -> dict[str, Quantization]:
    """How each file is quantised; the small graph that decides stays as it is."""
    shown = None
    if options.quantize == "int8":
        shown = representative_images(images.train, options.representative)
    settings = Quantization(options.quantize, options.io, shown)
    features = {}
    if shown is not None:
        features = judge.features_of(shipment, shown)
    return {
        name: settings.shown(features[name]) if name in features else settings
        for name, part in shipment.parts.items()
        if part.kind != deploy.DECIDE
    }


def _fill(
    shipment: Shipment,
    images: data.ImageData,
    config: ConfigDict,
    options: Options,
    quantizations: dict[str, Quantization],
    folder: pathlib.Path,
) -> Written:
    """Writes all files of an export into a folder."""
    parts = shipment.parts
    inputs = {name: _inputs(part, options.io) for name, part in parts.items()}
    models = {name: part.model for name, part in parts.items()}
    paths = write_models(models, folder, inputs, quantizations)
    together = folder / manifest.BUNDLE if options.bundle else None
    if together:
        bundle.merge(paths, together)
    content = _content(shipment, config, options, inputs)
    content["bundle"] = _bundle_entry(together) if together else None
    found = judge.judge(shipment, paths, together, images, config, options.quantize, options.io)

    def entries(measured_ms: dict[str, float]) -> list[dict[str, Any]]:
        rows = []
        for name, path in paths.items():
            details = {**shipment.details.get(name, {}), **found.of_files[name]}
            details |= {"ops": inspect_file.ops_of(path)}
            details |= {"min_runtime": inspect_file.min_runtime(path)}
            details |= next(iter(inspect_file.signatures(path).values()))
            details["measured_latency_ms"] = measured_ms.get(name)
            rows.append(manifest.entry(name, parts[name].kind, path, **details))
        return rows

    # The bench reads a manifest, so the first one lacks only what the bench finds.
    path = manifest.write(folder, entries({}), **content)
    measured = bench(path, folder / "measurements.jsonl", config.latency, config.latency.device)
    content |= {"device": measured[0]["device"], "runtime": measured[0]["runtime"]}
    measured_ms = {row["model"]: row["median_ms"] for row in measured}
    content["variants"] = [
        {
            "name": name,
            **shipment.names[name].to_json(),
            **entry,
            **judge.with_worst(found.of_variants[name], shipment, name, measured_ms),
        }
        for name, entry in shipment.entries.items()
    ]
    rows = entries(measured_ms)
    manifest.write(folder, rows, **content)
    losses = judge.losses([*rows, *content["variants"]], options.quantize)
    return Written([_row(item) for item in rows], losses, content["runtime"]["name"])


def _inputs(part: deploy.Part, io: str) -> dict[str, tf.TensorSpec]:
    """What a file takes: `decide` is given the probabilities as the experts say them."""
    if part.kind != deploy.DECIDE:
        return dict(part.inputs)
    dtype = Quantization("int8", io, np.zeros((1, 1, 1, 1))).dtype("probabilities")
    spec = tf.TensorSpec(part.inputs["probabilities"].shape, dtype)
    return {**part.inputs, "probabilities": spec}


def _content(
    shipment: Shipment, config: ConfigDict, options: Options, inputs: dict[str, Any]
) -> dict[str, Any]:
    """What the manifest says of the whole export."""
    space = SearchSpace.from_json(shipment.content["space"])
    size = space.image_size
    return {
        "dataset": config.data.name,
        "input": {
            "shape": [1, size, size, 3],
            "dtype": "uint8" if options.io == "uint8" else "float32",
            "color": "RGB",
            "range": [0, 255],
            "resize": "largest centred part, bilinear with antialiasing",
            "normalization": "inside the model",
        },
        "labels": shipment.content["labels"],
        "quantize": options.quantize,
        "io": options.io,
        "space": {"name": space.name, "hash": space.hash},
        "tools": _versions(),
        "selected": shipment.selected,
    }


def _bundle_entry(path: pathlib.Path) -> dict[str, Any]:
    return {
        "file": path.name,
        "sha256": files.sha256(path),
        "bytes": path.stat().st_size,
        "signatures": inspect_file.signatures(path),
    }


def _row(item: dict[str, Any]) -> list[str]:
    """One line of the closing table."""
    accuracy, predicted = item.get("validation_accuracy"), item.get("predicted_latency_ms")
    of_float = item.get("float_validation_accuracy")
    return [
        item["name"],
        f"{item['bytes'] / 1024:.0f}",
        "" if predicted is None else f"{predicted:.3f}",
        f"{item['measured_latency_ms']:.3f}",
        "" if accuracy is None else f"{accuracy:.4f}",
        "" if None in (accuracy, of_float) else f"{100 * (accuracy - of_float):+.2f}",
    ]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
