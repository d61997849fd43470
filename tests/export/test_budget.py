"""Which variant of an export runs."""

import math

import numpy as np
import pytest

from export import budget
from instanas_tf.errors import InputError


def variant(name, accuracy, mean, p95, worst):
    return {
        "name": name,
        "validation_accuracy": accuracy,
        "mean_latency_ms": mean,
        "p95_latency_ms": p95,
        "worst_latency_ms": worst,
    }


VARIANTS = [
    variant("A", 0.90, 2.0, 3.0, 5.0),
    variant("B", 0.80, 1.0, 2.5, 2.5),
    variant("C", 0.90, 1.5, 4.0, 4.0),
]


@pytest.mark.parametrize(
    ("by", "budget_ms", "expected"),
    [
        ("mean", 1.0, "B"),
        ("mean", 1.49, "B"),
        ("mean", 1.5, "C"),
        ("mean", 100, "C"),  # As accurate as A, and quicker.
        ("p95", 3.0, "A"),
        ("p95", 2.9, "B"),
        ("p95", 4.0, "A"),
        ("worst", np.float32(4.0), "C"),
    ],
)
def test_the_most_accurate_within_a_budget(by, budget_ms, expected):
    assert budget.choose(VARIANTS, budget_ms, by)["name"] == expected
    assert budget.choose(VARIANTS[::-1], budget_ms, by)["name"] == expected


def test_by_name_and_without_a_wish():
    assert budget.choose(VARIANTS, name="A", selected="B") is VARIANTS[0]
    assert budget.choose(VARIANTS, selected="B") is VARIANTS[1]


@pytest.mark.parametrize(
    ("by", "budget_ms", "words"),
    [
        ("mean", 0.5, "at most 0.5 ms (mean); the cheapest is B with 1.0 ms"),
        ("worst", 2.4, "at most 2.4 ms (worst); the cheapest is B with 2.5 ms"),
    ],
)
def test_a_budget_that_no_variant_meets(by, budget_ms, words):
    with pytest.raises(InputError) as caught:
        budget.choose(VARIANTS, budget_ms, by)
    assert words in str(caught.value)


def test_the_budget_that_the_error_asks_for_is_enough():
    only = [variant("A", 0.5, 1 / 3, 1.0, 1.0)]
    with pytest.raises(InputError, match="the cheapest is A with 0.3334 ms"):
        budget.choose(only, 0.3)
    assert budget.choose(only, 0.3334) is only[0]


@pytest.mark.parametrize(
    "budget_ms", [0, -1.0, math.nan, math.inf, -math.inf, True, "1", [1.0], np.ones(2)]
)
def test_what_is_no_budget(budget_ms):
    with pytest.raises(InputError, match="`budget_ms` must be a number above 0. Received: "):
        budget.choose(VARIANTS, budget_ms)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "D"}, r"must hold the variant asked for, 'D'. Received: A, B, C"),
        ({"selected": "D"}, "asked for, 'D'"),
        ({}, "asked for, ''"),
        ({"name": "A", "budget_ms": 9.0}, "a variant or a budget, not both. Received: 'A' and 9.0"),
        ({"by": "median"}, "`by` must be one of mean, p95, worst. Received: 'median'"),
    ],
)
def test_what_cannot_be_chosen(arguments, words):
    with pytest.raises(InputError, match=words):
        budget.choose(VARIANTS, **arguments)


def test_an_export_without_variants():
    with pytest.raises(InputError, match="'A'. Received: none"):
        budget.choose([], selected="A")
    with pytest.raises(InputError, match="no variant of the export has a measured mean_latency_ms"):
        budget.choose([], 1.0)


def test_a_variant_that_was_not_measured_never_fits():
    unmeasured = {"name": "X", "validation_accuracy": 1.0, "p95_latency_ms": None}
    assert budget.choose([unmeasured, *VARIANTS], 9.0)["name"] == "C"
    with pytest.raises(InputError, match="has a measured p95_latency_ms; export again"):
        budget.choose([unmeasured], 9.0, "p95")


@pytest.mark.parametrize("impossible", [-1.0, 1e308, 10**400, math.nan, True])
def test_a_latency_that_cannot_be_never_fits(impossible):
    damaged = variant("X", 1.0, impossible, 1.0, 1.0)
    assert budget.choose([damaged, *VARIANTS], 9.0)["name"] == "C"
    with pytest.raises(InputError, match="no variant of the export has a measured mean_latency_ms"):
        budget.choose([damaged], 1e-9)


def test_a_variant_without_its_accuracy():
    with pytest.raises(InputError, match="variant A lacks its validation_accuracy; export again"):
        budget.choose([variant("A", None, 1.0, 1.0, 1.0)], 9.0)
