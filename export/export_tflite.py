"""Command: write a variant's controller and experts as `.tflite` files.

    export_tflite --workdir=runs/digits --expert=all

With no flags, all experts of the most recent run below runs/. Every file is run with a
TFLite runtime and compared with Keras, and its latency on this host is measured, before
the folder appears.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from absl import flags

from export import manifest
from export.bench import bench
from instanas_tf import cli, files, startup
from instanas_tf.errors import InputError
from instanas_tf.pipeline.workdir import existing_workdir, locked

PACKAGES = ("tensorflow", "keras", "numpy", "tflite-runtime", "ai-edge-litert")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "workdir", "", "Folder of the run; empty: the latest below runs/.", flag_values=values
    )
    flags.DEFINE_string("expert", "all", "all, or indices such as 0,2,5.", flag_values=values)
    flags.DEFINE_string(
        "variant", "", "Which variant; empty: the one picked on validation.", flag_values=values
    )
    flags.DEFINE_string("out", "", "Folder to write; empty: WORKDIR/export.", flag_values=values)
    return cli.run("export_tflite", _export, argv or sys.argv, __doc__ or "", values)


def parse_experts(text: str, count: int) -> list[int]:
    """Indices of the experts that `--expert` names.

    Args:
        text: `all`, or indices separated by commas.
        count: how many there are.

    Raises:
        InputError: no number, or an index that does not exist.
    """
    if text == "all":
        return list(range(count))
    try:
        indices = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise InputError(
            f"--expert={text} must be all, or indices such as 0,2,5 from 0 to {count - 1}"
        ) from error
    for index in indices:
        if not 0 <= index < count:
            raise InputError(f"--expert={index}: the variant has experts 0 to {count - 1}")
    return indices


def _export(values: flags.FlagValues) -> None:
    workdir = existing_workdir(values.workdir, "experts.json")
    startup.import_tensorflow()
    from instanas_tf.pipeline import variants

    variant = variants.pick(workdir, values.variant)
    indices = parse_experts(values.expert, len(variant.expert_names))
    out = pathlib.Path(values.out).expanduser() if values.out else workdir.export
    check_target(out)
    with locked(workdir):
        rows = write_export(variant, indices, out.resolve())
    header = ("model", "KiB", "predicted ms", "measured ms", "validation accuracy")
    print(cli.table(rows, header))
    print(f"Wrote variant {variant.name} to {out}")


def check_target(out: pathlib.Path) -> None:
    """Refuses to replace anything that is not an export of this command."""
    if not out.exists():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        found = manifest.read(out)
    except InputError as error:
        message = f"--out={out} exists and is no export; choose another folder"
        raise InputError(message) from error
    known = {"manifest.json", "measurements.jsonl", *(model.path.name for model in found.models)}
    strange = sorted(path.name for path in out.iterdir() if path.name not in known)
    if strange or not found.of_kind("controller"):
        what = f"holds {strange[0]!r}, which no export wrote" if strange else "is no export"
        raise InputError(f"--out={out} {what}; move it away or choose another folder")


def write_export(variant: Any, indices: list[int], out: pathlib.Path) -> list[list[str]]:
    """Converts, checks and measures, then puts the folder in its place.

    Args:
        variant: an `instanas_tf.pipeline.variants.Variant`.
        indices: of the experts to write.
        out: the folder; an earlier export there is replaced as a whole.

    Returns:
        Rows of the closing table.

    Raises:
        ModelError: a file differs from Keras, no runtime, or the disk is full.
        InputError: the run's files are damaged.
    """
    with files.folder_replacing(out) as staging:
        return _fill(variant, indices, staging)


def _fill(variant: Any, indices: list[int], folder: pathlib.Path) -> list[list[str]]:
    """Writes all files of an export into a folder."""
    import numpy as np

    from export import convert, deploy
    from instanas_tf.pipeline import checks

    config = checks.from_json(variant.workdir.config)
    wanted = ["controller"] + [variant.expert_names[index] for index in indices]
    models = deploy.models(variant, wanted)
    size = variant.space.image_size
    shape = (1, size, size, 3)
    paths = convert.write_models(models, folder, {name: shape for name in models})
    images = np.random.default_rng(0).uniform(0, 255, (8, size, size, 3)).astype(np.float32)
    differences = convert.check(models, paths, images, config.latency.runtime)
    content = {
        "dataset": config.data.name,
        "variant": variant.name,
        "experts": len(variant.expert_names),
        "input": {
            "shape": list(shape),
            "dtype": "float32",
            "color": "RGB",
            "range": [0, 255],
            "normalization": "inside the model",
        },
        "labels": variant.labels,
        "quantize": "none",
        "space": {"name": variant.space.name, "hash": variant.space.hash},
        "validation_accuracy": variant.entry["validation_accuracy"]["recalibrated"],
        "tools": _versions(),
    }
    # The bench reads a manifest, so the first one lacks only what the bench finds.
    entries = _entries(variant, paths, differences, {})
    path = manifest.write(folder, entries, **content)
    measured = bench(path, folder / "measurements.jsonl", config.latency, config.latency.device)
    content |= {"device": measured[0]["device"], "runtime": measured[0]["runtime"]}
    by_name = {row["model"]: row["median_ms"] for row in measured}
    entries = _entries(variant, paths, differences, by_name)
    manifest.write(folder, entries, **content)
    return [_row(item) for item in entries]


def _entries(
    variant: Any,
    paths: dict[str, pathlib.Path],
    differences: dict[str, float],
    measured_ms: dict[str, float],
) -> list[dict[str, Any]]:
    """The manifest's objects of all files."""
    from instanas_tf.latency import LatencyTable

    table = LatencyTable.load(variant.workdir.latency_table, variant.space)
    experts = {expert["name"]: expert for expert in variant.entry["experts"]}
    found = []
    for name, path in paths.items():
        details = {key: v for key, v in experts.get(name, {}).items() if key != "name"}
        details.setdefault("predicted_latency_ms", table.controller_ms)
        details["measured_latency_ms"] = measured_ms.get(name)
        details["largest_difference_from_keras"] = differences[name]
        kind = "expert" if name in experts else "controller"
        found.append(manifest.entry(name, kind, path, **details))
    return found


def _row(item: dict[str, Any]) -> list[str]:
    """One line of the closing table."""
    accuracy = item.get("validation_accuracy")
    return [
        item["name"],
        f"{item['bytes'] / 1024:.0f}",
        f"{item['predicted_latency_ms']:.3f}",
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


if __name__ == "__main__":
    sys.exit(main())
