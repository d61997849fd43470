"""Counting networks, choosing experts, and scoring them."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from instanas_tf import spaces
from instanas_tf.search.expert_set import (
    PolicyCounts,
    anchors,
    choose_experts,
    count_policies,
    merge_counts,
    mutations,
    named_anchors,
    scores,
    with_shared_cells,
)
from instanas_tf.search.policies import greedy
from instanas_tf.spaces.size import policy_macs

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


def test_the_history_of_a_search_adds_up():
    early = PolicyCounts(np.stack([ALL, FIRST]), np.array([5, 2]))
    late = PolicyCounts(np.stack([FIRST, FALLEN_BACK]), np.array([4, 1]))
    found = merge_counts([early, late])
    np.testing.assert_array_equal(found.policies, [FIRST, ALL, FALLEN_BACK])
    assert found.counts.tolist() == [6, 5, 1]
    assert found.policies.dtype == np.float32
    np.testing.assert_array_equal(merge_counts([early]).policies, early.policies)


def test_merged_counts_are_those_of_all_images(tiny, tiny_policies):
    policies = tiny_policies[np.arange(900) * 7 % 512]
    merged = merge_counts([count_policies(part, tiny) for part in np.split(policies, 3)])
    at_once = count_policies(policies, tiny)
    np.testing.assert_array_equal(merged.policies, at_once.policies)
    np.testing.assert_array_equal(merged.counts, at_once.counts)


def test_only_counts_of_one_space_are_merged():
    with pytest.raises(ValueError, match=r"`parts` must be of one space. Received: shapes \[\]"):
        merge_counts([])
    other = PolicyCounts(np.ones((1, 2, 3), np.float32), np.array([1]))
    with pytest.raises(ValueError, match="`parts` must be of one space"):
        merge_counts([clusters(), other])


def test_the_anchors_of_the_tiny_space(tiny):
    # Cells 0 and 2 may be skipped; `ir3_e3` is the cheapest op of each cell.
    found = {name: tiny.policy_names(policy) for name, policy in anchors(tiny)}
    assert found == {
        "least": [[], ["ir3_e3"], []],
        "half_odd": [[], ["ir3_e3"], ["ir3_e3"]],
        "half_even": [["ir3_e3"], ["ir3_e3"], []],
        "cheap": [["ir3_e3"]] * 3,
        "ir3_e6": [["ir3_e6"]] * 3,
        "basic": [["basic"]] * 3,
        "most": [["ir3_e6", "ir3_e3"]] * 3,
    }


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v2_16", "mobilenet_v2_32", "mobilenet_v2_224"])
@pytest.mark.parametrize("width", [0.5, 1.0])
def test_anchors_are_different_networks_from_cheap_to_dear(name, width):
    space = spaces.get(name, width)
    found = dict(anchors(space))
    macs = [policy_macs(space, policy) for policy in found.values()]
    assert macs == sorted(macs)
    assert {"least", "cheap", "most", space.reference_op} <= set(found)
    assert next(iter(found)) == "least"
    policies = np.stack(list(found.values()))
    assert policies.dtype == np.float32
    np.testing.assert_array_equal(space.effective(policies), policies)
    assert count_policies(policies, space).unique == len(found)


@pytest.mark.parametrize("name", ["mobilenet_v2_16", "mobilenet_v2_32"])
def test_the_dearest_anchor_costs_five_times_the_cheapest(name):
    space = spaces.get(name)
    found = dict(anchors(space))
    assert policy_macs(space, found["most"]) / policy_macs(space, found["least"]) >= 5


def test_no_network_has_fewer_macs_than_the_least(tiny, tiny_policies):
    fewest = min(policy_macs(tiny, policy) for policy in tiny_policies)
    assert policy_macs(tiny, dict(anchors(tiny))["least"]) == fewest


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (0, ["half_odd", "half_even", "ir3_e6"]),  # One inverted residual: the most is it.
        (2, ["half_even", "half_odd", "basic"]),  # None: the most is the only op.
    ],
)
def test_anchors_of_a_space_with_one_op_keep_the_reference(tiny, op, expected):
    only = tiny.ops[op]
    space = dataclasses.replace(tiny, ops=(only,), default_op=only.name, reference_op=only.name)
    assert [name for name, _ in anchors(space)] == ["least", *expected]


def test_shared_cells_are_the_first_ones(tiny):
    policies = np.stack([ALL, EMPTY])
    found = with_shared_cells(policies, FIRST, 2)
    expected = [[[1, 0, 0], [1, 0, 0], [1, 1, 1]], [[1, 0, 0], [1, 0, 0], [0, 0, 0]]]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(policies, [ALL, EMPTY])
    np.testing.assert_array_equal(with_shared_cells(policies, FIRST, 0), policies)
    np.testing.assert_array_equal(with_shared_cells(policies, FIRST, 3), [FIRST, FIRST])


@pytest.mark.parametrize("cells", [-1, 4])
def test_no_more_cells_are_shared_than_there_are(cells):
    with pytest.raises(ValueError, match=f"from 0 to 3. Received: cells={cells}"):
        with_shared_cells(ALL[None], FIRST, cells)


def test_shared_cells_must_fit():
    with pytest.raises(ValueError, match=r"Received: shapes \(3, 3\) and \(3, 3\)"):
        with_shared_cells(ALL, FIRST, 1)
    with pytest.raises(ValueError, match=r"Received: shapes \(1, 3, 3\) and \(2, 3\)"):
        with_shared_cells(ALL[None], FIRST[:2], 1)


def test_mutations_change_one_or_two_cells(tiny):
    found = mutations(FIRST[None], tiny, 400, np.random.default_rng(0))
    assert found.shape == (400, 3, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(tiny.effective(found), found)
    changed = (found != FIRST).any(axis=2).sum(axis=1)
    assert set(changed.tolist()) == {0, 1, 2}
    # All choices occur: none, 3 single ops, 3 pairs. Of cell 1, which must run, not none.
    kinds = [len({bits.tobytes() for bits in found[:, cell]}) for cell in range(3)]
    assert kinds == [7, 6, 7]
    assert found[:, 1].sum(axis=1).min() == 1


def test_mutations_start_from_the_whole_pool_and_leave_it_alone(tiny):
    pool = np.stack([ALL, EMPTY])
    found = mutations(pool, tiny, 100, np.random.default_rng(0))
    # A cell of three ops is never drawn, only kept; at least one of three cells is kept.
    from_all = (found.sum(axis=2) == 3).any(axis=1)
    assert 25 < from_all.sum() < 75
    np.testing.assert_array_equal(pool, [ALL, EMPTY])


def test_mutations_depend_on_the_generator_alone(tiny):
    first, again, other = (
        mutations(clusters().policies, tiny, 20, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_mutations_of_a_space_with_one_op_and_of_none(tiny):
    space = dataclasses.replace(tiny, ops=tiny.ops[1:2], reference_op="ir3_e3")
    found = mutations(np.ones((1, 3, 1)), space, 50, np.random.default_rng(0))
    assert set(found[:, 1].ravel().tolist()) == {1.0}
    assert set(found[:, 0].ravel().tolist()) == {0.0, 1.0}
    assert mutations(ALL[None], tiny, 0, np.random.default_rng(0)).shape == (0, 3, 3)


def test_mutations_need_a_pool_of_the_space(tiny):
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"`policies` must be \[n, 3, 3\], n at least 1. Received"):
        mutations(np.zeros((0, 3, 3)), tiny, 1, generator)
    with pytest.raises(ValueError, match=r"Received: shape \(1, 3, 5\)"):
        mutations(np.zeros((1, 3, 5)), tiny, 1, generator)
    with pytest.raises(ValueError, match="`count` must be at least 0. Received: count=-1"):
        mutations(ALL[None], tiny, -1, generator)


def test_every_name_can_be_asked_for_though_another_stands_for_the_same_network(tiny):
    # Two cells may be skipped, so that the even half is the early one too.
    even, early, op = named_anchors(tiny, ("half_even", "half_early", "ir3_e6"))
    np.testing.assert_array_equal(even, early)
    np.testing.assert_array_equal(op, tiny.single_op_policy("ir3_e6"))
    assert named_anchors(tiny, ()).shape == (0, 3, 3)
    with pytest.raises(ValueError, match="must be among .*half_early.* Received: 'halves'"):
        named_anchors(tiny, ("halves",))
