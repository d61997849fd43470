"""KerasTuner's oracles with a trial that only pretends: what is run, kept and run again."""

import collections
import contextlib
import dataclasses
import functools
import json
import shutil
import socket

import grpc
import pytest

from instanas_tf import files, trial, tuner
from instanas_tf.errors import DeviceError, InputError, ModelError
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import knobs, tuning
from instanas_tf.pipeline.tuning import Plan, Role
from instanas_tf.pipeline.workdir import locked


class Pretended:
    """Trials without training: what was asked for, and what happens on a given call."""

    def __init__(self):
        self.calls = []
        self.events = {}

    def run(self, config, reference, images, place, tables):
        name = place.root.name
        self.calls.append((name, config.finetune.learning_rate, config.search.epochs))
        event = self.events.pop(len(self.calls) - 1, None)
        if isinstance(event, BaseException):
            raise event
        found = event or trial.Outcome(config.finetune.learning_rate, 0.1, 1.0, 2.0)
        files.write_json(place.root / trial.OUTCOME, dataclasses.asdict(found))
        return found

    @property
    def names(self):
        return [name for name, _, _ in self.calls]


@pytest.fixture
def pretended(monkeypatch):
    found = Pretended()
    monkeypatch.setattr(trial, "run", found.run)
    return found


def make_plan(kind="random", trials=5, epochs=3, seed=0):
    config = config_module.default_config()
    config.search.epochs = epochs
    config.seed = seed
    return Plan(config, "accuracy", kind, knobs.select("finetune_learning_rate", "priced"), trials)


def make(root, plan, role=None):
    folder = tuning.TuneDir(root)
    return tuner.TrialTuner(plan, folder, role or Role(), None, lambda line: None)


def searched(root, plan):
    made = make(root, plan)
    tuner.search(made)
    return made


@pytest.mark.parametrize("kind", tuning.TUNERS)
def test_an_interrupted_search_goes_on_with_the_same_trial(kind, tmp_path, pretended):
    pretended.events = {0: KeyboardInterrupt(), 3: KeyboardInterrupt()}
    plan = make_plan(kind)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "a", plan)
    made = searched(tmp_path / "a", plan)
    assert pretended.names == ["0", "0", "1", "2", "2", "3", "4"]
    assert [pretended.calls[i] for i in (0, 3)] == [pretended.calls[i] for i in (1, 4)]
    rows = made.rows()
    assert [row.status for row in rows] == ["done"] * 5
    rates = {name: rate for name, rate, _ in pretended.calls}
    assert {row.trial: row.value for row in rows} == rates
    assert [row.trial for row in searched(tmp_path / "a", plan).rows()] == list("01234")
    assert len(pretended.calls) == 7  # The finished search ran nothing more.


def test_the_same_seed_tries_the_same_values(tmp_path, pretended):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        searched(tmp_path / name, make_plan(trials=3, seed=seed))
    first, second, third = (pretended.calls[i : i + 3] for i in (0, 3, 6))
    assert first == second
    assert first != third


def test_more_trials_may_be_asked_for(tmp_path, pretended):
    searched(tmp_path / "a", make_plan(trials=2))
    searched(tmp_path / "a", make_plan(trials=4))
    assert pretended.names == ["0", "1", "2", "3"]


def test_hyperband_gives_the_best_more_epochs(tmp_path, pretended):
    made = searched(tmp_path / "a", make_plan("hyperband", trials=None))
    assert [epochs for _, _, epochs in pretended.calls] == [1, 1, 1, 3, 3, 3]
    rates = [rate for _, rate, _ in pretended.calls]
    assert rates[3] == max(rates[:3])  # The objective of a pretended trial is its rate.
    assert [row.share for row in made.rows()] == pytest.approx([1 / 3] * 3 + [1.0] * 3)


def test_a_trial_that_the_oracle_had_not_noted_is_not_counted(tmp_path, pretended):
    made = searched(tmp_path / "a", make_plan(trials=2))
    state = made.folder.state
    shutil.copytree(state / "trial_1", state / "trial_2")
    content = json.loads((state / "trial_2" / "trial.json").read_text())
    (state / "trial_2" / "trial.json").write_text(
        json.dumps({**content, "trial_id": "2", "status": "RUNNING"})
    )
    found = searched(tmp_path / "a", make_plan(trials=3))
    assert [row.trial for row in found.rows()] == ["0", "1", "2"]
    assert pretended.names == ["0", "1", "2"]


def test_a_trial_whose_end_the_oracle_had_not_noted_is_not_counted_twice(tmp_path, pretended):
    pretended.events = {1: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "a", make_plan(trials=2))
    oracle = tmp_path / "a" / "keras_tuner" / "oracle.json"
    before = oracle.read_bytes()
    searched(tmp_path / "a", make_plan(trials=2))
    oracle.write_bytes(before)  # As if the process had ended just before it was written.
    rows = searched(tmp_path / "a", make_plan(trials=2)).rows()
    assert [(row.trial, row.status) for row in rows] == [("0", "done"), ("1", "done")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("oracle.json", ""),
        ("oracle.json", '{"trials": '),
        ("oracle.json", "{}"),
        ("oracle.json", "[]"),
        ("trial_0/trial.json", ""),
        ("trial_1/trial.json", "{}"),
        ("trial_1/trial.json", None),
    ],
)
def test_a_damaged_file_of_kerastuner(name, content, tmp_path, pretended):
    made = searched(tmp_path / "a", make_plan(trials=2))
    path = made.folder.state / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(
        InputError, match="(json|keras_tuner) is damaged .*another --workdir"
    ) as error:
        make(tmp_path / "a", make_plan(trials=2))
    assert len(str(error.value).splitlines()) == 1


