"""The ops as Keras layers: one layer a kind of op, and the parts that they share.

What batch normalisation sees in training mode is the same everywhere: the images that chose
the op, and no others. Routing hands an op only those images, or one stand-in with
`chosen` = 0 if there are none; the masked form hands it all images and says by `chosen`
which count.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from instanas_tf.models import kernels, replicas
from instanas_tf.spaces.space import OpSpec


@keras.saving.register_keras_serializable(package="instanas_tf")
class ChosenBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose training statistics come from the chosen images alone.

    Where no image is chosen the moving statistics stay as they are.

    Call arguments:
        inputs: [B, H, W, C].
        training: whether to normalise by the batch and to update the moving statistics.
        chosen: float 0/1, of shape [B] for each image or of shape [] for all of them
            together; None is 1.
    """

    def call(self, inputs, training=None, chosen=None):
        """Normalises `inputs`; the shape stays [B, H, W, C]."""
        if not (training and self.trainable):
            return super().call(inputs, training=training)
        chosen = ops.ones(()) if chosen is None else chosen
        if len(chosen.shape) == 0 and replicas.count() == 1:
            any_chosen = ops.cast(chosen, "float32")
            outputs, mean, variance = kernels.normalize_by_batch(
                inputs, self.gamma, self.beta, self.epsilon
            )
        else:
            mean, variance, any_chosen = chosen_moments(inputs, chosen)
            outputs = ops.batch_normalization(
                ops.cast(inputs, mean.dtype),
                mean,
                variance,
                -1,
                offset=self.beta,
                scale=self.gamma,
                epsilon=self.epsilon,
            )
            outputs = ops.cast(outputs, inputs.dtype)
        rate = (1.0 - self.momentum) * any_chosen
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign_sub((moving - value) * rate)
        return outputs

    def scale_and_bias(self):
        """The normalisation in inference mode as `x · scale + bias`, [C] each."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        return scale, self.beta - self.moving_mean * scale


def chosen_moments(inputs, chosen):
    """Mean and variance of the chosen images of all replicas.

    Args:
        inputs: [B, H, W, C].
        chosen: float 0/1, [B] or [].

    Returns:
        Mean [C], variance [C], and whether any image is chosen (float 0 or 1); without one
        mean and variance are 0.
    """
    inputs = ops.cast(inputs, "float32")  # Whatever the layers compute in.
    chosen = ops.broadcast_to(ops.cast(chosen, "float32"), ops.shape(inputs)[:1])
    weights = ops.reshape(chosen, (-1, 1, 1, 1))
    height, width = inputs.shape[1:3]
    images = ops.sum(chosen)
    pixels = ops.maximum(images, 1.0) * height * width
    mean = ops.sum(inputs * weights, axis=(0, 1, 2)) / pixels
    variance = ops.sum(ops.square(inputs - mean) * weights, axis=(0, 1, 2)) / pixels
    if replicas.count() > 1:
        own = [images[None], mean * images, (variance + ops.square(mean)) * images]
        images, means, squares = ops.split(
            replicas.total(ops.concatenate(own)), [1, 1 + mean.shape[0]]
        )
        images = images[0]
        mean = means / ops.maximum(images, 1.0)
        variance = squares / ops.maximum(images, 1.0) - ops.square(mean)
        variance = ops.maximum(variance, 0.0)
    return mean, variance, ops.minimum(images, 1.0)


@keras.saving.register_keras_serializable(package="instanas_tf")
class ConvNorm(keras.layers.Layer):
    """Convolution without bias, batch normalisation, activation.

    Args:
        channels: output channels; None for a depthwise convolution.
        kernel: side of the kernel.
        stride: of the convolution; padding is `same`.
        activation: name of a Keras activation, or None.
        bn_momentum: momentum of the moving statistics.

    Call arguments:
        inputs: [B, H, W, C].
        training: see `ChosenBatchNormalization`.
        chosen: see `ChosenBatchNormalization`.
    """

    def __init__(self, channels, kernel=1, stride=1, activation=None, bn_momentum=0.9, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.kernel = kernel
        self.stride = stride
        self.activation = activation
        self.bn_momentum = bn_momentum
        shared = {"strides": stride, "padding": "same", "use_bias": False, "name": "conv"}
        if channels is None:
            self.conv = keras.layers.DepthwiseConv2D(
                kernel, depthwise_initializer="he_normal", **shared
            )
        else:
            self.conv = keras.layers.Conv2D(
                channels, kernel, kernel_initializer="he_normal", **shared
            )
        self.norm = ChosenBatchNormalization(momentum=bn_momentum, epsilon=1e-5, name="norm")
        self.activate = keras.activations.get(activation)

    def build(self, input_shape):
        """Makes the weights for inputs of shape [B, H, W, C]."""
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))
        self.built = True

    def call(self, inputs, training=None, chosen=None):
        """Returns [B, H / stride, W / stride, channels]."""
        if not (training and self.norm.trainable):
            return self.activate(self._convolve_normalized(inputs))
        if self.channels is None:
            outputs = kernels.depthwise_convolution(inputs, self.conv.kernel, self.stride)
        elif self.kernel == self.stride == 1:
            outputs = kernels.pointwise_convolution(inputs, self.conv.kernel)
        else:
            outputs = self.conv(inputs)
        return self.activate(self.norm(outputs, training=training, chosen=chosen))

    def _convolve_normalized(self, inputs):
        """Both in one convolution, in inference mode."""
        scale, bias = (ops.cast(v, inputs.dtype) for v in self.norm.scale_and_bias())
        if self.channels is None:
            kernel = self.conv.kernel * ops.reshape(scale, (-1, 1))
            outputs = ops.depthwise_conv(inputs, kernel, self.stride, padding="same")
        else:
            kernel = self.conv.kernel * scale
            outputs = ops.conv(inputs, kernel, self.stride, padding="same")
        return kernels.add_bias(outputs, bias)

    def compute_output_shape(self, input_shape):
        """Shape of the output for an input shape."""
        return self.conv.compute_output_shape(input_shape)

    def get_config(self):
        """The constructor's arguments."""
        config = {
            "channels": self.channels,
            "kernel": self.kernel,
            "stride": self.stride,
            "activation": self.activation,
            "bn_momentum": self.bn_momentum,
        }
        return {**super().get_config(), **config}


