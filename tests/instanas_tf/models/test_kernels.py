"""Each quick kernel against the plain Keras form, values and gradients, and literal numbers."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from instanas_tf.models import kernels

# (B, H, C): odd and even sizes, one pixel, one image, more pixels than a kernel covers.
SHAPES = [(3, 8, 4), (1, 7, 3), (2, 5, 6), (2, 3, 2), (4, 2, 5), (3, 1, 2), (1, 1, 1)]


def draw(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(0, 1, shape), tf.float32)


def values_and_gradients(function, *arguments):
    """What a function returns, and the gradients of a sum of it with fixed random weights."""
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        outputs = tf.nest.flatten(function(*arguments))
        loss = sum(tf.reduce_sum(o * draw(*o.shape, seed=9 + i)) for i, o in enumerate(outputs))
    return [*outputs, *tape.gradient(loss, arguments)]


def check_equal(quick, plain, *arguments):
    """Both give the same values and gradients, the tolerance being that of 32-bit sums."""
    found = values_and_gradients(quick, *arguments)
    expected = values_and_gradients(plain, *arguments)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        largest = max(1.0, float(tf.reduce_max(tf.abs(other))))
        np.testing.assert_allclose(one, other, atol=1e-5 * largest)


@pytest.mark.parametrize("out_channels", [1, 7])
@pytest.mark.parametrize(("batch", "size", "channels"), SHAPES)
def test_a_pointwise_convolution_equals_the_plain_one(batch, size, channels, out_channels):
    check_equal(
        kernels.pointwise_convolution,
        lambda inputs, kernel: ops.conv(inputs, kernel, padding="same"),
        draw(batch, size, size, channels),
        draw(1, 1, channels, out_channels, seed=1),
    )


def test_a_pointwise_convolution_mixes_channels_only():
    inputs = tf.constant([[[[1.0, 2.0], [3.0, 4.0]]]])
    kernel = tf.constant([[[[1.0, 0.0, 10.0], [1.0, -1.0, 0.0]]]])
    found = kernels.pointwise_convolution(inputs, kernel)
    np.testing.assert_array_equal(found, [[[[3, -2, 10], [7, -4, 30]]]])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize(("batch", "size", "channels"), SHAPES)
def test_a_depthwise_convolution_equals_the_plain_one(batch, size, channels, side, stride):
    check_equal(
        lambda inputs, kernel: kernels.depthwise_convolution(inputs, kernel, stride),
        lambda inputs, kernel: ops.depthwise_conv(inputs, kernel, stride, padding="same"),
        draw(batch, size, size, channels),
        draw(side, side, channels, 1, seed=1),
    )


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        # All pixels and the upstream gradient are 1: each entry of the kernel counts the
        # outputs for which it lies on the image. Along an axis of 3 pixels, stride 1, these
        # are the products of 1, 2, 3, 2, 1; with stride 2 two outputs, at 0 and 2, make
        # 1, 1, 2, 1, 1; for one pixel only the centre of the kernel meets it.
        (3, 1, [1, 2, 3, 2, 1]),
        (3, 2, [1, 1, 2, 1, 1]),
        # The padding of 4 pixels at stride 2 is 1 before and 2 behind: outputs at 0 and 2
        # reach from -1 to 3 and from 1 to 5.
        (4, 2, [1, 2, 2, 1, 1]),
        (1, 1, [0, 0, 1, 0, 0]),
    ],
)
def test_the_gradient_of_a_5x5_kernel_by_hand(size, stride, expected):
    images, kernel = tf.ones((1, size, size, 1)), tf.zeros((5, 5, 1, 1))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        outputs = kernels.depthwise_convolution(images, kernel, stride)
    gradient = tape.gradient(outputs, kernel)[:, :, 0, 0]
    np.testing.assert_allclose(gradient, np.outer(expected, expected), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_5x5_kernel_in_a_graph_with_any_batch_size(stride):
    def gradients(images, kernel):
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            outputs = kernels.depthwise_convolution(images, kernel, stride)
            loss = tf.reduce_sum(outputs**2)
        return tape.gradient(loss, (images, kernel))

    images, kernel = draw(3, 7, 7, 2), draw(5, 5, 2, 1, seed=1)
    signature = [tf.TensorSpec([None, 7, 7, 2]), tf.TensorSpec([5, 5, 2, 1])]
    compiled = tf.function(gradients, input_signature=signature)
    for count in (3, 1):
        pair = gradients(images[:count], kernel)
        for one, other in zip(compiled(images[:count], kernel), pair, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def normalize_plainly(inputs, gamma, beta):
    mean, variance = ops.moments(inputs, axes=(0, 1, 2))
    outputs = ops.batch_normalization(
        inputs, mean, variance, -1, offset=beta, scale=gamma, epsilon=1e-3
    )
    return outputs, ops.stop_gradient(mean), ops.stop_gradient(variance)


@pytest.mark.parametrize(("batch", "size", "channels"), SHAPES)
def test_normalisation_equals_the_plain_one(batch, size, channels):
    def normalize(inputs, gamma, beta):
        outputs, mean, variance = kernels.normalize_by_batch(inputs, gamma, beta, 1e-3)
        return outputs, ops.stop_gradient(mean), ops.stop_gradient(variance)

    inputs = draw(batch, size, size, channels) * 3.0 + 2.0
    gamma, beta = draw(channels, seed=1), draw(channels, seed=2)
    check_equal(normalize, normalize_plainly, inputs, gamma, beta)


def test_normalisation_by_hand():
    inputs = tf.reshape(tf.constant([1.0, 3.0, 5.0, 7.0]), (2, 1, 2, 1))
    # Mean 4; squares 9, 1, 1, 9: biased variance 5, and with epsilon 4 a deviation of 3.
    outputs, mean, variance = kernels.normalize_by_batch(
        inputs, tf.constant([3.0]), tf.constant([10.0]), 4.0
    )
    np.testing.assert_allclose(np.ravel(outputs), [7, 9, 11, 13], rtol=1e-5)
    np.testing.assert_allclose([mean[0], variance[0]], [4, 5], rtol=1e-5)


def test_one_pixel_alone_is_normalised_to_beta_and_has_variance_0():
    outputs, mean, variance = kernels.normalize_by_batch(
        tf.constant([[[[7.0, -2.0]]]]), tf.constant([3.0, 3.0]), tf.constant([10.0, 20.0]), 1e-5
    )
    np.testing.assert_array_equal(np.ravel(outputs), [10, 20])
    np.testing.assert_array_equal(mean, [7, -2])
    np.testing.assert_array_equal(variance, [0, 0])


@pytest.mark.parametrize(("batch", "size", "channels"), SHAPES)
def test_add_bias_equals_the_plain_sum(batch, size, channels):
    arguments = draw(batch, size, size, channels), draw(channels, seed=1)
    check_equal(kernels.add_bias, lambda inputs, bias: inputs + bias, *arguments)


def test_the_form_for_other_backends_gives_the_same(monkeypatch):
    arguments = draw(2, 3, 3, 2), tf.constant([1.0, 2.0]), tf.constant([0.0, 1.0])
    quick = kernels.normalize_by_batch(*arguments, 1e-3)
    biased, wide = kernels.add_bias(*arguments[::2]), draw(5, 5, 2, 1, seed=1)
    convolved = kernels.depthwise_convolution(arguments[0], wide, 2)
    monkeypatch.setattr(kernels, "ON_TENSORFLOW", False)
    for one, other in zip(quick, kernels.normalize_by_batch(*arguments, 1e-3), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_array_equal(kernels.add_bias(*arguments[::2]), biased)
    found = kernels.depthwise_convolution(arguments[0], wide, 2)
    np.testing.assert_allclose(found, convolved, atol=1e-5)
