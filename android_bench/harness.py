"""Measures models on a device: writes the job, has the runner do it, computes the result."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from android_bench.checks import is_count, is_finite
from android_bench.device import Device
from android_bench.errors import InputError, ParseError
from android_bench.manifest import ModelFile
from android_bench.measurement import Measurement
from android_bench.runner_output import RunnerOutput, is_visit_line, parse_output

RUNTIMES = ("auto", "tflite_runtime", "ai_edge_litert")
_RUNNER = Path(__file__).with_name("runner.py")


@dataclass(frozen=True)
class Protocol:
    """How models are measured.

    Attributes:
        rounds: Rounds; each visits every model once, in a fresh order.
        warmup_runs: Runs at the start of a visit that are not timed.
        min_runs: Timed runs that a visit has at least.
        min_secs: Seconds that the timed runs of a visit take at least.
        max_secs: Seconds after which a visit ends; an error if `min_runs` are not done by then.
        threads: Threads of the runtime.
        seed: Seed of the inputs and of the orders.
        runtime: "auto" for the first one installed on the device, or the package to use.

    Raises:
        ValueError: A value has the wrong type or is out of range.
    """

    rounds: int = 5
    warmup_runs: int = 10
    min_runs: int = 30
    min_secs: float = 0.3
    max_secs: float = 10.0
    threads: int = 1
    seed: int = 0
    runtime: str = "auto"

    def __post_init__(self):
        lowest = {"rounds": 1, "warmup_runs": 0, "min_runs": 1, "threads": 1, "seed": 0}
        for name, low in lowest.items():
            value = getattr(self, name)
            if not is_count(value, low):
                raise ValueError(
                    f"`{name}` must be a whole number of at least {low}. Received: {value!r}"
                )
        for name in ("min_secs", "max_secs"):
            value = getattr(self, name)
            if not is_finite(value) or value < 0:
                raise ValueError(
                    f"`{name}` must be a finite number of seconds. Received: {value!r}"
                )
        if self.max_secs == 0 or self.max_secs < self.min_secs:
            raise ValueError(
                "`max_secs` must be above 0 and at least `min_secs`. "
                f"Received: max_secs={self.max_secs:g}, min_secs={self.min_secs:g}"
            )
        if self.runtime not in RUNTIMES:
            raise ValueError(
                f"`runtime` must be one of {', '.join(RUNTIMES)}. Received: {self.runtime!r}"
            )


def measure_models(
    models: Sequence[ModelFile],
    device: Device,
    protocol: Protocol,
    progress: Callable[[int, int], None] | None = None,
) -> list[Measurement]:
    """Measures models on a device.

    Args:
        models: What to measure; names must differ.
        device: An open device.
        protocol: How to measure.
        progress: Called with the visits done and the visits in all, first with 0 done.

    Returns:
        One measurement a model, in the order given.

    Raises:
        ValueError: There is no model, or two have the same name.
        InputError: The job cannot be written to the folder for temporary files.
        DeviceError: The device failed.
        RunnerError: A model or the runtime failed.
        ParseError: The output of the runner is not complete and right.
    """
    names = [model.name for model in models]
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"`models` must have at least one, all named differently. Received: {names}"
        )
    fingerprint = {"name": device.name, **device.fingerprint()}
    count = _visit_counter(len(names) * protocol.rounds, progress)
    with tempfile.TemporaryDirectory(prefix="android_bench_") as folder:
        job = Path(folder, "job.json")
        _write_job(job, models, device, protocol)
        command = [*device.python, device.push(_RUNNER), device.push(job)]
        completed = device.run(command, time_limit_s(len(names), protocol), count)
    output = parse_output(completed, names, protocol.rounds, protocol.min_runs)
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return [
        _summarise(model, output, protocol, fingerprint, device.emulated, time) for model in models
    ]


def time_limit_s(models: int, protocol: Protocol) -> float:
    """Returns the seconds after which a measurement hangs for sure.

    Args:
        models: Number of models.
        protocol: How they are measured.

    Returns:
        A visit may take `max_secs` for warm-up and for timed runs each, and the last run of both
        may be a slow one; a model may take half a minute to load.
    """
    return 120 + models * (30 + protocol.rounds * (2 * protocol.max_secs + 10))


def _visit_counter(
    total: int, progress: Callable[[int, int], None] | None
) -> Callable[[str], None] | None:
    """Returns a function that counts the lines of visits and reports the progress."""
    if progress is None:
        return None
    done = 0
    progress(done, total)

    def count(line: str) -> None:
        nonlocal done
        if is_visit_line(line):
            done += 1
            progress(done, total)

    return count


def _write_job(path: Path, models: Sequence[ModelFile], device: Device, protocol: Protocol) -> None:
    entries = [{"name": model.name, "path": device.push(model.path)} for model in models]
    job = {"models": entries, **dataclasses.asdict(protocol)}
    try:
        path.write_text(json.dumps(job), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; free some space or set TMPDIR"
        ) from error


def _summarise(
    model: ModelFile,
    output: RunnerOutput,
    protocol: Protocol,
    device: dict[str, Any],
    emulated: bool,
    time: str,
) -> Measurement:
    loaded, visits = output.loaded[model.name], output.visits[model.name]
    medians_ms = [visit.median_us / 1e3 for visit in visits]
    try:
        return Measurement(
            model=model.name,
            sha256=model.sha256,
            median_ms=statistics.median(medians_ms),
            iqr_ms=interquartile_range(medians_ms),
            min_ms=min(visit.min_us for visit in visits) / 1e3,
            p95_ms=statistics.median(visit.p95_us / 1e3 for visit in visits),
            first_ms=loaded.first_us / 1e3,
            init_ms=loaded.init_us / 1e3,
            runs=sum(visit.runs for visit in visits),
            rounds=len(visits),
            emulated=emulated,
            device=device,
            runtime=output.runtime,
            protocol={**dataclasses.asdict(protocol), "inputs": loaded.inputs},
            time=time,
        )
    except ValueError as error:
        raise ParseError(f"the runner measured {model.name} impossibly: {error}") from error


def interquartile_range(values: Sequence[float]) -> float:
    """Returns the distance between the quartiles, interpolated; 0 for a single value."""
    if len(values) == 1:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
