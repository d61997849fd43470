"""The command that trains: every mistake gets one line and its exit code."""

import json
import shutil

import numpy as np
import pytest

from instanas_tf import train
from instanas_tf.pipeline import config as config_module
from tests import fixtures_ring as ring


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return ring.trained_run(tmp_path_factory)


@pytest.fixture
def copy(trained, tmp_path):
    """A finished run, to be damaged."""
    ignored = shutil.ignore_patterns("tensorboard", "export")
    return shutil.copytree(trained, tmp_path / "copy", ignore=ignored)


@pytest.fixture
def refused(capfd, tmp_path, monkeypatch):
    """Runs a command line that must fail with 2, and gives the line that it leaves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))

    def run(*arguments, code=2):
        found = train.main(["train", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert found == code, err
        lines = [line for line in err.splitlines() if line.startswith("train: ")]
        assert "Traceback" not in out + err
        return ring.said("\n".join(lines), "train")

    return run


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file; its body stands in `get_config` after `config` is made."""

    def write(body="", returned="config", whole=None):
        path = tmp_path / "mine.py"
        text = whole or (
            "from instanas_tf.pipeline.config import default_config\n"
            "def get_config():\n"
            "    config = default_config()\n"
            f"    {body or 'pass'}\n"
            f"    return {returned}\n"
        )
        path.write_text(text)
        return f"--config={path}"

    return write


COMMAND_LINES = [
    (["extra"], "unexpected argument 'extra'"),
    (["--stgae=all"], "Unknown command line flag 'stgae'"),
    (["--stage=tune"], "all|pretrain|measure|search|finetune|route|evaluate"),
    (["--stage"], "stage"),
    (["--config.data.nmae=x"], "did you mean config.data.name?"),
    (["--config.serach.epochs=3"], "did you mean config.search.epochs?"),
    (["--config.nothing.like.it=3"], "config.nothing.like.it is not a setting"),
    (["--config.data=3"], "config.data is not a setting"),
    (["--config.search.epochs"], "needs a value: --config.search.epochs=VALUE"),
    (["--config.search.epochs", "3"], "'3'"),
    (["--config.search.epochs=many"], "many"),
    (["--config.search.epochs=2.5"], "2.5"),
    (["--config.search.epochs="], "config.search.epochs"),
    (["--config.data.flip=1"], "config.data.flip is not a setting; did you mean config.data."),
    (["--config.data.download=maybe"], "maybe"),
    (["--config.pretrain.learning_rate=fast"], "fast"),
    (["--config.pretrain.keep=x"], "config.pretrain.keep"),
    (["--config.pretrain.keep=(1,"], "config.pretrain.keep"),
    (["--config.variants.targets=('a',)"], "config.variants.targets"),
    (["--config=missing.py"], "--config=missing.py does not exist"),
    (["--config.space.name=tinny"], "config.space.name must be one of"),
    (["--config.space.name=tiny"], "config.data.image_size must be 8"),
    (["--config.data.image_size=32"], "config.data.image_size must be 16"),
    (["--config.latency.device=adb"], "config.latency.device must be one of host"),
]


@pytest.mark.parametrize(("arguments", "words"), COMMAND_LINES, ids=lambda v: str(v)[:40])
def test_command_line(refused, tmp_path, arguments, words):
    assert words in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


CONFIG_FILES = [
    ({"body": "config.data.nmae = 'x'"}, "name"),
    ({"body": "config.search.epochs = 'many'"}, "epochs"),
    ({"body": "with config.ignore_type(): config.search.epochs = 'many'"}, "type int"),
    ({"body": "with config.ignore_type(): config.data.flip = 1"}, "flip"),
    ({"body": "config.search.epochs = 0"}, "config.search.epochs must be at least 1"),
    ({"body": "config.unlock(); del config.data.name"}, "config.data.name is missing"),
    ({"body": "config.unlock(); del config.data"}, "config.data"),
    ({"body": "config.unlock(); config.more = 1"}, "config.more is not a setting"),
    ({"returned": "None"}, "get_config() must return a ConfigDict"),
    ({"returned": "config.to_dict()"}, "get_config() must return a ConfigDict"),
    ({"whole": "x = 1\n"}, "get_config"),
    ({"whole": "def get_config(:\n"}, "mend the file"),
    ({"whole": "import no_such_module\n"}, "no_such_module"),
    ({"whole": "def get_config(now):\n    return now\n"}, "mend the file"),
    ({"whole": "get_config = 3\n"}, "mend the file"),
    ({"whole": "x = 1 / 0\n"}, "mend the file"),
]


@pytest.mark.parametrize(("content", "words"), CONFIG_FILES, ids=lambda v: str(v)[:60])
def test_config_file(refused, config_file, tmp_path, content, words):
    line = refused(config_file(**content), f"--workdir={tmp_path / 'run'}")
    assert words in line
    assert not (tmp_path / "run").exists()


def test_config_file_with_another_ending(refused, tmp_path):
    (tmp_path / "config.txt").write_text("x = 1")
    assert "must end in .py" in refused("--config=config.txt")


