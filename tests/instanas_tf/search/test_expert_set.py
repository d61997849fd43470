"""Counting networks, choosing experts, and scoring them."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from instanas_tf.search.expert_set import PolicyCounts, choose_experts, count_policies, scores
from instanas_tf.search.policies import greedy

EMPTY = np.zeros((3, 3), np.float32)
# What the empty policy runs: `ir3_e3` in cell 1, which cannot be skipped.
FALLEN_BACK = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
ALL = np.ones((3, 3), np.float32)
FIRST = np.array([[1, 0, 0]] * 3, np.float32)


def test_policies_that_build_the_same_network_are_one(tiny):
    found = count_policies(np.stack([ALL, EMPTY, FIRST, FALLEN_BACK, EMPTY, FIRST]), tiny)
    np.testing.assert_array_equal(found.policies, [FALLEN_BACK, FIRST, ALL])
    assert found.counts.tolist() == [3, 2, 1]
    assert found.unique == 3
    assert found.varying_bits == 9
    # `ir3_e6` in every cell, and in cell 1 `ir3_e3` too, which only the empty one falls back to.
    assert count_policies(np.stack([EMPTY, FIRST]), tiny).varying_bits == 4
    assert count_policies(np.stack([EMPTY, FALLEN_BACK]), tiny).varying_bits == 0


def test_all_policies_of_the_tiny_space_build_448_networks(tiny, tiny_policies):
    # Cell 1 has 7 ways to run, the others 8; its empty form is a second `ir3_e3` alone.
    found = count_policies(tiny_policies, tiny)
    assert found.unique == 8 * 7 * 8
    assert sorted(set(found.counts.tolist())) == [1, 2]
    assert found.counts.sum() == 512
    assert found.counts[:64].tolist() == [2] * 64


def clusters():
    """Ten policies around none, ten around all on; the centre of each is wanted most."""
    near_none = [np.zeros(9)] + [np.eye(9)[i] for i in range(9)]
    policies = np.array(near_none + [1 - bits for bits in near_none], np.float32)
    counts = np.array([40] + [1] * 9 + [30] + [1] * 9)
    return PolicyCounts(policies.reshape(-1, 3, 3), counts)


def test_few_policies_are_all_experts():
    found = clusters()
    np.testing.assert_array_equal(choose_experts(found, 20, 0), found.policies)
    np.testing.assert_array_equal(choose_experts(found, 100, 0), found.policies)


def test_of_many_policies_those_at_the_centres_are_experts():
    found = choose_experts(clusters(), 2, 0)
    assert sorted(found.reshape(-1, 9).sum(axis=1)) == [0, 9]
    one = choose_experts(clusters(), 1, 0)
    # The mean bit is (40 * 0 + 9 * 1/9 + 30 * 1 + 9 * 8/9) / 88 < 0.5.
    np.testing.assert_array_equal(one, [EMPTY])


def test_what_is_wanted_often_weighs_more():
    one_bit = EMPTY.copy()
    one_bit[0, 0] = 1.0
    found = PolicyCounts(np.stack([ALL, EMPTY, one_bit]), np.array([10, 1, 1]))
    # The mean bit is 10/12 or 11/12; counted once each it would be 1/3 or 2/3.
    np.testing.assert_array_equal(choose_experts(found, 1, 0), [ALL])


@pytest.mark.parametrize("count", range(3, 20, 4))
def test_experts_are_different_policies_that_were_asked_for(count):
    asked = {policy.tobytes() for policy in clusters().policies}
    found = choose_experts(clusters(), count, 0)
    names = [policy.tobytes() for policy in found]
    assert 1 <= len(found) <= count
    assert len(set(names)) == len(names)
    assert set(names) <= asked
    np.testing.assert_array_equal(choose_experts(clusters(), count, 0), found)


@pytest.mark.parametrize("count", [0, -1])
def test_no_expert_is_too_few(count):
    with pytest.raises(ValueError, match=f"`count` must be at least 1. Received: count={count}"):
        choose_experts(clusters(), count, 0)


def test_scores_are_the_log_odds_of_what_runs(tiny):
    logits = tf.constant([[[1.0, -2.0, 3.0], [-1.0, 4.0, -5.0], [2.0, -1.0, 0.5]]])
    found = scores(logits, np.stack([ALL, FIRST, FALLEN_BACK]), tiny)
    np.testing.assert_allclose(found, [[1.5, 2.0, 4.0]], rtol=1e-6)
    # Cells 0 and 1 have no op on: only in cell 1, which must run, does the default turn round.
    logits = tf.constant([[[-1.0, -2.0, -3.0], [-1.0, -4.0, -5.0], [2.0, -1.0, 0.5]]])
    found = scores(logits, np.stack([ALL, FIRST, FALLEN_BACK]), tiny)
    np.testing.assert_allclose(found, [[-6 + (-1 + 4 - 5) + 1.5, -1 - 1 + 2, 4.0]], rtol=1e-6)


# Within 1e-7 of 0 a probability rounds to 0.5, whose bit is on, though its log-odds be negative.
MAGNITUDES = st.floats(2**-7, 8.0, width=32)
LOGITS = hnp.arrays(np.float32, (2, 3, 3), elements=MAGNITUDES | MAGNITUDES.map(lambda x: -x))


@settings(deadline=None, max_examples=100)
@given(logits=LOGITS, all_off=st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_greedy_policy_that_is_an_expert_always_wins(tiny, tiny_policies, logits, all_off):
    logits[0, all_off] = -np.abs(logits[0, all_off])
    experts = count_policies(tiny_policies, tiny).policies
    wanted = tiny.effective(greedy(tf.sigmoid(logits)).numpy())
    winners = experts[np.argmax(scores(tf.constant(logits), experts, tiny), axis=1)]
    np.testing.assert_array_equal(winners, wanted)
