"""Stage 5 on a finished run: other targets, what it refuses, and what it decides."""

import json

import pytest

from instanas_tf import route, train
from instanas_tf.pipeline.callbacks import read_metrics
from tests import fixtures_ring as ring


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return ring.trained_run(tmp_path_factory)


trained_copy = ring.trained_copy


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    return ring.kinds_run(tmp_path_factory)


def run(workdir, *arguments, **changes):
    """Trains in this process: exit code, what it printed, and the line that it left."""
    code, out, err = ring.quietly(
        train.main, f"--workdir={workdir}", *arguments, *ring.overrides(**changes)
    )
    lines = [line for line in err.splitlines() if line.startswith("train: ")]
    assert "Traceback" not in out + err
    return code, out, ring.said("\n".join(lines), "train") if code else ""


def weights_of_experts(workdir):
    """The files of a run that another route must leave as they are."""
    names = ("expert_*", "search", "pretrain", "alone_*", "twin_*", "mobilenet_*")
    found = [
        path for name in names for path in (workdir / "checkpoints").glob(f"{name}.weights.h5")
    ]
    assert len(found) == 8
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def entries(workdir):
    return json.loads((workdir / "experts.json").read_text())["variants"]


CASCADES = {"route__kinds": "('cascade',)", "variants__targets": "(50.0, 1.5)"}


def test_other_targets_train_no_expert_anew(trained_copy):
    before = weights_of_experts(trained_copy)
    rows = read_metrics(trained_copy / "metrics.jsonl")
    code, out, line = run(trained_copy, "--stage=route", **CASCADES)
    assert code == 0, line
    assert "measuring 8 experts and controllers" in out
    assert weights_of_experts(trained_copy) == before
    assert len(list((trained_copy / "checkpoints").glob("router_*"))) == 2  # They are kept.
    assert not (trained_copy / "results.json").exists()
    assert not (trained_copy / "results.png").exists()
    assert [(entry["name"], entry["target"]) for entry in entries(trained_copy)] == [
        ("A", 50.0),
        ("B", 1.5),
    ]
    assert read_metrics(trained_copy / "metrics.jsonl") == rows
    # Less to decide: what was measured and trained is kept.
    measured = (trained_copy / "parts" / "measurements.jsonl").read_bytes()
    code, out, line = run(trained_copy, "--stage=route", **CASCADES | {"target_ms": 1.0})
    assert code == 0, line
    assert "measuring" not in out
    assert (trained_copy / "parts" / "measurements.jsonl").read_bytes() == measured
    (entry,) = entries(trained_copy)
    assert entry["budget_ms"] == pytest.approx(1.0)


@pytest.mark.slow
def test_other_targets_are_evaluated_anew(trained_copy):
    before = weights_of_experts(trained_copy)
    code, out, line = run(trained_copy, variants__targets="(50.0, 1.5)")
    assert code == 0, line
    assert "== route (1 of 2)" in out and "== evaluate (2 of 2)" in out
    assert "variant A" in out and "variant B" in out
    assert weights_of_experts(trained_copy) == before
    results = json.loads((trained_copy / "results.json").read_text())
    assert [item["target"] for item in results["variants"]] == [50.0, 1.5]
    code, out, line = run(trained_copy, variants__targets="(50.0, 1.5)")
    assert "Nothing is left to do" in out


@pytest.mark.parametrize(
    "changes", [{"variants__targets": "(1.5, 0.001)"}, {"target_ms": 1e-6}], ids=str
)
def test_targets_that_cannot_be_met(trained_copy, changes):
    before = (trained_copy / "experts.json").read_bytes()
    code, _, line = run(trained_copy, "--stage=route", **CASCADES | changes)
    assert code == 2, line
    assert (trained_copy / "experts.json").read_bytes() == before
    assert "ms (0.00 of the reference network) cannot be met: these experts" in line
    assert "set config.variants.targets or config.target_ms within that" in line
    code, _, line = run(trained_copy, "--stage=route", **CASCADES)
    assert code == 0, line


def test_too_few_validation_images(trained_copy):
    # 0.1 · (1.96 / 0.05)^2 = 153.7: the normal approximation where 10 % differ.
    before = ring.listing(trained_copy)
    code, _, line = run(trained_copy, "--stage=route", route__interval=0.05)
    assert code == 2, line
    assert "config.route.interval=0.05 needs 154 validation images. Received: 60" in line
    assert ring.listing(trained_copy) == before


@pytest.mark.parametrize("kind", ["image", "features", "start"])
def test_learned_controllers_need_images_of_their_own(tmp_path, kind):
    changes = {"data__controller_fraction": 0.0, "route__kinds": f"('cascade', '{kind}')"}
    code, _, line = run(tmp_path / "run", **changes)  # Before hours are spent on training.
    assert code == 2, line
    assert f"config.route.kinds: {kind} is trained on images that the experts do not see" in line
    assert "raise config.data.controller_fraction above 0" in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_every_kind_has_rules_of_its_own(kinds):
    found = entries(kinds)
    assert {e["name"]: (e["kind"], e["routing"]["features"]) for e in found} == ring.KINDS
    by_name = {entry["name"]: entry for entry in found}
    for name in "AB":
        assert (by_name[name]["controller"], by_name[name]["biases"]) == ("", [])
        assert by_name[name]["routing"]["first"] == 0
    for name in "CDEF":
        assert by_name[name]["experts"] == [0, 1, 2]
        assert by_name[name]["routing"]["first"] is None
        assert by_name[name]["biases"] == sorted(by_name[name]["biases"])
    assert set(by_name["F"]["routing"]["following"]) == {2, -1}
    for name in "CDE":
        assert by_name[name]["routing"]["following"] == [-1, -1, -1]


def test_biases_are_the_price_of_what_an_expert_costs(kinds):
    (entry,) = [entry for entry in entries(kinds) if entry["name"] == "E"]
    tails = [ring.PARTS_MS[f"tail_{index}"] / ring.PARTS_MS["reference"] for index in range(3)]
    assert entry["biases"] == pytest.approx([entry["price"] * cost for cost in tails])


def test_select():
    entries = [
        {"name": "A", "validation_accuracy": 0.900, "validation_latency_ms": 3.0},
        {"name": "B", "validation_accuracy": 0.896, "validation_latency_ms": 2.0},
        {"name": "C", "validation_accuracy": 0.850, "validation_latency_ms": 1.0},
    ]
    assert route.select(entries) == "B"
    assert route.select(entries, tolerance=0.05) == "C"
    assert route.select(entries, tolerance=0.0) == "A"
