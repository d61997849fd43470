"""The table of what each piece buys: its settings, and what runs share."""

import json

import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import config_files
from instanas_tf.pipeline.pretrain import weight_epochs
from instanas_tf.pipeline.workdir import WorkDir
from tests import fixtures_ring as ring
from tests.fixtures_ablations import HEADER, RESULTS, ROW, module, row

settings, table, ablations = map(module, ("ablation_settings", "ablation_rows", "ablations"))
NAMES = list(settings.SETTINGS)


def plan(root, dataset="digits", own=()):
    return ablations.Plan(dataset, root, own)


@pytest.mark.parametrize("dataset", list(ablations.CONFIGS))
@pytest.mark.parametrize("name", NAMES)
def test_all_settings_are_valid_and_have_the_same_budget(tmp_path, dataset, name):
    base, _ = plan(tmp_path, dataset).of("all", 3)
    config, arguments = plan(tmp_path, dataset).of(name, 3)
    assert config.seed == 3
    assert weight_epochs(config) == weight_epochs(base)
    assert arguments[0].endswith(f"configs/{ablations.CONFIGS[dataset]}")


@pytest.mark.parametrize(
    ("name", "other", "keys"),
    [
        ("published", "priced", {"search.recipe", "search.epochs"}),
        ("anchor", "priced", {"pretrain.anchors"}),
        ("sandwich", "priced", {"finetune.rule"}),
        ("history", "priced", {"experts.choice"}),
        *((kind, "priced", {"route.kinds"}) for kind in ("image", "features", "cascade", "start")),
        *((f"all_{kind}", "all", {"route.kinds"}) for kind in ("image", "features")),
        *((f"all_{kind}", "all", {"route.kinds"}) for kind in ("cascade", "start")),
        (
            "all",
            "priced",
            {"pretrain.anchors", "finetune.rule", "experts.choice", "route.kinds"},
        ),
    ],
)
def test_settings_differ_in_what_they_claim(tmp_path, name, other, keys):
    ours, theirs = (
        config_files.flatten(plan(tmp_path).of(setting, 0)[0]) for setting in (name, other)
    )
    assert {key for key in ours if ours[key] != theirs[key]} == {f"config.{key}" for key in keys}


def test_all_is_the_default(tmp_path):
    config, _ = plan(tmp_path).of("all", 0)
    default = config_files.load(str(ring.ROOT / "configs" / "digits.py"))
    assert settings.as_json(config) == settings.as_json(default)


def test_a_setting_wins_over_what_holds_for_all(tmp_path):
    own = ["--config.finetune.rule=sandwich", "--config.search.epochs=3"]
    config, _ = plan(tmp_path, own=own).of("published", 0)
    assert config.finetune.rule == "assigned"
    assert config.search.epochs == 6


def test_an_unknown_override(tmp_path):
    with pytest.raises(InputError, match="did you mean config.search.epochs"):
        plan(tmp_path, own=["--config.search.epoch=3"]).of("all", 0)


@pytest.mark.parametrize(
    ("name", "other", "stages"),
    [
        ("published", "priced", ("pretrain", "measure")),
        ("anchor", "priced", ("measure",)),
        ("all", "anchor", ("pretrain", "measure", "search")),
        ("sandwich", "priced", ("pretrain", "measure", "search")),
        ("cascade", "priced", ("pretrain", "measure", "search", "finetune")),
        ("all_start", "all", ("pretrain", "measure", "search", "finetune")),
    ],
)
def test_shared(tmp_path, name, other, stages):
    pair = [settings.as_json(plan(tmp_path).of(setting, 0)[0]) for setting in (name, other)]
    assert settings.shared(*pair) == stages


def test_another_seed_shares_no_training(tmp_path):
    pair = [settings.as_json(plan(tmp_path).of("all", seed)[0]) for seed in (0, 1)]
    assert settings.shared(*pair) == ("measure",)


@pytest.fixture
def runs(tmp_path):
    """A table whose `priced` is searched, and has trained two networks alone."""
    found = plan(tmp_path)
    root = found.workdir("priced", 0).root
    (root / "checkpoints" / "controllers").mkdir(parents=True)
    content = {
        "config.json": json.dumps(settings.as_json(found.of("priced", 0)[0])),
        "latency_table.json": "{}",
        "metrics.jsonl": "".join(
            f'{{"stage": "{stage}", "epoch": 1}}\n'
            for stage in ("pretrain", "search", "finetune", "mobilenet_v2_1.0")
        ),
        "checkpoints/pretrain.weights.h5": "p",
        "checkpoints/search.weights.h5": "s",
        "checkpoints/controllers/epoch_0001.weights.h5": "c",
        "checkpoints/mobilenet_v2_1.0.weights.h5": "m",
        "checkpoints/alone_12345678.weights.h5": "a",
    }
    for name, text in content.items():
        (root / name).write_text(text)
    return found


def prepared(runs, name):
    workdir = runs.workdir(name, 0)
    said = settings.prepare(workdir, runs.of(name, 0)[0], runs.present(0))
    found = [p for p in workdir.root.rglob("*") if p.is_file()] if workdir.root.exists() else []
    return said, sorted(path.relative_to(workdir.root).as_posix() for path in found)


