"""Command: measure every part of a run's space on a device and write the latency table.

python -m instanas_tf.measure --workdir=runs/digits --device=host
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from export.bench import bench
from instanas_tf import cli, files, startup
from instanas_tf.errors import InputError
from instanas_tf.latency import LatencyTable, prediction_error
from instanas_tf.pipeline import checks
from instanas_tf.pipeline.workdir import WorkDir, existing_workdir, locked
from instanas_tf.spaces.space import SearchSpace

MIN_CALIBRATION = 6
DEVICES = ("host",)


def make_table(
    space: SearchSpace,
    controller_kind: str,
    experts: int,
    settings: ConfigDict,
    device: str,
    seed: int,
    folder: pathlib.Path,
) -> LatencyTable:
    """Probes -> device -> table -> calibration -> error of the prediction.

    Args:
        space: the search space.
        controller_kind: which controller to measure.
        experts: how many experts it will choose among.
        settings: `config.latency`.
        device: such as `host`.
        seed: of the policies used for calibration.
        folder: keeps the probes' manifest and measurements.

    Raises:
        InstanasError: conversion or measurement failed.
    """
    from export import probes  # Imports TensorFlow.

    with tempfile.TemporaryDirectory(prefix="probes") as temporary:
        probe_set = probes.write_probes(
            space,
            controller_kind,
            experts,
            pathlib.Path(temporary),
            calibration=settings.calibration_experts,
            validation=settings.validation_experts,
            seed=seed,
        )
        print(
            f"measuring {len(files.read_json(probe_set.manifest, '')['models'])} models on "
            f"{device}, {settings.rounds} rounds each",
            flush=True,
        )
        # Not at once into `folder`, where a killed bench would leave its temporary file.
        measured = probe_set.manifest.with_name("measurements.jsonl")
        rows = bench(probe_set.manifest, measured, settings, device)
        for path in (measured, probe_set.manifest):
            files.write_text(folder / path.name, path.read_text("utf-8"))
    median = {row["model"]: float(row["median_ms"]) for row in rows}
    table = LatencyTable(
        space=space,
        op_ms=tuple(tuple(median[name] for name in row) for row in probe_set.ops),
        stem_ms=median["stem"],
        head_ms=median["head"],
        controller_ms=median["controller"],
        controller_kind=controller_kind,
        device=rows[0]["device"],
        runtime=rows[0]["runtime"],
        protocol=rows[0]["protocol"],
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    return calibrate(table, probe_set.calibration, probe_set.validation, median)


def calibrate(
    table: LatencyTable,
    calibration: dict[str, np.ndarray],
    validation: dict[str, np.ndarray],
    measured_ms: dict[str, float],
) -> LatencyTable:
    """Fits the scale factor on some experts and measures the error on others.

    Args:
        table: with scale 1.
        calibration: name -> policy, at least six.
        validation: name -> policy, none of them in `calibration`.
        measured_ms: name -> latency of the whole network.

    Returns:
        The table with `scale` and `calibration`.

    Raises:
        InputError: too few experts to fit on.
    """
    if len(calibration) < MIN_CALIBRATION:
        raise InputError(
            f"{len(calibration)} experts are too few to calibrate on; set "
            f"config.latency.calibration_experts to at least {MIN_CALIBRATION}, and use a space "
            "with that many different networks"
        )

    def errors(candidate: LatencyTable, networks: dict[str, np.ndarray]) -> dict:
        predicted = [float(candidate.static_ms(policy)) for policy in networks.values()]
        return prediction_error(predicted, [measured_ms[name] for name in networks])

    ratios = [
        measured_ms[name] / float(table.static_ms(policy)) for name, policy in calibration.items()
    ]
    scaled = dataclasses.replace(table, scale=float(np.median(ratios)))
    report = {"calibration": errors(scaled, calibration)}
    if validation:
        report["validation"] = errors(scaled, validation)
        report["validation_unscaled"] = errors(table, validation)
    return dataclasses.replace(scaled, calibration=report)


def measure(config: ConfigDict, space: SearchSpace, workdir: WorkDir, device: str) -> LatencyTable:
    """Measures a run's space and writes `latency_table.json`."""
    table = make_table(
        space,
        config.controller.kind,
        config.experts.count,
        config.latency,
        device,
        config.seed,
        workdir.probes,
    )
    table.save(workdir.latency_table)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "workdir", "", "Folder of the run; empty: the latest below runs/.", flag_values=values
    )
    flags.DEFINE_string("device", "host", "Where to measure: host.", flag_values=values)
    return cli.run("measure", _measure, argv or sys.argv, __doc__ or "", values)


def _measure(values: flags.FlagValues) -> None:
    if values.device not in DEVICES:
        raise InputError(f"--device must be one of {', '.join(DEVICES)}. Received: {values.device}")
    workdir = existing_workdir(values.workdir)
    if workdir.resume("search").exists() or workdir.is_done("search"):
        raise InputError(
            f"the search in {workdir.root} was charged by the table there, so a new one would "
            "not fit its results; start a new --workdir"
        )
    startup.import_tensorflow()
    from instanas_tf.pipeline import data, fitting

    config = checks.from_json(workdir.config)
    images = data.load(config.data, config.seed)
    space = fitting.make_space(config, images.num_classes)
    with locked(workdir):
        table = measure(config, space, workdir, values.device)
    print(cli.table(summary(table)))
    print(f"Wrote {workdir.latency_table}")


def summary(table: LatencyTable) -> list[tuple[str, str]]:
    """Rows of the closing table."""
    rows = [
        ("reference network", f"{table.reference_ms:.3f} ms"),
        ("every op on", f"{table.l_max_ms - table.controller_ms:.3f} ms"),
        ("default ops only", f"{table.l_min_ms - table.controller_ms:.3f} ms"),
        ("controller", f"{table.controller_ms:.3f} ms"),
        ("scale factor", f"{table.scale:.3f}"),
    ]
    validation = table.calibration.get("validation")
    if validation:
        error = validation["mean_absolute_percentage_error"]
        rows.append((f"error on {validation['count']} other experts", f"{error:.1f} %"))
        if error > 10:
            logging.warning("the table predicts whole experts badly; measure on a quieter device")
    return rows


if __name__ == "__main__":
    sys.exit(main())
