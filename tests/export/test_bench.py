"""The bench's error line and exit code are passed on."""

import json
import subprocess

import pytest

from export import bench
from instanas_tf.errors import CommandError, InputError
from instanas_tf.pipeline.config import default_config

SETTINGS = default_config().latency


def answer(monkeypatch, code, stderr="", rows=None):
    """Lets the bench answer so; returns the list of its command lines."""
    calls = []

    def run(command, **options):
        calls.append(command)
        if rows is not None:
            (out,) = [a.split("=", 1)[1] for a in command if a.startswith("--out=")]
            with open(out, "w") as stream:
                stream.write(rows)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_measurements(monkeypatch, tmp_path):
    rows = [{"model": "a", "median_ms": 1.0}, {"model": "b", "median_ms": 2.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    calls = answer(monkeypatch, 0, rows=text)
    out = tmp_path / "deep" / "m.jsonl"
    assert bench.bench(tmp_path / "manifest.json", out, SETTINGS, "host") == rows
    (command,) = calls
    assert command[1:3] == ["-m", "android_bench"]
    expected = {
        f"--manifest={tmp_path / 'manifest.json'}",
        f"--out={out}",
        "--device=host",
        "--runtime=auto",
        "--threads=1",
        f"--rounds={SETTINGS.rounds}",
        f"--warmup_runs={SETTINGS.warmup_runs}",
        f"--min_runs={SETTINGS.min_runs}",
        f"--min_secs={SETTINGS.min_secs}",
    }
    assert set(command[3:]) == expected


@pytest.mark.parametrize("code", [2, 4, 5, 6])
def test_its_line_and_code_are_passed_on(monkeypatch, tmp_path, code):
    stderr = "measuring 3/9 visits\nandroid_bench: no device; plug one in\nmore details\n"
    answer(monkeypatch, code, stderr)
    with pytest.raises(CommandError) as caught:
        bench.bench(tmp_path / "manifest.json", tmp_path / "m.jsonl", SETTINGS, "host")
    assert str(caught.value) == "no device; plug one in"
    assert caught.value.exit_code == code


def test_a_crash_shows_what_it_left(monkeypatch, tmp_path):
    answer(monkeypatch, 1, "ZeroDivisionError: division by zero")
    with pytest.raises(CommandError, match="android_bench: .*division by zero"):
        bench.bench(tmp_path / "manifest.json", tmp_path / "m.jsonl", SETTINGS, "host")


def test_measurements_that_cannot_be_read(monkeypatch, tmp_path):
    answer(monkeypatch, 0, rows="{")
    with pytest.raises(InputError, match="m.jsonl, line 1 is damaged .*; measure again"):
        bench.bench(tmp_path / "manifest.json", tmp_path / "m.jsonl", SETTINGS, "host")


def test_the_real_one_refuses_a_missing_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(pytest.importorskip("tests.fixtures_ring").ROOT))
    with pytest.raises(CommandError, match="missing.json") as caught:
        bench.bench(tmp_path / "missing.json", tmp_path / "m.jsonl", SETTINGS, "host")
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
