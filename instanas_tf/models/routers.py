"""Routers: one look at an image, one score for each expert.

All keep one contract: `router(inputs, training=None)` gives scores [B, E], in float32. What
the inputs are is the router's own: the image, or features that the experts compute anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from instanas_tf.models.blocks import ConvNorm
from instanas_tf.models.trunk import Trunk

SCORE_STDDEV = 0.01  # Small: the first decisions are a tie, which the price breaks.


class _Router(keras.Model):
    """What the routers share: the last layer, and their size."""

    def __init__(self, experts: int, bn_momentum: float, **kwargs):
        super().__init__(**kwargs)
        _check_positive("experts", experts)
        self.experts = experts
        self.bn_momentum = bn_momentum
        initializer = keras.initializers.RandomNormal(stddev=SCORE_STDDEV)
        self.linear = keras.layers.Dense(experts, kernel_initializer=initializer, name="linear")

    def _score(self, features):
        """Scores [B, E] of features [B, C], in float32 in any precision."""
        return ops.cast(self.linear(features), "float32")


@keras.saving.register_keras_serializable(package="instanas_tf")
class ImageRouter(_Router):
    """images [B, H, W, 3] -> a score for each expert [B, E], by a network of its own.

    Args:
        image_size: height and width of the images, in pixels.
        experts: E.
        kind: one of `spaces/controllers.py`.
        mean: mean of each colour channel of the training images, 0 to 255.
        std: standard deviation of each colour channel.
        bn_momentum: momentum of the moving statistics.

    Call arguments:
        images: raw pixels 0 to 255.
        training: whether normalisation uses and updates batch statistics.

    Raises:
        ValueError: an unknown kind, or a size or a number that is not positive.
    """

    def __init__(
        self,
        image_size: int,
        experts: int,
        kind: str = "small",
        mean=(127.5,) * 3,
        std=(64.0,) * 3,
        bn_momentum: float = 0.9,
        **kwargs,
    ):
        super().__init__(experts, bn_momentum, **kwargs)
        _check_positive("image_size", image_size)
        self.image_size, self.kind = image_size, kind
        self.mean, self.std = tuple(mean), tuple(std)
        self.trunk = Trunk(kind, image_size, mean, std, bn_momentum, name="trunk")
        self.build(None)

    def build(self, input_shape=None):
        """Makes all weights; the constructor knows the shapes."""
        shape = (None, self.image_size, self.image_size, 3)
        self.trunk.build(shape)
        self.linear.build(self.trunk.compute_output_shape(shape))
        self.built = True

    def call(self, images, training=None):
        """See the class."""
        return self._score(self.trunk(images, training=training))

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "experts": self.experts,
            "kind": self.kind,
            "mean": list(self.mean),
            "std": list(self.std),
            "bn_momentum": self.bn_momentum,
        }


@keras.saving.register_keras_serializable(package="instanas_tf")
class FeatureRouter(_Router):
    """features [B, h, w, c] -> a score for each expert [B, E].

    The features are those of the first cells, which the experts share; so the router costs
    one convolution of stride 2. Its mean activations stand beside those of the features.

    Args:
        shape: (h, w, c) of the features.
        experts: E.
        width: channels of the convolution.
        bn_momentum: momentum of the moving statistics.

    Call arguments:
        features: what a `front_network` of `models/expert.py` gives.
        training: whether normalisation uses and updates batch statistics.

    Raises:
        ValueError: a size or a number that is not positive.
    """

    def __init__(
        self,
        shape: Sequence[int],
        experts: int,
        width: int = 32,
        bn_momentum: float = 0.9,
        **kwargs,
    ):
        super().__init__(experts, bn_momentum, **kwargs)
        self.shape, self.width = tuple(shape), width
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"`shape` must be three positive sizes. Received: shape={shape}")
        _check_positive("width", width)
        self.conv = ConvNorm(width, 3, 2, "relu", bn_momentum, name="conv")
        self.pool = keras.layers.GlobalAveragePooling2D(name="pool")
        self.build(None)

    def build(self, input_shape=None):
        """Makes all weights; the constructor knows the shapes."""
        self.conv.build((None, *self.shape))
        self.linear.build((None, self.width + self.shape[-1]))
        self.built = True

    def call(self, features, training=None):
        """See the class."""
        outputs = self.conv(features, training=training)
        return self._score(ops.concatenate([self.pool(outputs), self.pool(features)], axis=-1))

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "shape": list(self.shape),
            "experts": self.experts,
            "width": self.width,
            "bn_momentum": self.bn_momentum,
        }


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
