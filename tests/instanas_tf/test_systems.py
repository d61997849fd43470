"""Variants are timed as a whole, and their targets are met so."""

import json
import types

import numpy as np
import pytest

from instanas_tf import route, train
from instanas_tf.pipeline import decide
from instanas_tf.search import cascades
from tests import fixtures_ring as ring

trained, trained_copy = ring.trained, ring.trained_copy
REFERENCE_MS = 2.0


def measured():
    return decide.Measured(
        experts=np.array([1.0, 2.0, 4.0]),
        tails=np.array([0.8, 1.7, 3.8]),
        fronts={"": 0.3, "image_half": 0.4, "features": 0.5},
        reference=REFERENCE_MS,
    )


def candidate(mean_ms, kind="cascade", controller="", features=False, ran=((1, 0, 0),)):
    """One whose accuracy grows with its cost."""
    rules = cascades.Cascade.alone(3)
    ran = np.array(ran, bool)
    first = None if controller else 0
    common = (kind, controller, features, first, rules, 0.0, ran)
    return decide.Candidate(*common, mean_ms / 10, mean_ms)


class Clock:
    """A stopwatch for which all that runs takes some times the sum of its parts."""

    def __init__(self, *overheads):
        self.measured = measured()
        self.seen = []
        self.left = list(overheads)

    def overheads(self, entries, chosen):
        assert [entry["name"] for entry in entries] == sorted(entry["name"] for entry in entries)
        self.seen.append([one.mean_ms for one in chosen])
        overhead = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return [overhead] * len(entries)


def meet(clock, *targets, within=lambda budget: [candidate(budget)]):
    said = []
    config = types.SimpleNamespace(route=types.SimpleNamespace(lead=0.0, kinds=("cascade",)))
    budgets = [(target, target * REFERENCE_MS) for target in targets]
    return route.meet(budgets, within, clock, config, said.append), said


def test_what_meets_its_target_is_timed_once():
    clock = Clock(1.01)
    entries, said = meet(clock, 1.5, 1.0)
    assert clock.seen == [[3.0, 2.0]] and not said
    assert [(e["name"], e["target"], e["budget_ms"]) for e in entries] == [
        ("A", 1.5, 3.0),
        ("B", 1.0, 2.0),
    ]
    assert entries[1]["validation_latency_ms"] == pytest.approx(2.02)
    assert entries[1]["overhead"] == pytest.approx(1.01)


def test_what_takes_longer_end_to_end_is_chosen_anew():
    clock = Clock(1.25, 1.3, 1.3)
    (entry,), said = meet(clock, 1.0)
    assert clock.seen == [[2.0], [pytest.approx(1.6)], [pytest.approx(2.0 / 1.3)]]
    assert entry["validation_latency_ms"] == pytest.approx(2.0)
    assert entry["budget_ms"] == 2.0  # What was asked for, not what was made of it.
    assert entry["validation_accuracy"] == pytest.approx(0.2 / 1.3)
    assert not said


def test_only_targets_that_are_missed_are_tried_again():
    def within(budget):
        return [candidate(min(budget, 1.0))]

    clock = Clock(1.5, 1.5)
    entries, _ = meet(clock, 1.0, 0.5, within=within)
    # A's variant is far below its target, and there is none that is nearer.
    assert clock.seen == [[1.0, 1.0], [pytest.approx(1.0 / 1.5)]]
    assert [e["validation_latency_ms"] for e in entries] == pytest.approx([1.5, 1.0])


def test_what_takes_less_end_to_end_is_chosen_anew():
    clock = Clock(0.8, 0.8)
    (entry,), said = meet(clock, 1.0)
    assert clock.seen == [[2.0], [pytest.approx(2.5)]]
    assert entry["validation_latency_ms"] == pytest.approx(2.0)
    assert entry["validation_accuracy"] == pytest.approx(0.25)
    assert not said


def test_a_target_just_above_the_cheapest_expert_is_missed_aloud():
    def within(budget):
        return [candidate(1.0)] if budget >= 1.0 else []

    entries, said = meet(Clock(1.2), 0.55, within=within)
    assert entries[0]["validation_latency_ms"] == pytest.approx(1.2)
    assert said == ["A takes 0.60 of the reference network end to end, the least found"]
    with pytest.raises(route.OutOfReachError, match="cannot be met"):
        meet(Clock(1.0), 0.4, within=within)


def test_the_better_of_what_was_tried_is_kept():
    # The overhead rises as the budget falls, so that no attempt meets the target.
    entries, said = meet(Clock(1.1, 1.3, 1.6, 2.0), 1.0)
    ms = [1.1 * 2.0, 1.3 * 2.0 / 1.1, 1.6 * 2.0 / 1.3, 2.0 * 2.0 / 1.6]
    assert entries[0]["validation_latency_ms"] == pytest.approx(min(ms))
    assert len(said) == 1


def test_costs_of_every_kind():
    ran = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
    whole = decide.costs_ms(candidate(1.0, ran=ran), measured())
    assert whole == pytest.approx([1.0, 3.0, 7.0])
    shared = decide.costs_ms(candidate(1.0, features=True, ran=ran), measured())
    assert shared == pytest.approx([1.1, 2.8, 6.6])
    image = decide.costs_ms(candidate(1.0, "image", "image_half", ran=ran), measured())
    assert image == pytest.approx([1.4, 3.4, 7.4])
    head = decide.costs_ms(candidate(1.0, "features", "features", True, ran=ran), measured())
    assert head == pytest.approx([1.3, 3.0, 6.8])


def test_a_run_keeps_what_it_timed(trained, monkeypatch, trained_copy):
    known = json.loads((trained / "parts" / "systems.json").read_text())
    entries = json.loads((trained / "experts.json").read_text())["variants"]
    assert len(known) >= len(entries)
    assert all(0.0 < ratio < 100.0 for ratio in known.values())
    assert all(entry["overhead"] > 0 for entry in entries)

    def timings(*_, **__):
        raise AssertionError("it was timed before")

    monkeypatch.setattr("export.worker.timings", timings)
    (trained_copy / "experts.json").unlink()
    arguments = [f"--workdir={trained_copy}", "--stage=route", *ring.overrides()]
    code, _, err = ring.quietly(train.main, *arguments)
    assert code == 0, err
    again = json.loads((trained_copy / "experts.json").read_text())["variants"]
    assert again == entries


@pytest.mark.parametrize("text", ["[]", '{"a": 0.0}', '{"a": "b"}', "{", '{"a": null}'])
def test_damaged_times(trained_copy, text):
    path = trained_copy / "parts" / "systems.json"
    path.write_text(text)
    (trained_copy / "experts.json").unlink()
    arguments = [f"--workdir={trained_copy}", "--stage=route", *ring.overrides()]
    code, _, err = ring.quietly(train.main, *arguments)
    line = ring.said("\n".join(x for x in err.splitlines() if x.startswith("train: ")), "train")
    assert code == 2 and str(path) in line
    assert "is damaged" in line and "delete it and run --stage=route again" in line
    assert not (trained_copy / "experts.json").exists()
