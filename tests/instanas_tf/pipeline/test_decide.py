"""Who decides which experts run: two experts and four images, all of class 0.

The cheap expert takes 1 ms and is right on the first two images, of which it is surer; the dear
one takes 4 ms and is right on all; the reference network takes 10 ms.
"""

import dataclasses

import numpy as np
import pytest

from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import decide
from instanas_tf.search.cascades import STOP, Cascade

LABELS = np.zeros(4, int)
CHEAP = [[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.4, 0.6]]
PROBABILITIES = np.array([CHEAP, [[0.9, 0.1]] * 4])
SCORES = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.3, 1.0]])
FRONTS = {"": 0.5, "image_small": 0.2, "search_0002": 0.2, "features": 0.6}
MEASURED = decide.Measured(np.array([1.0, 4.0]), np.array([0.5, 3.5]), FRONTS, 10.0)
WHOLE = dataclasses.replace(MEASURED, tails=None)


def cascades(budget, measured=WHOLE, longest=2, powers=(0.0,)):
    return decide.cascade(PROBABILITIES, LABELS, measured, budget, longest, powers)


def routed(budget, kind="image", name="image_small", scores=SCORES, cascade=None):
    return decide.routed(kind, name, scores, PROBABILITIES, LABELS, MEASURED, budget, cascade)


def test_weights_are_a_power_of_latency():
    assert decide.weights_of(MEASURED, 0.0) == (1.0, 1.0)
    assert decide.weights_of(MEASURED, 0.5) == (0.5, 1.0)
    assert decide.weights_of(MEASURED, 1.0) == (0.25, 1.0)


@pytest.mark.parametrize(
    ("budget", "goes_on", "accuracy", "mean_ms"),
    [(3.0, [2, 3], 1.0, 3.0), (2.0, [2], 0.75, 2.0), (1.5, [], 0.5, 1.0)],
)
def test_the_best_cascade_within_a_budget(budget, goes_on, accuracy, mean_ms):
    (found,) = cascades(budget)
    assert (found.kind, found.controller, found.features) == ("cascade", "", False)
    assert (found.first, found.price) == (0, 0.0)
    assert (found.accuracy, found.mean_ms) == (accuracy, pytest.approx(mean_ms))
    assert found.ran[:, 0].all() and np.flatnonzero(found.ran[:, 1]).tolist() == goes_on


def test_no_cascade_below_the_cheapest_expert():
    assert cascades(0.9) == []


def test_a_cascade_of_one_expert():
    (found,) = cascades(9.0, longest=1)
    assert (found.first, found.accuracy, found.mean_ms) == (1, 1.0, 4.0)
    assert decide.reachable(found) == [1]


def test_a_shared_front_is_paid_once():
    whole, shared = cascades(3.0, MEASURED)
    assert (whole.features, whole.mean_ms) == (False, 3.0)
    assert shared.features
    assert shared.mean_ms == pytest.approx(0.5 + 0.5 + 3.5 / 2)
    assert shared.accuracy == 1.0


def test_all_powers_are_tried():
    found = cascades(3.0, MEASURED, powers=(0.0, 1.0))
    assert [(one.features, one.cascade.weights) for one in found] == [
        (False, (1.0, 1.0)),
        (False, (0.25, 1.0)),
        (True, (1.0, 1.0)),
        (True, (0.25, 1.0)),
    ]


@pytest.mark.parametrize(
    ("budget", "dear", "price", "accuracy", "mean_ms"),
    [
        (2.7, [2, 3], 0.0, 1.0, 2.7),  # Of equal scores the cheaper one wins.
        (2.0, [2], 0.7 / 0.3, 0.75, 1.95),
        (1.2, [], 1.0 / 0.3, 0.5, 1.2),
    ],
)
def test_a_router_meets_the_budget_at_the_lowest_price(budget, dear, price, accuracy, mean_ms):
    found = routed(budget)
    assert (found.kind, found.controller, found.first) == ("image", "image_small", None)
    assert not found.features
    assert found.price == pytest.approx(price)
    assert np.flatnonzero(found.ran[:, 1]).tolist() == dear
    assert (found.ran.sum(axis=1) == 1).all()
    assert found.accuracy == accuracy
    assert found.mean_ms == pytest.approx(mean_ms)
    assert decide.reachable(found) == [0, 1]


def test_a_router_that_is_too_slow():
    assert routed(1.1) is None


