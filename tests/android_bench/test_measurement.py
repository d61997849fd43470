"""Tests of android_bench.measurement."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from android_bench.errors import InputError
from android_bench.measurement import Measurement, read_measurements, write_measurements

_ms = st.floats(min_value=1e-6, max_value=1e6)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def _objects(*keys):
    more = st.dictionaries(st.text(min_size=10), _json, max_size=2)
    return st.builds(
        lambda known, other: {**other, **known},
        st.fixed_dictionaries(dict.fromkeys(keys, _json)),
        more,
    )


@st.composite
def _measurements(draw):
    low, median, high = sorted(draw(st.tuples(_ms, _ms, _ms)))
    rounds = draw(st.integers(1, 50))
    return Measurement(
        model=draw(st.text(min_size=1)),
        sha256=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        median_ms=median,
        iqr_ms=draw(st.floats(0, 1e6)),
        min_ms=low,
        p95_ms=high,
        first_ms=draw(_ms),
        init_ms=draw(_ms),
        runs=rounds + draw(st.integers(0, 10**6)),
        rounds=rounds,
        emulated=draw(st.booleans()),
        device=draw(_objects("name", "id", "model", "soc", "abi", "os", "cores")),
        runtime=draw(_objects("name", "version", "sha256")),
        protocol=draw(_objects("rounds", "threads")),
        time=draw(st.datetimes()).isoformat() + "+00:00",
    )


@given(_measurements())
def test_json_round_trip(measurement):
    line = measurement.to_json()
    assert "\n" not in line
    assert Measurement.from_json(line) == measurement


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("median_ms", 0.0),
        ("median_ms", -1.0),
        ("median_ms", float("nan")),
        ("median_ms", float("inf")),
        ("median_ms", "2.0"),
        ("median_ms", True),
        ("median_ms", 10**400),
        ("min_ms", 0),
        ("min_ms", 2.5),
        ("p95_ms", 1.9),
        ("first_ms", None),
        ("init_ms", 0.0),
        ("iqr_ms", -0.1),
        ("iqr_ms", float("nan")),
        ("runs", 4),
        ("runs", 150.0),
        ("rounds", 0),
        ("rounds", True),
        ("model", ""),
        ("model", 1),
        ("sha256", "0" * 63),
        ("sha256", "x" * 64),
        ("emulated", 0),
        ("device", {"name": "host"}),
        ("device", []),
        ("runtime", {"name": "x", "version": "1"}),
        ("protocol", {"threads": 1}),
        ("protocol", {"rounds": 5, "threads": float("nan")}),
        ("protocol", {"rounds": 5, "threads": 1, 3: "key that is no text"}),
        ("protocol", {"rounds": 5, "threads": (1, 2)}),
        ("protocol", {"rounds": 5, "threads": object()}),
        ("time", "yesterday"),
        ("time", "2025-01-02T03:04:05"),
        ("time", "2025-01-02T03:04:05+01:00"),
        ("time", 5),
    ],
)
def test_impossible_values_are_refused(measurement_values, name, value):
    with pytest.raises(ValueError, match=f"^`{name}` must be .* Received: "):
        Measurement(**{**measurement_values, name: value})


def test_every_missing_key_is_named(measurement):
    values = json.loads(measurement.to_json())
    for name in values:
        line = json.dumps({key: value for key, value in values.items() if key != name})
        with pytest.raises(InputError, match=f"missing key '{name}'"):
            Measurement.from_json(line)


def test_an_unknown_key_is_named(measurement):
    line = json.dumps({**json.loads(measurement.to_json()), "median_sec": 1})
    with pytest.raises(InputError, match="unknown key 'median_sec'"):
        Measurement.from_json(line)


@pytest.mark.parametrize("line", ["", "{", "[]", "3", "null", "[" * 100000])
def test_what_is_no_object_is_refused(line):
    with pytest.raises(InputError, match="not a measurement"):
        Measurement.from_json(line)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "0", "null"])
def test_impossible_numbers_in_a_file_are_refused(measurement, text):
    line = measurement.to_json().replace('"median_ms": 2.0', f'"median_ms": {text}')
    assert line != measurement.to_json()
    with pytest.raises(InputError, match="not a measurement"):
        Measurement.from_json(line)


def test_files_round_trip_and_replace(tmp_path, measurement, measurement_values):
    path = tmp_path / "measurements.jsonl"
    other = Measurement(**{**measurement_values, "model": "line\nbreak \u2028"})
    write_measurements(path, [other])
    write_measurements(path, [measurement, other])
    assert read_measurements(path) == [measurement, other]
    assert [child.name for child in tmp_path.iterdir()] == ["measurements.jsonl"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path, measurement, monkeypatch, function
):
    path = tmp_path / "measurements.jsonl"
    path.write_text("old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(InputError, match="No space left on device; free some space") as caught:
        write_measurements(path, [measurement])
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path, measurement, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_measurements(tmp_path / "m.jsonl", [measurement])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named(tmp_path, measurement):
    with pytest.raises(InputError, match="nowhere/m.jsonl: No such file"):
        write_measurements(tmp_path / "nowhere" / "m.jsonl", [measurement])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_a_file_without_measurements_is_refused(tmp_path, content):
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="m.jsonl"):
        read_measurements(path)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read measurements .*m.jsonl"):
        read_measurements(tmp_path / "m.jsonl")


def test_a_bad_line_is_named_by_its_number(tmp_path, measurement):
    path = tmp_path / "m.jsonl"
    path.write_text(measurement.to_json() + "\n" + measurement.to_json()[:50] + "\n")
    with pytest.raises(InputError, match="m.jsonl, line 2: not a measurement"):
        read_measurements(path)
