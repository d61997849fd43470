"""What a price decides, the price that meets a budget, and the reward in expectation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instanas_tf.search.prices import decide, expected_reward, find_price

SCORES = np.array([[0.5, 0.75, 1.0], [1.0, 0.5, 0.0], [0.25, 0.75, 0.75]])
COSTS = np.array([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (0.0, [2, 0, 1]),  # A tie of image 2: the cheaper.
        (0.125, [1, 0, 1]),  # A tie of image 0: 0.375, 0.5, 0.5.
        (0.25, [0, 0, 1]),  # Another: 0.25, 0.25, 0.
        (0.5, [0, 0, 0]),
        (1e30, [0, 0, 0]),
    ],
)
def test_decisions_by_hand(price, expected):
    assert decide(SCORES, COSTS, price).tolist() == expected


def test_costs_may_differ_by_image():
    costs = np.array([[4.0, 2.0, 1.0], [1.0, 2.0, 4.0], [2.0, 1.0, 1.0]])
    assert decide(np.zeros((3, 3)), costs, 0.0).tolist() == [2, 0, 1]
    assert decide(SCORES, costs, 0.5).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("budget", "price"),
    [
        (9.0, 0.0),
        (7 / 3, 0.0),
        (5 / 3, 0.125),
        (4 / 3, 0.25),
        (1.0, 0.5),
    ],
)
def test_prices_by_hand(budget, price):
    found = find_price(SCORES, COSTS, budget)
    assert found == pytest.approx(price, abs=1e-12)
    assert COSTS[decide(SCORES, COSTS, found)].mean() <= budget


def test_no_price_makes_the_cheapest_cheaper():
    assert find_price(SCORES, COSTS, 0.99) is None


def test_prices_above_one_are_found_too():
    # Image 0 turns at 250, image 1 earlier.
    assert find_price(1000 * SCORES, COSTS, 4 / 3) == pytest.approx(250.0)
    # What differs by less than any price can tell is not afforded.
    assert find_price(np.array([[0.0, 1.0]]), np.array([0.0, 1e-40]), 1e-41) is None


def test_the_budget_is_met_whatever_the_iterations():
    for iterations in (0, 1, 5):
        found = find_price(SCORES, COSTS, 4 / 3, iterations)
        assert 0.25 <= found <= 0.25 + 2.0**-iterations
        assert COSTS[decide(SCORES, COSTS, found)].mean() <= 4 / 3


@st.composite
def tasks(draw):
    """Whole numbers, so that the arithmetic is exact."""
    images, experts = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    shape = (images, experts) if draw(st.booleans()) else (experts,)
    draws = st.integers(0, 16)

    def table(count):
        return np.array(draw(st.lists(draws, min_size=count, max_size=count)), float)

    return table(images * experts).reshape(images, experts), table(math.prod(shape)).reshape(shape)


def mean_cost(scores, costs, price):
    decided = decide(scores, costs, price)
    rows = np.broadcast_to(costs, scores.shape)
    return rows[np.arange(len(scores)), decided].mean()


@given(tasks())
@settings(deadline=None)
def test_a_higher_price_never_costs_more(task):
    means = [mean_cost(*task, price) for price in np.arange(0, 20, 0.5)]
    assert means == sorted(means, reverse=True)


@given(tasks(), st.integers(0, 64))
@settings(deadline=None)
def test_the_price_is_the_smallest_that_meets_the_budget(task, quarters):
    scores, costs = task
    budget = quarters / 4
    found = find_price(scores, costs, budget)
    cheapest = np.broadcast_to(costs, scores.shape).min(axis=1).mean()
    assert (found is None) == (cheapest > budget)
    if found is not None:
        assert mean_cost(scores, costs, found) <= budget
        # Scores and costs are whole numbers up to 16, so two prices at which a decision turns
        # are at least 1 / 16 ** 2 apart.
        assert found == 0 or mean_cost(scores, costs, max(0.0, found - 2.0**-9)) > budget


def test_the_reward_by_hand():
    scores = np.array([[0.0, math.log(3.0) + 0.5], [0.0, 0.5]])
    hits = np.array([[0.0, 1.0], [1.0, 1.0]])
    # Priced scores differ by log 3 and by 0; rewards are -0.5 and 0, then 0.5 and 0.
    reward = expected_reward(scores, hits, np.array([1.0, 2.0]), 0.5, 1.0)
    assert reward == pytest.approx(((0.25 * -0.5 + 0.75 * 0.0) + (0.5 * 0.5 + 0.5 * 0.0)) / 2)
    # A temperature of 1/2 makes the odds 3 ** 2.
    cold = expected_reward(scores, hits, np.array([1.0, 2.0]), 0.5, 0.5)
    assert cold == pytest.approx((0.1 * -0.5 + 0.25) / 2)


def test_a_cold_reward_is_that_of_the_decisions():
    hits = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    decided = decide(SCORES, COSTS, 0.1)
    rows = np.arange(3)
    expected = np.mean(hits[rows, decided] - 0.1 * COSTS[decided])
    assert expected_reward(SCORES, hits, COSTS, 0.1, 1e-3) == pytest.approx(expected)
    own = np.tile(COSTS, (3, 1))
    assert expected_reward(SCORES, hits, own, 0.1, 1e-3) == pytest.approx(expected)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="`scores` must have shape"):
        decide(SCORES[0], COSTS, 0.0)
    with pytest.raises(ValueError, match="`costs` must have shape"):
        decide(SCORES, COSTS[:2], 0.0)
    with pytest.raises(ValueError, match="must be finite"):
        decide(SCORES * np.nan, COSTS, 0.0)
    for price in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="`price` must be"):
            decide(SCORES, COSTS, price)
    with pytest.raises(ValueError, match="a finite `budget`"):
        find_price(SCORES, COSTS, math.nan)
    with pytest.raises(ValueError, match="must be an image"):
        find_price(SCORES[:0], COSTS, 1.0)
    with pytest.raises(ValueError, match="`hits` must have the shape"):
        expected_reward(SCORES, SCORES[:2], COSTS, 0.0, 1.0)
    with pytest.raises(ValueError, match="`temperature` must be above 0"):
        expected_reward(SCORES, SCORES, COSTS, 0.0, 0.0)