def test_a_damaged_mark_does_no_harm(tmp_path, pretended):
    made = searched(tmp_path / "a", make_plan(trials=2))
    (made.folder.state / "tuner0.json").write_text("")
    assert len(make(tmp_path / "a", make_plan(trials=2)).rows()) == 2


def test_a_failed_trial_stays_failed_and_the_search_goes_on(tmp_path, pretended, capfd):
    failed = trial.Outcome(reason="loss is nan after epoch 1")
    pretended.events = {1: failed, 2: failed, 4: failed}
    rows = searched(tmp_path / "a", make_plan()).rows()
    found = collections.Counter(row.status for row in rows)
    assert found == {"done": 2, "failed": 3}
    assert rows[1].reason == "loss is nan after epoch 1"
    assert rows[1].value is None
    assert [row.status for row in searched(tmp_path / "a", make_plan()).rows()] == [
        row.status for row in rows
    ]
    assert len(pretended.calls) == 5
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err


def test_failures_in_a_row_end_the_search(tmp_path, pretended):
    failed = trial.Outcome(reason="loss is nan")
    pretended.events = dict.fromkeys((1, 2, 3), failed)
    with pytest.raises(ModelError, match="3 trials in a row failed, .* because: loss is nan"):
        searched(tmp_path / "a", make_plan())
    assert json.loads((tmp_path / "a" / "trials.json").read_text())["trials"][0]["trial"] == "0"
    searched(tmp_path / "a", make_plan())
    assert pretended.names == list("01234")


@pytest.mark.parametrize("error", [InputError("no data"), ZeroDivisionError("a fault of ours")])
def test_other_errors_end_the_search_and_leave_the_trial_unfinished(error, tmp_path, pretended):
    pretended.events = {1: error}
    with pytest.raises(type(error)):
        searched(tmp_path / "a", make_plan(trials=3))
    rows = make(tmp_path / "a", make_plan(trials=3)).rows()
    assert [row.status for row in rows] == ["done", "interrupted"]
    searched(tmp_path / "a", make_plan(trials=3))
    assert pretended.names == ["0", "1", "1", "2"]


def test_the_trial_of_a_worker_that_is_gone_goes_to_the_next(tmp_path, pretended):
    made = make(tmp_path / "a", make_plan(trials=3))
    made.oracle.is_gone = functools.partial(tuner.is_gone, made)
    alive = contextlib.ExitStack()
    for name in ("tuner1", "tuner2", "tuner3"):
        alive.enter_context(locked(made.folder.worker(name)))
    kept = made.oracle.create_trial("tuner1")
    with locked(made.folder.worker("tuner0")):
        lost = made.oracle.create_trial("tuner0")
        third = made.oracle.create_trial("tuner2")
        assert [trial.trial_id for trial in (kept, lost, third)] == ["0", "1", "2"]
        waits = made.oracle.create_trial("tuner3")
        assert waits.status == "IDLE"  # It may be needed yet.
    again = made.oracle.create_trial("tuner3")
    assert (again.trial_id, again.status) == ("1", "RUNNING")
    for found in (kept, third, again):
        made.oracle.update_trial(found.trial_id, {"accuracy": 0.5})
        found.status = "COMPLETED"
        made.oracle.end_trial(found)
    assert made.oracle.create_trial("tuner3").status == "STOPPED"
    alive.close()


@pytest.fixture
def chief(tmp_path, monkeypatch):
    """A chief at a port that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    for name, value in {"TUNER_ID": "chief", "ORACLE_IP": "127.0.0.1", "ORACLE_PORT": port}.items():
        monkeypatch.setenv(f"KERASTUNER_{name}", value)
    monkeypatch.setattr(tuner, "LOOK_SECS", 0.05)
    return make(tmp_path / "a", make_plan(), tuning.role())


def test_a_chief_that_cannot_write_does_not_wait_for_ever(chief, monkeypatch):
    def full(path, value):
        raise ModelError("cannot write oracle.json: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tuner.files, "write_json", full)
        with pytest.raises(ModelError):  # As a worker's request does in the server's thread.
            chief.oracle.save()
    with pytest.raises(ModelError, match="No space left"):
        tuner.search(chief)


def test_a_port_that_is_taken(chief):
    host, port = chief.role.address.split(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        with pytest.raises(InputError, match="cannot listen at .* choose another"):
            tuner.search(chief)


@pytest.mark.parametrize("ip", ["203.0.113.1", "no.such.host.invalid"])
def test_an_address_that_is_not_ours(ip):
    with pytest.raises(InputError, match=f"cannot listen at {ip}:8000 "):
        tuner.require_free(f"{ip}:8000")


def test_a_chief_with_other_knobs(tmp_path, pretended):
    made = make(tmp_path / "a", make_plan())
    given = made.oracle.create_trial("tuner0")
    made.plan = dataclasses.replace(made.plan, knobs=knobs.select("width", "priced"))
    with pytest.raises(InputError, match="keras_tuner is damaged .trial 0 has other knobs"):
        made.run_trial(given)
    made.role = Role("tuner0", "127.0.0.1:8000")
    with pytest.raises(InputError, match="has another search .finetune_learning_rate are its"):
        made.run_trial(given)


class NoAnswer(grpc.RpcError):
    """What gRPC raises."""

    def details(self):
        return "Deadline Exceeded\nand more"


def test_a_chief_that_does_not_answer(tmp_path, monkeypatch):
    made = make(tmp_path / "a", make_plan())
    made.role = Role("tuner0", "127.0.0.1:8000")

    def search(**kwargs):
        raise NoAnswer

    monkeypatch.setattr(made, "search", search)
    with pytest.raises(DeviceError, match="127.0.0.1:8000 does not answer .Deadline Exceeded.;"):
        tuner.search(made)
