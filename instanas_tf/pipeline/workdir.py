"""The work directory of a run: where each file lies, and which stages are done."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf.errors import InputError, ModelError
from instanas_tf.pipeline.cluster import ALONE, Cluster

LATE = ("target_ms", "variants", "route")  # Settings that a run may be given anew.
STAGES = ("pretrain", "measure", "search", "finetune", "route", "evaluate")


@dataclasses.dataclass(frozen=True)
class WorkDir:
    """Paths of one run; every file in it is whole or not there.

    Attributes:
        root: the folder.
        cluster: this process's part in the run; the chief alone writes.
    """

    root: pathlib.Path
    cluster: Cluster = ALONE

    @property
    def config(self) -> pathlib.Path:
        """The config that the run was started with."""
        return self.root / "config.json"

    @property
    def latency_table(self) -> pathlib.Path:
        """The measured latencies."""
        return self.root / "latency_table.json"

    @property
    def metrics(self) -> pathlib.Path:
        """One JSON object for each epoch of each stage."""
        return self.root / "metrics.jsonl"

    @property
    def experts(self) -> pathlib.Path:
        """Variants and their experts."""
        return self.root / "experts.json"

    @property
    def results(self) -> pathlib.Path:
        """Accuracies and measured latencies of everything on the test split."""
        return self.root / "results.json"

    @property
    def picture(self) -> pathlib.Path:
        """Accuracy against measured latency."""
        return self.root / "results.png"

    @property
    def export(self) -> pathlib.Path:
        """Where `export_tflite` writes unless told otherwise."""
        return self.root / "export"

    @property
    def probes(self) -> pathlib.Path:
        """Manifest and measurements of the probes."""
        return self.root / "probes"

    @property
    def tensorboard(self) -> pathlib.Path:
        """TensorBoard logs."""
        return self.root / "tensorboard"

    def resume(self, stage: str) -> pathlib.Path:
        """Folder of the checkpoints from which an unfinished stage goes on."""
        return self.root / "checkpoints" / stage

    def weights(self, name: str) -> pathlib.Path:
        """Weights that a finished stage left."""
        return self.root / "checkpoints" / f"{name}.weights.h5"

    def controller(self, epoch: int) -> pathlib.Path:
        """The controller at the end of an epoch (from 1) of the search."""
        return self.root / "checkpoints" / "controllers" / f"epoch_{epoch:04d}.weights.h5"

    @property
    def chosen(self) -> pathlib.Path:
        """The policies of the experts, before their weights are trained."""
        return self.root / "checkpoints" / "chosen.json"

    @property
    def trained(self) -> pathlib.Path:
        """The experts, before it is decided who runs them when."""
        return self.root / "checkpoints" / "trained.json"

    @property
    def parts(self) -> pathlib.Path:
        """Manifest and measurements of the experts and controllers."""
        return self.root / "parts"

    def is_done(self, stage: str) -> bool:
        """Whether a stage has left its result."""
        return {
            "pretrain": self.weights("pretrain"),
            "measure": self.latency_table,
            "search": self.weights("search"),
            "finetune": self.trained,
            "route": self.experts,
            "evaluate": self.results,
        }[stage].exists()


def drop_finished(workdir: WorkDir) -> None:
    """Drops checkpoints whose stage left its result, but was killed before it dropped them."""
    for folder in (workdir.root / "checkpoints").glob("*/"):
        name = folder.name
        trained = name == "finetune" and workdir.trained.exists()
        if workdir.weights(name).exists() or trained:
            shutil.rmtree(folder, ignore_errors=True)


def first_difference(ours: Any, theirs: Any, key: str = "config") -> str | None:
    """The dotted name of the first key in which two configs differ, with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(set(ours) | set(theirs)):
            missing = "(absent)"
            found = first_difference(
                ours.get(name, missing), theirs.get(name, missing), f"{key}.{name}"
            )
            if found:
                return found
        return None
    return None if ours == theirs else f"{key}: {theirs!r} there, {ours!r} asked for"


