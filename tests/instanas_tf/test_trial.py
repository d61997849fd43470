"""One trial: what its outcome is made of, and what is done again."""

import dataclasses
import json

import pytest

from instanas_tf import measure, parts, route, trial
from instanas_tf.errors import CommandError, InputError, ModelError
from instanas_tf.pipeline import checks, data, finetune, pretrain, search
from instanas_tf.pipeline.workdir import WorkDir, locked
from tests import fixtures_ring as ring


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return ring.trained_run(tmp_path_factory)


trained_copy = ring.trained_copy


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    return ring.kinds_run(tmp_path_factory)


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


STAGES = (pretrain, search, finetune, measure, route)


def done_before(monkeypatch, *modules):
    """Lets stages fail that must not run."""
    for module in modules:
        monkeypatch.setattr(module, module.__name__.rpartition(".")[2], never)


def test_the_outcome_of_a_trial(place, config, images, tmp_path, monkeypatch):
    done_before(monkeypatch, *STAGES)
    monkeypatch.setattr(trial, "bench", never)
    tables = WorkDir(tmp_path / "tables")
    found = trial.run(config, config, images, place, tables)
    content = json.loads(place.experts.read_text())
    entry = next(v for v in content["variants"] if v["name"] == content["selected"])
    assert found.accuracy == entry["validation_accuracy"]
    assert found.latency_ms == entry["validation_latency_ms"]
    assert found.reference_ms == content["reference_latency_ms"]
    assert found.controller_ms == content["controllers_ms"].get(entry["controller"], 0.0)
    assert found.latency_ratio == found.latency_ms / found.reference_ms > 0
    assert found.value("accuracy", 0.5) == found.accuracy
    monkeypatch.setattr(trial, "_outcome", never)
    assert trial.run(config, config, images, place, tables) == found


@pytest.mark.parametrize(("name", "controller_ms"), [("A", 0.0), ("B", 0.0), ("D", 0.4)])
def test_the_controller_of_the_selected_variant(kinds, name, controller_ms, images, tmp_path):
    place = WorkDir(ring.copy_run(kinds, tmp_path))
    ring.change_json(place.experts, lambda content: content.update(selected=name))
    config = checks.from_json(place.config)
    found = trial.run(config, config, images, place, WorkDir(tmp_path / "tables"))
    assert found.controller_ms == controller_ms
    assert found.reference_ms == 2.0


def test_a_trial_is_routed_while_nobody_else_measures(place, config, images, tmp_path, monkeypatch):
    done_before(monkeypatch, pretrain, search, finetune, measure)
    place.experts.unlink()
    tables, held = WorkDir(tmp_path / "tables"), []

    def measured(*arguments):
        with pytest.raises(InputError, match="another command is at work"):
            with locked(tables):
                pass
        held.append(tables.root)
        return measured_before(*arguments)

    def trained(*arguments):
        with locked(tables):  # Others may measure now.
            held.append(None)

    measured_before = parts.measure
    monkeypatch.setattr(parts, "measure", measured)
    monkeypatch.setattr(route, "train", trained)
    found = trial.run(config, config, images, place, tables)
    assert held == [tables.root, None]
    assert (
        found.latency_ms
        == json.loads(place.experts.read_text())["variants"][0]["validation_latency_ms"]
    )


def test_a_trial_of_another_width_is_held_against_the_same_network(
    place, config, images, tmp_path, monkeypatch
):
    done_before(monkeypatch, *STAGES)
    reference = config.copy_and_resolve_references()
    reference.space.width = 2.0
    tables = WorkDir(tmp_path / "tables")

    def bench(listed, out, settings, device):
        with pytest.raises(InputError, match="another command is at work"):
            with locked(tables):
                pass
        (entry,) = json.loads(listed.read_text())["models"]
        assert entry["name"] == "reference"
        return [{"model": "reference", "median_ms": 8.0}]

    monkeypatch.setattr(trial, "bench", bench)
    found = trial.run(config, reference, images, place, tables)
    assert found.reference_ms == 8.0
    assert found.latency_ratio == found.latency_ms / 8.0


def test_experts_that_cannot_meet_a_target_are_an_outcome(
    place, config, images, monkeypatch, tmp_path
):
    place.experts.unlink()

    def refuse(*arguments):
        raise route.OutOfReachError("a mean latency of 1 ms cannot be met")

    monkeypatch.setattr(route, "route", refuse)
    found = trial.run(config, config, images, place, WorkDir(tmp_path / "tables"))
    assert found.reason == "a mean latency of 1 ms cannot be met"


def test_a_failed_training_is_an_outcome(place, config, monkeypatch, tmp_path):
    place.trained.unlink()

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
    place.trained.unlink()

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
