"""Experts: equal to the supernet under their policy, and recalibrated exactly."""

import keras
import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.models.blocks import ConvNorm
from instanas_tf.models.expert import (
    build_expert,
    copy_layers,
    front_network,
    recalibrate,
    rest_network,
    shared_cells,
    static_network,
)
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
    with pytest.raises(ValueError, match=r"`policy` must be 0/1 of shape \(3, 3\). Received: "):
        front_network(tiny, policy, MEAN, STD, 1)
    with pytest.raises(ValueError, match=r"`policy` must be 0/1 of shape \(3, 3\). Received: "):
        rest_network(tiny, policy, 1)


@pytest.mark.parametrize("cells", [0, 1, 2, 3])
def test_the_two_parts_of_an_expert_are_the_whole(supernet, images, policy, cells):
    space, colours = supernet.space, (supernet.mean, supernet.std)
    expert = build_expert(supernet, policy)
    front = front_network(space, policy, *colours, cells=cells)
    rest = rest_network(space, policy, cells=cells)
    copy_layers(expert, front)
    copy_layers(expert, rest)
    features = front(images)
    assert features.shape == [(6, 8, 8, 8), (6, 8, 8, 8), (6, 4, 4, 16), (6, 4, 4, 16)][cells]
    np.testing.assert_array_equal(rest(features), expert(images))
    assert len(front.weights) + len(rest.weights) == len(expert.weights)
    # Back into a whole one, and straight out of the supernet.
    whole = static_network(space, policy, *colours)
    copy_layers(front, whole)
    copy_layers(rest, whole)
    np.testing.assert_array_equal(whole(images), expert(images))
    direct = rest_network(space, policy, cells=cells)
    copy_layers(supernet, direct)
    np.testing.assert_array_equal(direct(features), expert(images))


def test_parts_keep_the_momentum(tiny):
    front = front_network(tiny, POLICIES["all"], MEAN, STD, 1, bn_momentum=0.5)
    rest = rest_network(tiny, POLICIES["all"], 1, bn_momentum=0.25)
    assert front.get_layer("stem").bn_momentum == 0.5
    assert front.get_layer("cell_00_basic").bn_momentum == 0.5
    assert rest.get_layer("cell_01_basic").bn_momentum == 0.25
    assert rest.get_layer("head").bn_momentum == 0.25


def test_layers_of_other_names_stay(tiny, images, scramble):
    source = scramble(static_network(tiny, POLICIES["one_each"], MEAN, STD), seed=3)
    target = scramble(static_network(tiny, POLICIES["all"], MEAN, STD), seed=4)
    kept = target.get_layer("cell_00_ir3_e6").get_weights()
    copy_layers(source, target)
    for name in ("stem", "cell_00_basic", "cell_01_ir3_e6", "cell_02_ir3_e3", "classifier"):
        pairs = zip(
            target.get_layer(name).weights, source.get_layer(name).get_weights(), strict=True
        )
        for found, expected in pairs:
            np.testing.assert_array_equal(found, expected)
    for found, expected in zip(target.get_layer("cell_00_ir3_e6").weights, kept, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_copying_between_strangers_is_refused(tiny, identities):
    with pytest.raises(ValueError, match="must share the name of a layer with weights. Received"):
        copy_layers(identities, static_network(tiny, POLICIES["all"], MEAN, STD))
    with pytest.raises(ValueError, match="weight"):  # Keras's own, of shapes.
        copy_layers(
            static_network(spaces.get("tiny", num_classes=5), POLICIES["all"], MEAN, STD),
            static_network(tiny, POLICIES["all"], MEAN, STD),
        )


@pytest.mark.parametrize("cells", [-1, 4])
def test_a_number_of_cells_that_does_not_fit_is_refused(tiny, cells):
    message = f"`cells` must be from 0 to 3. Received: cells={cells}"
    with pytest.raises(ValueError, match=message):
        front_network(tiny, POLICIES["all"], MEAN, STD, cells)
    with pytest.raises(ValueError, match=message):
        rest_network(tiny, POLICIES["all"], cells)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("all",), 3),
        (("mixed", "mixed"), 3),
        (("all", "empty"), 0),
        (("mixed", "all"), 0),
        # An empty cell that changes the shape runs `ir3_e3`, so it agrees with that op alone.
        (([[1, 1, 0], [0, 0, 0], [1, 0, 0]], [[1, 1, 0], [0, 1, 0], [0, 1, 0]]), 2),
        # The first cell keeps the shape: empty, it is the identity.
        (([[0, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]), 0),
        # Alike again behind a cell in which they differ: only the front counts.
        (([[1, 0, 0], [1, 0, 0], [1, 0, 0]], [[1, 0, 0], [0, 1, 0], [1, 0, 0]]), 1),
        (([[1, 0, 0]] * 3, [[1, 0, 0]] * 3, [[1, 0, 0], [1, 0, 0], [1, 1, 0]]), 2),
    ],
)
def test_shared_cells(tiny, names, expected):
    policies = np.array([POLICIES[name] if isinstance(name, str) else name for name in names])
    assert shared_cells(policies, tiny) == expected


@pytest.mark.parametrize("policies", [np.ones((3, 3)), np.ones((0, 3, 3)), np.full((1, 3, 3), 2)])
def test_policies_that_do_not_fit_are_refused(tiny, policies):
    with pytest.raises(ValueError, match=r"`policies` must be 0/1 of shape \(E, 3, 3\)"):
        shared_cells(policies, tiny)


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
