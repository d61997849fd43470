"""The trunk of what looks at an image and decides: an image in, a few features out."""

from __future__ import annotations

import keras
from keras import ops

from instanas_tf.models.blocks import ConvNorm, image_normalization
from instanas_tf.spaces import controllers


class _ResidualBlock(keras.layers.Layer):
    """Two 3x3 convolutions and a shortcut that is projected, or pooled and padded."""

    def __init__(self, width, stride, projection, bn_momentum, **kwargs):
        super().__init__(**kwargs)
        self.width, self.stride, self.projection = width, stride, projection
        self.bn_momentum = bn_momentum
        self.first = ConvNorm(width, 3, stride, "relu", bn_momentum, name="first")
        self.second = ConvNorm(width, 3, 1, None, bn_momentum, name="second")
        self.pool = keras.layers.AveragePooling2D(stride, padding="same", name="pool")
        self.project = None
        if projection:
            self.project = ConvNorm(width, 1, stride, None, bn_momentum, name="project")

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build(self.first.compute_output_shape(input_shape))
        if self.stride == 1 and input_shape[-1] == self.width:
            self.project = None
        if self.project is not None:
            self.project.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        outputs = self.second(self.first(inputs, training=training), training=training)
        if self.project is not None:
            shortcut = self.project(inputs, training=training)
        else:
            shortcut = self.pool(inputs) if self.stride > 1 else inputs
            missing = self.width - shortcut.shape[-1]
            if missing:
                shortcut = ops.pad(shortcut, [(0, 0), (0, 0), (0, 0), (0, missing)])
        return ops.relu(outputs + shortcut)

    def compute_output_shape(self, input_shape):
        return self.first.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "stride": self.stride,
            "projection": self.projection,
            "bn_momentum": self.bn_momentum,
        }


@keras.saving.register_keras_serializable(package="instanas_tf")
class Trunk(keras.layers.Layer):
    """images [B, H, W, 3] -> features [B, C]: a small residual network up to its pooling.

    Source: the controller of InstaNAS, arXiv 1811.10201, and its official code.

    Args:
        kind: one of `spaces/controllers.py`.
        image_size: height and width of the images, in pixels.
        mean: mean of each colour channel of the training images, 0 to 255.
        std: standard deviation of each colour channel.
        bn_momentum: momentum of the moving statistics.

    Call arguments:
        images: raw pixels 0 to 255.
        training: whether normalisation uses and updates batch statistics.
    """

    def __init__(
        self,
        kind: str,
        image_size: int,
        mean=(127.5,) * 3,
        std=(64.0,) * 3,
        bn_momentum: float = 0.9,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kind, self.image_size = kind, image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.bn_momentum = bn_momentum
        spec = controllers.get(kind, image_size)
        self.front = [image_normalization(mean, [s * s for s in std])]
        if spec.input_pool > 1:
            self.front.append(keras.layers.AveragePooling2D(spec.input_pool, padding="same"))
        self.stem = ConvNorm(
            spec.widths[0], spec.stem_kernel, spec.stem_stride, "relu", bn_momentum, name="stem"
        )
        self.stem_pool = keras.layers.MaxPooling2D(3, 2, padding="same") if spec.stem_pool else None
        self.blocks = [
            _ResidualBlock(width, stride, spec.projection, bn_momentum, name=f"stage_{i}")
            for i, (width, stride) in enumerate(zip(spec.widths, spec.strides, strict=True))
        ]
        self.pool = keras.layers.GlobalAveragePooling2D(name="pool")

    def build(self, input_shape):
        """Makes the weights for inputs of shape [B, H, W, 3]."""
        shape = input_shape
        between = [] if self.stem_pool is None else [self.stem_pool]
        for layer in [*self.front, self.stem, *between, *self.blocks]:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.built = True

    def call(self, images, training=None):
        """See the class."""
        features = images
        for layer in self.front:
            features = layer(features)
        features = self.stem(features, training=training)
        if self.stem_pool is not None:
            features = self.stem_pool(features)
        for block in self.blocks:
            features = block(features, training=training)
        return self.pool(features)

    def compute_output_shape(self, input_shape):
        """Shape of the output for an input shape."""
        return (input_shape[0], self.blocks[-1].width)

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "kind": self.kind,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "bn_momentum": self.bn_momentum,
        }
