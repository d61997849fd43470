"""The whole ring on a tiny space: train, export, measure, predict; and what others may rely on."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from android_bench import __main__ as android_bench
from export import manifest, worker
from instanas_tf import train
from instanas_tf.latency import LatencyTable
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import data, variants
from instanas_tf.pipeline.callbacks import read_metrics
from instanas_tf.pipeline.workdir import WorkDir
from tests import fixtures_ring as ring


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return ring.trained_run(tmp_path_factory)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    return ring.exported_run(tmp_path_factory)


@pytest.fixture(scope="session")
def results(trained):
    return json.loads((trained / "results.json").read_text())


@pytest.fixture(scope="session")
def images(trained):
    config = config_module.from_json(trained / "config.json")
    return data.load(config.data, config.seed)


def numbers(value):
    """Every number in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def test_files_of_a_work_directory(trained):
    found = {path.name for path in trained.iterdir()} - {"export"}
    assert found == {
        "config.json",
        "latency_table.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "experts.json",
        "results.json",
        "results.png",
        "probes",
    }
    stages = {row["stage"] for row in read_metrics(trained / "metrics.jsonl")}
    for stage in stages:
        assert list((trained / "tensorboard" / stage).rglob("events.out.tfevents.*"))
    checkpoints = trained / "checkpoints"
    assert [path.name for path in sorted((checkpoints / "controllers").iterdir())] == [
        "epoch_0001.weights.h5",
        "epoch_0002.weights.h5",
    ]
    for name in ("pretrain", "search", "A_controller", "A_expert_00", "mobilenet_v2_1.0"):
        assert (checkpoints / f"{name}.weights.h5").is_file()
    # What a finished stage resumes from is dropped, and nothing temporary is left.
    assert [path for path in checkpoints.iterdir() if path.is_dir()] == [
        checkpoints / "controllers"
    ]
    assert not [path for path in trained.rglob(".*")]


def test_metrics(trained):
    rows = read_metrics(trained / "metrics.jsonl")
    epochs = {}
    for row in rows:
        epochs.setdefault(row["stage"], []).append(row["epoch"])
        assert {"loss", "val_accuracy"} <= set(row)
    alone = [stage for stage in epochs if stage.startswith("alone_")]
    assert len(alone) == 1
    assert epochs == {
        "pretrain": [1],
        "search": [1, 2],
        "finetune_A": [1],
        "mobilenet_v2_1.0": [1, 2, 3, 4],
        alone[0]: [1, 2, 3, 4],
    }


def test_every_number_is_finite(trained, exported):
    for path in (
        trained / "results.json",
        trained / "experts.json",
        trained / "latency_table.json",
        trained / "config.json",
        exported / "manifest.json",
    ):
        found = numbers(json.loads(path.read_text()))
        assert found
        assert all(math.isfinite(number) for number in found), path
    for path in (trained / "metrics.jsonl", exported / "measurements.jsonl"):
        for line in path.read_text().splitlines():
            assert all(math.isfinite(number) for number in numbers(json.loads(line))), path


def test_results(results):
    assert results["dataset"] == "digits"
    assert results["test_images"] == 60
    assert results["selected"] == "A"
    assert {"name", "model", "abi"} <= set(results["device"])
    assert {"name", "version"} <= set(results["runtime"])
    (variant,) = results["variants"]
    keys = {"name", "accuracy", "mean_latency_ms", "controller_ms", "experts", "unique_policies"}
    assert keys <= set(variant)
    assert 0 < variant["controller_ms"] < variant["mean_latency_ms"]
    assert variant["experts"] == len(variant["expert_results"])
    (baseline,) = results["baselines"]
    assert {"name", "accuracy", "latency_ms"} <= set(baseline)
    assert baseline["name"] == "mobilenet_v2_1.0"
    for name in ("majority_policy", "shuffled_policies", "best_static_expert"):
        assert set(results["controls"][name]) == {"A"}
        assert "accuracy" in results["controls"][name]["A"]
    assert set(results["controls"]) >= {"static_trained_alone"}
    for item in (variant, baseline):
        assert 0 <= item["accuracy"] <= 1


def test_latency_table(trained):
    table = LatencyTable.load(trained / "latency_table.json")
    assert table.space.name == "tiny"
    assert table.calibration["calibration"]["count"] == 6
    assert table.calibration["validation"]["count"] == 4
    assert 0.1 < table.scale < 10


def test_export(exported, trained):
    content = manifest.read(exported)
    for model in content.models:
        model.verify()
    names = [model.name for model in content.models]
    assert names[0] == "controller"
    assert names[1:] == variants.pick(WorkDir(trained)).expert_names
    files = {path.name for path in exported.iterdir()}
    assert files == {f"{n}.tflite" for n in names} | {"manifest.json", "measurements.jsonl"}
    assert content.content["experts"] == len(names) - 1
    assert content.content["labels"] == [str(digit) for digit in range(10)]
    assert content.content["input"]["shape"] == [1, 8, 8, 3]
    for model in content.models:
        assert model.details["bytes"] == model.path.stat().st_size
        assert model.details["measured_latency_ms"] > 0
        assert model.details["largest_difference_from_keras"] <= 1e-4


