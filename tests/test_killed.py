"""A run that was killed goes on as if nothing had been, in every stage that trains."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from instanas_tf.pipeline.callbacks import read_metrics
from tests import fixtures_ring as ring

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return ring.trained_run(tmp_path_factory)


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


def assert_same_weights(ours, theirs):
    """Both work directories hold the same weights, to the last bit."""
    names = [
        sorted(p.relative_to(root) for p in root.rglob("*.weights.h5")) for root in (ours, theirs)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        first, second = read_weights(ours / name), read_weights(theirs / name)
        assert first.keys() == second.keys()
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], err_msg=f"{name} {key}")


def same_json(ours, theirs, name):
    return json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text())


def test_killed_training_goes_on_as_if_undisturbed(trained, tmp_path):
    arguments = ring.overrides(search__epochs=3, finetune__epochs=3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    (whole / "checkpoints").mkdir()
    # The same start for both: what is measured differs from run to run.
    for name in ("latency_table.json", "checkpoints/pretrain.weights.h5"):
        shutil.copy(trained / name, whole / name)
    shutil.copytree(whole, parts)
    for stage in ("search", "finetune"):
        until = [f"--stage={stage}", *arguments]
        finish(whole, *until)
        kill_after_epoch(parts, stage, 1, *until)
        assert not (parts / "checkpoints" / f"{stage}.weights.h5").exists()
        finish(parts, *until)
    assert read_metrics(whole / "metrics.jsonl") == read_metrics(parts / "metrics.jsonl")
    for name in ("checkpoints/chosen.json", "checkpoints/trained.json"):
        assert same_json(whole, parts, name)
    assert len(list((whole / "checkpoints" / "controllers").iterdir())) == 3
    assert_same_weights(whole, parts)


def test_killed_routing_goes_on_as_if_undisturbed(trained, tmp_path):
    arguments = ["--stage=route", *ring.overrides(route__epochs=4)]
    whole = ring.copy_run(trained, tmp_path / "one")
    parts = ring.copy_run(trained, tmp_path / "two")
    finish(whole, *arguments)
    kill_after_epoch(parts, "router_features", 2, *arguments)
    done = parts / "checkpoints" / "router_image_half.weights.h5"
    before = done.stat().st_mtime_ns
    assert not (parts / "experts.json").exists()
    finish(parts, *arguments)
    assert done.stat().st_mtime_ns == before
    assert same_json(whole, parts, "experts.json")
    assert_same_weights(whole, parts)
    for workdir in (whole, parts):
        assert [path.name for path in (workdir / "checkpoints").glob("*/")] == ["controllers"]
    assert read_metrics(whole / "metrics.jsonl") == read_metrics(parts / "metrics.jsonl")
