"""Variants, baselines and controls, on matrices that can be checked by hand."""

import numpy as np
import pytest

from instanas_tf.pipeline import evaluate

# Three experts, four images. The controller takes expert 0 twice, 1 once and 2 once.
HITS = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 0]], bool)
CHOSEN = np.array([0, 1, 2, 0])


def outcome(**changes):
    values = {
        "hits": HITS,
        "chosen": CHOSEN,
        "latency_ms": 2.5,
        "controller_ms": 0.5,
        "expert_ms": np.array([1.0, 2.0, 3.0]),
    }
    return evaluate.VariantOutcome(**{**values, **changes})


def test_one_hiccup_counts_little():
    calm = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    disturbed = calm.copy()
    disturbed[1, 0] = 1000.0
    assert evaluate.mean_latency_ms(calm) == 1.5
    assert evaluate.mean_latency_ms(disturbed) == 1.5


def test_standard_error():
    assert evaluate.standard_error(0.5, 100) == pytest.approx(0.05)
    assert evaluate.standard_error(1.0, 100) == 0.0


def test_accuracy_and_shares():
    assert outcome().accuracy == 1.0
    assert outcome(chosen=np.array([1, 0, 1, 2])).accuracy == 0.0
    assert outcome().shares.tolist() == [0.5, 0.25, 0.25]
    assert outcome(chosen=np.array([1, 1, 1, 1])).shares.tolist() == [0.0, 1.0, 0.0]


def test_majority_policy():
    expected = {"expert": "expert_00", "accuracy": 0.5, "latency_ms": 1.0}
    assert outcome().majority_policy() == expected


def test_best_static_expert():
    expected = {"expert": "expert_00", "accuracy": 0.5, "latency_ms": 1.0}
    assert outcome().best_static_expert() == expected
    slow = outcome(latency_ms=3.0).best_static_expert()
    assert slow == {"expert": "expert_02", "accuracy": 0.75, "latency_ms": 3.0}


def test_best_static_expert_if_all_are_slower():
    assert outcome(latency_ms=0.5).best_static_expert()["expert"] == "expert_00"


def test_shuffled_policies():
    found = outcome().shuffled_policies(0)
    # The mean over all permutations is the sum of share times accuracy: 0.5, 0.5 and 0.75.
    expected = 0.5 * 0.5 + 0.25 * 0.5 + 0.25 * 0.75
    # One permutation deviates by at most 0.5, so that the mean of 100 has a standard error
    # below 0.05; this is three of those.
    assert found["accuracy"] == pytest.approx(expected, abs=0.15)
    assert found["mean_latency_ms"] == 2.5
    assert found["permutations"] == 100
    assert found == outcome().shuffled_policies(0)
    assert found != outcome().shuffled_policies(1)


def test_shuffling_one_expert_changes_nothing():
    found = outcome(chosen=np.array([2, 2, 2, 2])).shuffled_policies(0)
    assert found["accuracy"] == 0.75
    assert found["accuracy_spread"] == 0.0


@pytest.mark.parametrize(
    ("limit_ms", "expected"),
    [(2.5, 2), (2.0, 2), (1.97, 2), (1.96, 0), (1.0, 0), (0.5, 0), (9.0, 1)],
)
def test_closest_below(limit_ms, expected):
    assert evaluate.closest_below(np.array([1.0, 3.0, 2.0]), limit_ms) == expected


def test_closest_below_takes_the_cheapest_if_none_fits():
    assert evaluate.closest_below(np.array([3.0, 1.5, 2.0]), 1.0) == 1
