"""Tests of android_bench.harness."""

import json
import sys

import pytest

from android_bench.errors import DeviceError, ParseError, RunnerError
from android_bench.harness import Protocol, interquartile_range, measure_models, time_limit_s
from android_bench.host import HostDevice
from android_bench.manifest import read_manifest

_FAST = Protocol(rounds=2, warmup_runs=1, min_runs=3, min_secs=0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 0),
        ("rounds", 1.5),
        ("rounds", True),
        ("warmup_runs", -1),
        ("min_runs", 0),
        ("threads", 0),
        ("seed", -1),
        ("min_secs", -0.1),
        ("min_secs", float("nan")),
        ("max_secs", float("inf")),
        ("max_secs", 0.0),
        ("max_secs", 0.2),
        ("max_secs", "1"),
        ("runtime", "torch"),
    ],
)
def test_protocol_refuses_impossible_values(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: "):
        Protocol(**{name: value})


def test_measurements_have_golden_numbers(fake_device, make_models, runner_lines, as_text):
    lines = runner_lines({"a": [1000.0, 3000.0, 2000.0, 5000.0], "b": [10.0, 10.0, 10.0, 10.0]})
    device = fake_device(as_text(lines))
    protocol = Protocol(rounds=4)
    first, second = measure_models(make_models("b", "a"), device, protocol)[::-1]
    assert first.model == "a"
    assert first.median_ms == 2.5
    # Quartiles of 1, 2, 3, 5 are 1.75 and 3.5.
    assert first.iqr_ms == 1.75
    assert first.min_ms == 0.999
    assert first.p95_ms == pytest.approx(2.51)
    assert first.first_ms == 0.7
    assert first.init_ms == 0.9
    assert (first.runs, first.rounds, first.emulated) == (120, 4, False)
    assert first.device["name"] == "fake"
    assert first.device["soc"] == "s"
    assert first.runtime["name"] == "tflite_runtime"
    assert first.protocol["threads"] == 1
    assert first.protocol["inputs"] == [{"shape": [1, 4, 4, 3], "dtype": "float32"}]
    assert first.sha256 == "0" * 64
    assert second.model == "b"
    assert second.median_ms == 0.01
    assert second.iqr_ms == 0.0


def test_the_job_speaks_of_the_device_and_is_removed(
    fake_device, make_models, runner_lines, as_text
):
    device = fake_device(as_text(runner_lines({"a": [9.0, 9.0]})))
    protocol = Protocol(rounds=2, seed=7, threads=3, runtime="ai_edge_litert")
    measure_models(make_models("a"), device, protocol)
    assert device.commands == [["fakepython", "/device/runner.py", "/device/job.json"]]
    assert device.job == {
        "models": [{"name": "a", "path": "/device/a"}],
        "rounds": 2,
        "warmup_runs": 10,
        "min_runs": 30,
        "min_secs": 0.3,
        "max_secs": 10.0,
        "threads": 3,
        "seed": 7,
        "runtime": "ai_edge_litert",
    }
    assert not device.pushed[-1].parent.exists()


def test_an_emulated_device_is_marked(fake_device, make_models, runner_lines, as_text):
    device = fake_device(as_text(runner_lines({"a": [9.0]})))
    device.emulated = True
    assert measure_models(make_models("a"), device, Protocol(rounds=1))[0].emulated is True


def test_progress_counts_visits(fake_device, make_models, runner_lines, as_text):
    device = fake_device(as_text(runner_lines({"a": [9.0, 9.0], "b": [9.0, 9.0]})))
    calls = []
    measure_models(make_models("a", "b"), device, Protocol(rounds=2), lambda *c: calls.append(c))
    assert calls == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_missing_visit_is_a_parse_error(fake_device, make_models, runner_lines, as_text):
    device = fake_device(as_text(runner_lines({"a": [9.0, 9.0]})))
    with pytest.raises(ParseError, match="'a' has 2 visits, expected one in each of 3"):
        measure_models(make_models("a"), device, Protocol(rounds=3))


def test_a_visit_shorter_than_asked_is_a_parse_error(
    fake_device, make_models, runner_lines, as_text
):
    device = fake_device(as_text(runner_lines({"a": [9.0]})))
    with pytest.raises(ParseError, match="30 runs in round 0, expected 31"):
        measure_models(make_models("a"), device, Protocol(rounds=1, min_runs=31))


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_models_must_be_there_and_named_differently(fake_device, make_models, names):
    with pytest.raises(ValueError, match="`models` must have at least one, all named differently"):
        measure_models(make_models(*names), fake_device(), Protocol())


def test_interquartile_range_golden_numbers():
    assert interquartile_range([5.0]) == 0.0
    assert interquartile_range([3.0, 1.0]) == 1.0
    assert interquartile_range([5.0, 1.0, 3.0, 2.0, 4.0]) == 2.0


def test_time_limit_leaves_room_for_the_slowest_measurement():
    # 120 s, and for each of 3 models 30 s and 2 visits of 2 * 10 + 10 s.
    assert time_limit_s(3, Protocol(rounds=2, max_secs=10.0)) == 390


def test_more_than_100_models(fake_device, make_models, runner_lines, as_text):
    names = [f"probe_{number}" for number in range(120)]
    device = fake_device(as_text(runner_lines({name: [9.0] for name in names})))
    measured = measure_models(make_models(*names), device, Protocol(rounds=1))
    assert [item.model for item in measured] == names
    assert len(device.job["models"]) == 120


def test_host_measures_real_models(tflite_folder, make_manifest):
    contents = {name: (tflite_folder / f"{name}.tflite").read_bytes() for name in ("float", "two")}
    models = read_manifest(make_manifest(contents))
    with HostDevice() as device:
        measured = measure_models(models, device, _FAST)
    assert [item.model for item in measured] == ["float", "two"]
    assert [item.sha256 for item in measured] == [model.sha256 for model in models]
    assert all(item.runs == 6 and item.rounds == 2 for item in measured)
    assert all(item.device["name"] == "host" and not item.emulated for item in measured)
    assert len(measured[1].protocol["inputs"]) == 2


def test_host_names_a_file_that_is_no_model(make_manifest):
    models = read_manifest(make_manifest({"junk": b"this is no model at all"}))
    with pytest.raises(RunnerError, match="junk: cannot be loaded or run"):
        measure_models(models, HostDevice(), _FAST)


def test_host_without_a_runtime_says_what_to_install(make_manifest):
    models = read_manifest(make_manifest({"a": b"a"}))
    device = HostDevice()
    device.python = (sys.executable, "-S", "-I")
    with pytest.raises(RunnerError, match="pip install tflite-runtime or ai-edge-litert"):
        measure_models(models, device, _FAST)


def test_a_crash_of_the_runtime_names_the_model(make_manifest, tmp_path, monkeypatch):
    folder = tmp_path / "site" / "tflite_runtime"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "interpreter.py").write_text(
        "import os\nclass Interpreter:\n    def __init__(self, **_): os.kill(os.getpid(), 11)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    models = read_manifest(make_manifest({"a": b"a"}))
    with pytest.raises(RunnerError, match="exit code -11; the last model .* is a: export"):
        measure_models(models, HostDevice(), _FAST)


def test_a_runner_that_hangs_is_killed(make_models, tmp_path, monkeypatch):
    runner = tmp_path / "runner.py"
    runner.write_text("import time; print('{}', flush=True); time.sleep(600)")
    monkeypatch.setattr("android_bench.harness._RUNNER", runner)
    monkeypatch.setattr("android_bench.harness.time_limit_s", lambda *_: 1)
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(DeviceError, match="did not end within 1 s and was killed"):
        measure_models(make_models("a"), HostDevice(), _FAST)


def test_a_measurement_can_be_written_as_json(fake_device, make_models, runner_lines, as_text):
    device = fake_device(as_text(runner_lines({"a": [9.0]})))
    line = measure_models(make_models("a"), device, Protocol(rounds=1))[0].to_json()
    assert json.loads(line)["median_ms"] == 0.009
