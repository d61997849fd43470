"""Golden numbers of the rewards."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from instanas_tf.errors import InputError
from instanas_tf.search import rewards


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, (20.0, 70.0)),  # 0.7 * 100.
        (0.5, (20.0, 50.0)),  # Half way to 0.5 * 60 = 30.
        (1.0, (15.0, 30.0)),  # The guard: half of 30 is below L_min = 20.
    ],
)
def test_window(progress, expected):
    assert rewards.window(100.0, 60.0, 20.0, progress) == pytest.approx(expected)


def test_window_where_the_least_latency_is_above_the_upper_end():
    # L_min = 90 > ub = 30.
    assert rewards.window(100.0, 60.0, 90.0, 1.0) == pytest.approx((15.0, 30.0))
    assert rewards.window(100.0, 60.0, 90.0, 1.0, guard=0.9) == pytest.approx((27.0, 30.0))
    assert rewards.window(100.0, 60.0, 5.0, 1.0, end=0.25) == pytest.approx((5.0, 15.0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"guard": 1.0},
        {"guard": 2.0},
        {"end": 0.0},
        {"end": -0.5},
        {"guard": -0.5},
        {"end": float("nan")},
    ],
)
def test_an_empty_window_is_an_input_error(arguments):
    with pytest.raises(InputError, match="latency window .* ms is empty; set ") as caught:
        rewards.window(100.0, 60.0, 90.0, 1.0, **arguments)
    assert "\n" not in str(caught.value)


LATENCIES = st.floats(1e-3, 1e3)


@given(LATENCIES, LATENCIES, LATENCIES, st.floats(0, 1))
def test_every_window_is_a_window(first, second, third, progress):
    l_min, l_base, l_max = sorted((first, second, third))
    lower, upper = rewards.window(l_max, l_base, l_min, progress)
    assert 0 < lower < upper
    # The later, the narrower or wider, but always between its two ends.
    assert min(0.7 * l_max, 0.5 * l_base) * 0.999 <= upper <= max(0.7 * l_max, 0.5 * l_base) * 1.001


def test_latency_reward_is_a_parabola():
    # Window (2, 6): (6 - 3) * (3 - 2) / 4 = 0.75.
    latencies = tf.constant([0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0])
    found = rewards.latency_reward(latencies, 2.0, 6.0)
    np.testing.assert_allclose(found, [0, 0, 0.75, 1, 0.75, 0, 0], atol=1e-6)
    ends = tf.constant(2.0), tf.constant(6.0)
    np.testing.assert_allclose(rewards.latency_reward(latencies, *ends), found)


@pytest.mark.parametrize("ends", [(6.0, 2.0), (2, 2), (float("nan"), 2.0)])
def test_latency_reward_refuses_a_window_inside_out(ends):
    with pytest.raises(ValueError, match="`lower_ms` must be below `upper_ms`. Received: "):
        rewards.latency_reward(tf.constant([3.0]), *ends)


def test_gated_reward():
    correct, value = tf.constant([1.0, 1.0, 0.0, 1.0]), tf.constant([1.0, 0.5, 1.0, 0.0])
    np.testing.assert_allclose(rewards.gated_reward(correct, value), [30, 15, 0, 0])
    found = rewards.gated_reward(correct, value, positive=2.0, negative=-1.0, gamma=2.0)
    np.testing.assert_allclose(found, [2, 0.5, -1, 0])


def test_policy_gradient_loss():
    log_probability = tf.constant([-1.0, -2.0])
    advantages = tf.constant([3.0, -4.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([log_probability, advantages])
        loss = rewards.policy_gradient_loss(log_probability, advantages)
    # (3 * 1 - 4 * 2) / 2.
    assert float(loss) == -2.5
    # A good policy becomes likelier where the loss falls.
    np.testing.assert_array_equal(tape.gradient(loss, log_probability), [-1.5, 2.0])
    assert tape.gradient(loss, advantages) is None


def test_advantage_has_no_gradient():
    sampled = tf.constant([30.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(sampled)
        found = rewards.advantage(sampled, tf.constant([10.0, 10.0]))
    np.testing.assert_array_equal(found, [20, -10])
    assert tape.gradient(found, sampled) is None


@pytest.mark.parametrize(
    ("price", "ratio", "target", "expected"),
    [(0.5, 0.9, 0.7, 0.52), (0.5, 0.7, 0.7, 0.5), (0.5, 0.5, 0.7, 0.48), (0.01, 0.5, 0.7, 0.0)],
)
def test_next_price(price, ratio, target, expected):
    found = rewards.next_price(tf.constant(price), ratio, target, 0.1)
    assert float(found) == pytest.approx(expected, abs=1e-6)
