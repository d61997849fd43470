"""Compares two finished runs that should have come out the same.

    python benchmarks/compare_runs.py RUN OTHER_RUN

Compared: all weights, bit by bit; `experts.json` and `metrics.jsonl`; `results.json` without
what was timed; and the names of all files, so that neither run left anything behind. Both must
have worked with the same latency table and measured parts. The exit code is 0 if all is equal,
else 1.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from absl import app

# Made by each run's own clock: latencies, and what depends on them.
_TIMED = re.compile(r"^(?!predicted_|validation_).*latency_ms$|^controller_ms$")
_BY_LATENCY = {
    "best_static_expert",
    "pays",
    "routing_gain",
    "sentence",
    "static_envelope",
    "static_instead",
    "static_trained_alone",
}


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a file with one JSON object a line; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_timings(value: Any) -> Any:
    """A JSON value without what was timed."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in _BY_LATENCY and not _TIMED.match(k)}
        return {key: without_timings(item) for key, item in kept.items()}
    return [without_timings(item) for item in value] if isinstance(value, list) else value


def json_difference(ours: Any, theirs: Any) -> float:
    """Largest difference of the numbers of two JSON values; infinite if more differs."""
    if ours == theirs:
        return 0.0
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return max(json_difference(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return max(json_difference(*pair) for pair in zip(ours, theirs, strict=True))
    if all(type(value) in (int, float) for value in (ours, theirs)):
        return abs(ours - theirs)
    return float("inf")


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All datasets of an HDF5 file by name."""
    found = {}
    with h5py.File(path) as content:
        content.visititems(
            lambda name, item: found.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return found


def weights_difference(ours: pathlib.Path, theirs: pathlib.Path) -> float:
    """Largest difference of two weight files; 0 only if they are the same bit by bit."""
    first, second = arrays(ours), arrays(theirs)
    if first.keys() != second.keys():
        return float("inf")
    largest = 0.0
    for name, array in first.items():
        other = second[name]
        if (array.dtype, array.shape) != (other.dtype, other.shape):
            return float("inf")
        if array.tobytes() != other.tobytes():
            differing = np.abs(array.astype(np.float64) - other.astype(np.float64))
            # A difference in bits alone (-0.0, NaN) must not read as none.
            largest = max(largest, float(np.nanmax(differing)) or np.finfo(np.float64).tiny)
    return largest


def names(workdir: pathlib.Path) -> set[str]:
    """Files and folders of a run, except TensorBoard's, which are named by the clock."""
    found = {path.relative_to(workdir) for path in workdir.rglob("*")}
    return {path.as_posix() for path in found if path.parts[0] != "tensorboard"}


def compare(ours: pathlib.Path, theirs: pathlib.Path) -> dict[str, tuple[int, float]]:
    """Compares two finished runs.

    Returns:
        What was compared -> (how many files, rows or names, largest absolute difference).
    """
    found: dict[str, tuple[int, float]] = {}
    groups: dict[str, list[float]] = {}
    for path in sorted((ours / "checkpoints").rglob("*.weights.h5")):
        relative = path.relative_to(ours)
        other = theirs / relative
        name = relative.as_posix().removeprefix("checkpoints/")
        kind = re.sub(r"(expert|epoch)_\d+", r"\1_*", name)
        difference = weights_difference(path, other) if other.exists() else float("inf")
        groups.setdefault(kind, []).append(difference)
    found.update({kind: (len(values), max(values)) for kind, values in groups.items()})
    for name in ("experts.json", "results.json"):
        pair = [without_timings(json.loads((run / name).read_text())) for run in (ours, theirs)]
        found[name] = (1, json_difference(*pair))
    rows = [read_lines(run / "metrics.jsonl") for run in (ours, theirs)]
    found["rows of metrics.jsonl"] = (len(rows[0]), json_difference(*rows))
    odd = names(ours) ^ names(theirs)
    odd |= {name for name in names(ours) & names(theirs) if "/." in f"/{name}"}
    for name in sorted(odd):
        print(f"in one run only, or left behind: {name}")
    found["names of files"] = (len(names(ours)), float("inf") if odd else 0.0)
    return found


def show(compared: Mapping[str, tuple[int, float]]) -> float:
    """Prints what `compare` found, and returns the largest difference."""
    for name, (count, difference) in compared.items():
        print(f"{name:44} {count:4}  largest difference {difference:g}")
    return max(difference for _, difference in compared.values())


def main(argv: Sequence[str]) -> int:
    """Compares the runs in two work directories."""
    if len(argv) != 3:
        raise app.UsageError("give two work directories")
    return 0 if show(compare(*map(pathlib.Path, argv[1:]))) == 0.0 else 1


if __name__ == "__main__":
    app.run(main)
