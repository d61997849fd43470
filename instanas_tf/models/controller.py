"""The controller: one look at an image, one probability for each op of each cell."""

from __future__ import annotations

import keras
from keras import ops

from instanas_tf.models.trunk import Trunk
from instanas_tf.spaces.space import SearchSpace


@keras.saving.register_keras_serializable(package="instanas_tf")
class Controller(keras.Model):
    """images [B, H, W, 3] -> probability of each op [B, L, K].

    Source: InstaNAS, arXiv 1811.10201, section 3.2, and its official code.

    Args:
        space: the search space, or its JSON form.
        kind: one of `spaces/controllers.py`.
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
        size = self.space.image_size
        self.trunk = Trunk(kind, size, mean, std, bn_momentum, name="trunk")
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
        self.trunk.build((None, size, size, 3))
        self.linear.build(self.trunk.compute_output_shape((None, size, size, 3)))
        self.built = True

    def logits(self, images, training=None):
        """Log-odds of each op, [B, L, K]."""
        outputs = self.linear(self.trunk(images, training=training))
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