class _Op(keras.layers.Layer):
    """What the kinds of op share: a chain of `ConvNorm`s and a shortcut."""

    def __init__(
        self,
        channels,
        kernel=3,
        expansion=1,
        stride=1,
        shortcut=False,
        bn_momentum=0.9,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = channels
        self.kernel = kernel
        self.expansion = expansion
        self.stride = stride
        self.shortcut = shortcut
        self.bn_momentum = bn_momentum
        self.chain: list[ConvNorm] = []

    def call(self, inputs, training=None, chosen=None):
        """Returns [B, H / stride, W / stride, channels]."""
        outputs = inputs
        for layer in self.chain:
            outputs = layer(outputs, training=training, chosen=chosen)
        return outputs + inputs if self.shortcut else outputs

    def compute_output_shape(self, input_shape):
        """Shape of the output for an input shape."""
        for layer in self.chain:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def _build_chain(self, input_shape):
        for layer in self.chain:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)
        self.built = True

    def get_config(self):
        """The constructor's arguments."""
        config = {
            "channels": self.channels,
            "kernel": self.kernel,
            "expansion": self.expansion,
            "stride": self.stride,
            "shortcut": self.shortcut,
            "bn_momentum": self.bn_momentum,
        }
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="instanas_tf")
class InvertedResidual(_Op):
    """1x1 expansion, depthwise convolution, linear 1x1 projection.

    Source: MobileNetV2, arXiv 1801.04381, section 3.3.

    Args:
        channels: output channels.
        kernel: side of the depthwise kernel.
        expansion: factor of the hidden channels.
        stride: of the depthwise convolution.
        shortcut: whether the input is added to the output.
        bn_momentum: momentum of the moving statistics.
    """

    def build(self, input_shape):
        """Makes the weights for inputs of shape [B, H, W, C]."""
        hidden, momentum = input_shape[-1] * self.expansion, self.bn_momentum
        self.chain = [
            ConvNorm(hidden, 1, 1, "relu", momentum, name="expand"),
            ConvNorm(None, self.kernel, self.stride, "relu", momentum, name="depthwise"),
            ConvNorm(self.channels, 1, 1, None, momentum, name="project"),
        ]
        self._build_chain(input_shape)


@keras.saving.register_keras_serializable(package="instanas_tf")
class BasicBlock(_Op):
    """Two full convolutions, with ReLU and ReLU6 behind them.

    Source: the `basic` op of InstaNAS, arXiv 1811.10201 and its official code.

    Args:
        channels: output channels.
        kernel: side of both kernels.
        expansion: must be 1; there is nothing to expand.
        stride: of the first convolution.
        shortcut: whether the input is added to the output.
        bn_momentum: momentum of the moving statistics.
    """

    def build(self, input_shape):
        """Makes the weights for inputs of shape [B, H, W, C]."""
        momentum = self.bn_momentum
        self.chain = [
            ConvNorm(self.channels, self.kernel, self.stride, "relu", momentum, name="first"),
            ConvNorm(self.channels, self.kernel, 1, "relu6", momentum, name="second"),
        ]
        self._build_chain(input_shape)


LAYERS = {"inverted_residual": InvertedResidual, "basic": BasicBlock}


def make_op(spec: OpSpec, **kwargs: Any) -> keras.layers.Layer:
    """The layer of an op.

    Args:
        spec: which op.
        **kwargs: `channels`, `stride`, `shortcut`, `bn_momentum` and Keras's own.
    """
    return LAYERS[spec.kind](kernel=spec.kernel, expansion=spec.expansion, **kwargs)


def image_normalization(mean, variance) -> keras.layers.Normalization:
    """Per-channel normalisation of raw pixels, part of every model that sees images.

    Args:
        mean: mean of each channel, in raw pixel units (0 to 255).
        variance: variance of each channel, in raw pixel units squared.
    """
    return keras.layers.Normalization(
        axis=-1, mean=list(mean), variance=list(variance), name="normalization"
    )
