"""One measured model, and the file of JSON lines that holds many."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from android_bench.checks import is_count, is_finite, is_sha256, is_text
from android_bench.errors import InputError

_DICT_KEYS = {
    "device": ("name", "id", "model", "soc", "abi", "os", "cores"),
    "runtime": ("name", "version", "sha256"),
    "protocol": ("rounds", "threads"),
}


@dataclass(frozen=True)
class Measurement:
    """What is known of one model on one device.

    Attributes:
        model: Name of the model.
        sha256: Hash of its file, in hex.
        median_ms: Median over the rounds of each round's median.
        iqr_ms: Interquartile range over the rounds of each round's median; 0 for one round.
        min_ms: The fastest run of all.
        p95_ms: Median over the rounds of each round's 95th percentile.
        first_ms: The first run after loading.
        init_ms: Loading, up to allocated tensors.
        runs: Timed runs, all rounds together.
        rounds: Number of rounds.
        emulated: Whether the processor was emulated, so that the times mean nothing.
        device: Name (kind) and fingerprint of the device.
        runtime: Name, version, and hash of the native library (None where it was not found).
        protocol: How it was measured, threads and inputs included.
        time: When it was measured: ISO 8601, UTC.

    Raises:
        ValueError: A value has the wrong type or cannot be true.
    """

    model: str
    sha256: str
    median_ms: float
    iqr_ms: float
    min_ms: float
    p95_ms: float
    first_ms: float
    init_ms: float
    runs: int
    rounds: int
    emulated: bool
    device: dict[str, Any]
    runtime: dict[str, Any]
    protocol: dict[str, Any]
    time: str

    def __post_init__(self):
        for name in ("median_ms", "min_ms", "p95_ms", "first_ms", "init_ms"):
            value = getattr(self, name)
            _check(is_finite(value) and value > 0, name, "a finite number above 0", value)
        _check(is_finite(self.iqr_ms) and self.iqr_ms >= 0, "iqr_ms", "at least 0", self.iqr_ms)
        _check(self.min_ms <= self.median_ms, "min_ms", "at most median_ms", self.min_ms)
        _check(self.median_ms <= self.p95_ms, "p95_ms", "at least median_ms", self.p95_ms)
        _check(is_count(self.rounds, 1), "rounds", "a whole number of at least 1", self.rounds)
        _check(
            is_count(self.runs, self.rounds),
            "runs",
            "a whole number of at least `rounds`",
            self.runs,
        )
        _check(is_text(self.model), "model", "a name", self.model)
        _check(is_sha256(self.sha256), "sha256", "64 hexadecimal digits", self.sha256)
        _check(isinstance(self.emulated, bool), "emulated", "true or false", self.emulated)
        _check(_is_utc(self.time), "time", "an ISO 8601 time in UTC", self.time)
        for name, keys in _DICT_KEYS.items():
            value = getattr(self, name)
            _check(_is_plain_json(value), name, "an object of plain JSON values", value)
            missing = [key for key in keys if key not in value]
            _check(not missing, name, f"an object with {', '.join(missing)}", value)

    def to_json(self) -> str:
        """Returns the measurement as one line of JSON, without a line break."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Measurement:
        """Reads what `to_json` wrote.

        Args:
            line: One JSON object that has every key and no other.

        Returns:
            The measurement.

        Raises:
            InputError: It is no such object; the message names the key.
        """
        try:
            values = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a measurement: no valid JSON ({error})") from error
        if not isinstance(values, dict):
            raise InputError("not a measurement: expected a JSON object; measure again")
        names = [field.name for field in dataclasses.fields(cls)]
        for problem, keys in (
            ("missing", [name for name in names if name not in values]),
            ("unknown", [key for key in values if key not in names]),
        ):
            if keys:
                raise InputError(f"not a measurement: {problem} key '{keys[0]}'; measure again")
        try:
            return cls(**values)
        except ValueError as error:
            raise InputError(f"not a measurement: {error}; measure again") from error


def read_measurements(path: Path) -> list[Measurement]:
    """Reads a file of measurements.

    Args:
        path: A file with one measurement a line.

    Returns:
        The measurements, in the order of the file.

    Raises:
        InputError: It cannot be read, is empty, or a line is no measurement.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read measurements {path}: {error}; measure again") from error
    if not text:
        raise InputError(f"{path} holds no measurement; measure again")
    measurements = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            measurements.append(Measurement.from_json(line))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return measurements


def write_measurements(path: Path, measurements: Sequence[Measurement]) -> None:
    """Writes a file of measurements, whole or not at all.

    Args:
        path: The file; an older one is replaced.
        measurements: One a line.

    Raises:
        InputError: It cannot be written; an older file is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(m.to_json() + "\n" for m in measurements)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; free some space or give another --out"
        ) from error


def _check(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"`{name}` must be {expected}. Received: {value!r}")


def _is_utc(value: object) -> bool:
    try:
        return datetime.fromisoformat(value).utcoffset() == timedelta(0)
    except (TypeError, ValueError):
        return False


def _is_plain_json(value: object) -> bool:
    """Returns whether a dict comes back from JSON as it was: string keys, lists, no NaN."""
    try:
        return isinstance(value, dict) and json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        return False


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")
