"""A work directory belongs to one config."""

import contextlib
import os
import threading

import pytest

from instanas_tf import files
from instanas_tf.errors import InputError, ModelError
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import config_files
from instanas_tf.pipeline import workdir as workdir_module
from instanas_tf.pipeline.workdir import (
    STAGES,
    WorkDir,
    asked,
    existing_workdir,
    is_answered,
    open_workdir,
    start,
)


def begun(root, config):
    """A run whose data was good."""
    workdir = open_workdir(root, config)
    start(workdir, config)
    return workdir


def test_a_stage_is_done_when_its_result_is_there(tmp_path):
    workdir = WorkDir(tmp_path)
    results = {
        "pretrain": "checkpoints/pretrain.weights.h5",
        "measure": "latency_table.json",
        "search": "checkpoints/search.weights.h5",
        "finetune": "checkpoints/trained.json",
        "route": "experts.json",
        "evaluate": "results.json",
    }
    assert tuple(results) == STAGES
    for stage, name in results.items():
        assert not workdir.is_done(stage)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
        assert workdir.is_done(stage)


def test_checkpoints_of_what_is_finished_are_dropped(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    workdir_module.drop_finished(WorkDir(tmp_path))
    kept = {"search", "alone_2", "controllers"}
    for name in kept | {"pretrain", "finetune", "alone_1", "mobilenet_v2_1.0"}:
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "1.npz").write_text("")
    results = {"pretrain.weights.h5", "trained.json", "alone_1.weights.h5"}
    results |= {"mobilenet_v2_1.0.weights.h5"}
    for name in results:
        (checkpoints / name).write_text("")
    workdir_module.drop_finished(WorkDir(tmp_path))
    assert {path.name for path in checkpoints.iterdir()} == kept | results


def test_first_difference():
    difference = workdir_module.first_difference
    assert difference({"a": 1}, {"a": 1}) is None
    assert difference({"a": {"b": 2}}, {"a": {"b": 1}}) == "config.a.b: 1 there, 2 asked for"
    assert difference({"a": 1}, {}) == "config.a: '(absent)' there, 1 asked for"
    assert difference({"b": 1, "a": 2}, {"b": 3, "a": 4}).startswith("config.a: ")


def test_open_twice(tmp_path):
    made = config_module.default_config()
    assert not open_workdir(tmp_path / "run", made).root.exists()
    first = begun(tmp_path / "run", made)
    content = first.config.read_bytes()
    assert begun(tmp_path / "run", made) == first
    assert first.config.read_bytes() == content
    assert config_files.flatten(config_files.from_json(first.config)) == (
        config_files.flatten(made)
    )


def test_open_with_another_config(tmp_path):
    made = config_module.default_config()
    begun(tmp_path / "run", made)
    made.search.epochs += 1
    with pytest.raises(InputError, match="config.search.epochs: .* there, .* asked for"):
        open_workdir(tmp_path / "run", made)


def late(config):
    """Other targets for the same networks."""
    config.target_ms, config.variants.targets = 1.5, (0.3,)
    config.route.kinds, config.route.epochs = ("cascade",), 3
    return config


def test_other_targets_may_be_asked_of_a_run(tmp_path):
    made = config_module.default_config()
    workdir = begun(tmp_path / "run", made)
    assert not is_answered(workdir.experts, made)
    files.write_json(workdir.experts, {"asked": asked(made)})
    assert is_answered(workdir.experts, made)
    assert open_workdir(workdir.root, late(made)) == workdir
    assert not is_answered(workdir.experts, made)
    start(workdir, made)
    assert config_files.from_json(workdir.config).route.kinds == ("cascade",)
    files.write_json(workdir.experts, {"asked": asked(made)})
    assert is_answered(workdir.experts, made)
    for damaged in ("", "[]", "{}"):
        workdir.experts.write_text(damaged)
        with pytest.raises(InputError, match="delete it and run the same command again"):
            is_answered(workdir.experts, made)


@pytest.mark.parametrize("section", ["experts", "finetune", "latency", "data"])
def test_what_the_networks_were_made_with_stays(tmp_path, section):
    made = config_module.default_config()
    begun(tmp_path, made)
    changes = {"experts": "count", "finetune": "epochs", "latency": "rounds", "data": "test_images"}
    late(made)[section][changes[section]] += 1
    with pytest.raises(InputError, match=f"config.{section}.{changes[section]}: .* there"):
        open_workdir(tmp_path, made)


def test_open_at_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_workdir(tmp_path / "run", config_module.default_config())
    with pytest.raises(ModelError, match="cannot write"):
        begun(tmp_path / "run" / "below", config_module.default_config())


def test_the_latest_run_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run below runs/; train first"):
        existing_workdir("")
    for time, name in ((30, "b"), (20, "a"), (10, "c")):
        path = begun(tmp_path / "runs" / name, config_module.default_config()).config
        os.utime(path, (time, time))
    assert existing_workdir("").root.name == "b"
    assert existing_workdir("runs/a").root.name == "a"


def test_no_run(tmp_path):
    with pytest.raises(InputError, match="holds no run .*; train first"):
        existing_workdir(str(tmp_path))


def test_two_commands_do_not_work_in_one_folder(tmp_path):
    found, locked = WorkDir(tmp_path / "run"), workdir_module.locked
    with locked(found):
        with pytest.raises(InputError, match="another command is at work in .*run; wait for it"):
            with locked(found):
                raise AssertionError("the lock was given twice")
        assert found.root.is_dir()  # The one that was refused leaves the folder alone.
    with locked(found):  # It is free again.
        assert found.root.is_dir()
    assert not found.root.exists()  # Nothing was written, so nothing stays.
    with locked(found):
        found.config.write_text("{}")
    assert found.config.exists()


def test_a_waiting_command_goes_on_once_the_folder_is_free(tmp_path):
    found, waited = WorkDir(tmp_path / "run"), []
    held = contextlib.ExitStack()
    held.enter_context(workdir_module.locked(found))

    def wait():
        with workdir_module.waiting(found, seconds=0.01):
            waited.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.05)
    assert waited == []
    held.close()
    thread.join()
    assert waited == [True]