def test_prepare_takes_stages_and_networks_of_a_sibling(runs):
    said, found = prepared(runs, "sandwich")
    assert said == [
        "pretrain, measure, search as in priced",
        "2 networks trained alone",
    ]
    assert found == [
        "checkpoints/alone_12345678.weights.h5",
        "checkpoints/controllers/epoch_0001.weights.h5",
        "checkpoints/mobilenet_v2_1.0.weights.h5",
        "checkpoints/pretrain.weights.h5",
        "checkpoints/search.weights.h5",
        "latency_table.json",
        "metrics.jsonl",
    ]
    metrics = (runs.workdir("sandwich", 0).root / "metrics.jsonl").read_text()
    stages = [json.loads(line)["stage"] for line in metrics.splitlines()]
    assert stages == ["pretrain", "search", "mobilenet_v2_1.0"]


def test_prepare_leaves_out_what_differs(runs):
    _, found = prepared(runs, "anchor")
    assert found == [
        "checkpoints/alone_12345678.weights.h5",
        "checkpoints/mobilenet_v2_1.0.weights.h5",
        "latency_table.json",
        "metrics.jsonl",
    ]


def test_prepare_leaves_a_run_that_has_begun(runs):
    said, found = prepared(runs, "priced")
    assert said == []
    assert len(found) == 8


def test_prepare_without_siblings(tmp_path):
    assert prepared(plan(tmp_path), "priced") == ([], [])


def test_runs_with_other_overrides_are_no_siblings(runs):
    other = plan(runs.root, own=["--config.finetune.epochs=1"])
    assert other.present(0) == {}
    with pytest.raises(InputError, match="another config"):
        ablations.run(other, "priced", 0)


def test_targets_may_be_left_out(runs):
    workdir = runs.workdir("priced", 0)
    content = json.loads(workdir.config.read_text())
    content["variants"]["targets"] = [0.7]
    workdir.config.write_text(json.dumps(content))
    assert list(runs.present(0)) == ["priced"]
    workdir.results.write_text(json.dumps(RESULTS))
    header, rows = ablations.collect(runs, [0, 1])
    assert len(rows) == 2
    assert header["missed"] == [{"setting": "priced", "seed": 0, "targets": [0.5]}]
    assert header["settings"]["cascade"][4] == "--config.route.kinds=('cascade',)"


def test_a_finished_run_is_read_and_written(runs, tmp_path, capsys):
    runs.workdir("priced", 0).results.write_text(json.dumps(RESULTS))
    out = tmp_path / "docs" / "ablations.json"
    old = row(dataset="cifar10")
    table.write_table(out, {"cifar10": HEADER}, [old])
    ablations.run_all(runs, ["priced"], [0], out)
    datasets, rows = table.read_table(out)
    assert list(datasets) == ["cifar10", "digits"]
    assert rows[:2] == [old, ROW]
    assert "is there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("codes", "expected", "targets"),
    [
        ([0], 0, [None]),
        ([2, 0], 0, [None, "(0.7,)"]),
        ([2, 2], 2, [None, "(0.7,)"]),
        ([5], 5, [None]),
    ],
)
def test_unmet_targets_are_left_out(runs, monkeypatch, codes, expected, targets):
    (runs.workdir("priced", 0).trained).write_text("{}")
    asked, left = [], iter(codes)

    def follow(name, *arguments):
        given = [a for a in arguments if a.startswith("--config.variants.targets=")]
        asked.append(given[0].split("=")[1] if given else None)
        return next(left)

    monkeypatch.setattr(ablations.children, "follow_module", follow)
    assert ablations.run(runs, "priced", 0) == expected
    assert asked == targets


@pytest.mark.parametrize(
    ("code", "expected", "message"),
    [
        (2, 2, "2 of 2 runs failed, see their lines above: priced"),
        (130, 130, "interrupted"),
        (-9, 5, "ended by signal 9"),
    ],
)
def test_failures_give_an_exit_code(tmp_path, monkeypatch, code, expected, message):
    monkeypatch.setattr(ablations.children, "follow_module", lambda *_: code)
    flags = [f"--{name}={tmp_path / name}" for name in ("workdir", "out", "page")]
    got, _, err = ring.quietly(ablations.main, "--only=priced,all", *flags)
    assert got == expected
    assert message in ring.said(err, "ablations")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--only=prized", "--only must name some of published, priced"),
        ("--seeds=0,x", "--seeds must be different whole numbers"),
        ("--seeds=1,1", "--seeds must be different whole numbers"),
        ("--dataset=mnist", "mnist"),
        ("--page_only", "does not exist; make it anew"),
        ("--config.foo=1", "config.foo is not a setting"),
    ],
)
def test_wrong_arguments(tmp_path, argument, message):
    flags = [f"--{name}={tmp_path / name}" for name in ("workdir", "out", "page")]
    code, _, err = ring.quietly(ablations.main, argument, *flags)
    assert code == 2
    assert message in ring.said(err, "ablations")


def test_the_command_line_names_no_folder_of_this_machine(tmp_path):
    own = ["--config.data.data_dir=/some/where", "--config.variants.targets=(1.0,)"]
    assert ablations.command(plan(tmp_path, "cifar10", own), [0, 1]) == (
        "python benchmarks/ablations.py --dataset=cifar10 --seeds=0,1 --data_dir=FOLDER "
        '--config.variants.targets="(1.0,)"'
    )


def test_workdirs(tmp_path):
    assert plan(tmp_path).workdir("all", 1) == WorkDir(tmp_path / "digits" / "all" / "seed_1")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.seed=1", "--config.seed=1"),
        ("--config.route.kinds=('image',)", """--config.route.kinds="('image',)\""""),
        ("--config.data.data_dir=a $b", "'--config.data.data_dir=a $b'"),
    ],
)
def test_quoted(argument, expected):
    assert settings.quoted(argument) == expected
