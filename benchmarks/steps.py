"""The steps that the benchmarks time: each a function of a batch (images, labels)."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from instanas_tf.latency import LatencyTable
from instanas_tf.models.blocks import image_normalization
from instanas_tf.models.controller import Controller
from instanas_tf.models.expert import static_network
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import sgd
from instanas_tf.pipeline.pretrain import Alone, PathDropout
from instanas_tf.search.instance_aware import InstaNAS, SearchSettings
from instanas_tf.spaces import controllers, size
from instanas_tf.spaces.space import SearchSpace

MEAN, STD = (127.5,) * 3, (64.0,) * 3


class FixedShare(Controller):
    """A controller whose cost is real and whose policies have a known share of ops on."""

    def __init__(self, space, probabilities, **kwargs):
        super().__init__(space, "published", **kwargs)
        self.fixed = tf.constant(probabilities, tf.float32)

    def call(self, images, training=None):
        """The fixed probabilities; the computed ones take part with weight 0."""
        return self.fixed + 0.0 * super().call(images, training=training)


class Unshared(Supernet):
    """Runs two policies side by side, as if the images were others."""

    def both(self, images, first, second):
        """As in `Supernet`, without sharing."""
        pair = ops.concatenate([images, images]), ops.concatenate([first, second])
        return tuple(ops.split(self(pair, training=False), 2))


def table_of(space: SearchSpace) -> LatencyTable:
    """Latencies proportional to MACs; what a step costs does not depend on them."""
    return LatencyTable(
        space=space,
        op_ms=tuple(map(tuple, (size.op_macs(space) / 1e7).tolist())),
        stem_ms=1.0,
        head_ms=1.0,
        controller_ms=1.0,
        controller_kind="published",
    )


def make_batch(space: SearchSpace, count: int, generator: np.random.Generator):
    """Random images [B, H, W, 3] and labels [B]."""
    shape = (count, space.image_size, space.image_size, 3)
    images = tf.constant(generator.uniform(0, 255, shape), tf.float32)
    return images, tf.constant(generator.integers(0, space.num_classes, count))


def make_policies(space: SearchSpace, count: int, keep: float, generator: np.random.Generator):
    """Float32 0/1 [B, L, K], each bit on with probability `keep`."""
    drawn = generator.uniform(size=(count, space.num_cells, space.num_ops))
    return (drawn < keep).astype(np.float32)


def supernet_step(space: SearchSpace, routed: bool, keep: float, seed: int):
    """A training step of a supernet under path dropout."""
    supernet = Supernet(space, routed=routed)
    optimizer = sgd(0.01, 1e-4, supernet.trainable_variables)
    model = PathDropout(supernet, optimizer, (keep, keep), 0.0, 0.0, seed)
    model.keep.assign(keep)
    return tf.function(model.step)


def controller_steps(supernet: Supernet, policies, alphas, seed: int) -> list:
    """Updates of the controller: it runs, and the supernet under two policies an image.

    The controller is sure of `policies`, so these are the greedy ones; in the sampled ones
    a share 1-α of the bits is flipped.

    Args:
        supernet: runs the policies.
        policies: 0/1 [B, L, K].
        alphas: α of each step that is returned.
        seed: of the sampling.
    """
    controller = FixedShare(supernet.space, policies)
    adam = keras.optimizers.Adam(5e-4)
    adam.build(controller.trainable_variables)
    unused = sgd(0.01, 0.0, supernet.trainable_variables)
    settings, table = SearchSettings(alternate="epoch"), table_of(supernet.space)
    model = InstaNAS(supernet, controller, table, settings, adam, unused, 0.0, seed)
    objective = model.objectives()[0]
    update = tf.function(lambda images, labels: model.update(objective, images, labels))

    def step_at(alpha: float):
        def step(images, labels):
            model.alpha.assign(alpha)
            return update(images, labels)

        return step

    return [step_at(alpha) for alpha in alphas]


def evaluation(space: SearchSpace, policies):
    """A forward pass of the routed supernet under policies [B, L, K]."""
    supernet, bits = Supernet(space), tf.constant(policies)
    return tf.function(lambda images, labels: supernet((images, bits), training=False))


def static_steps(network: keras.Model):
    """A training step and a forward pass of a static network."""
    optimizer = sgd(0.01, 1e-4, network.trainable_variables)
    model = Alone(network, optimizer, 0.0, 0.0)
    train = tf.function(model.step)
    forward = tf.function(lambda images, labels: network(images, training=False))
    return train, forward


def reference_network(space: SearchSpace) -> keras.Model:
    """The static reference network (MobileNetV2) out of this project's layers."""
    policy = space.single_op_policy(space.reference_op)
    return static_network(space, policy, MEAN, STD)


