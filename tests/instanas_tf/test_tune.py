"""The command that tunes: its door, its closing lines, and several processes."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest

from instanas_tf import trial, tune
from instanas_tf.pipeline.workdir import WorkDir, locked
from tests import fixtures_ring as ring

RATE = ["--knobs=finetune_learning_rate", "--objective=accuracy", "--tuner=random"]
# A worker or chief whose trials take a while and give their learning rate.
PRETENDED = """
import dataclasses, sys, time
from instanas_tf import files, trial, tune
def run(config, reference, images, place, tables):
    files.write_json(place.root / "config.json", {})
    time.sleep(PAUSE)
    found = trial.Outcome(config.finetune.learning_rate, 0.1, 1.0, 2.0)
    files.write_json(place.root / trial.OUTCOME, dataclasses.asdict(found))
    return found
PAUSE, trial.run = float(sys.argv.pop()), run
sys.exit(tune.main())
"""


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Runs a command line that must fail, and gives the line that it leaves."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=2):
        found, out, err = ring.quietly(tune.main, *arguments)
        assert found == code, err
        return ring.said(err, "tune")

    return run


COMMAND_LINES = [
    (["extra"], "unexpected argument 'extra'"),
    (["--trails=3"], "Unknown command line flag 'trails'"),
    (["--trials=0"], "trials"),
    (["--trials=-1"], "trials"),
    (["--trials=many"], "many"),
    (["--objective=speed"], "score|accuracy|latency"),
    (["--tuner=grid"], "hyperband|bayesian|random"),
    (["--config=nothing.py"], "--config=nothing.py does not exist"),
    (["--config.serach.epochs=3"], "did you mean config.search.epochs?"),
    (["--config.search.epochs=0"], "config.search.epochs must be at least 1"),
    (["--knobs=controler_learning_rate"], "did you mean controller_learning_rate?"),
    (["--knobs=gamma"], "a knob of the published recipe"),
    (["--knobs=width", "--config.evaluate.baseline_widths=(7.0,)"], "at most 8"),
    (["--config.train.batch_size=9999"], "batch size must be between 1 and"),
    (["--config.finetune.batch_size=9999"], "batch size must be between 1 and"),
    (["--config.data.name=folder", "--config.data.data_dir=none"], "none"),
]


@pytest.mark.parametrize(("arguments", "message"), COMMAND_LINES)
def test_mistakes(arguments, message, refused, tmp_path):
    assert message in refused(*arguments)
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "runs"])


@pytest.mark.parametrize("missing", ["TUNER_ID", "ORACLE_IP", "ORACLE_PORT"])
def test_incomplete_variables(missing, refused, tmp_path, monkeypatch):
    given = {"TUNER_ID": "tuner0", "ORACLE_IP": "127.0.0.1", "ORACLE_PORT": "8000"}
    for name, value in given.items():
        if name != missing:
            monkeypatch.setenv(f"KERASTUNER_{name}", value)
    assert f"set KERASTUNER_{missing} too, beside KERASTUNER_" in refused()
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_tensorflow():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['tensorflow', 'keras', 'keras_tuner']))\n"
        "from instanas_tf import tune\n"
        "sys.exit(tune.main(['tune', '--help']))\n"
    )
    done = ring.python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "--objective" in done.stdout
    assert "KERASTUNER_ORACLE_IP" in done.stdout


@pytest.fixture
def pretended(monkeypatch):
    """Trials without training: the accuracy is the learning rate, the fifth one fails."""
    calls = []

    def run(config, reference, images, place, tables):
        calls.append(place.root.name)
        rate = config.finetune.learning_rate
        found = trial.Outcome(rate, 0.1, 1.0, 2.0) if len(calls) != 5 else trial.Outcome(reason="!")
        trial.files.write_json(place.root / trial.OUTCOME, vars(found))
        return found

    monkeypatch.setattr(trial, "run", run)
    return calls


def test_a_search_ends_with_a_table_and_a_command(tmp_path, pretended, refused):
    arguments = [*RATE, "--trials=6", f"--workdir={tmp_path / 'a b'}", *ring.overrides()]
    code, out, err = ring.quietly(tune.main, *arguments)
    assert code == 0, err
    assert "Search space" not in out and "Reloading" not in out
    lines = out.splitlines()
    table = json.loads((tmp_path / "a b" / "trials.json").read_text())
    trials = table["trials"]
    header = next(i for i, line in enumerate(lines) if line.startswith("trial  "))
    assert lines[header].split() == [
        *("trial", "accuracy", "accuracy", "ms", "ratio", "finetune_learning_rate", "status")
    ]
    assert [line.split()[0] for line in lines[header + 1 : header + 7]] == [
        found["trial"] for found in trials
    ]
    values = [found["value"] for found in trials[:5]]
    assert values == sorted(values, reverse=True)
    assert trials[5]["status"] == "failed"
    assert "trial 4 failed: !" in lines
    command = shlex.split(lines[-1].removeprefix("Best: "))
    assert command[:3] == ["python", "-m", "instanas_tf.train"]
    assert f"--workdir={tmp_path / 'a b'}_best" in command
    assert command[-1] == f"--config.finetune.learning_rate={values[0]}"
    assert set(ring.overrides()) <= set(command)

    again = ring.quietly(tune.main, *arguments)
    assert again[1].splitlines()[-8:] == lines[-8:]
    assert len(pretended) == 6
    before = ring.listing(tmp_path / "a b")
    assert "search.epochs: 2 there, 3 asked for" in refused(*arguments, "--config.search.epochs=3")
    assert "objective: 'accuracy' there" in refused(*arguments, "--objective=score")
    with locked(WorkDir(tmp_path / "a b")):
        assert "another command is at work" in refused(*arguments)
    assert ring.listing(tmp_path / "a b") == before


def free_port():
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Processes:
    """Chief and workers of a search; all are ended when the test is."""

    def __init__(self, root, program, arguments, trials):
        self.root, self.program = root, program
        self.arguments = [*arguments, f"--trials={trials}", f"--workdir={root}", *ring.overrides()]
        self.port = free_port()
        self.started = {}

    def start(self, name, *more):
        logs = {stream: open(f"{self.root}.{name}.{stream}", "w") for stream in ("out", "err")}
        self.started[name] = subprocess.Popen(
            [sys.executable, *self.program, *self.arguments, *more],
            stdout=logs["out"],
            stderr=logs["err"],
            cwd=ring.ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ring.ROOT),
                "KERASTUNER_TUNER_ID": name,
                "KERASTUNER_ORACLE_IP": "127.0.0.1",
                "KERASTUNER_ORACLE_PORT": str(self.port),
            },
        )
        for log in logs.values():
            log.close()

    def read(self, name, stream="out"):
        with open(f"{self.root}.{name}.{stream}") as log:
            return log.read()

    def ended(self, name, seconds=240):
        assert self.started[name].wait(seconds) == 0, self.read(name, "err")
        return self.read(name)

    def trials(self):
        content = json.loads((self.root / "trials.json").read_text())
        return {found["trial"]: found["status"] for found in content["trials"]}


@pytest.fixture
def processes():
    made = []

    def make(*arguments):
        made.append(Processes(*arguments))
        return made[-1]

    yield make
    for process in [p for found in made for p in found.started.values()]:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.slow
def test_a_chief_and_a_worker_with_real_trials(tmp_path, processes):
    found = processes(tmp_path / "tune", ["-m", "instanas_tf.tune"], ["--tuner=random"], 2)
    found.start("chief")
    found.start("tuner0")
    worker, chief = found.ended("tuner0"), found.ended("chief")
    assert worker.count("of the reference network") == 2
    assert worker.count("measuring ") == 1  # The second trial took the table of the first.
    assert "No trial is left for this worker" in worker
    assert found.trials() == {"0": "done", "1": "done"}
    assert "Best: python -m instanas_tf.train" in chief
    assert not list((found.root / "trials").glob("*/results.json"))
    assert not (found.root / "workers" / "tuner0").exists()


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_goes_to_another(tmp_path, processes):
    found = processes(tmp_path / "tune", ["-c", PRETENDED], RATE, 4)
    found.start("chief", "0")
    found.start("tuner0", "600")
    deadline = time.monotonic() + 120
    while not list(found.root.glob("trials/0/config.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    found.started["tuner0"].send_signal(signal.SIGKILL)
    found.start("tuner1", "0")
    worker, chief = found.ended("tuner1"), found.ended("chief")
    assert "worker tuner0 is gone" in chief
    assert found.trials() == dict.fromkeys("0123", "done")
    assert "== trial 0 goes on: " in worker
