"""The best cascade within a budget, against trying everything."""

import itertools
import json
import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instanas_tf.search import cascade_choice
from instanas_tf.search.cascade_choice import GAP, choose, cuts
from instanas_tf.search.cascades import STOP, Cascade, costs_ms, run, softmax

# Two experts, four images of class 1: the cheap one errs on images 0 and 1, of margins 0.2 and
# 0.4, and is right with 0.1 and 0.6; the dear one mends image 0 and 1, and spoils image 2.
SECOND = np.array([[0.4, 0.3, 0.55, 0.8], [0.9, 0.9, 0.1, 0.9]])
PROBABILITIES = np.stack([1 - SECOND, SECOND], axis=-1)
LABELS = np.ones(4, int)
COSTS_MS = np.array([1.0, 2.0])


def outcome(choice, probabilities, labels, expert_ms, front_ms=0.0):
    first = np.full(len(labels), choice.first)
    answers = run(choice.cascade, probabilities, first)
    return np.mean(answers.classes == labels), costs_ms(answers.ran, expert_ms, front_ms).mean()


@pytest.mark.parametrize(
    ("budget_ms", "first", "accuracy", "mean_ms"),
    [
        (1.0, 0, 0.5, 1.0),
        (1.4, 0, 0.5, 1.0),
        # Image 2 alone goes on and is spoilt, so nobody does.
        (1.5, 0, 0.5, 1.0),
        # Image 0 too: one is mended and one is spoilt, so the dear expert alone is better.
        (2.0, 1, 0.75, 2.0),
        (2.5, 1, 0.75, 2.0),
        (9.0, 1, 0.75, 2.0),
    ],
)
def test_two_experts_by_hand(budget_ms, first, accuracy, mean_ms):
    choice = choose(PROBABILITIES, LABELS, COSTS_MS, budget_ms)
    assert (choice.first, choice.accuracy, choice.mean_ms) == (first, accuracy, mean_ms)
    assert choice.cascade == Cascade.alone(2)


def test_more_going_on_is_not_always_better():
    # The dear expert mends image 0 and spoils image 1; images 2 and 3 need no help.
    second = np.array([[0.45, 0.6, 0.8, 0.9], [0.9, 0.1, 0.9, 0.9]])
    probabilities = np.stack([1 - second, second], axis=-1)
    choice = choose(probabilities, LABELS, COSTS_MS, 9.0)
    assert (choice.first, choice.accuracy, choice.mean_ms) == (0, 1.0, 1.5)
    assert choice.cascade.following == (1, STOP)
    # Midway between the margins 0.1 and 0.2.
    assert choice.cascade.thresholds == (pytest.approx(0.15), 0.0)
    assert outcome(choice, probabilities, LABELS, COSTS_MS) == (1.0, 1.5)


def test_the_front_is_paid_for():
    choice = choose(PROBABILITIES, LABELS, COSTS_MS, 2.4, front_ms=0.5)
    assert (choice.first, choice.mean_ms) == (0, 1.5)
    assert choose(PROBABILITIES, LABELS, COSTS_MS, 1.4, front_ms=0.5) is None
    assert choose(PROBABILITIES, LABELS, COSTS_MS, 0.99) is None


def test_of_equals_the_shorter_and_cheaper_is_taken():
    same = np.stack([PROBABILITIES[0]] * 3)
    choice = choose(same, LABELS, [3.0, 1.0, 2.0], 9.0)
    assert (choice.first, choice.cascade, choice.mean_ms) == (1, Cascade.alone(3), 1.0)


def test_what_is_too_little_better_is_not_paid_for():
    # The dear expert alone is better by 0.25.
    assert choose(PROBABILITIES, LABELS, COSTS_MS, 9.0, tolerance=0.24).first == 1
    assert choose(PROBABILITIES, LABELS, COSTS_MS, 9.0, tolerance=0.25).first == 0
    mended = PROBABILITIES.copy()
    mended[1, 2] = [0.4, 0.6]
    # All four are right after three of them went on, but so are they by the dear one alone.
    assert choose(mended, LABELS, COSTS_MS, 9.0).mean_ms == 2.0


def test_cuts_part_off_even_shares():
    assert cuts(np.linspace(0, 0.9, 10), 8, 4).tolist() == [2, 4, 6, 8]
    assert cuts(np.linspace(0, 0.9, 10), 10, 100).tolist() == list(range(1, 11))
    assert cuts(np.linspace(0, 0.9, 10), 0, 4).tolist() == []
    assert cuts(np.array([]), 0, 4).tolist() == []


def test_cuts_do_not_part_what_rounding_could_swap():
    near = np.array([0.1, 0.1, 0.1 + GAP / 2, 0.5, 1.0, 1.0])
    assert cuts(near, 6, 6).tolist() == [3, 4]
    assert cuts(near, 2, 6).tolist() == []
    assert cuts(np.ones(3), 3, 3).tolist() == []


