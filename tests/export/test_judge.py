"""What files are compared on, and what a variant may take at worst."""

import types

import pytest

from export import deploy, judge
from export.routed import Rules


def shipment(rules, controller=None):
    names = deploy.Names(controller, None, ("e0", "e1", "e2"))
    system = types.SimpleNamespace(rules=rules)
    return types.SimpleNamespace(names={"A": names}, systems={"A": system})


MS = {"e0": 1.0, "e1": 2.0, "e2": 4.0, "c": 0.5}
FOUND = {"mean_latency_ms": 1.0, "worst_latency_ms": 3.5}


@pytest.mark.parametrize(
    ("rules", "controller", "expected"),
    [
        (Rules(0, (1, 2, -1), (0.5, 0.5, 0.0)), None, 7.0),
        (Rules(0, (2, -1, -1), (0.5, 0.0, 0.0)), None, 5.0),
        (Rules(0, (1, -1, -1), (0.5, 0.0, 0.0)), None, 3.5),  # More was measured.
        (Rules(0, (1, 2, -1), (0.0, 0.5, 0.0)), None, 3.5),  # A threshold of 0 stops.
        (Rules(0, (1, 2, -1), (0.5, 0.5, 0.0), True), "c", 7.5),
        (Rules.named(3), "c", 4.5),
        (Rules(None, (2, 2, -1), (0.5, 0.5, 0.0)), "c", 6.5),
    ],
)
def test_the_worst_is_the_longest_chain(rules, controller, expected):
    found = judge.with_worst(FOUND, shipment(rules, controller), "A", MS)
    assert found == {"mean_latency_ms": 1.0, "worst_latency_ms": expected}


def test_a_variant_that_was_not_timed_has_no_worst():
    assert judge.with_worst({}, shipment(Rules.named(3), "c"), "A", {}) == {}


def test_losses_of_more_than_a_point_are_said():
    items = [
        {"name": "a", "validation_accuracy": 0.70, "float_validation_accuracy": 0.715},
        {"name": "b", "validation_accuracy": 0.70, "float_validation_accuracy": 0.705},
        {"name": "c", "validation_accuracy": 0.70},
        {"name": "d"},
    ]
    said = "a loses 1.5 points by quantisation; use --quantize="
    assert judge.losses(items, "int8") == [f"{said}fp16, or more --representative images"]
    assert judge.losses(items, "dynamic") == [f"{said}fp16"]
    assert judge.losses(items, "fp16") == [f"{said}none"]