def test_override_of_a_frozen_config(refused, config_file, tmp_path):
    frozen = config_file("from ml_collections import FrozenConfigDict", "FrozenConfigDict(config)")
    workdir = tmp_path / "run"
    assert refused(frozen, "--config.search.epochs=0", f"--workdir={workdir}")
    assert not workdir.exists()


def test_override():
    config = train.override(
        config_module.default_config(),
        [
            "--config.search.epochs=3",
            "--config.pretrain.learning_rate=1",
            "--config.data.augmentation.flip=true",
            "--config.variants.targets=(0.5, 0.25)",
            "-config.pretrain.keep=((0.0, 1.0), (1.0, 0.5))",
        ],
    )
    assert config.search.epochs == 3
    assert config.pretrain.learning_rate == 1.0
    assert config.data.augmentation.flip is True
    assert config.variants.targets == (0.5, 0.25)
    assert config.pretrain.keep == ((0.0, 1.0), (1.0, 0.5))


def test_stage_out_of_order(refused, tmp_path):
    line = refused("--stage=search", f"--workdir={tmp_path / 'run'}")
    assert "--stage=search needs the result of pretrain" in line
    assert "run --stage=pretrain first" in line


def test_workdir_is_a_file(refused, tmp_path):
    (tmp_path / "run").write_text("mine")
    assert "run is a file; choose a folder" in refused(f"--workdir={tmp_path / 'run'}")
    refused(f"--workdir={tmp_path / 'run' / 'below'}", code=5)
    assert (tmp_path / "run").read_text() == "mine"


def test_workdir_of_another_config(refused, copy):
    before = ring.listing(copy)
    line = refused(f"--workdir={copy}", *ring.overrides(finetune__learning_rate=0.5))
    assert "config.finetune.learning_rate: 0.05 there, 0.5 asked for" in line
    assert ring.listing(copy) == before


BAD_DATA = [
    ({"data__name": "no_such_dataset"}, "no_such_dataset"),
    ({"data__name": "folder", "data__data_dir": "/no/such/folder"}, "/no/such/folder"),
    ({"data__train_images": 100_000}, "config.data.train_images"),
    ({"train__batch_size": 1000}, "config.train.batch_size"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_DATA, ids=lambda v: str(v)[:40])
def test_data_that_cannot_be_used(refused, tmp_path, changes, words):
    line = refused(f"--workdir={tmp_path / 'run'}", *ring.overrides(**changes))
    assert words in line
    # Else the mended command is refused, for the folder holds a run with another config.
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"space__width": 9.0},
        {"evaluate__baseline_widths": "(1.0, 9.0)"},
        {"seed": 2**32},
        {"search__priced__alpha": "((0.0, 5.0),)"},
        {"pretrain__keep": "((0.0, -1.0),)"},
        {"pretrain__weight_decay": -1.0},
    ],
    ids=str,
)
def test_numbers_that_would_fail_later(refused, tmp_path, changes):
    arguments = ring.overrides(**changes, data__train_images=100_000)
    line = refused(f"--workdir={tmp_path / 'run'}", *arguments)
    name, value = next(iter(changes.items()))
    assert f"config.{name.replace('__', '.')}" in line, (value, line)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"seed": 0}', b"\xff"])
def test_damaged_config(refused, copy, content):
    (copy / "config.json").write_bytes(content)
    line = refused(f"--workdir={copy}", *ring.overrides())
    assert "config" in line
    assert "--workdir" in line
    assert (copy / "config.json").read_bytes() == content


def undone(workdir, *names):
    """Takes the results of stages away, so that they are run again."""
    for name in names:
        (workdir / name).unlink()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"format": 3}'])
def test_damaged_latency_table(refused, copy, content):
    undone(copy, "results.json")
    (copy / "latency_table.json").write_text(content)
    line = refused(f"--workdir={copy}", *ring.overrides())
    assert "latency_table.json" in line
    assert "measure again" in line
    assert not (copy / "results.json").exists()


def test_latency_table_changed_by_hand(refused, copy):
    undone(copy, "results.json")
    ring.change_json(copy / "latency_table.json", lambda table: table.update(stem_ms=0.5))
    assert "checksum" in refused(f"--workdir={copy}", *ring.overrides())


CHOICE = ("checkpoints/chosen.json", "checkpoints/trained.json")


@pytest.mark.parametrize("content", [b"{", b"3\n", b'{"stage": "search"}\n', b"\xff\xfe\n"])
def test_damaged_metrics(refused, copy, content):
    undone(copy, "results.json", "experts.json", *CHOICE)
    (copy / "metrics.jsonl").write_bytes(content)
    line = refused(f"--workdir={copy}", *ring.overrides())
    assert "metrics.jsonl, line 1 is damaged" in line


@pytest.mark.parametrize("key", ["val_accuracy", "val_latency_ratio"])
@pytest.mark.parametrize("value", ["high", None])
def test_damaged_metrics_of_the_search(refused, copy, key, value):
    undone(copy, "results.json", "experts.json", *CHOICE)
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["stage"] == "search":
            row.pop(key) if value is None else row.update({key: value})
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "metrics.jsonl" in refused(f"--workdir={copy}", *ring.overrides())


