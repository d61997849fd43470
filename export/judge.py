"""Whether the files of an export do what Keras does, and what they are worth."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from export import convert, deploy, runtime, worker
from export.shipment import Shipment
from export.tolerances import Tolerance, compare
from instanas_tf.pipeline import data, evaluate

_CHECK_IMAGES = 8  # On which files that are not quantised are compared.
_QUANTISED_IMAGES = 48  # The same of quantised ones; too few to say anything of the top class.
_TIMED_IMAGES, _ROUNDS = 200, 3  # For the latency of a variant.
_REMEDIES = {
    "fp16": "--quantize=none",
    "dynamic": "--quantize=fp16",
    "int8": "--quantize=fp16, or more --representative images",
}
MOST = 0.01  # Accuracy that quantisation may cost without a word.
_BATCH = 256


class Judged(NamedTuple):
    """What the manifest says of files and variants.

    Attributes:
        of_files: by name.
        of_variants: by name; accuracy and latency of those whose experts are all there.
    """

    of_files: dict[str, dict[str, Any]]
    of_variants: dict[str, dict[str, Any]]


def judge(
    shipment: Shipment,
    paths: dict[str, pathlib.Path],
    together: pathlib.Path | None,
    images: data.ImageData,
    config: ConfigDict,
    mode: str,
    io: str,
) -> Judged:
    """Compares all files with Keras on every runtime that is installed, and judges them.

    On the runtime of the run, quantised experts are held to their models' top class on the
    whole validation split. All else is compared on a few images: controllers, the bundle, other
    runtimes, and files that are not quantised, which have the accuracy of their models.

    Args:
        shipment: what the files were made of.
        paths: the files by name.
        together: the bundle of them; None if there is none.
        images: of the run; validation images are used.
        config: of the run.
        mode: of quantisation.
        io: `float` or `uint8`.

    Raises:
        ModelError: a file differs from its model by more than its mode allows.
    """
    pixels, labels = data.to_arrays(images.validation)
    own = runtime.find_runtime(config.latency.runtime).partition(".")[0]
    exact = mode in ("none", "fp16")
    few = _spread(pixels, _CHECK_IMAGES if exact else _QUANTISED_IMAGES)
    inputs = inputs_of(shipment, few, io)
    differences: dict[str, Tolerance] = {}
    for name in [own, *(other for other in runtime.installed() if other != own)]:
        for path in (None, together) if together else (None,):
            for key, item in _check(shipment, paths, path, inputs, name, mode).items():
                differences[key] = max(item, differences.get(key, item))
    of_files: dict[str, dict[str, Any]] = {
        name: {"largest_difference_from_keras": item.largest} for name, item in differences.items()
    }
    systems = _systems(shipment, paths)
    of_variants: dict[str, dict[str, Any]] = {name: {} for name in shipment.systems}
    if mode != "none":
        of_files |= _accuracies(shipment, paths, pixels, labels, own, mode, of_files)
        for name, (classes, _) in worker.answers(systems, pixels, own).items():
            of_variants[name] = {
                "validation_accuracy": float(np.mean(classes == labels)),
                "float_validation_accuracy": shipment.entries[name]["validation_accuracy"],
            }
    latencies = _latencies(systems, _spread(pixels, _TIMED_IMAGES), config)
    for name, found in latencies.items():
        of_variants[name] |= found
    return Judged(of_files, of_variants)


def features_of(shipment: Shipment, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Features [n, h, w, c] for each expert that goes on from them, by its name."""
    made: dict[str, np.ndarray] = {}
    for variant, system in shipment.systems.items():
        names = [name for name in shipment.names[variant].experts if name in shipment.parts]
        if system.feature_shape is None or set(names) <= set(made):
            continue
        pieces = np.array_split(pixels, -(-len(pixels) // _BATCH))
        found = [convert.outputs_of(system.front, piece)["features"] for piece in pieces]
        made |= dict.fromkeys(names, np.concatenate(found))
    return made


def inputs_of(shipment: Shipment, pixels: np.ndarray, io: str) -> dict[str, Any]:
    """What each file is compared on, by its name."""
    features = features_of(shipment, pixels)
    generator = np.random.default_rng(0)
    classes = len(shipment.content["labels"])
    found: dict[str, Any] = {}
    for name, part in shipment.parts.items():
        if part.kind == deploy.DECIDE:
            experts = len(part.model.following)
            steps = generator.multinomial(255, np.full(classes, 1 / classes), (2, len(pixels)))
            votes = (steps[1] / 256).astype(np.float32)
            is_uint8 = io == "uint8"
            found[name] = {
                "probabilities": steps[0].astype(np.uint8) if is_uint8 else votes[::-1],
                "votes": votes,
                "expert": generator.integers(0, experts, len(pixels)).astype(np.int32),
            }
        else:
            found[name] = features.get(name, pixels)
    return found


def _check(
    shipment: Shipment,
    paths: dict[str, pathlib.Path],
    together: pathlib.Path | None,
    inputs: dict[str, Any],
    runtime_name: str,
    mode: str,
) -> dict[str, Tolerance]:
    """Compares all files, or the signatures of their bundle, with Keras on one runtime."""
    groups: dict[int, list[str]] = {}
    for name, given in inputs.items():
        groups.setdefault(id(given), []).append(name)
    found = {}
    for names in groups.values():
        models = {name: shipment.parts[name].model for name in names}
        where = {name: together or paths[name] for name in names}
        modes = {shipment.parts[name].kind == deploy.DECIDE for name in names}
        used = "none" if modes == {True} else mode
        found |= convert.check(models, where, inputs[names[0]], runtime_name, used, bool(together))
    return found


def _accuracies(
    shipment: Shipment,
    paths: dict[str, pathlib.Path],
    pixels: np.ndarray,
    labels: np.ndarray,
    own: str,
    mode: str,
    of_files: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Accuracy of every quantised expert beside that of its model; the top class is held."""
    inputs = features_of(shipment, pixels)
    found = {}
    for name, part in shipment.parts.items():
        if part.kind != deploy.EXPERT:
            continue
        given = inputs.get(name, pixels)
        rows = worker.outputs({name: paths[name]}, given, own)[name]
        expected = np.concatenate(
            [
                convert.outputs_of(part.model, piece)["probabilities"]
                for piece in np.array_split(given, -(-len(given) // _BATCH))
            ]
        )
        agreed = compare(mode, expected, rows, name)
        found[name] = {
            **of_files[name],
            "validation_accuracy": float(np.mean(rows.argmax(axis=-1) == labels)),
            "float_validation_accuracy": float(np.mean(expected.argmax(axis=-1) == labels)),
            "same_top_class_as_keras": agreed.top_class,
        }
    return found


def _systems(shipment: Shipment, paths: dict[str, pathlib.Path]) -> list[worker.System]:
    """The variants whose files are all there."""
    found = []
    for name, system in shipment.systems.items():
        names = shipment.names[name]
        if all(expert in paths for expert in names.experts):
            experts = tuple(paths[expert] for expert in names.experts)
            front = paths[names.controller] if names.controller else None
            found.append(worker.System(name, experts, front, system.rules))
    return found


def _latencies(
    systems: Sequence[worker.System], pixels: np.ndarray, config: ConfigDict
) -> dict[str, dict[str, float]]:
    """What an image takes end to end on this host, in ms, by variant."""
    if not systems:
        return {}
    settings = config.latency
    timed = worker.timings(
        systems,
        pixels,
        rounds=_ROUNDS,
        seed=config.seed,
        threads=settings.threads,
        runtime=settings.runtime,
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


def with_worst(
    found: dict[str, float], shipment: Shipment, variant: str, measured_ms: dict[str, float]
) -> dict[str, float]:
    """The latencies of a variant; the worst is at least that of the longest chain of experts.

    Args:
        found: as measured on some images, which may all have taken shorter ones.
        shipment: what the files were made of.
        variant: its name.
        measured_ms: of each file.
    """
    if "worst_latency_ms" not in found:
        return found
    names, rules = shipment.names[variant], shipment.systems[variant].rules
    own = [measured_ms[name] for name in names.experts]
    longest: list[float] = []  # From each expert on, from dear to cheap.
    for index in reversed(range(len(own))):
        following = rules.following[index] if rules.limits[index] else -1
        rest = longest[len(own) - 1 - following] if following >= 0 else 0.0
        longest.append(own[index] + rest)
    chain = max(longest) if rules.first is None else longest[len(own) - 1 - rules.first]
    front = measured_ms[names.controller] if names.controller else 0.0
    return found | {"worst_latency_ms": max(found["worst_latency_ms"], front + chain)}


def losses(items: Sequence[dict[str, Any]], mode: str) -> list[str]:
    """A line for each file and variant that lost more than `MOST` by quantisation."""
    lines = []
    for item in items:
        pair = item.get("validation_accuracy"), item.get("float_validation_accuracy")
        if None not in pair and pair[1] - pair[0] > MOST:
            lines.append(
                f"{item['name']} loses {100 * (pair[1] - pair[0]):.1f} points by quantisation; "
                f"use {_REMEDIES[mode]}"
            )
    return lines


def _spread(pixels: np.ndarray, count: int) -> np.ndarray:
    """At most so many images, evenly spaced."""
    picked = np.linspace(0, len(pixels) - 1, min(len(pixels), count), dtype=int)
    return pixels[np.unique(picked)]
