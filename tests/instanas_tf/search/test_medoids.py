"""What a replacement loses, and the choice of the K policies that lose the least."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instanas_tf.search.medoids import (
    Candidates,
    choose_medoids,
    default_price,
    replacement_loss,
    spread,
    total_loss,
)


def candidates(accuracy, latency_ms, weights=None, policies=None):
    """Policy number i has the bits of i, unless `policies` gives other numbers."""
    numbers = np.arange(len(accuracy)) if policies is None else np.array(policies)
    bits = (numbers[:, None] >> np.arange(10)) & 1
    weights = np.ones(len(accuracy)) if weights is None else weights
    return Candidates(
        bits.reshape(-1, 2, 5).astype(np.float32),
        np.array(weights),
        np.array(accuracy),
        np.array(latency_ms),
    )


# Accuracy and latency both span 0.4 and 4: a ms is worth 0.1.
LADDER = candidates([0.5, 0.6, 0.7, 0.8, 0.9], [1.0, 2.0, 3.0, 4.0, 5.0])


def random_candidates(seed, n=9):
    """Dearer is better but for noise, so that nearly every replacement loses something."""
    generator = np.random.default_rng(seed)
    latency_ms = generator.uniform(1.0, 9.0, n)
    accuracy = 0.5 + 0.04 * latency_ms + generator.normal(0.0, 0.02, n)
    return candidates(accuracy, latency_ms, generator.integers(0, 20, n))


def greedy_build(found, count):
    chosen = []
    while len(chosen) < count:
        rest = [i for i in range(len(found.weights)) if i not in chosen]
        chosen.append(min(rest, key=lambda i: total_loss(found, [*chosen, i])))
    return chosen


def best_of_all(found, count):
    subsets = itertools.combinations(range(len(found.weights)), count)
    return min(total_loss(found, subset) for subset in subsets)


def test_a_replacement_loses_accuracy_and_time():
    found = candidates([0.5, 0.9, 0.6], [1.0, 3.0, 4.0])
    expected = [
        [0.0, 0.2, 0.3],  # Dearer by 2 and 3 ms at 0.1; better, which counts for nothing.
        [0.4, 0.0, 0.3 + 0.1],  # Less accurate; and the last one dearer besides.
        [0.1, 0.0, 0.0],  # The second one is both better and faster.
    ]
    np.testing.assert_allclose(replacement_loss(found, 0.1), expected, atol=1e-12)
    lacking = [[0.0, 0.0, 0.0], [0.4, 0.0, 0.3], [0.1, 0.0, 0.0]]
    np.testing.assert_allclose(replacement_loss(found, 0.0), lacking, atol=1e-12)


def test_the_default_price_sets_the_spans_equal():
    assert default_price(LADDER) == pytest.approx(0.1)
    assert default_price(candidates([0.5, 0.9], [2.0, 2.0])) == 0.0
    assert default_price(candidates([0.5, 0.5], [1.0, 2.0])) == 0.0


@pytest.mark.parametrize("price", [-0.1, np.nan, np.inf])
def test_a_price_is_finite_and_not_negative(price):
    with pytest.raises(ValueError, match="`price_per_ms` must be finite and at least 0. Received"):
        choose_medoids(LADDER, 2, price_per_ms=price)


def test_total_loss_is_the_weighted_mean_of_the_best_replacement():
    # With the third alone: 2 and 1 ms too long, 0.1 and 0.2 too inaccurate, 0.1 a ms.
    assert total_loss(LADDER, [2]) == pytest.approx((0.2 + 0.1 + 0.0 + 0.1 + 0.2) / 5)
    assert total_loss(LADDER, [0, 1, 2, 3, 4]) == 0.0
    wanted = dataclasses.replace(LADDER, weights=np.array([3, 0, 0, 0, 1]))
    assert total_loss(wanted, [2]) == pytest.approx((3 * 0.2 + 0.2) / 4)
    assert total_loss(wanted, [2], price_per_ms=1.0) == pytest.approx((3 * 2.0 + 0.2) / 4)
    unwanted = dataclasses.replace(LADDER, weights=np.zeros(5))
    assert total_loss(unwanted, [2]) == total_loss(LADDER, [2])


@pytest.mark.parametrize("chosen", [[], [5], [-1], [1.0], [[1]]])
def test_total_loss_wants_indices(chosen):
    with pytest.raises(ValueError, match="`chosen` must"):
        total_loss(LADDER, chosen)


def test_the_middle_of_a_ladder_stands_for_all():
    assert choose_medoids(LADDER, 1).tolist() == [2]
    assert choose_medoids(LADDER, 5).tolist() == [0, 1, 2, 3, 4]


def test_one_of_each_group_is_chosen():
    # Three groups far apart, each around its middle; handed in shuffled.
    found = candidates(
        [0.90, 0.30, 0.61, 0.89, 0.31, 0.60, 0.91, 0.29, 0.59],
        [9.0, 1.1, 5.1, 8.9, 1.2, 5.0, 9.1, 1.0, 4.9],
    )
    assert choose_medoids(found, 3).tolist() == [1, 5, 0]


def test_swaps_mend_what_the_greedy_build_did():
    # Alone the middle is best; of two, the middles of both halves are, without it.
    found = candidates(
        [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        [1, 2, 1, 1, 1, 2, 1],
    )
    assert choose_medoids(found, 1).tolist() == [3]
    assert 3 in greedy_build(found, 2)
    assert choose_medoids(found, 2).tolist() == [1, 5]
    assert total_loss(found, [1, 5]) == pytest.approx((4 * 0.1 + 0.2) / 9)


def test_what_is_wanted_often_weighs_more():
    wanted = dataclasses.replace(LADDER, weights=np.array([1, 1, 1, 1, 100]))
    assert choose_medoids(wanted, 1).tolist() == [4]
    np.testing.assert_allclose(wanted.shares, np.array([1, 1, 1, 1, 100]) / 104)


def test_a_high_price_buys_the_cheap_and_a_low_one_the_dear():
    assert choose_medoids(LADDER, 1, price_per_ms=10.0).tolist() == [0]
    assert choose_medoids(LADDER, 1, price_per_ms=0.001).tolist() == [4]


def test_required_ones_are_chosen_in_any_case():
    assert choose_medoids(LADDER, 1, required=[4]).tolist() == [4]
    # Beside 0 and 4 each of the others leaves two that are a step away.
    assert choose_medoids(LADDER, 3, required=(4, 0)).tolist() == [0, 1, 4]
    middle = dataclasses.replace(LADDER, weights=np.array([1, 1, 2, 1, 1]))
    assert choose_medoids(middle, 3, required=(4, 0)).tolist() == [0, 2, 4]
    useless = dataclasses.replace(LADDER, weights=np.array([0, 9, 0, 9, 0]))
    assert choose_medoids(useless, 3, required=[0]).tolist() == [0, 1, 3]


def test_the_choice_is_sorted_by_latency():
    backwards = candidates([0.9, 0.7, 0.5], [3.0, 2.0, 1.0])
    assert choose_medoids(backwards, 3).tolist() == [2, 1, 0]


def test_ties_go_to_the_lower_index():
    same = candidates([0.5] * 4, [2.0] * 4)
    assert choose_medoids(same, 2).tolist() == [0, 1]
    assert choose_medoids(same, 2, required=[3]).tolist() == [0, 3]
    # The sums of either half of a ladder differ by rounding alone.
    assert choose_medoids(candidates([0.1, 0.2], [0.1, 0.2]), 1).tolist() == [0]


def test_where_no_loss_is_left_the_rest_are_the_first():
    # The last one is better and faster than all.
    found = candidates([0.5, 0.6, 0.4, 0.9], [2.0, 3.0, 4.0, 1.0])
    assert total_loss(found, [3]) == 0.0
    assert choose_medoids(found, 3).tolist() == [3, 0, 1]


def test_a_policy_is_chosen_once():
    found = candidates([0.5, 0.5, 0.9, 0.9], [1.0, 1.1, 5.0, 5.1], policies=[7, 7, 8, 8])
    assert choose_medoids(found, 2).tolist() == [0, 2]
    assert choose_medoids(found, 2, required=[3]).tolist() == [0, 3]
    with pytest.raises(ValueError, match="at most 2, the number of different policies. Received"):
        choose_medoids(found, 3)
    with pytest.raises(ValueError, match="`required` must be of different policies. Received"):
        choose_medoids(found, 2, required=[0, 1])


@pytest.mark.parametrize(
    ("count", "required", "message"),
    [
        (0, (), "`count` must be at least 1 and at most 5, the number of different policies"),
        (6, (), "at most 5.* Received: count=6"),
        (1, (0, 1), "`count` must be at least 2 .* Received: count=1"),
        (2, (5,), "`required` must be whole numbers from 0 to 4. Received"),
        (2, (0.0,), "`required` must be whole numbers"),
        (2, (1, 1), "`required` must be of different policies"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(count, required, message):
    with pytest.raises(ValueError, match=message):
        choose_medoids(LADDER, count, required=required)


def test_most_choices_on_small_pools_are_the_best_of_all():
    # The seeds are fixed, so this cannot fail by chance.
    best = 0
    for seed in range(40):
        found = random_candidates(seed)
        loss = total_loss(found, choose_medoids(found, 3))
        optimum = best_of_all(found, 3)
        assert loss >= optimum - 1e-12
        best += loss <= optimum + 1e-12
    assert best >= 36


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 9))
def test_no_choice_is_worse_than_the_greedy_build_or_mended_by_a_swap(seed, count):
    found = random_candidates(seed)
    chosen = choose_medoids(found, count).tolist()
    loss = total_loss(found, chosen)
    assert len(set(chosen)) == count
    assert loss <= total_loss(found, greedy_build(found, count)) + 1e-12
    others = [i for i in range(9) if i not in chosen]
    for out, new in itertools.product(chosen, others):
        assert loss <= total_loss(found, [new, *(i for i in chosen if i != out)]) + 1e-12
    assert choose_medoids(found, count).tolist() == chosen


def test_a_large_pool_is_no_trouble():
    found = random_candidates(0, n=500)
    few, many = choose_medoids(found, 8), choose_medoids(found, 32, required=[0])
    assert len(set(many.tolist())) == 32 and 0 in many
    assert (np.diff(found.latency_ms[many]) > 0.0).all()
    assert total_loss(found, many) < total_loss(found, few)


def test_spread_is_the_dearest_over_the_cheapest():
    assert spread(np.array([2.0, 0.5, 4.0])) == 8.0
    assert spread([3.0]) == 1.0
    for wrong in ([], [1.0, 0.0], [np.nan]):
        with pytest.raises(ValueError, match="`latency_ms` must be some numbers above 0. Received"):
            spread(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": np.zeros((5, 10))}, r"`policies` must be \[n, L, K\].* Received: \(5, 10\)"),
        ({"policies": np.zeros((0, 2, 5))}, "`policies` must be"),
        ({"policies": np.full((5, 2, 5), 0.5)}, "`policies` must be 0 or 1. Received: .* 0.5"),
        ({"weights": np.ones(4)}, r"`weights` must have shape \(5,\). Received: shape \(4,\)"),
        ({"weights": np.array([1, 1, 1, 1, -2])}, "`weights` must be .* at least 0. Received: -2"),
        ({"weights": np.full(5, np.inf)}, "`weights` must be finite"),
        ({"accuracy": np.full(5, 97.0)}, "`accuracy` must be .* from 0 to 1. Received: 97.0"),
        ({"accuracy": np.full(5, np.nan)}, "`accuracy` must be finite .* Received: nan"),
        ({"latency_ms": np.zeros(5)}, "`latency_ms` must be finite and above 0. Received: 0.0"),
    ],
)
def test_candidates_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LADDER, **change)