NO_RESULTS = {
    "baselines": [{"name": "b", "accuracy": 1, "latency_ms": 1}],
    "variants": [],
    "controls": {},
}
RESULTS = [
    "",
    "{",
    "[]",
    "{}",
    '{"baselines": [{"latency_ms": 0.0}], "variants": [{}]}',
    json.dumps({**NO_RESULTS, "baselines": [{"name": "b", "accuracy": 1, "latency_ms": 0}]}),
    json.dumps({**NO_RESULTS, "controls": 3}),
]


@pytest.mark.parametrize("content", RESULTS)
def test_damaged_results(refused, copy, content):
    if "baselines" in content:  # It was made for these targets, and is damaged further down.
        asked = json.loads((copy / "experts.json").read_text())["asked"]
        content = json.dumps(json.loads(content) | {"asked": asked})
    (copy / "results.json").write_text(content)
    line = refused(f"--workdir={copy}", *ring.overrides())
    assert "results.json is damaged" in line
    wanted = "--stage=evaluate" if "asked" in content else "the same command"
    assert f"delete it and run {wanted} again" in line


CONTENTS = [None, b"", b"no HDF5", "cut"]


def damage(path, content):
    """Removes a file, cuts it, or gives it another content."""
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)


@pytest.mark.parametrize("content", CONTENTS)
def test_damaged_weights_of_an_expert(refused, copy, content):
    undone(copy, "results.json")
    path = copy / "checkpoints" / "expert_00.weights.h5"
    damage(path, content)
    line = refused(f"--workdir={copy}", *ring.overrides())
    assert path.name in line
    assert "--workdir" in line
    assert not (copy / "results.json").exists()


@pytest.mark.parametrize("name", ["router_image_half", "router_features"])
@pytest.mark.parametrize("content", CONTENTS[1:])
def test_damaged_weights_of_a_router(refused, copy, name, content):
    undone(copy, "results.json", "experts.json")
    path = copy / "checkpoints" / f"{name}.weights.h5"
    damage(path, content)
    line = refused(f"--workdir={copy}", *ring.overrides())
    assert path.name in line
    assert not (copy / "experts.json").exists()


def test_weights_of_another_model(refused, copy):
    undone(copy, "results.json", "experts.json")
    checkpoints = copy / "checkpoints"
    router = checkpoints / "router_features.weights.h5"
    shutil.copy(checkpoints / "expert_00.weights.h5", router)
    line = refused(f"--workdir={copy}", *ring.overrides())
    assert f"{router.name} is damaged or of another model" in line


@pytest.mark.parametrize("name", ["chosen", "trained"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}"])
def test_damaged_list_of_experts(refused, copy, name, content):
    undone(copy, "results.json", "experts.json")
    path = copy / "checkpoints" / f"{name}.json"
    path.write_bytes(content)
    if name == "chosen":
        undone(copy, "checkpoints/trained.json")
    line = refused(f"--workdir={copy}", *ring.overrides())
    assert f"{name}.json" in line
    assert "delete" in line or "again" in line
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["{", "3\n", '{"model": "front"}\n'])
def test_damaged_measurements_of_the_parts(refused, copy, content):
    undone(copy, "results.json", "experts.json")
    (copy / "parts" / "measurements.jsonl").write_text(content)
    line = refused(f"--workdir={copy}", *ring.overrides())
    assert "measurements.jsonl" in line
    assert "delete it and run --stage=route again" in line


def test_no_checkpoint_can_be_read(refused, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "00001_00000000.npz").write_bytes(b"")
    np.savez(folder / "00002_00000000.npz", done=[2, 0], state_00000=np.ones(3))
    before = ring.listing(folder)
    line = refused(f"--workdir={tmp_path / 'run'}", *ring.overrides())
    assert f"no checkpoint in {folder} can be read; delete that folder" in line
    assert ring.listing(folder) == before


def test_nothing_is_left_to_do(trained, capsys):
    before = ring.listing(trained)
    assert train.main(["train", f"--workdir={trained}", *ring.overrides()]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"Nothing is left to do in {trained}.")
    assert "variant A" in out
    assert ring.listing(trained) == before


def test_result_rows():
    results = {
        "variants": [{"name": "A", "kind": "start", "accuracy": 0.9, "mean_latency_ms": 1.0}],
        "baselines": [
            {"name": "big", "accuracy": 0.95, "latency_ms": 2.0},
            {"name": "small", "accuracy": 0.8, "latency_ms": 0.5},
        ],
        "controls": {
            "shuffled_policies": {"A": {"accuracy": 0.7, "mean_latency_ms": 1.0}},
            "majority_policy": {"A": {"accuracy": 0.75, "latency_ms": 0.8}},
            "seed_twin": {"twin_oracle": 0.8},
        },
    }
    assert train.result_rows(results) == [
        ["variant A (start)", "0.9000", "1.000", "0.50"],
        ["big", "0.9500", "2.000", "1.00"],
        ["small", "0.8000", "0.500", "0.25"],
        ["shuffled policies (A)", "0.7000", "1.000", "0.50"],
        ["majority policy (A)", "0.7500", "0.800", "0.40"],
    ]
