"""Reads what the runner printed, strictly: a number is there and true, or there is an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from android_bench.checks import is_count, is_finite, is_text
from android_bench.device import Completed
from android_bench.errors import ParseError, RunnerError

TAIL_LINES = 40
_VISIT_START = '{"type": "visit"'


@dataclass(frozen=True)
class Loaded:
    """A model that the runner has loaded.

    Attributes:
        init_us: Loading, up to allocated tensors.
        first_us: The first run.
        inputs: `{"shape": [...], "dtype": ...}` of each input.
    """

    init_us: float
    first_us: float
    inputs: list[dict[str, Any]]


@dataclass(frozen=True)
class Visit:
    """The timed runs of one model in one round.

    Attributes:
        round: Number of the round, from 0.
        runs: How many.
        median_us: Their median.
        min_us: The fastest.
        p95_us: The 95th percentile.
        mean_us: Their average.
    """

    round: int
    runs: int
    median_us: float
    min_us: float
    p95_us: float
    mean_us: float


@dataclass(frozen=True)
class RunnerOutput:
    """All that the runner printed.

    Attributes:
        runtime: Name, version, library and sha256 of the TFLite runtime.
        loaded: For each model, how it loaded.
        visits: For each model, its visits by round.
    """

    runtime: dict[str, Any]
    loaded: dict[str, Loaded]
    visits: dict[str, list[Visit]]


def is_visit_line(line: str) -> bool:
    """Returns whether a line of the runner reports a visit; good enough to count progress."""
    return line.startswith(_VISIT_START)


def parse_output(
    completed: Completed, names: Sequence[str], rounds: int, min_runs: int
) -> RunnerOutput:
    """Reads the output of a runner that has ended.

    Args:
        completed: Exit code and output.
        names: The models of the job.
        rounds: The rounds of the job: each model has as many visits.
        min_runs: The fewest runs that a visit may have.

    Returns:
        What it printed, complete and checked.

    Raises:
        RunnerError: The runner says that a model or the runtime failed, or it crashed.
        ParseError: A line cannot be read, or one is missing or too many.
    """
    lines = completed.stdout.splitlines()
    if completed.exit_code != 0:
        raise _failure(completed, lines)
    try:
        records = [_parse_line(line, number) for number, line in enumerate(lines, start=1)]
        return _assemble(records, names, rounds, min_runs)
    except ValueError as error:
        raise ParseError(
            f"cannot read the runner's output: {error}; its last lines follow", _tail(completed)
        ) from error


def _failure(completed: Completed, lines: Sequence[str]) -> RunnerError:
    """Returns the error that the runner reported, or one that says where it crashed."""
    last_loading = ""
    for line in lines:
        try:
            record = _parse_line(line, 0)
        except ValueError:
            continue
        if "error" in record:
            model = record["model"]
            return RunnerError(f"{model}: {record['error']}" if model else record["error"])
        if record["type"] == "loading":
            last_loading = record["model"]
    advice = "check Python and the TFLite runtime on the device"
    if last_loading:
        advice = f"the last model it began to load is {last_loading}: export that one again"
    return RunnerError(
        f"the runner crashed with exit code {completed.exit_code}; {advice}; its last lines follow",
        _tail(completed),
    )


def _tail(completed: Completed) -> str:
    """Returns the last lines of both streams."""
    ends = []
    for name in ("stdout", "stderr"):
        lines = getattr(completed, name).splitlines()[-TAIL_LINES:]
        ends += [f"{name}:", *lines] if lines else [f"{name}: empty"]
    return "\n".join(ends)


def _is_text_or_none(value: Any) -> bool:
    return value is None or is_text(value)


def _is_time(value: Any) -> bool:
    return is_finite(value) and value > 0


def _is_inputs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and set(item) == {"shape", "dtype"}
        and isinstance(item["shape"], list)
        and all(is_count(size) for size in item["shape"])
        and is_text(item["dtype"])
        for item in value
    )


# For each type of line, its keys and what their values must be.
_LINES = {
    "runtime": {
        "name": is_text,
        "version": _is_text_or_none,
        "library": _is_text_or_none,
        "sha256": _is_text_or_none,
    },
    "loading": {"model": is_text},
    "model": {"model": is_text, "init_us": _is_time, "first_us": _is_time, "inputs": _is_inputs},
    "visit": {
        "model": is_text,
        "round": is_count,
        "runs": is_count,
        "median_us": _is_time,
        "min_us": _is_time,
        "p95_us": _is_time,
        "mean_us": _is_time,
    },
}
_ERROR_LINE = {"error": is_text, "model": _is_text_or_none}


def _parse_line(line: str, number: int) -> dict[str, Any]:
    """Returns a line as a dict that has the keys of its type; a ValueError otherwise."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is no JSON: {line[:80]!r}") from error
    if not isinstance(record, dict):
        raise ValueError(f"line {number} is no JSON object: {line[:80]!r}")
    if "error" in record:
        checks = _ERROR_LINE
    else:
        kind = record.get("type")
        if not isinstance(kind, str) or kind not in _LINES:
            raise ValueError(f"line {number} is of unknown type {kind!r}")
        checks = {"type": is_text, **_LINES[kind]}
    odd = sorted(set(record) ^ set(checks))
    if odd:
        raise ValueError(f"line {number} lacks, or should not have, the key '{odd[0]}'")
    for key, check in checks.items():
        if not check(record[key]):
            raise ValueError(f"line {number} has an impossible `{key}`: {record[key]!r}")
    return record


def _assemble(
    records: Sequence[dict[str, Any]], names: Sequence[str], rounds: int, min_runs: int
) -> RunnerOutput:
    runtimes: list[dict[str, Any]] = []
    loaded: dict[str, Loaded] = {}
    visits: dict[str, list[Visit]] = {name: [] for name in names}
    for record in records:
        if "error" in record:
            raise ValueError("it reports an error and yet ended with exit code 0")
        kind, values = record["type"], {k: v for k, v in record.items() if k != "type"}
        if kind == "runtime":
            runtimes.append(values)
            continue
        name = values.pop("model")
        if name not in visits:
            raise ValueError(f"it speaks of a model '{name}' that was not in the job")
        if kind == "model":
            if name in loaded:
                raise ValueError(f"model '{name}' was loaded twice")
            loaded[name] = Loaded(**values)
        elif kind == "visit":
            visits[name].append(Visit(**values))
    if len(runtimes) != 1:
        raise ValueError(f"it names {len(runtimes)} runtimes, expected 1")
    for name in names:
        if name not in loaded:
            raise ValueError(f"model '{name}' was not loaded")
        _check_visits(name, visits[name], rounds, min_runs)
    return RunnerOutput(runtimes[0], loaded, visits)


def _check_visits(name: str, visits: Sequence[Visit], rounds: int, min_runs: int) -> None:
    if [visit.round for visit in visits] != list(range(rounds)):
        raise ValueError(
            f"model '{name}' has {len(visits)} visits, expected one in each of {rounds}"
        )
    for visit in visits:
        if visit.runs < min_runs:
            raise ValueError(
                f"model '{name}' has {visit.runs} runs in round {visit.round}, expected {min_runs}"
            )
        if not visit.min_us <= visit.median_us <= visit.p95_us:
            raise ValueError(f"model '{name}' has min, median and p95 out of order")
