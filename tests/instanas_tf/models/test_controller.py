"""The controllers: published sizes, probabilities, and files."""

import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.models.controller import Controller
from instanas_tf.spaces import controllers
from instanas_tf.spaces.controllers import controller_size


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.fixture(scope="module")
def published():
    """The published controllers by image size."""
    names = {32: "mobilenet_v2_32", 224: "mobilenet_v2_224"}
    return {size: Controller(spaces.get(name), "published") for size, name in names.items()}


def test_published_controllers_have_the_published_sizes(published):
    assert trainable(published[32]) == 80_165
    assert trainable(published[224]) == 320_421


@pytest.mark.parametrize("kind", controllers.KINDS)
def test_controllers_have_the_size_that_arithmetic_says(tiny, kind):
    spec = controllers.get(kind, tiny.image_size)
    assert trainable(Controller(tiny, kind)) == controller_size(spec, tiny).params


@pytest.mark.parametrize("size", [32, 224])
def test_published_controllers_give_a_probability_for_each_op(published, size):
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    found = published[size](images).numpy()
    assert found.shape == (2, 17, 5)
    assert (found > 0).all() and (found < 1).all()
    assert not np.allclose(found[0], found[1])


def test_maps_of_the_published_controller_for_224_px(published):
    trunk, shape = published[224].trunk, (None, 224, 224, 3)
    found = []
    for layer in [*trunk.front, trunk.stem, trunk.stem_pool]:
        shape = layer.compute_output_shape(shape)
        found.append(shape[1:])
    for block in trunk.blocks:
        shape = block.first.compute_output_shape(shape)
        found.append(shape[1:])
    assert found == [
        (224, 224, 3), (112, 112, 3), (56, 56, 16), (28, 28, 16),
        (28, 28, 16), (14, 14, 32), (7, 7, 64), (4, 4, 128),
    ]  # fmt: skip
    # Only where the shape changes is there a projection.
    assert [block.project is not None for block in trunk.blocks] == [False, True, True, True]


def test_probabilities_are_the_sigmoid_of_the_logits(tiny, images, scramble):
    controller = scramble(Controller(tiny))
    logits = controller.logits(images).numpy()
    assert logits.shape == (6, 3, 3)
    np.testing.assert_allclose(controller(images), 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_a_last_layer_of_zeros_leaves_the_biases(tiny, images):
    controller = Controller(tiny)
    bias = np.arange(9, dtype=np.float32) - 4
    controller.linear.set_weights([np.zeros((32, 9), np.float32), bias])
    expected = np.tile(bias.reshape(1, 3, 3), (6, 1, 1))
    np.testing.assert_array_equal(controller.logits(images), expected)


def test_each_image_is_looked_at_by_itself(tiny, images, scramble):
    controller = scramble(Controller(tiny, "published"))
    together = controller.logits(images).numpy()
    np.testing.assert_allclose(controller.logits(images[2:3]), together[2:3], atol=1e-4)


def test_training_moves_the_statistics_and_inference_does_not(tiny, images):
    controller = Controller(tiny)
    before = [weight.numpy() for weight in controller.non_trainable_weights]
    controller(images)
    for old, weight in zip(before, controller.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(weight, old)
    controller(images, training=True)
    moved = [
        not np.array_equal(old, w)
        for old, w in zip(before, controller.non_trainable_weights, strict=True)
    ]
    assert all(moved)


def test_logit_stddev_sets_the_spread_of_the_last_layer():
    space = spaces.get("mobilenet_v2_32")
    kernel = Controller(space, logit_stddev=0.5).linear.kernel.numpy()
    # 32 * 85 = 2720 draws: the relative standard error is 1.4 %, five of them are 7 %.
    assert abs(kernel.std() - 0.5) < 0.035
    # Glorot: uniform within sqrt(6 / (32 + 85)) = 0.226.
    assert np.abs(Controller(space).linear.kernel).max() < 0.227


@pytest.mark.parametrize("kind", controllers.KINDS)
def test_saving(check_saving, scramble, tiny, images, tmp_path, kind):
    arguments = {"mean": (120.0, 130.0, 140.0), "std": (60.0, 70.0, 80.0), "logit_stddev": 0.5}
    controller = scramble(Controller(tiny, kind, **arguments))
    check_saving(controller, lambda: Controller(tiny, kind, **arguments), images, tmp_path)


def test_saving_with_projected_shortcuts(check_saving, scramble, tmp_path):
    space = spaces.get("mobilenet_v2_224", num_classes=2)
    images = np.random.default_rng(0).uniform(0, 255, (1, 224, 224, 3)).astype(np.float32)
    controller = scramble(Controller(space, "published"))
    check_saving(controller, lambda: Controller(space, "published"), images, tmp_path)


def test_an_unknown_kind_is_refused(tiny):
    with pytest.raises(ValueError, match="Received: kind='large'"):
        Controller(tiny, "large")
