"""The comparison of two runs sees what it should, and nothing else."""

import importlib.util
import json
import shutil

import h5py
import numpy as np
import pytest

from tests import fixtures_ring as ring

RESULTS = {
    "variants": [{"accuracy": 0.5, "mean_latency_ms": 1.0, "predicted_latency_ms": 2.0}],
    "controls": {"best_static_expert": {"A": {"accuracy": 0.25}}},
}


@pytest.fixture(scope="module")
def compare():
    path = ring.ROOT / "benchmarks" / "compare_runs.py"
    spec = importlib.util.spec_from_file_location("compare_runs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *runs: {k: d for k, (_, d) in module.compare(*runs).items() if d}


@pytest.fixture
def runs(tmp_path):
    first = tmp_path / "first"
    (first / "checkpoints").mkdir(parents=True)
    with h5py.File(first / "checkpoints" / "A_expert_00.weights.h5", "w") as content:
        content["layers/dense/0"] = np.zeros((2, 3), np.float32)
    (first / "experts.json").write_text('{"experts": [{"share": 0.5}]}')
    (first / "results.json").write_text(json.dumps(RESULTS))
    (first / "metrics.jsonl").write_text('{"stage": "search", "epoch": 1, "loss": 1.0}\n')
    return first, shutil.copytree(first, tmp_path / "second")


def test_equal(compare, runs):
    assert compare(*runs) == {}


@pytest.mark.parametrize("value", [0.25, -0.0, np.nan])
def test_weights(compare, runs, value):
    with h5py.File(runs[1] / "checkpoints" / "A_expert_00.weights.h5", "a") as content:
        content["layers/dense/0"][1, 2] = value
    found = compare(*runs)
    assert list(found) == ["A_expert_*.weights.h5"]
    assert found["A_expert_*.weights.h5"] == (0.25 if value == 0.25 else pytest.approx(0, abs=1e-9))


def test_weights_that_are_missing(compare, runs):
    (runs[1] / "checkpoints" / "A_expert_00.weights.h5").unlink()
    assert compare(*runs) == {"A_expert_*.weights.h5": np.inf, "names of files": np.inf}


def test_what_was_timed_is_left_out(compare, runs):
    other = json.loads(json.dumps(RESULTS))
    other["variants"][0]["mean_latency_ms"] = 3.0
    other["controls"]["best_static_expert"]["A"]["accuracy"] = 0.75
    (runs[1] / "results.json").write_text(json.dumps(other))
    assert compare(*runs) == {}


@pytest.mark.parametrize("key", ["accuracy", "predicted_latency_ms"])
def test_results(compare, runs, key):
    ring.change_json(runs[1] / "results.json", lambda r: r["variants"][0].update({key: 4.5}))
    assert compare(*runs) == {"results.json": 4.5 - RESULTS["variants"][0][key]}


def test_experts_and_metrics(compare, runs):
    ring.change_json(runs[1] / "experts.json", lambda e: e["experts"].append({}))
    (runs[1] / "metrics.jsonl").write_text('{"stage": "search", "epoch": 1, "loss": 1.5}\n')
    assert compare(*runs) == {"experts.json": np.inf, "rows of metrics.jsonl": 0.5}


@pytest.mark.parametrize("where", [(1,), (0, 1)])
def test_what_was_left_behind(compare, runs, where, capsys):
    for index in where:
        (runs[index] / ".metrics.jsonl.12345678").write_text("")
    assert compare(*runs) == {"names of files": np.inf}
    assert ".metrics.jsonl.12345678" in capsys.readouterr().out
