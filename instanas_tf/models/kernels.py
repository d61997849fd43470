"""The few operations for which a backend has a quicker form than Keras's own.

All of them equal their plain Keras form within rounding; the tests hold it. What each is
worth is in `benchmarks/README.md`. On other backends than TensorFlow the plain form runs.
"""

from __future__ import annotations

import keras
from keras import ops

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
if ON_TENSORFLOW:
    import tensorflow as tf


def pointwise_convolution(inputs, kernel):
    """A 1x1 convolution of stride 1 as one matrix product.

    Args:
        inputs: [B, H, W, C].
        kernel: [1, 1, C, D].

    Returns:
        [B, H, W, D].
    """
    channels, out_channels = kernel.shape[2:]
    rows = ops.reshape(inputs, (-1, channels))
    outputs = ops.matmul(rows, ops.reshape(kernel, (channels, out_channels)))
    return ops.reshape(outputs, (-1, *inputs.shape[1:3], out_channels))


def depthwise_convolution(inputs, kernel, stride: int):
    """A depthwise convolution, padding `same`.

    On CPUs the gradient of a 5x5 kernel is put together of four 3x3 ones: oneDNN has a
    quick form for 3x3 alone, and the one for 5x5 takes ten times the forward pass.

    Args:
        inputs: [B, H, W, C], H = W.
        kernel: [S, S, C, 1].
        stride: of both axes.

    Returns:
        [B, H / stride, W / stride, C].
    """
    in_four = ON_TENSORFLOW and kernel.shape[0] == 5 and not tf.config.list_physical_devices("GPU")
    if not in_four:
        return ops.depthwise_conv(inputs, kernel, stride, padding="same")
    strides = [1, stride, stride, 1]

    @tf.custom_gradient
    def convolve(images, weights):
        def gradient(upstream):
            of_images = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(images),
                filter=weights,
                out_backprop=upstream,
                strides=strides,
                padding="SAME",
            )
            return of_images, _kernel_gradient_in_four(images, upstream, stride)

        return tf.nn.depthwise_conv2d(images, weights, strides, "SAME"), gradient

    return convolve(inputs, tf.convert_to_tensor(kernel))


def _kernel_gradient_in_four(images, upstream, stride: int):
    """Gradient [5, 5, C, 1] of a 5x5 depthwise kernel out of its four 3x3 corners."""
    size, channels = images.shape[1], images.shape[-1]
    out_size = -(-size // stride)
    before, odd = divmod(max((out_size - 1) * stride + 5 - size, 0), 2)
    padding = [before, before + odd]
    with tf.control_dependencies([upstream]):  # Else all are padded early, and held for long.
        padded = tf.pad(images, [[0, 0], padding, padding, [0, 0]])
    window = (out_size - 1) * stride + 3

    def corner(row: int, column: int):
        return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=padded[:, row : row + window, column : column + window],
            filter_sizes=[3, 3, channels, 1],
            out_backprop=upstream,
            strides=[1, stride, stride, 1],
            padding="VALID",
        )

    upper, lower = (tf.concat([corner(row, 0), corner(row, 2)[:, 1:]], axis=1) for row in (0, 2))
    return tf.concat([upper, lower[1:]], axis=0)


def normalize_by_batch(inputs, gamma, beta, epsilon: float):
    """Batch normalisation by the batch's own statistics.

    Args:
        inputs: [B, H, W, C].
        gamma: [C].
        beta: [C].
        epsilon: added to the variance.

    Returns:
        Outputs [B, H, W, C], mean [C] and (biased) variance [C].
    """
    if not ON_TENSORFLOW:
        exact = ops.cast(inputs, "float32")
        mean, variance = ops.moments(exact, axes=(0, 1, 2))
        outputs = ops.batch_normalization(
            exact, mean, variance, -1, offset=beta, scale=gamma, epsilon=epsilon
        )
        return ops.cast(outputs, inputs.dtype), mean, variance
    empty = tf.zeros([0])
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=empty, variance=empty, epsilon=epsilon
    )
    # The kernel reports the unbiased variance.
    count = ops.cast(ops.size(inputs) // inputs.shape[-1], "float32")
    return outputs, mean, variance * (1.0 - 1.0 / count)


def add_bias(inputs, bias):
    """Adds [C] to [B, H, W, C], in the form that TensorFlow fuses with the convolution."""
    return tf.nn.bias_add(inputs, bias) if ON_TENSORFLOW else inputs + bias
