"""The whole ring on a tiny space: train, export, measure, predict; and what others may rely on."""

import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest

from android_bench import __main__ as android_bench
from export import manifest, worker
from export.routed import Rules
from instanas_tf import train
from instanas_tf.latency import LatencyTable
from instanas_tf.pipeline import config_files, data, variants
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
    config = config_files.from_json(trained / "config.json")
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
        "parts",
    }
    stages = {row["stage"] for row in read_metrics(trained / "metrics.jsonl")}
    for stage in stages:
        assert list((trained / "tensorboard" / stage).rglob("events.out.tfevents.*"))
    checkpoints = trained / "checkpoints"
    assert [path.name for path in sorted((checkpoints / "controllers").iterdir())] == [
        "epoch_0001.weights.h5",
        "epoch_0002.weights.h5",
    ]
    names = {path.name.removesuffix(".weights.h5") for path in checkpoints.glob("*.h5")}
    assert {re.sub("_[0-9a-f]{8}$", "", name) for name in names} == {
        *("pretrain", "search", "expert_00", "expert_01", "expert_02"),
        *("router_image_half", "router_features", "mobilenet_v2_1.0", "alone", "twin"),
    }
    assert {path.name for path in checkpoints.glob("*.json")} == {
        "chosen.json",
        "trained.json",
        "routers.json",
    }
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
    (alone,) = [stage for stage in epochs if stage.startswith("alone_")]
    (twin,) = [stage for stage in epochs if stage.startswith("twin_")]
    assert epochs == {
        "pretrain": [1],
        "search": [1, 2],
        "finetune": [1],
        "router_image_half": [1],
        "router_features": [1],
        "mobilenet_v2_1.0": [1, 2, 3, 4],
        alone: [1, 2, 3, 4],
        twin: [1, 2, 3, 4],
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
    assert variant["kind"] in variants.KINDS
    assert 0 <= variant["controller_ms"] < variant["mean_latency_ms"]
    assert variant["experts"] == len(variant["expert_results"]) <= 3
    assert 1 <= variant["unique_policies"]
    gain = variant["routing_gain"]
    if gain is not None:
        low, high = gain["interval"]
        assert low <= high
        assert variant["pays"] == (low > 0)
        assert gain["gain"] == pytest.approx(variant["accuracy"] - gain["static_accuracy"])
    static = [item["name"] for item in results["static"]]
    assert variant["static_instead"] in static
    assert variant["sentence"].startswith("choosing by image ")
    (baseline,) = results["baselines"]
    assert baseline["name"] == "mobilenet_v2_1.0"
    assert static[:4] == ["expert_00", "expert_01", "expert_02", "mobilenet_v2_1.0"]
    assert [name.startswith("alone_") for name in static[4:]] == [True]
    cheapest, alone = results["static"][0], results["static"][4]
    assert (cheapest["alone"], alone["expert"]) == (alone["name"], 0)
    assert cheapest["gap"] == pytest.approx(alone["accuracy"] - cheapest["accuracy"])
    for item in (variant, *results["static"]):
        assert 0 <= item["accuracy"] <= 1
    envelope = results["static_envelope"]
    assert envelope["latency_ms"] == sorted(item["latency_ms"] for item in results["static"])
    assert envelope["accuracy"] == sorted(envelope["accuracy"])


def test_controls(results):
    controls = dict(results["controls"])
    twin = controls.pop("seed_twin")
    assert twin["twin_headroom"] == pytest.approx(twin["twin_oracle"] - twin["twin_best"])
    assert twin["expert_headroom"] == pytest.approx(twin["expert_oracle"] - twin["expert_best"])
    names = {"majority_policy", "shuffled_policies", "best_static_expert", "static_trained_alone"}
    assert set(controls) == names
    for control in controls.values():
        assert set(control) == {"A"}
        assert 0 <= control["A"]["accuracy"] <= 1
    assert controls["static_trained_alone"]["A"]["name"].startswith("alone_")
    assert controls["best_static_expert"]["A"]["name"].startswith("expert_")


def test_experts(trained):
    content = json.loads((trained / "experts.json").read_text())
    assert (content["format"], content["version"]) == ("instanas_tf/experts", 2)
    measured = [item["measured_latency_ms"] for item in content["experts"]]
    predicted = [item["predicted_latency_ms"] for item in content["experts"]]
    assert predicted == sorted(predicted)
    assert len(measured) == 3 and min(measured) > 0
    assert list(content["controllers_ms"])[1:] == ["image_half", "features"]
    (entry,) = content["variants"]
    assert content["selected"] == entry["name"] == "A"
    assert entry["budget_ms"] == pytest.approx(content["reference_latency_ms"])
    # Measured end to end: what it took beside the sum of its parts, and whether the target is
    # met, is for the machine to say.
    parts_ms = entry["validation_latency_ms"] / entry["overhead"]
    assert 0 < parts_ms <= max(item["validation_latency_ms"] for item in entry["candidates"]) + 1e-9
    assert len(entry["shares"]) == len(entry["experts"]) == len(entry["routing"]["following"])
    assert {item["kind"] for item in entry["candidates"]} <= set(variants.KINDS)
    for item in entry["candidates"]:
        assert item["validation_latency_ms"] <= entry["budget_ms"] * (1 + 1e-9)


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
    variant = variants.pick(WorkDir(trained))
    rules = Rules.from_json(variant.rules)
    front = ["controller"] if rules.needs_front else []
    decide = ["decide"] if rules.is_cascade else []
    assert names == [*front, *decide, *variant.expert_names]
    files = {path.name for path in exported.iterdir()}
    others = {"instanas.tflite", "manifest.json", "measurements.jsonl"}
    assert files == {f"{n}.tflite" for n in names} | others
    bundle = content.content["bundle"]
    assert list(bundle["signatures"]) == names
    assert bundle["bytes"] == (exported / "instanas.tflite").stat().st_size
    (entry,) = content.variants
    assert (entry.name, content.content["selected"]) == ("A", "A")
    assert [entry.controller] == (front or [None])
    assert [entry.decide] == (decide or [None])
    assert list(entry.experts) == variant.expert_names
    assert entry.routing == variant.rules
    latencies = [entry.details[f"{name}_latency_ms"] for name in ("mean", "p95", "worst")]
    assert 0 < latencies[0] <= latencies[2] and latencies[1] <= latencies[2]
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
    assert "expert_0" in capsys.readouterr().out


PREDICT = """
import json, sys
for name in ("tensorflow", "keras", "tensorflow_datasets", "ml_collections", "absl"):
    sys.modules[name] = None
import numpy as np
from export.predictor import Predictor
predictor = Predictor(sys.argv[1])
names = ("class_index", "label", "probability", "experts", "latency_ms")
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
        share = np.mean([expert["name"] in item[3] for item in found])
        assert share == pytest.approx(expert["share"], abs=1e-9)


def test_results_are_those_of_the_files(exported, results, images):
    pixels, labels = data.to_arrays(images.test)
    content = manifest.read(exported)
    rules = Rules.from_json(content.variants[0].routing)
    experts = tuple(model.path for model in content.of_kind("expert"))
    front = exported / "controller.tflite" if rules.needs_front else None
    system = worker.System("A", experts, front, rules)
    classes, ran = worker.answers([system], pixels)["A"]
    (variant,) = results["variants"]
    assert np.mean(classes == labels) == pytest.approx(variant["accuracy"], abs=1e-9)
    shares = [expert["share"] for expert in variant["expert_results"]]
    np.testing.assert_allclose(ran.mean(axis=0), shares, atol=1e-9)
    assert len(np.unique(ran, axis=0)) == variant["unique_policies"]
    if not rules.features:  # Then the files are those that ran by themselves, too.
        names = [expert["name"] for expert in variant["expert_results"]]
        logits = worker.outputs(dict(zip(names, experts, strict=True)), pixels)
        for expert in variant["expert_results"]:
            hits = np.argmax(logits[expert["name"]], axis=-1) == labels
            assert expert["accuracy"] == pytest.approx(np.mean(hits), abs=1e-9)


def test_the_splits_share_no_image(images):
    names = ("train", "controller", "validation", "test")
    pixels = {name: data.to_arrays(getattr(images, name))[0] for name in names}
    assert [len(pixels[name]) for name in ("train", "validation", "test")] == [160, 60, 60]
    as_bytes = [{image.tobytes() for image in pixels[name]} for name in names]
    for first, second in itertools.combinations(as_bytes, 2):
        assert first and first.isdisjoint(second)


def test_the_second_time_nothing_is_done(trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    code, out, err = ring.quietly(train.main, f"--workdir={trained}", *ring.overrides())
    assert (code, err) == (0, "")
    assert "Nothing is left to do" in out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_more_experts_than_there_are_policies(trained, tmp_path):
    workdir, kept = tmp_path / "run", ("pretrain.weights.h5", "search.weights.h5", "controllers")
    (workdir / "checkpoints").mkdir(parents=True)
    for name in ("latency_table.json", "metrics.jsonl", *(f"checkpoints/{n}" for n in kept)):
        copy = shutil.copytree if (trained / name).is_dir() else shutil.copy
        copy(trained / name, workdir / name)
    arguments = ["--stage=finetune", *ring.overrides(experts__count=60)]
    code, _, err = ring.quietly(train.main, f"--workdir={workdir}", *arguments)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("train: ")]
    assert "config.experts.count must be at most " in line
    assert "the different policies that there are" in line
    assert "Received: 60" in line
    assert not (workdir / "checkpoints" / "chosen.json").exists()
