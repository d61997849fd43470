"""The trunk that controllers and routers share: shapes, sizes, and files."""

import numpy as np
import pytest

from instanas_tf.models.trunk import Trunk
from instanas_tf.spaces import controllers
from instanas_tf.spaces.controllers import trunk_size


@pytest.mark.parametrize(
    ("kind", "features", "params"),
    # Stem, two convolutions in each of three stages, and 4 numbers a channel of normalisation.
    [
        ("half", 32, 216 + 1152 + 3456 + 13_824 + 480),
        ("small", 32, 216 + 1152 + 3456 + 13_824 + 480),
        ("wide", 64, 432 + 4608 + 13_824 + 55_296 + 960),
        ("published", 64, 432 + 4608 + 13_824 + 55_296 + 960),
    ],
)
def test_trunks(check_layer, tmp_path, kind, features, params):
    layer = Trunk(kind, 8, (0.5,) * 3, (2.0,) * 3, 0.7, name="trunk")
    check_layer(layer, (2, 8, 8, 3), (2, features), params, tmp_path)


@pytest.mark.parametrize("kind", controllers.KINDS)
def test_trunks_have_the_size_that_arithmetic_says(kind):
    trunk = Trunk(kind, 8)
    trunk.build((None, 8, 8, 3))
    found = sum(int(np.prod(weight.shape)) for weight in trunk.trainable_weights)
    assert found == trunk_size(controllers.get(kind, 8), 8).params


@pytest.mark.parametrize(
    ("kind", "image_size", "maps"),
    [
        ("half", 8, [8, 4, 2, 2, 1, 1]),
        ("half", 9, [9, 5, 3, 3, 2, 1]),
        ("small", 8, [8, 4, 4, 2, 1]),
        ("small", 64, [64, 32, 16, 16, 8, 4]),
        ("half", 64, [64, 16, 8, 8, 4, 2]),
        ("wide", 32, [32, 16, 16, 8, 4]),
    ],
)
def test_maps(kind, image_size, maps):
    trunk, shape, found = Trunk(kind, image_size), (None, image_size, image_size, 3), []
    trunk.build(shape)
    for layer in [*trunk.front, trunk.stem, *trunk.blocks]:
        shape = layer.compute_output_shape(shape)
        found.append(shape[1])
    assert found == maps


def test_half_looks_at_the_image_pooled_by_two(scramble, images):
    half, small = Trunk("half", 8), Trunk("small", 4)
    half.build((None, 8, 8, 3))
    small.build((None, 4, 4, 3))
    scramble(half)
    small.set_weights(half.get_weights())
    pooled = images.reshape(6, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    expected = small(pooled).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(half(images), expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="Received: kind='large'"):
        Trunk("large", 8)
