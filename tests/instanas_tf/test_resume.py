"""A run that was killed, damaged or out of room goes on, or says in a line why it cannot."""

import contextlib
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from instanas_tf import train
from instanas_tf.pipeline.callbacks import read_metrics
from tests import fixtures_ring as ring

pytestmark = pytest.mark.slow
EPOCHS = 10
STAGE = ["--stage=pretrain", *ring.overrides(pretrain__epochs=EPOCHS)]


def checkpoint_files(workdir, stage):
    """The checkpoints of a stage, newest first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in (workdir / "checkpoints" / stage).iterdir():
            if path.suffix == ".npz":
                found.append(path)
    return sorted(found, reverse=True)


def start(workdir, **options):
    """Starts the stage in a process of its own; its log lies beside the work directory."""
    with open(workdir.parent / f"{workdir.name}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "instanas_tf.train", f"--workdir={workdir}", *STAGE],
            stdout=log,
            stderr=log,
            cwd=ring.ROOT,
            env={**os.environ, "PYTHONPATH": str(ring.ROOT)},
            start_new_session=True,
            **options,
        )


def log_of(workdir):
    return (workdir.parent / f"{workdir.name}.log").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of the stage that nothing befell."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    code, _, err = ring.quietly(train.main, f"--workdir={workdir}", *STAGE)
    assert code == 0, err
    return workdir


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of the stage that was killed when it had two checkpoints."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    process = start(workdir)
    try:
        deadline = time.monotonic() + 120
        while len(checkpoint_files(workdir, "pretrain")) < 2:
            assert process.poll() is None, log_of(workdir)
            assert time.monotonic() < deadline, log_of(workdir)
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(read_metrics(workdir / "metrics.jsonl")) < EPOCHS
    return workdir


@pytest.fixture
def copy(killed, tmp_path):
    """That run, to be damaged."""
    return shutil.copytree(killed, tmp_path / "run")


def assert_ends_like(workdir, whole):
    """Runs the stage to its end; weights and metrics are those of the other run."""
    code, _, err = ring.quietly(train.main, f"--workdir={workdir}", *STAGE)
    assert code == 0, err
    ours, theirs = (run / "checkpoints" / "pretrain.weights.h5" for run in (whole, workdir))
    with h5py.File(ours) as first, h5py.File(theirs) as second:
        arrays = []
        first.visititems(lambda name, item: arrays.append(name) if hasattr(item, "shape") else None)
        assert arrays
        for name in arrays:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    rows = read_metrics(workdir / "metrics.jsonl")
    assert rows == read_metrics(whole / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert not (workdir / "checkpoints" / "pretrain").exists()


def damage(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes({"empty": b"", "garbage": b"\xffgarbage" * 100}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "garbage"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(copy, whole, caplog, how):
    newest = checkpoint_files(copy, "pretrain")[0]
    damage(newest, how)
    with caplog.at_level(logging.WARNING, "absl"):
        assert_ends_like(copy, whole)
    assert any("cannot be read" in record.getMessage() for record in caplog.records)


def test_without_a_whole_checkpoint_the_run_stops_with_one_line(copy):
    for number, path in enumerate(checkpoint_files(copy, "pretrain")):
        damage(path, ("cut", "garbage")[number % 2])
    before = ring.listing(copy)
    code, _, err = ring.quietly(train.main, f"--workdir={copy}", *STAGE)
    assert code == 2
    line = [line for line in err.splitlines() if line.startswith("train: ")]
    assert len(line) == 1
    assert "Traceback" not in err
    assert f"{copy / 'checkpoints' / 'pretrain'}" in line[0]
    assert "delete that folder to start the stage again" in line[0]
    assert ring.listing(copy) == before


def test_no_room_for_a_checkpoint(copy, whole):
    """The limit on a file's size lets through all but the checkpoints."""
    room = checkpoint_files(copy, "pretrain")[0].stat().st_size - 1
    assert room > 3 * (copy / "metrics.jsonl").stat().st_size
    assert room > 3 * (copy / "config.json").stat().st_size
    process = start(
        copy, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    )
    assert process.wait(timeout=120) == 5, log_of(copy)
    lines = [line for line in log_of(copy).splitlines() if line.startswith("train: ")]
    assert len(lines) == 1, log_of(copy)
    assert "cannot write" in lines[0]
    assert "free some space" in lines[0]
    assert "Traceback" not in log_of(copy)
    assert_ends_like(copy, whole)