def test_the_bench_measures_the_export(exported, tmp_path, capsys):
    out = tmp_path / "measurements.jsonl"
    arguments = [f"--manifest={exported / 'manifest.json'}", f"--out={out}", "--rounds=1"]
    arguments += ["--min_secs=0.001", "--min_runs=2", "--warmup_runs=1"]
    assert android_bench.main(arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    content = manifest.read(exported)
    assert [row["model"] for row in rows] == [model.name for model in content.models]
    assert [row["sha256"] for row in rows] == [model.sha256 for model in content.models]
    assert "controller" in capsys.readouterr().out


PREDICT = """
import json, sys
for name in ("tensorflow", "keras", "tensorflow_datasets", "ml_collections", "absl"):
    sys.modules[name] = None
import numpy as np
from export.predictor import Predictor
predictor = Predictor(sys.argv[1])
names = ("class_index", "label", "probability", "expert", "latency_ms")
found = predictor.predict(np.load(sys.argv[2]))
json.dump([[getattr(item, name) for name in names] for item in found], sys.stdout)
"""


def predicted(folder, pixels, tmp_path):
    np.save(tmp_path / "images.npy", pixels)
    done = ring.python("-c", PREDICT, folder, tmp_path / "images.npy")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_predictor_alone_gets_the_accuracy_of_the_results(exported, results, images, tmp_path):
    pixels, labels = data.to_arrays(images.test)
    found = predicted(exported, pixels, tmp_path)
    hits = [item[0] == label for item, label in zip(found, labels, strict=True)]
    (variant,) = results["variants"]
    assert np.mean(hits) == pytest.approx(variant["accuracy"], abs=1e-9)
    for index, label, probability, _, latency_ms in found:
        assert label == str(index)
        assert 0.1 <= probability <= 1  # The largest of ten.
        assert latency_ms > 0
    for expert in variant["expert_results"]:
        share = np.mean([item[3] == expert["name"] for item in found])
        assert share == pytest.approx(expert["share"], abs=1e-9)


def test_results_are_those_of_the_files(exported, results, images):
    pixels, labels = data.to_arrays(images.test)
    content = manifest.read(exported)
    experts = {model.name: model.path for model in content.of_kind("expert")}
    logits = worker.outputs(experts, pixels)
    chosen = worker.choices({"c": exported / "controller.tflite"}, pixels)["c"]
    hits = np.stack([np.argmax(logits[name], axis=-1) == labels for name in experts])
    (variant,) = results["variants"]
    assert np.mean(hits[chosen, np.arange(60)]) == pytest.approx(variant["accuracy"], abs=1e-9)
    for expert, row in zip(variant["expert_results"], hits, strict=True):
        assert expert["accuracy"] == pytest.approx(np.mean(row), abs=1e-9)
    best = np.argmax(np.bincount(chosen, minlength=len(hits)))
    majority = results["controls"]["majority_policy"]["A"]
    assert majority["expert"] == f"expert_{best:02d}"
    assert majority["accuracy"] == pytest.approx(np.mean(hits[best]), abs=1e-9)


def test_the_splits_share_no_image(images):
    splits = {name: getattr(images, name) for name in ("train", "validation", "test")}
    pixels = {name: data.to_arrays(split)[0] for name, split in splits.items()}
    assert [len(pixels[name]) for name in splits] == [160, 60, 60]
    as_bytes = {name: {image.tobytes() for image in array} for name, array in pixels.items()}
    assert as_bytes["test"].isdisjoint(as_bytes["train"] | as_bytes["validation"])
    assert as_bytes["validation"].isdisjoint(as_bytes["train"])


def test_the_second_time_nothing_is_done(trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    code, out, err = ring.quietly(train.main, f"--workdir={trained}", *ring.overrides())
    assert (code, err) == (0, "")
    assert "Nothing is left to do" in out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def start(workdir, *arguments):
    """Starts training in a process of its own."""
    command = [sys.executable, "-m", "instanas_tf.train", f"--workdir={workdir}", *arguments]
    with open(workdir.parent / f"{workdir.name}.log", "a") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ring.ROOT,
            env={**os.environ, "PYTHONPATH": str(ring.ROOT)},
            start_new_session=True,
        )


@contextlib.contextmanager
def ended(process):
    """Ends a process that is still there."""
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish(workdir, *arguments):
    with ended(start(workdir, *arguments)) as process:
        assert process.wait(timeout=300) == 0, (workdir.parent / f"{workdir.name}.log").read_text()


def kill_after_epoch(workdir, stage, epoch, *arguments):
    with ended(start(workdir, *arguments)) as process:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            rows = read_metrics(workdir / "metrics.jsonl")
            if any(row["stage"] == stage and row["epoch"] >= epoch for row in rows):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return
            time.sleep(0.01)
        pytest.fail((workdir.parent / f"{workdir.name}.log").read_text())


def read_weights(path):
    """All arrays of a Keras weights file by name."""
    import h5py

    found = {}
    with h5py.File(path) as content:
        content.visititems(
            lambda name, item: found.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return found


@pytest.mark.slow
def test_killed_training_goes_on_as_if_undisturbed(trained, tmp_path):
    arguments = ring.overrides(search__epochs=3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    (whole / "checkpoints").mkdir()
    # The same start for both: what is measured differs from run to run.
    for name in ("latency_table.json", "checkpoints/pretrain.weights.h5"):
        shutil.copy(trained / name, whole / name)
    shutil.copytree(whole, parts)
    until = ["--stage=search", *arguments]
    finish(whole, *until)
    kill_after_epoch(parts, "search", 1, *until)
    assert not (parts / "checkpoints" / "search.weights.h5").exists()
    finish(parts, *until)
    for workdir in (whole, parts):
        finish(workdir, "--stage=finetune", *arguments)
    assert read_metrics(whole / "metrics.jsonl") == read_metrics(parts / "metrics.jsonl")
    assert json.loads((whole / "experts.json").read_text()) == json.loads(
        (parts / "experts.json").read_text()
    )
    names = sorted(p.relative_to(whole) for p in (whole / "checkpoints").rglob("*.weights.h5"))
    assert len([name for name in names if "epoch_" in name.name]) == 3
    for name in names:
        ours, theirs = read_weights(whole / name), read_weights(parts / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=f"{name} {key}")
