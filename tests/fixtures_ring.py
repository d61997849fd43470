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
    "experts.candidates": 4,
    "experts.explore": 2,
    "experts.recalibration_images": 160,
    "route.epochs": 1,
    "route.image_controllers": "('half',)",
    "variants.targets": "(1.0,)",
    "latency.rounds": 1,
    "latency.min_secs": 0.001,
    "latency.min_runs": 2,
    "latency.warmup_runs": 1,
    "latency.calibration_experts": 6,
    "latency.validation_experts": 4,
    "evaluate.alone": 1,
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
        workdir = trained_run(factory)
        _MADE["exported"] = export(workdir, "A", workdir / "export")
    return _MADE["exported"]


def export(workdir, variant, out):
    """Exports a variant by its name, whatever the results say of it; the folder."""
    from export import export_tflite

    code, printed, err = quietly(
        export_tflite.main, f"--workdir={workdir}", f"--variant={variant}", f"--out={out}"
    )
    assert code == 0, err
    assert f"Wrote variant {variant} (" in printed
    return out


# Who decides, and whether the experts go on from shared features; a variant of each.
KINDS = {
    "A": ("cascade", False),
    "B": ("cascade", True),
    "C": ("search", False),
    "D": ("image", False),
    "E": ("features", True),
    "F": ("start", False),
}
# Made up, so that the same is decided on every machine.
PARTS_MS = {"reference": 2.0, "expert_00": 1.0, "expert_01": 2.0, "expert_02": 4.0}
PARTS_MS |= {"front": 0.3, "tail_0": 0.8, "tail_1": 1.7, "tail_2": 3.8}


def kinds_run(factory):
    """A copy of that run with a variant of each kind, by latencies that are made up."""
    if "kinds" not in _MADE:
        _MADE["kinds"] = _routed_by_each_kind(copy_run(trained_run(factory), factory.mktemp("x")))
    return _MADE["kinds"]


def copy_run(workdir, folder):
    """A copy of a run in a folder, to be changed."""
    ignored = shutil.ignore_patterns("tensorboard", "export")
    return pathlib.Path(shutil.copytree(workdir, pathlib.Path(folder) / "copy", ignore=ignored))


def _routed_by_each_kind(workdir):
    """Routes a run anew, with as many targets as there are kinds, and no results."""
    from instanas_tf import route, systems
    from instanas_tf.pipeline import checks, data, decide
    from instanas_tf.pipeline.workdir import WorkDir

    (workdir / "results.json").unlink()
    path = workdir / "parts" / "measurements.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["median_ms"] = PARTS_MS.get(row["model"], 0.4)  # Else that of a router.
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = checks.from_json(workdir / "config.json").copy_and_resolve_references()
    config.variants.targets = tuple(1.3 - 0.01 * index for index in range(len(KINDS)))
    wanted = iter(KINDS.values())

    def pick(found, lead):
        kind = next(wanted)
        return next(item for item in found if (item.kind, item.features) == kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decide, "pick", pick)
        patch.setattr(systems.Stopwatch, "overheads", lambda self, entries, _: [1.0] * len(entries))
        images = data.load(config.data, config.seed)
        route.route(config, images, WorkDir(workdir), lambda line: None)
    return workdir


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The shared work directory, all stages done; to be read only."""
    return trained_run(tmp_path_factory)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """An export of a controller and all experts; to be read only."""
    if "all" not in _MADE:
        kinds = kinds_run(tmp_path_factory)
        _MADE["all"] = export(kinds, "C", kinds.parent / "export")
    return _MADE["all"]


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    """The shared work directory with a variant of each kind; to be read only."""
    return kinds_run(tmp_path_factory)


@pytest.fixture
def trained_copy(trained, tmp_path):
    """A copy of the shared work directory, to be damaged."""
    return copy_run(trained, tmp_path)


@pytest.fixture
def exported_copy(exported, tmp_path):
    """A copy of the shared export, to be damaged."""
    return pathlib.Path(shutil.copytree(exported, tmp_path / "export"))
