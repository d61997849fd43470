"""What the benchmarks compare is what it says: the same networks, the same answers."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import steps
from instanas_tf.models.supernet import Supernet
from instanas_tf.spaces import controllers
from instanas_tf.spaces.controllers import controller_size
from instanas_tf.spaces.size import policy_macs


@pytest.fixture(scope="module")
def images(tiny):
    return steps.make_batch(tiny, 4, np.random.default_rng(0))[0]


@pytest.mark.parametrize("merge", ["sum", "shortcut"])
def test_the_plain_network_is_the_reference_network(tiny, merge, images):
    space = dataclasses.replace(tiny, merge=merge)
    plain, reference = steps.plain_network(space), steps.reference_network(space)
    generator = np.random.default_rng(1)
    weights = [generator.uniform(0.1, 1.0, w.shape) for w in plain.get_weights()]
    plain.set_weights(weights)
    for own, other in zip(reference.weights, plain.weights, strict=True):
        assert own.shape == other.shape
        own.assign(other)
    for training in (False, True):
        expected = plain(images, training=training)
        found = reference(images, training=training)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_pass_without_sharing_gives_the_same(tiny, images):
    unshared = steps.Unshared(tiny)
    supernet = Supernet(tiny)
    supernet.set_weights(unshared.get_weights())
    generator = np.random.default_rng(2)
    pair = [steps.make_policies(tiny, 4, 0.5, generator) for _ in range(2)]
    for one, other in zip(unshared.both(images, *pair), supernet.both(images, *pair), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_share_of_macs(tiny):
    reference = tiny.single_op_policy(tiny.reference_op)
    assert steps.macs_ratio(tiny, reference) == 1.0
    assert steps.macs_ratio(tiny, 1.0) > 1.0 > steps.macs_ratio(tiny, 0.0)


def test_sharing_saves_what_is_alike(tiny):
    generator = np.random.default_rng(0)
    greedy = steps.make_policies(tiny, 200, 0.3, generator)
    shares = {
        (alpha, shared): steps.controller_macs_ratio(tiny, greedy, alpha, shared, generator)
        for alpha in (0.8, 1.0)
        for shared in (True, False)
    }
    assert shares[1.0, True] < shares[0.8, True] < shares[1.0, False] < shares[0.8, False]
    own = 3 * controller_size(controllers.get("published", 8), tiny).macs
    reference = policy_macs(tiny, tiny.single_op_policy(tiny.reference_op))
    plain = np.mean([policy_macs(tiny, policy) for policy in greedy])
    assert shares[1.0, False] == pytest.approx((2 * plain + own) / (2 * reference))


@pytest.fixture
def eagerly():
    """Steps run op by op, so that a test can look at what passes through them."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize(("alpha", "same"), [(1.0, True), (0.5, False)])
def test_a_controller_step_runs_the_policies_at_its_alpha(tiny, monkeypatch, eagerly, alpha, same):
    seen = []

    def both(images, first, second):
        seen.append((np.array(first), np.array(second)))
        return original(images, first, second)

    supernet = Supernet(tiny)
    original = supernet.both
    monkeypatch.setattr(supernet, "both", both)
    batch = steps.make_batch(tiny, 8, np.random.default_rng(0))
    bits = steps.make_policies(tiny, 8, 0.3, np.random.default_rng(1))
    (step,) = steps.controller_steps(supernet, bits, [alpha], seed=0)
    step(*batch)
    ((sampled, greedy),) = seen
    np.testing.assert_array_equal(greedy, bits)
    assert np.array_equal(sampled, greedy) == same
