"""The plan of a search, its folder, the role of a process, and the table of trials."""

import json

import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import knobs, tuning
from instanas_tf.pipeline.tuning import Plan, Role, Row
from tests import fixtures_ring as ring

CHIEF = {
    "KERASTUNER_TUNER_ID": "chief",
    "KERASTUNER_ORACLE_IP": "127.0.0.1",
    "KERASTUNER_ORACLE_PORT": "8000",
}


def make_plan(objective="score", tuner="random", names="experts,width", trials=None):
    config = config_module.default_config()
    return Plan(config, objective, tuner, knobs.select(names, "priced"), trials)


def test_the_target_is_the_least_latency_asked_for():
    plan = make_plan()
    plan.config.variants.targets = (0.9, 0.3, 0.5)
    assert plan.target == 0.3


def test_the_number_of_trials():
    assert make_plan().max_trials == 20
    assert make_plan(tuner="hyperband").max_trials is None
    assert make_plan(tuner="hyperband", trials=6).max_trials == 6


def test_a_plan_is_checked_with_its_knobs_at_both_ends():
    plan = make_plan(names="width")
    plan.check()
    plan.config.evaluate.baseline_widths = (7.0,)  # Times a width of 1.25.
    with pytest.raises(InputError, match="config.space.width.*at most 8"):
        plan.check()


def test_a_folder_belongs_to_one_plan(tmp_path):
    root = tmp_path / "tune"
    folder = tuning.open_folder(root, make_plan())
    assert not root.exists()
    tuning.start(folder, make_plan())
    before = ring.listing(root)
    assert tuning.open_folder(root, make_plan(trials=30)) == folder
    other = make_plan()
    other.config.search.epochs = 4
    for plan, difference in (
        (make_plan(objective="latency"), "objective: 'score' there, 'latency' asked for"),
        (make_plan(tuner="bayesian"), "tuner: 'random' there, 'bayesian' asked for"),
        (make_plan(names="width"), "knobs.experts: .* there, '.absent.' asked for"),
        (other, "config.search.epochs: 12 there, 4 asked for"),
    ):
        with pytest.raises(InputError, match=f"holds another search .{difference}"):
            tuning.open_folder(root, plan)
    assert ring.listing(root) == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "instanas_tf/tune"}'])
def test_a_damaged_plan(tmp_path, content):
    (tmp_path / "tune.json").write_text(content)
    with pytest.raises(InputError, match="tune.json is damaged"):
        tuning.open_folder(tmp_path, make_plan())


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        tuning.open_folder(tmp_path / "file", make_plan())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds a run of training"):
        tuning.open_folder(tmp_path, make_plan())


def test_roles():
    assert tuning.role({}) == Role("tuner0", "")
    chief = tuning.role(CHIEF)
    assert (chief.is_chief, chief.is_worker, chief.address) == (True, False, "127.0.0.1:8000")
    worker = tuning.role({**CHIEF, "KERASTUNER_TUNER_ID": "tuner1"})
    assert (worker.is_chief, worker.is_worker) == (False, True)
    alone = tuning.role({})
    assert (alone.is_chief, alone.is_worker) == (False, False)


@pytest.mark.parametrize("missing", CHIEF)
def test_all_three_variables_are_needed(missing):
    given = {name: value for name, value in CHIEF.items() if name != missing}
    with pytest.raises(InputError, match=f"set {missing} too, beside .*; a search of several"):
        tuning.role(given)
    with pytest.raises(InputError, match=f"set {missing} too"):
        tuning.role({**given, missing: ""})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KERASTUNER_ORACLE_PORT", "many"),
        ("KERASTUNER_ORACLE_PORT", "0"),
        ("KERASTUNER_ORACLE_PORT", "65536"),
        ("KERASTUNER_TUNER_ID", "../chief"),
        ("KERASTUNER_TUNER_ID", "oracle"),
    ],
)
def test_variables_that_cannot_be_used(name, value):
    with pytest.raises(InputError, match=f"{name} must be"):
        tuning.role({**CHIEF, name: value})


ROWS = [
    Row("0", "done", {"experts": 2, "width": 0.5}, 1 / 3, 0.7, 0.8, 0.05, 0.9),
    Row("1", "interrupted", {"experts": 4, "width": 1.0}),
    Row("2", "done", {"experts": 8, "width": 0.5}, 1.0, 0.9, 0.95, 0.02, 0.4),
    Row("3", "failed", {"experts": 4, "width": 1.25}, reason="loss is nan"),
]


def test_the_best_comes_first():
    assert [row.trial for row in tuning.ordered(ROWS, "max")] == ["2", "0", "1", "3"]
    assert [row.trial for row in tuning.ordered(ROWS, "min")] == ["0", "2", "1", "3"]


def test_the_table_as_text():
    header, lines = tuning.text_rows(ROWS, make_plan(tuner="hyperband"))
    assert header == [
        *("trial", "score", "accuracy", "ms", "ratio", "epochs", "experts", "width", "status")
    ]
    assert lines[0] == ["2", "0.9000", "0.9500", "0.020", "0.40", "100%", "8", "0.5", "done"]
    assert lines[1] == ["0", "0.7000", "0.8000", "0.050", "0.90", "33%", "2", "0.5", "done"]
    assert lines[3] == ["3", "-", "-", "-", "-", "100%", "4", "1.25", "failed"]
    assert "epochs" not in tuning.text_rows(ROWS, make_plan(tuner="random"))[0]


def test_the_table_as_a_file(tmp_path):
    folder = tuning.open_folder(tmp_path / "tune", make_plan())
    tuning.write_table(folder, make_plan(), ROWS)
    content = json.loads(folder.table.read_text())
    assert (content["objective"], content["target"], content["tuner"]) == ("score", 0.5, "random")
    assert [trial["trial"] for trial in content["trials"]] == ["2", "0", "1", "3"]
    assert content["trials"][3]["reason"] == "loss is nan"
    assert content["trials"][0]["knobs"] == {"experts": 8, "width": 0.5}
