"""The controller: one look at an image, one probability for each op of each cell."""

from __future__ import annotations

import keras
from keras import ops

from instanas_tf.models.blocks import ConvNorm, image_normalization
from instanas_tf.spaces import controllers
from instanas_tf.spaces.space import SearchSpace


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

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "stride": self.stride,
            "projection": self.projection,
            "bn_momentum": self.bn_momentum,
        }


@keras.saving.register_keras_serializable(package="instanas_tf")
class Controller(keras.Model):
    """images [B, H, W, 3] -> probability of each op [B, L, K].

    Source: InstaNAS, arXiv 1811.10201, section 3.2, and its official code.

    Args:
        space: the search space, or its JSON form.
        kind: `small` or `published`; see `spaces/controllers.py`.
        mean: mean of each colour channel of the training images, 0 to 255.
        std: standard deviation of each colour channel.
        logit_stddev: standard deviation of the last layer's initial weights, which sets
            how much the first policies differ between images; 0 takes Keras's default.
        bn_momentum: momentum of the moving statistics.

    Call arguments:
        images: raw pixels 0 to 255.
        training: whether normalisation uses and updates batch statistics.
    """

    def __init__(
        self,
        space: SearchSpace,
        kind: str = "small",
        mean=(127.5,) * 3,
        std=(64.0,) * 3,
        logit_stddev: float = 0.0,
        bn_momentum: float = 0.9,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.space = space if isinstance(space, SearchSpace) else SearchSpace.from_json(space)
        self.kind = kind
        self.mean, self.std = tuple(mean), tuple(std)
        self.logit_stddev = logit_stddev
        self.bn_momentum = bn_momentum
        spec = controllers.get(kind, self.space.image_size)
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
        initializer = (
            keras.initializers.RandomNormal(stddev=logit_stddev)
            if logit_stddev > 0
            else "glorot_uniform"
        )
        self.linear = keras.layers.Dense(
            self.space.num_cells * self.space.num_ops,
            kernel_initializer=initializer,
            name="linear",
        )
        self.build(None)

    def build(self, input_shape=None):
        """Makes all weights; the space knows the shapes."""
        size = self.space.image_size
        shape = (None, size, size, 3)
        chain = [*self.front, self.stem]
        chain += [self.stem_pool] if self.stem_pool is not None else []
        for layer in [*chain, *self.blocks]:
            layer.build(shape)
            if isinstance(layer, _ResidualBlock):
                shape = layer.first.compute_output_shape(shape)
            else:
                shape = layer.compute_output_shape(shape)
        self.linear.build((None, shape[-1]))
        self.built = True

    def logits(self, images, training=None):
        """Log-odds of each op, [B, L, K]."""
        features = images
        for layer in self.front:
            features = layer(features)
        features = self.stem(features, training=training)
        if self.stem_pool is not None:
            features = self.stem_pool(features)
        for block in self.blocks:
            features = block(features, training=training)
        outputs = self.linear(self.pool(features))
        return ops.reshape(outputs, (-1, self.space.num_cells, self.space.num_ops))

    def call(self, images, training=None):
        """See the class."""
        return ops.sigmoid(self.logits(images, training=training))

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "space": self.space.to_json(),
            "kind": self.kind,
            "mean": list(self.mean),
            "std": list(self.std),
            "logit_stddev": self.logit_stddev,
            "bn_momentum": self.bn_momentum,
        }
