"""Experts: equal to the supernet under their policy, and recalibrated exactly."""

import keras
import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.models.blocks import ConvNorm
from instanas_tf.models.expert import build_expert, recalibrate, static_network
from instanas_tf.spaces.size import head_size, op_size, stem_size

MEAN, STD = (120.0, 130.0, 140.0), (60.0, 70.0, 80.0)
POLICIES = {
    "empty": [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    "all": [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    "one_each": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    "mixed": [[1, 1, 0], [0, 1, 1], [0, 0, 0]],
}


@pytest.fixture(params=POLICIES)
def policy(request):
    return np.array(POLICIES[request.param], np.float32)


def test_an_expert_is_the_supernet_under_its_policy(supernet, images, policy):
    expert = build_expert(supernet, policy)
    expected = supernet((images, np.tile(policy, (len(images), 1, 1)))).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(expert(images), expected, rtol=1e-4, atol=1e-4)


def test_an_expert_has_a_copy_of_the_weights(make_supernet, scramble, images):
    supernet = make_supernet()
    expert = build_expert(supernet, np.ones((3, 3)))
    before = expert(images).numpy()
    scramble(supernet, seed=5)
    np.testing.assert_array_equal(expert(images), before)


def test_a_static_network_has_the_parameters_that_arithmetic_says(merge, policy):
    space = spaces.get("tiny", num_classes=3, merge=merge)
    network = static_network(space, policy, MEAN, STD)
    parts = [stem_size(space), head_size(space)]
    for cell, bits in zip(space.cells, space.effective(policy), strict=True):
        parts += [op_size(cell, op) for op, bit in zip(space.ops, bits, strict=True) if bit]
    trainable = sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)
    assert trainable == sum(part.params for part in parts)


def test_a_static_network_survives_a_file(tiny, images, scramble, tmp_path):
    network = scramble(static_network(tiny, POLICIES["mixed"], MEAN, STD))
    expected = network(images).numpy()
    network.save(tmp_path / "expert.keras")
    loaded = keras.models.load_model(tmp_path / "expert.keras")
    np.testing.assert_allclose(loaded(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    "policy",
    [
        np.ones((3, 2)),
        np.ones((2, 3)),
        np.ones((1, 3, 3)),
        np.ones(9),
        np.full((3, 3), 0.5),
        np.full((3, 3), 2.0),
        np.full((3, 3), -1.0),
        np.full((3, 3), np.nan),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(tiny, supernet, policy):
    with pytest.raises(ValueError, match=r"`policy` must be 0/1 of shape \(3, 3\). Received: "):
        build_expert(supernet, policy)
    with pytest.raises(ValueError, match=r"`policy` must be 0/1 of shape \(3, 3\). Received: "):
        static_network(tiny, policy, MEAN, STD)


@pytest.fixture
def identities():
    """Two normalisations behind convolutions that pass one number an image on."""
    layers = [ConvNorm(1, bn_momentum=0.9, name="first"), ConvNorm(1, name="second")]
    model = keras.Sequential([keras.Input((1, 1, 1)), *layers])
    for layer in layers:
        layer.conv.kernel.assign([[[[1.0]]]])
    return model


def batch(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def statistics(model):
    return [
        (layer.norm.moving_mean.numpy().item(), layer.norm.moving_variance.numpy().item())
        for layer in model.layers
    ]


def test_recalibrate_pools_the_moments_of_the_batches(identities):
    # Batches have means 1 and 7 and variances 1 and 9; all four numbers have mean 4 and
    # variance (16 + 4 + 0 + 36) / 4 = 14, that is 5 within the batches and 9 between them.
    recalibrate(identities, [batch(0, 2), batch(4, 10)])
    first, second = statistics(identities)
    np.testing.assert_allclose(first, [4.0, 14.0], rtol=1e-5)
    # The second one sees batches that the first has normalised: -1 and 1, twice.
    np.testing.assert_allclose(second, [0.0, 1.0], atol=1e-4)
    assert [layer.norm.momentum for layer in identities.layers] == [0.9, 0.9]


def test_recalibrate_forgets_what_was_before(identities):
    recalibrate(identities, [batch(100, 300)])
    recalibrate(identities, [batch(0, 2)])
    np.testing.assert_allclose(statistics(identities)[0], [1.0, 1.0], rtol=1e-5)


def test_recalibrate_needs_a_batch_and_changes_nothing_without(identities):
    before = statistics(identities)
    with pytest.raises(ValueError, match="`batches` must be of one size"):
        recalibrate(identities, [])
    assert statistics(identities) == before
    assert [layer.norm.momentum for layer in identities.layers] == [0.9, 0.9]


def test_recalibrate_refuses_batches_of_several_sizes(identities):
    before = statistics(identities)
    with pytest.raises(ValueError, match=r"Received sizes: \[2, 1\]"):
        recalibrate(identities, [batch(1.0, 2.0), batch(1.0, 2.0)[:1]])
    assert [layer.norm.momentum for layer in identities.layers] == [0.9, 0.9]
    assert len(before) == len(statistics(identities))


@pytest.mark.parametrize("value", [3.3, 30.1, 1000.1])
def test_recalibrate_on_a_constant_gives_no_negative_variance(identities, value):
    # The square of the mean and the mean of the squares are close: rounding must not show.
    recalibrate(identities, [batch(value, value)] * 7)
    for _, variance in statistics(identities):
        assert variance >= 0.0
    assert np.isfinite(identities(batch(value, 0.0))).all()


def test_a_recalibrated_expert_normalises_as_in_training(supernet, images):
    expert = build_expert(supernet, POLICIES["mixed"])
    in_training = expert(images, training=True).numpy()
    expert = build_expert(supernet, POLICIES["mixed"])
    assert not np.allclose(expert(images), in_training, atol=1e-2)
    recalibrate(expert, [images])
    # One batch: its moments are the statistics, up to rounding.
    np.testing.assert_allclose(expert(images), in_training, rtol=1e-2, atol=1e-2)