def everything(probabilities, labels, expert_ms, budget_ms, longest):
    """Hits of the best of all chains with all thresholds that differ, run one by one."""
    experts, best = len(expert_ms), -math.inf
    for length in range(1, longest + 1):
        for chain in itertools.combinations(range(experts), length):
            tried = []
            for upto in range(1, length):
                mean = np.sort(probabilities[list(chain[:upto])].mean(axis=0), axis=-1)
                edges = np.sort([0.0, *(mean[:, -1] - mean[:, -2]), 1.0])
                tried.append((edges[1:] + edges[:-1]) / 2)
            for thresholds in itertools.product(*tried):
                cascade = Cascade.of_chain(experts, chain, thresholds)
                answers = run(cascade, probabilities, np.full(len(labels), chain[0]))
                if costs_ms(answers.ran, expert_ms).mean() <= budget_ms:
                    best = max(best, np.mean(answers.classes == labels))
    return best


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.9, 1.0, 1.3, 1.7, 2.2, 3.1, 9.9]))
@settings(max_examples=25, deadline=None)
def test_nothing_better_is_to_be_found(seed, budget_ms):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 7)
    probabilities = softmax(rng.normal(size=(3, 7, 3)) + 0.7 * np.eye(3)[labels])
    expert_ms = np.array([1.0, 1.6, 2.7])
    best = everything(probabilities, labels, expert_ms, budget_ms, 3)
    with mock.patch.object(cascade_choice, "GAP", 0.0):
        choice = choose(probabilities, labels, expert_ms, budget_ms, tolerance=0.0)
    if choice is None:
        assert best == -math.inf
        return
    assert choice.accuracy == pytest.approx(best)
    assert outcome(choice, probabilities, labels, expert_ms) == pytest.approx(
        (choice.accuracy, choice.mean_ms)
    )
    assert choice.mean_ms <= budget_ms


@pytest.mark.parametrize("longest", [1, 2, 3, 4])
def test_a_choice_survives_float32_and_a_file(longest):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 300)
    towards = np.array([1.5, 2.0, 2.5, 3.0])[:, None, None] * np.eye(4)[labels]
    probabilities = softmax(rng.normal(size=(4, 300, 4)) + towards)
    expert_ms = np.array([1.0, 1.5, 2.0, 4.0])
    choice = choose(
        probabilities, labels, expert_ms, 2.5, front_ms=0.25, longest=longest, candidates=12
    )
    assert sum(other != STOP for other in choice.cascade.following) < longest
    read = Cascade.from_json(json.loads(json.dumps(choice.cascade.to_json())))
    first = np.full(300, choice.first)
    exact, rounded = (run(read, p, first) for p in (probabilities, np.float32(probabilities)))
    np.testing.assert_array_equal(exact.ran, rounded.ran)
    assert choice.accuracy == np.mean(exact.classes == labels)
    assert choice.mean_ms == pytest.approx(costs_ms(exact.ran, expert_ms, 0.25).mean())
    assert choice.mean_ms <= 2.5


def test_three_experts_by_hand():
    # Expert 1 mends image 1 and leaves image 2 in doubt, which only expert 2 mends.
    second = np.array([[0.95, 0.45, 0.4, 0.9], [0.2, 0.9, 0.45, 0.2], [0.9, 0.9, 0.95, 0.9]])
    probabilities = np.stack([1 - second, second], axis=-1)

    def chosen(longest):
        return choose(probabilities, LABELS, [1.0, 1.0, 4.0], 2.5, longest=longest)

    assert (chosen(1).cascade, chosen(1).accuracy, chosen(1).mean_ms) == (Cascade.alone(3), 0.5, 1)
    # Between the margins 0.1 and 0.2: image 1 alone goes on.
    assert chosen(2).cascade.following == (1, STOP, STOP)
    assert chosen(2).cascade.thresholds == pytest.approx((0.15, 0.0, 0.0))
    assert (chosen(2).accuracy, chosen(2).mean_ms) == (0.75, 1.25)
    # Between 0.2 and 0.8: images 1 and 2; then between 0.15 and 0.35: image 2.
    assert chosen(3).cascade.following == (1, 2, STOP)
    assert chosen(3).cascade.thresholds == pytest.approx((0.5, 0.25, 0.0))
    assert (chosen(3).accuracy, chosen(3).mean_ms) == (1.0, 2.5)


def test_settings_that_make_no_sense():
    for bad in ({"longest": 0}, {"candidates": 0}, {"tolerance": -0.1}, {"tolerance": math.nan}):
        with pytest.raises(ValueError, match="`longest` and `candidates` must be"):
            choose(PROBABILITIES, LABELS, COSTS_MS, 1.0, **bad)
    with pytest.raises(ValueError, match="`budget_ms` must be finite"):
        choose(PROBABILITIES, LABELS, COSTS_MS, math.nan)
    with pytest.raises(ValueError, match="must be of 2 experts"):
        choose(PROBABILITIES, LABELS, [1.0], 1.0)
    with pytest.raises(ValueError, match="`labels` must be one for each image"):
        choose(PROBABILITIES[:, :0], LABELS[:0], COSTS_MS, 1.0)