def test_a_router_on_features_pays_for_the_front_and_the_tails():
    found = routed(9.0, "features", "features")
    assert found.features
    assert found.mean_ms == pytest.approx(0.6 + (0.5 + 0.5 + 3.5 + 3.5) / 4)


def test_a_router_in_front_of_a_cascade():
    rising = Cascade((1, STOP), (0.5, 0.0))
    indifferent = np.zeros((4, 2))  # All start at the cheap expert.
    found = routed(3.2, "start", scores=indifferent, cascade=rising)
    assert found.ran.tolist() == [[True, False], [True, False], [True, True], [True, True]]
    assert (found.accuracy, found.mean_ms) == (1.0, pytest.approx(3.2))
    assert routed(3.1, "start", scores=indifferent, cascade=rising) is None
    # Knowing where the dear one is needed spares its images the cheap one.
    found = routed(3.1, "start", cascade=rising)
    assert found.accuracy == 1.0
    assert found.mean_ms == pytest.approx(0.2 + (1 + 1 + 4 + 4) / 4)


def test_start_anywhere_ends_with_the_dearest():
    common = ("image_small", SCORES, PROBABILITIES, LABELS)
    found = decide.start_anywhere(*common, MEASURED, 3.1, (0.0, 0.5))
    assert found.kind == "start" and found.first is None
    assert found.cascade.following == (1, STOP)
    assert 0 < found.cascade.thresholds[0] < 1
    assert found.cascade.weights == (0.5, 1.0)
    assert found.accuracy == 1.0 and found.mean_ms <= 3.1
    assert decide.start_anywhere(*common, MEASURED, 0.5, (0.0,)) is None


def test_one_expert_has_no_cascade_to_start_in():
    one = decide.Measured(np.array([1.0]), None, FRONTS, 10.0)
    arguments = ("image_small", SCORES[:, :1], PROBABILITIES[:1], LABELS, one, 9.0, (0.0,))
    assert decide.start_anywhere(*arguments) is None


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("cascade",), ["cascade", "cascade"]),
        (("search", "features"), ["search", "features"]),
        (("image",), ["image"]),
        (("start",), ["start"]),
        (
            ("start", "features", "image", "search", "cascade"),
            ["cascade", "cascade", "search", "image", "start", "features"],
        ),
    ],
)
def test_all_kinds_that_are_asked_for(kinds, expected):
    settings = config_module.default_config().route
    settings.kinds, settings.weight_powers = kinds, (0.0,)
    scores = dict.fromkeys(("search_0002", "image_small", "features"), SCORES)
    found = decide.candidates(3.5, scores, PROBABILITIES, LABELS, MEASURED, settings)
    assert [one.kind for one in found] == expected
    assert all(one.mean_ms <= 3.5 for one in found)
    assert not decide.candidates(0.9, scores, PROBABILITIES, LABELS, MEASURED, settings)


def candidate(kind, accuracy, **changes):
    plain = decide.Candidate(
        kind, "", False, None, Cascade.alone(2), 0.0, np.zeros((1, 2), bool), accuracy, 1.0
    )
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    ("found", "lead", "expected"),
    [
        ([("cascade", 0.9), ("image", 0.903)], 0.005, 0),
        ([("cascade", 0.9), ("image", 0.906)], 0.005, 1),
        ([("cascade", 0.9), ("image", 0.9)], 0.0, 0),
        ([("cascade", 0.8), ("image", 0.9), ("cascade", 0.898)], 0.005, 2),
        ([("start", 0.9), ("features", 0.9), ("image", 0.9), ("search", 0.9)], 0.005, 3),
        ([("start", 0.91), ("search", 0.9)], 0.05, 0),
        ([("cascade", 0.9), ("start", 0.95), ("image", 0.95)], 0.005, 2),
    ],
)
def test_the_cascade_wins_what_is_close(found, lead, expected):
    candidates = [candidate(*pair) for pair in found]
    assert decide.pick(candidates, lead) is candidates[expected]


def test_reachable():
    rules = Cascade((2, STOP, STOP), (0.5, 0.0, 0.0))
    assert decide.reachable(candidate("cascade", 0.9, first=0, cascade=rules)) == [0, 2]
    assert decide.reachable(candidate("cascade", 0.9, first=1, cascade=rules)) == [1]
    assert decide.reachable(candidate("start", 0.9, cascade=rules)) == [0, 1, 2]


def test_summary():
    assert candidate("cascade", 0.9, features=True).summary() == {
        "kind": "cascade",
        "controller": "",
        "features": True,
        "validation_accuracy": 0.9,
        "validation_latency_ms": 1.0,
    }
