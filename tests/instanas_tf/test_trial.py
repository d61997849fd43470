"""One trial: what its outcome is made of, and what is done again."""

import dataclasses
import json

import numpy as np
import pytest

from instanas_tf import measure, trial
from instanas_tf.errors import CommandError, InputError, ModelError
from instanas_tf.pipeline import checks, data, finetune, pretrain, search
from instanas_tf.pipeline.workdir import WorkDir
from tests import fixtures_ring as ring


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return ring.trained_run(tmp_path_factory)


trained_copy = ring.trained_copy


@pytest.fixture
def place(trained_copy, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))
    return WorkDir(trained_copy)


@pytest.fixture
def config(place):
    return checks.from_json(place.config)


@pytest.fixture(scope="session")
def images(trained):
    config = checks.from_json(WorkDir(trained).config)
    found = data.load(config.data, config.seed)
    return dataclasses.replace(found, test=None)  # A trial must not look at it.


def never(*arguments):
    raise AssertionError("this was done already")


def test_the_outcome_of_a_trial(place, config, images, tmp_path, monkeypatch):
    for module in (pretrain, search, finetune, measure):
        monkeypatch.setattr(module, module.__name__.rpartition(".")[2], never)
    tables = WorkDir(tmp_path / "tables")
    found = trial.run(config, config, images, place, tables)
    content = json.loads(place.experts.read_text())
    entry = next(v for v in content["variants"] if v["name"] == content["selected"])
    assert found.accuracy == entry["validation_accuracy"]["recalibrated"]
    rows = (place.root / "measured" / "measurements.jsonl").read_text().splitlines()
    ms = {row["model"]: row["median_ms"] for row in map(json.loads, rows)}
    names = [expert["name"] for expert in entry["experts"]]
    assert set(ms) == {"controller", "reference", *names}
    mean = np.dot([e["share"] for e in entry["experts"]], [ms[name] for name in names])
    assert found.latency_ms == pytest.approx(ms["controller"] + mean)
    assert (found.controller_ms, found.reference_ms) == (ms["controller"], ms["reference"])
    assert found.latency_ratio == found.latency_ms / ms["reference"] > 0
    assert found.value("accuracy", 0.5) == found.accuracy

    monkeypatch.setattr(trial, "bench", never)
    assert trial.run(config, config, images, place, tables) == found


def test_a_failed_training_is_an_outcome(place, config, monkeypatch, tmp_path):
    place.experts.unlink()

    def diverge(*arguments):
        raise ModelError("loss is nan after epoch 1")

    monkeypatch.setattr(finetune, "finetune", diverge)
    tables = WorkDir(tmp_path / "tables")
    found = trial.run(config, config, None, place, tables)
    assert found.reason == "loss is nan after epoch 1"
    monkeypatch.setattr(finetune, "finetune", never)
    assert trial.run(config, config, None, place, tables) == found


@pytest.mark.parametrize("error", [InputError("damaged"), CommandError("no device", 4), "disk"])
def test_what_would_meet_every_trial_is_no_outcome(error, place, config, monkeypatch, tmp_path):
    place.experts.unlink()

    def fail(*arguments):
        if error != "disk":
            raise error
        try:
            raise OSError("No space left on device")
        except OSError as cause:
            raise ModelError("cannot write") from cause

    monkeypatch.setattr(finetune, "finetune", fail)
    with pytest.raises((InputError, CommandError, ModelError)):
        trial.run(config, config, None, place, WorkDir(tmp_path / "tables"))
    assert trial.read_outcome(place.root) is None


def test_a_table_is_measured_once_for_each_space(place, config, monkeypatch, tmp_path):
    measured = []

    def pretend(config, space, shared, device):
        measured.append((config.space.width, config.experts.count))
        shared.root.mkdir(parents=True)
        shared.latency_table.write_text(str(len(measured)))

    monkeypatch.setattr(measure, "measure", pretend)
    tables, found = WorkDir(tmp_path / "tables"), []
    changes = [{}, {"finetune.learning_rate": 0.5}, {"space.width": 0.5}, {"experts.count": 2}, {}]
    for number, change in enumerate(changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(change)
        own = WorkDir(tmp_path / str(number))
        trial.share_table(changed, 10, own, tables)
        found.append(own.latency_table.read_text())
    assert found == ["1", "1", "2", "3", "1"]
    assert measured == [(1.0, 3), (0.5, 3), (1.0, 2)]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"speed": 1}', '{"latency_ms": "fast"}', '{"accuracy": 0.5}']
)
def test_a_damaged_outcome(content, tmp_path):
    (tmp_path / trial.OUTCOME).write_text(content)
    with pytest.raises(InputError, match="outcome.json is damaged .*; start the search anew"):
        trial.read_outcome(tmp_path)