def open_workdir(root: pathlib.Path, config: ConfigDict) -> WorkDir:
    """A work directory, new or of a run with the same config; writes nothing.

    Args:
        root: the folder.
        config: what the run is asked to do.

    Raises:
        InputError: the folder holds a run with another config.
    """
    workdir = WorkDir(pathlib.Path(root))
    if workdir.root.exists() and not workdir.root.is_dir():
        raise InputError(f"--workdir={root} is a file; choose a folder")
    if (workdir.root / "tune.json").exists():
        raise InputError(f"{root} holds a search of instanas_tf.tune; choose another --workdir")
    ours = json.loads(config.to_json())
    if workdir.config.exists():
        theirs = files.read_json(workdir.config, "choose another --workdir")
        difference = first_difference(*(_without(settings, LATE) for settings in (ours, theirs)))
        if difference:
            raise InputError(
                f"{root} holds a run with another config ({difference}); choose another "
                "--workdir, or give the config that it was started with"
            )
    return workdir


def start(workdir: WorkDir, config: ConfigDict) -> None:
    """Writes the config of a new run, or other targets of a run, once its data is known to be good.

    Raises:
        ModelError: the folder cannot be written.
    """
    files.write_json(workdir.config, json.loads(config.to_json()))


def asked(config: ConfigDict) -> dict[str, Any]:
    """What a run is asked for beside its experts; `experts.json` and `results.json` repeat it."""
    return {name: json.loads(config.to_json())[name] for name in LATE}


def is_answered(path: pathlib.Path, config: ConfigDict) -> bool:
    """Whether `experts.json` or `results.json` is there, and was made for these targets.

    Raises:
        InputError: it is damaged.
    """
    if not path.exists():
        return False
    remedy = "delete it and run the same command again"
    content = files.read_json(path, remedy)
    if not isinstance(content, dict) or "asked" not in content:
        raise InputError(f"{path} is damaged (it does not say what was asked for); {remedy}")
    return content["asked"] == asked(config)


def _without(settings: Any, names: tuple[str, ...]) -> Any:
    """The settings without some of them."""
    if not isinstance(settings, dict):
        return settings
    return {name: value for name, value in settings.items() if name not in names}


@contextlib.contextmanager
def waiting(workdir: WorkDir, seconds: float = 1.0) -> Iterator[None]:
    """Holds a work directory as `locked` does, but waits for whoever holds it now.

    Args:
        workdir: the folder.
        seconds: between two looks.

    Raises:
        ModelError: the folder cannot be made or opened.
    """
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(workdir))
                break
            except InputError:
                time.sleep(seconds)
        yield


@contextlib.contextmanager
def locked(workdir: WorkDir) -> Iterator[None]:
    """Holds the work directory, so that two commands do not write into it at once.

    The lock is on the folder itself: it leaves no file, and goes with the process.

    Raises:
        InputError: another process holds it.
        ModelError: the folder cannot be made or opened.
    """
    try:
        workdir.root.mkdir(parents=True, exist_ok=True)
        folder = os.open(workdir.root, os.O_RDONLY)
    except OSError as error:
        raise ModelError(
            f"cannot use --workdir={workdir.root} ({error.strerror}); choose another folder"
        ) from error
    try:
        _take(folder, workdir.root)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                workdir.root.rmdir()  # Goes only if nothing was written into it.
    finally:
        os.close(folder)


def _take(folder: int, root: pathlib.Path) -> None:
    """Locks an open folder, or raises InputError if another process holds it."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"another command is at work in {root}; wait for it, or choose another --workdir"
        ) from error


def existing_workdir(root: str, having: str = "config.json") -> WorkDir:
    """An existing work directory; the most recent below `runs/` if `root` is empty.

    Args:
        root: the folder, or empty.
        having: the file whose time says which is the most recent.

    Raises:
        InputError: there is none, or it holds no run.
    """
    if not root:
        found = sorted(
            pathlib.Path("runs").glob(f"*/{having}"), key=lambda path: path.stat().st_mtime
        )
        if not found:
            raise InputError(
                "no run below runs/; train first (python -m instanas_tf.train) or give --workdir"
            )
        return WorkDir(found[-1].parent)
    workdir = WorkDir(pathlib.Path(root).expanduser())
    if not workdir.config.exists():
        raise InputError(
            f"--workdir={root} holds no run (no config.json); train first: "
            f"python -m instanas_tf.train --workdir={root}"
        )
    return workdir
