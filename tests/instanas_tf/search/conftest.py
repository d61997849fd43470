"""A search whose optimum is known: 2 cells of 2 ops, and images that are dark or bright.

A dark image is answered right iff any op of cell 0 is on. A bright one is answered right iff
cell 0 is empty and the second op of cell 1 is on. So no policy is right for both.
"""

import keras
import numpy as np
import pytest
from keras import ops

from instanas_tf.latency import LatencyTable
from instanas_tf.search.instance_aware import InstaNAS, SearchSettings
from instanas_tf.spaces.space import CellSpec, OpSpec, SearchSpace


class Oracle(keras.Model):
    """(images, policy) -> logits by the rule above; its one weight only sharpens them."""

    def __init__(self):
        super().__init__()
        self.sharpness = self.add_weight(shape=(), initializer="zeros", name="sharpness")
        self.built = True
        self.seen = []

    def call(self, inputs, training=None):
        images, policy = inputs
        self.seen.append((policy, training))
        bright = images[:, 0, 0, 0] / 255.0
        first = ops.max(policy[:, 0], axis=-1)
        right = (1.0 - bright) * first + bright * (1.0 - first) * policy[:, 1, 1]
        towards = (2.0 * right - 1.0) * ops.exp(self.sharpness)
        return ops.stack([(1.0 - bright) * towards, bright * towards], axis=1)

    def both(self, images, first, second):
        return self((images, first), training=False), self((images, second), training=False)


class Eye(keras.Model):
    """images -> probabilities: four free log-odds for dark images, four for bright ones."""

    def __init__(self):
        super().__init__()
        self.log_odds = keras.layers.Dense(4, use_bias=False, kernel_initializer="zeros")
        self.log_odds.build((None, 2))
        self.built = True

    def call(self, images, training=None):
        bright = images[:, :1, 0, 0] / 255.0
        logits = self.log_odds(ops.concatenate([1.0 - bright, bright], axis=1))
        return ops.sigmoid(ops.reshape(logits, (-1, 2, 2)))


@pytest.fixture(scope="session")
def toy_table():
    """Stem and head cost 1 ms together, the controller 1 ms, the ops 6, 1, 2 and 4 ms."""
    cells = (CellSpec(8, 8, 1, 4),) * 2
    names = ("ir3_e6", "ir3_e3")
    op_specs = tuple(OpSpec(name, "inverted_residual", 3, int(name[-1])) for name in names)
    space = SearchSpace("toy", 4, 8, 1, cells, op_specs, "ir3_e3", 8, 2)
    return LatencyTable(space, ((6.0, 1.0), (2.0, 4.0)), 0.5, 0.5, 1.0, "eye")


@pytest.fixture(scope="session")
def toy_images():
    """16 dark images of class 0, then 16 bright ones of class 1."""
    labels = np.repeat([0, 1], 16)
    return np.full((32, 4, 4, 3), 255.0, np.float32) * labels[:, None, None, None], labels


@pytest.fixture(scope="session")
def make_toy(toy_table):
    """Makes an InstaNAS on the toy problem; keywords are settings."""

    def make(seed=0, rate=0.05, **settings):
        oracle, eye = Oracle(), Eye()
        adam, sgd = keras.optimizers.Adam(rate), keras.optimizers.SGD(0.1)
        adam.build(eye.trainable_variables)
        sgd.build(oracle.trainable_variables)
        plain = {"diversity_weight": 0.0, **settings}
        return InstaNAS(oracle, eye, toy_table, SearchSettings(**plain), adam, sgd, 0.0, seed)

    return make
