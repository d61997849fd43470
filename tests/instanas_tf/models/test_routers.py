"""Routers: golden sizes, first decisions, features by hand, and files."""

import numpy as np
import pytest
import tensorflow as tf

from instanas_tf.models.routers import FeatureRouter, ImageRouter
from instanas_tf.spaces import controllers

COLOURS = {"mean": (120.0, 130.0, 140.0), "std": (60.0, 70.0, 80.0)}


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.fixture
def features():
    """Features of six images, 5 x 5 with 4 channels."""
    return np.random.default_rng(7).normal(0, 1, (6, 5, 5, 4)).astype(np.float32)


MAKE = {
    "image": lambda: ImageRouter(8, 3, "small", **COLOURS),
    "features": lambda: FeatureRouter((5, 5, 4), 3, width=6),
}


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


@pytest.fixture
def inputs(make, images, features):
    return images if make is MAKE["image"] else features


@pytest.mark.parametrize(
    ("kind", "image_size", "params"),
    [
        # 18888 of the trunk, 32 * 4 + 4.
        ("half", 8, 19_020),
        ("small", 32, 19_020),
        # 432 + 4608 + 13824 + 55296, 2 * (3 * 16 + 2 * 32 + 2 * 64) of normalisation, 64 * 4 + 4.
        ("wide", 32, 74_900),
        ("published", 32, 74_900),
    ],
)
def test_sizes_of_image_routers(kind, image_size, params):
    assert trainable(ImageRouter(image_size, 4, kind)) == params


@pytest.mark.parametrize(
    ("shape", "experts", "width", "params"),
    [
        # 9 * 8 * 32 and 2 * 32 of the convolution, (32 + 8) * 3 + 3 of the last layer.
        ((8, 8, 8), 3, 32, 2304 + 64 + 123),
        ((5, 5, 4), 2, 6, 216 + 12 + 22),
        # A map of one pixel has a convolution of stride 2 too.
        ((1, 1, 16), 2, 8, 1152 + 16 + 50),
    ],
)
def test_sizes_of_feature_routers(shape, experts, width, params):
    router = FeatureRouter(shape, experts, width)
    assert trainable(router) == params
    assert router(np.zeros((2, *shape), np.float32)).shape == (2, experts)


def test_scores(make, inputs, scramble):
    router = scramble(make())
    scores = router(inputs).numpy()
    assert (scores.shape, scores.dtype) == ((6, 3), np.float32)
    assert np.ptp(scores, axis=0).min() > 1e-3
    np.testing.assert_allclose(router(inputs[2:3]), scores[2:3], atol=1e-4)


def test_a_feature_router_by_hand():
    router = FeatureRouter((2, 2, 1), 2, width=1)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 0] = 2.0  # `same` at stride 2 pads below and to the right.
    router.conv.conv.set_weights([kernel])
    # The convolution's feature first, then the mean of the inputs.
    router.linear.set_weights([np.array([[1.0, 0.0], [0.0, 10.0]], np.float32), np.zeros(2)])
    inputs = np.array([[1, 2, 3, 6], [-1, 1, 1, 3]], np.float32).reshape(2, 2, 2, 1)
    np.testing.assert_allclose(router(inputs), [[2.0, 30.0], [0.0, 10.0]], rtol=1e-4)


def test_first_scores_are_nearly_a_tie():
    kernel = FeatureRouter((4, 4, 68), 20).linear.kernel.numpy()
    # 100 * 20 = 2000 draws: the relative standard error is 1.6 %, five of them are 8 %.
    assert abs(kernel.std() - 0.01) < 0.0008
    assert np.abs(ImageRouter(8, 4).linear.kernel).max() < 0.07  # 128 draws within 7 deviations.


def test_training_moves_the_statistics_and_reaches_every_weight(make, inputs, scramble):
    router = scramble(make())
    before = [weight.numpy() for weight in router.non_trainable_weights]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(router(inputs, training=True)[:, 0] ** 2)
    for gradient in tape.gradient(loss, router.trainable_weights):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0
    for old, weight in zip(before, router.non_trainable_weights, strict=True):
        assert not np.array_equal(old, weight)
    before = [weight.numpy() for weight in router.non_trainable_weights]
    router(inputs)
    for old, weight in zip(before, router.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_saving(check_saving, scramble, make, inputs, tmp_path):
    check_saving(scramble(make()), make, inputs, tmp_path)


@pytest.mark.parametrize("kind", controllers.KINDS)
def test_every_kind_of_image_router_survives_its_config(images, kind):
    router = ImageRouter(8, 2, kind, bn_momentum=0.5, name="mine", **COLOURS)
    clone = ImageRouter.from_config(router.get_config())
    assert clone.get_config() == router.get_config()
    clone.set_weights(router.get_weights())
    np.testing.assert_array_equal(clone(images), router(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageRouter(8, 0), "`experts` must be positive. Received: experts=0"),
        (lambda: ImageRouter(0, 2), "`image_size` must be positive. Received: image_size=0"),
        (lambda: ImageRouter(8, 2, "large"), "Received: kind='large'"),
        (lambda: FeatureRouter((4, 4, 2), -1), "`experts` must be positive"),
        (lambda: FeatureRouter((4, 4, 2), 2, 0), "`width` must be positive. Received: width=0"),
        (lambda: FeatureRouter((4, 4), 2), r"`shape` must be .* Received: shape=\(4, 4\)"),
        (lambda: FeatureRouter((4, 0, 2), 2), "`shape` must be three positive sizes"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