def plain_network(space: SearchSpace) -> keras.Model:
    """The same network out of Keras's own layers, as one would write it without us."""

    def normalized(features, convolution, activate=True):
        features = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(convolution(features))
        return layers.ReLU()(features) if activate else features

    def pointwise(channels: int):
        return layers.Conv2D(channels, 1, use_bias=False)

    spec = space.ops[space.op_names.index(space.reference_op)]
    images = keras.Input((space.image_size, space.image_size, 3))
    features = image_normalization(MEAN, [s * s for s in STD])(images)
    stem = layers.Conv2D(space.stem_channels, 3, space.stem_stride, padding="same", use_bias=False)
    features = normalized(features, stem)
    for cell in space.cells:
        depthwise = layers.DepthwiseConv2D(spec.kernel, cell.stride, padding="same", use_bias=False)
        hidden = normalized(features, pointwise(cell.in_channels * spec.expansion))
        hidden = normalized(hidden, depthwise)
        hidden = normalized(hidden, pointwise(cell.out_channels), activate=False)
        features = layers.Add()([hidden, features]) if cell.keeps_shape else hidden
    features = normalized(features, pointwise(space.head_channels))
    features = layers.GlobalAveragePooling2D()(features)
    return keras.Model(images, layers.Dense(space.num_classes)(features))


def macs_ratio(space: SearchSpace, probabilities) -> float:
    """Expected MACs of an image under policies, over those of the reference network.

    Args:
        space: the search space.
        probabilities: of each bit, [L, K] or [B, L, K], or one for all.
    """
    each = np.broadcast_to(probabilities, (space.num_cells, space.num_ops))
    reference = size.policy_macs(space, space.single_op_policy(space.reference_op))
    return size.policy_macs(space, each) / reference


def controller_macs_ratio(space: SearchSpace, greedy, alpha: float, shared: bool, generator):
    """MACs of a controller step over those of two forward passes of the reference network.

    The controller's own gradient counts as two more of its forward passes.

    Args:
        space: the search space.
        greedy: policies 0/1 [B, L, K].
        alpha: the sampled policies differ from them in a share 1-α of the bits.
        shared: whether an image's policies share the cells before they differ.
        generator: of the sampling.
    """
    sampled = np.where(generator.uniform(size=greedy.shape) < alpha, greedy, 1.0 - greedy)
    first, second = space.effective(greedy), space.effective(sampled)
    apart = np.logical_or.accumulate((first != second).any(axis=-1), axis=-1)
    if not shared:
        apart = np.ones_like(apart)
    of_cells = [np.sum(bits * size.op_macs(space), axis=-1) for bits in (first, second)]
    cells = np.mean(np.sum(of_cells[0] + of_cells[1] * apart, axis=-1))
    stem, head = size.stem_size(space).macs, size.head_size(space).macs
    spec = controllers.get("published", space.image_size)
    own = 3 * controllers.controller_size(spec, space).macs
    reference = size.policy_macs(space, space.single_op_policy(space.reference_op))
    return (cells + stem * (1 if shared else 2) + head * 2 + own) / (2 * reference)
