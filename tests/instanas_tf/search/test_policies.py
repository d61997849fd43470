"""Golden numbers of what is computed of policies, and the draws."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from instanas_tf.search import policies

LOG_2 = 0.693147


def seeds(seed=0):
    return keras.random.SeedGenerator(seed)


def test_mix():
    # 0.8 * 0.9 + 0.2 * 0.1 = 0.74.
    found = policies.mix(tf.constant([0.0, 0.5, 0.9, 1.0]), 0.8)
    np.testing.assert_allclose(found, [0.2, 0.5, 0.74, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(
        policies.mix(tf.constant([0.0, 0.3]), 1.0), [0.0, np.float32(0.3)]
    )
    np.testing.assert_allclose(policies.mix(tf.constant([0.0, 0.3]), 0.5), [0.5, 0.5])


def test_greedy_is_on_from_exactly_one_half():
    below = np.nextafter(np.float32(0.5), np.float32(0))
    found = policies.greedy(tf.constant([[[0.0, below, 0.5, 1.0]]]))
    np.testing.assert_array_equal(found, [[[0, 0, 1, 1]]])


def test_sample_draws_each_bit_with_its_probability():
    probabilities = np.tile(np.array([[[0.0, 0.3], [0.7, 1.0]]], np.float32), (10_000, 1, 1))
    found = policies.sample(tf.constant(probabilities), seeds()).numpy()
    assert set(np.unique(found)) == {0.0, 1.0}
    # The standard deviation of each mean is sqrt(0.21 / 10000) = 0.0046; five of them.
    np.testing.assert_allclose(found.mean(axis=0), [[0, 0.3], [0.7, 1]], atol=0.023)
    assert found[:, 0, 0].max() == 0 and found[:, 1, 1].min() == 1
    # Bits are independent: the covariance of two has the same kind of error.
    assert abs(np.cov(found[:, 0, 1], found[:, 1, 0])[0, 1]) < 0.012


def test_the_same_seed_draws_the_same_and_each_draw_another():
    probabilities = tf.fill((4, 5, 6), 0.5)
    first, again = seeds(3), seeds(3)
    one = policies.sample(probabilities, first).numpy()
    np.testing.assert_array_equal(policies.sample(probabilities, again), one)
    # Two draws of 120 fair bits are the same with probability 2^-120.
    assert not np.array_equal(policies.sample(probabilities, first), one)


def test_policies_have_no_gradient():
    logits = tf.Variable([[[0.3, -0.2]]])
    with tf.GradientTape(persistent=True) as tape:
        probabilities = tf.sigmoid(logits)
        sampled = policies.sample(probabilities, seeds())
        greedy = policies.greedy(probabilities)
    assert tape.gradient(sampled, logits) is None
    assert tape.gradient(greedy, logits) is None


def test_log_probability():
    policy = tf.constant([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    probabilities = tf.constant([[[0.5, 0.5], [0.25, 0.25]], [[1.0, 0.0], [0.0, 1.0]]])
    # log(0.5 * 0.5 * 0.25 * 0.75) = -3.060271; an impossible bit counts as log 1e-6.
    found = policies.log_probability(policy, probabilities)
    np.testing.assert_allclose(found, [-3.060271, -13.815511], rtol=1e-5)


def test_gradient_of_the_log_probability_pushes_towards_the_policy():
    probabilities = tf.constant([[[0.25, 0.25]]])
    with tf.GradientTape() as tape:
        tape.watch(probabilities)
        found = policies.log_probability(tf.constant([[[1.0, 0.0]]]), probabilities)
    # 1 / p and -1 / (1 - p).
    np.testing.assert_allclose(tape.gradient(found, probabilities), [[[4.0, -4 / 3]]], rtol=1e-5)


@pytest.mark.parametrize(
    ("probability", "full", "half"),
    [
        (0.5, LOG_2, LOG_2 / 2),
        (0.25, 0.562335, 0.346574),  # -0.25 log 0.25 = 0.346574; -0.75 log 0.75 = 0.215762.
        (0.75, 0.562335, 0.215762),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, 0.0),
    ],
)
def test_entropy(probability, full, half):
    # Probabilities are kept 1e-6 away from 0 and 1, which adds up to 1.5e-5 nats a bit.
    bits = tf.fill((2, 3, 1), probability)
    np.testing.assert_allclose(policies.entropy(bits), [3 * full] * 2, rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(policies.entropy(bits, True), [3 * half] * 2, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(
    ("probabilities", "ratio", "expected"),
    [
        ([[[0.3, 0.9]], [[0.3, 0.9]]], 1.0, 0.0),
        # Half of the images have each bit on: log 2 a bit.
        ([[[0.0, 1.0]], [[1.0, 0.0]]], 1.0, 2 * LOG_2),
        ([[[0.0, 1.0]], [[1.0, 0.0]]], 1.2, 2 * LOG_2),
        ([[[0.5]], [[0.5]]], 1.2, -0.2 * LOG_2),
        # H(0.5) - 1.2 H(0.25).
        ([[[0.25]], [[0.75]]], 1.2, LOG_2 - 1.2 * 0.562335),
    ],
)
def test_diversity(probabilities, ratio, expected):
    found = policies.diversity(tf.constant(probabilities), ratio)
    assert float(found) == pytest.approx(expected, abs=1e-4)


def test_shuffle_keeps_rows_whole_and_reaches_every_order():
    rows = tf.reshape(tf.range(12.0), (3, 2, 2))
    generator, orders = seeds(), set()
    # Each of 6 orders is missed by 120 draws with probability (5/6)^120 = 3e-10.
    for _ in range(120):
        found = policies.shuffle(rows, generator).numpy()
        orders.add(tuple((found[:, 0, 0] / 4).astype(int)))
        np.testing.assert_array_equal(found[np.argsort(found[:, 0, 0])], rows)
    assert len(orders) == 6


def test_shuffle_and_dropout_trace_with_any_batch_size():
    generator = seeds()

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2])])
    def run(policy):
        kept = policies.dropout(tf.shape(policy)[0], (2, 2), 1.0, generator)
        return policies.shuffle(policy, generator), kept

    shuffled, kept = run(tf.ones((5, 2, 2)))
    assert shuffled.shape == kept.shape == (5, 2, 2)


def test_dropout_keeps_each_bit_by_itself():
    np.testing.assert_array_equal(policies.dropout(2, (3, 4), 1.0, seeds()), np.ones((2, 3, 4)))
    np.testing.assert_array_equal(policies.dropout(2, (3, 4), 0.0, seeds()), np.zeros((2, 3, 4)))
    keep = np.array([0.0, 0.2, 0.9, 1.0], np.float32).reshape(4, 1, 1)
    found = policies.dropout(4, (100, 100), keep, seeds()).numpy()
    # At most sqrt(0.16 / 10000) = 0.004; five of them.
    np.testing.assert_allclose(found.mean(axis=(1, 2)), [0.0, 0.2, 0.9, 1.0], atol=0.02)
