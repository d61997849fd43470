"""One small run of the whole ring, made once and shared; and how tests call the commands."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = {
    "space.name": "tiny",
    "data.image_size": 8,
    "data.train_images": 160,
    "data.validation_images": 60,
    "data.test_images": 60,
    "train.batch_size": 32,
}
SHORT = {
    "pretrain.epochs": 1,
    "search.epochs": 2,
    "finetune.epochs": 1,
    "experts.count": 3,
    "experts.recalibration_images": 160,
    "variants.targets": "(1.0,)",
    "latency.rounds": 1,
    "latency.min_secs": 0.001,
    "latency.min_runs": 2,
    "latency.warmup_runs": 1,
    "latency.calibration_experts": 6,
    "latency.validation_experts": 4,
    "evaluate.rounds": 1,
    "evaluate.timed_images": 10,
    "evaluate.baseline_widths": "(1.0,)",
}


def overrides(**changes):
    """`--config.…` arguments of the small run; `search__epochs=3` changes one of them."""
    settings = {**DATA, **SHORT}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--config.{name}={value}" for name, value in settings.items()]


def quietly(main, *arguments):
    """Runs a command in this process: its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv("PYTHONPATH", str(ROOT))  # For the processes that the command starts.
        code = main(["command", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def python(*arguments, cwd=ROOT, timeout=300, **environment):
    """Runs Python in a process of its own, which finds this package wherever it stands."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def said(err, command):
    """The one line that a command must leave on stderr, without its name."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith(f"{command}: "), err
    assert "Traceback" not in err
    return lines[0].removeprefix(f"{command}: ")


def listing(folder):
    """All files below a folder with their bytes, to see that nothing was changed."""
    folder = pathlib.Path(folder)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def change_json(path, change):
    """Changes a JSON file by a function that works in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


_MADE = {}


def trained_run(factory):
    """The work directory of a run of all stages; made on the first call. Do not change it."""
    if "trained" not in _MADE:
        from instanas_tf import train

        folder = factory.mktemp("ring") / "run"
        code, out, err = quietly(train.main, f"--workdir={folder}", *overrides())
        assert code == 0, err
        assert "variant A" in out
        _MADE["trained"] = folder
    return _MADE["trained"]


def exported_run(factory):
    """The export of that run; made on the first call. Do not change it."""
    if "exported" not in _MADE:
        from export import export_tflite

        workdir = trained_run(factory)
        code, out, err = quietly(export_tflite.main, f"--workdir={workdir}")
        assert code == 0, err
        assert f"Wrote variant A to {workdir / 'export'}" in out
        _MADE["exported"] = workdir / "export"
    return _MADE["exported"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The shared work directory, all stages done; to be read only."""
    return trained_run(tmp_path_factory)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The shared export; to be read only."""
    return exported_run(tmp_path_factory)


@pytest.fixture
def trained_copy(trained, tmp_path):
    """A copy of the shared work directory, to be damaged."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("tensorboard", "export"))
    return copy


@pytest.fixture
def exported_copy(exported, tmp_path):
    """A copy of the shared export, to be damaged."""
    return pathlib.Path(shutil.copytree(exported, tmp_path / "export"))
