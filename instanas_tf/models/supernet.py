"""The supernet: one network that holds every candidate op with shared weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from instanas_tf.models import routing
from instanas_tf.models.blocks import ConvNorm, image_normalization, make_op
from instanas_tf.spaces.space import CellSpec, OpSpec, SearchSpace


class Cell(keras.layers.Layer):
    """One position of the backbone: its candidate ops and how their outputs are merged.

    Args:
        cell: channels, stride and size.
        op_specs: the K candidates.
        merge: `sum` or `shortcut`; see `SearchSpace`.
        routed: run each op only on the images that chose it, else on all under a mask.
        bn_momentum: momentum of the moving statistics.
    """

    def __init__(
        self,
        cell: CellSpec,
        op_specs: tuple[OpSpec, ...],
        merge: str,
        routed: bool = True,
        bn_momentum: float = 0.9,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.cell, self.op_specs = cell, tuple(op_specs)
        self.merge = merge
        self.routed = routed
        self.bn_momentum = bn_momentum
        self.run = routing.run_routed if routed else routing.run_masked
        self.candidates = [
            make_op(
                spec,
                channels=cell.out_channels,
                stride=cell.stride,
                shortcut=has_own_shortcut(cell, spec, merge),
                bn_momentum=bn_momentum,
                name=spec.name,
            )
            for spec in op_specs
        ]

    def build(self, input_shape):
        """Makes the weights of all ops for inputs of shape [B, H, W, C]."""
        for op in self.candidates:
            op.build(input_shape)
        self.built = True

    def call(self, inputs, bits, training=None):
        """Runs the ops that are on.

        Args:
            inputs: [B, H, W, C].
            bits: float 0/1 [B, K], after the rule for the empty cell.
            training: whether normalisation uses and updates batch statistics.

        Returns:
            [B, H', W', C'].
        """
        total = 0.0
        for k, op in enumerate(self.candidates):
            total = total + self.run(op, inputs, bits[:, k], training)
        if not self.cell.keeps_shape:
            if self.merge == "sum":
                return total
            count = ops.maximum(ops.sum(bits, axis=-1), 1.0)  # 0: nobody looks at the outputs.
            return total / ops.reshape(count, (-1, 1, 1, 1))
        if self.merge == "shortcut":
            return inputs + total
        empty = 1.0 - ops.max(bits, axis=-1)
        return total + inputs * ops.reshape(empty, (-1, 1, 1, 1))

    def run_static(self, inputs, bits: np.ndarray, training=None):
        """Runs the same ops on all images, and no others: no gather and no mask.

        Args:
            inputs: [B, H, W, C].
            bits: 0/1 [K], after the rule for the empty cell.
            training: whether normalisation uses and updates batch statistics.

        Returns:
            [B, H', W', C'].
        """
        outputs = [
            op(inputs, training=training)
            for op, bit in zip(self.candidates, bits, strict=True)
            if bit > 0.5
        ]
        terms, averaged = merge_terms(self.cell, self.merge, inputs, outputs)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total / len(terms) if averaged else total

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "cell": dataclasses.asdict(self.cell),
            "op_specs": [dataclasses.asdict(spec) for spec in self.op_specs],
            "merge": self.merge,
            "routed": self.routed,
            "bn_momentum": self.bn_momentum,
        }

    @classmethod
    def from_config(cls, config):
        """The inverse of `get_config`."""
        cell = CellSpec(**config.pop("cell"))
        op_specs = tuple(OpSpec(**spec) for spec in config.pop("op_specs"))
        return cls(cell, op_specs, **config)


def has_own_shortcut(cell: CellSpec, spec: OpSpec, merge: str) -> bool:
    """Whether an op adds its input to its output by itself."""
    return merge == "sum" and cell.keeps_shape and spec.kind == "inverted_residual"


def merge_terms(cell: CellSpec, merge: str, inputs: Any, outputs: list) -> tuple[list, bool]:
    """How a cell whose ops are known beforehand merges them.

    Args:
        cell: the cell.
        merge: `sum` or `shortcut`; see `SearchSpace`.
        inputs: what enters the cell, [B, H, W, C].
        outputs: [B, H', W', C'] of each op that is on, after the rule for the empty cell.

    Returns:
        The tensors to add up, and whether their mean is taken instead of their sum.
    """
    if cell.keeps_shape and (merge == "shortcut" or not outputs):
        outputs = [inputs, *outputs]
    return outputs, merge == "shortcut" and not cell.keeps_shape


@keras.saving.register_keras_serializable(package="instanas_tf")
class Supernet(keras.Model):
    """(images, policy) -> logits, running for each image only the ops that are on.

    Source: InstaNAS, arXiv 1811.10201, section 3; a policy is any subset of the ops of
    each cell. It is an argument, never state of the network.

    Args:
        space: the search space, or its JSON form.
        mean: mean of each colour channel of the training images, 0 to 255.
        std: standard deviation of each colour channel.
        routed: False runs every op on every image under a mask; same results, slower.
        bn_momentum: momentum of the moving statistics.

    Call arguments:
        inputs: the pair (images [B, H, W, 3] of raw pixels 0 to 255, policy [B, L, K]).
        training: whether normalisation uses and updates batch statistics.

    Returns:
        Logits [B, N].
    """

    def __init__(
        self,
        space: SearchSpace,
        mean=(127.5,) * 3,
        std=(64.0,) * 3,
        routed: bool = True,
        bn_momentum: float = 0.9,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.space = space if isinstance(space, SearchSpace) else SearchSpace.from_json(space)
        self.mean, self.std = tuple(mean), tuple(std)
        self.routed = routed
        self.bn_momentum = bn_momentum
        self.normalization = image_normalization(mean, [s * s for s in std])
        self.stem = ConvNorm(
            self.space.stem_channels, 3, self.space.stem_stride, "relu", bn_momentum, name="stem"
        )
        self.cells = [
            Cell(cell, self.space.ops, self.space.merge, routed, bn_momentum, name=f"cell_{i:02d}")
            for i, cell in enumerate(self.space.cells)
        ]
        self.head = ConvNorm(self.space.head_channels, 1, 1, "relu", bn_momentum, name="head")
        self.pool = keras.layers.GlobalAveragePooling2D(name="pool")
        self.classifier = keras.layers.Dense(self.space.num_classes, name="classifier")
        self.build(None)

    def build(self, input_shape=None):
        """Makes all weights; the space knows the shapes."""
        size = self.space.image_size
        self.normalization.build((None, size, size, 3))
        self.stem.build((None, size, size, 3))
        for layer, cell in zip(self.cells, self.space.cells, strict=True):
            layer.build((None, cell.size, cell.size, cell.in_channels))
        last = self.space.cells[-1]
        self.head.build((None, last.out_size, last.out_size, last.out_channels))
        self.classifier.build((None, self.space.head_channels))
        self.built = True

    def call(self, inputs, training=None):
        """See the class."""
        images, policy = inputs
        running = self.space.effective(policy)
        features = self.stem(self.normalization(images), training=training)
        for position, cell in enumerate(self.cells):
            features = cell(features, running[:, position], training=training)
        return self._classify(features, training)

    def both(self, images, first, second):
        """What `call` gives for two policies in inference mode, in one pass.

        As long as the two policies of an image agree, its features are computed once.

        Args:
            images: [B, H, W, 3] of raw pixels 0 to 255.
            first: policy [B, L, K].
            second: policy [B, L, K].

        Returns:
            Logits of the first and of the second, [B, N] each.
        """
        first, second = self.space.effective(first), self.space.effective(second)
        differs = ops.any(ops.not_equal(first, second), axis=-1)
        differs = ops.cumsum(ops.cast(differs, first.dtype), axis=-1) > 0.5
        half = ops.shape(images)[0]
        features = self.stem(self.normalization(images), training=False)
        features = ops.concatenate([features, features])
        for position, cell in enumerate(self.cells):
            apart = differs[:, position]
            bits = second[:, position] * ops.cast(apart, second.dtype)[:, None]
            features = cell(features, ops.concatenate([first[:, position], bits]), training=False)
            shared, own = features[:half], features[half:]
            own = ops.where(ops.reshape(apart, (-1, 1, 1, 1)), own, shared)
            features = ops.concatenate([shared, own])
        logits = self._classify(features, training=False)
        return logits[:half], logits[half:]

    def together(self, images, policies: np.ndarray, training=None) -> list:
        """Logits of several policies, each for all images.

        In inference mode they equal what `call` gives. An op that is on sees the whole batch;
        cells that several policies share from the front on are computed once, and in training
        mode move their statistics once.

        Args:
            images: [B, H, W, 3] of raw pixels 0 to 255.
            policies: 0/1 [E, L, K], known beforehand: plain numbers, no tensor.
            training: whether normalisation uses and updates batch statistics.

        Returns:
            Logits [B, N] for each of the E policies.

        Raises:
            ValueError: the policies have another shape or values other than 0 and 1.
        """
        running = effective_policies(self.space, policies)
        features = self.stem(self.normalization(images), training=training)
        return self._branch(features, running, 0, training)

    def variables_of(self, policies: np.ndarray) -> list:
        """Trainable variables that `together` uses for some policies [E, L, K]."""
        on = effective_policies(self.space, policies).max(axis=0)
        layers = [self.stem]
        for cell, bits in zip(self.cells, on, strict=True):
            layers += [op for op, bit in zip(cell.candidates, bits, strict=True) if bit > 0.5]
        layers += [self.head, self.classifier]
        return [variable for layer in layers for variable in layer.trainable_variables]

    def _branch(self, features, running: np.ndarray, position: int, training) -> list:
        """Logits for each of `running` [E, L, K], which agree in the cells before `position`."""
        if position == self.space.num_cells:
            return [self._classify(features, training)] * len(running)
        groups: dict[tuple, list[int]] = {}
        for index, bits in enumerate(running[:, position]):
            groups.setdefault(tuple(bits), []).append(index)
        found: list = [None] * len(running)
        for bits, members in groups.items():
            outputs = self.cells[position].run_static(features, np.array(bits), training)
            logits = self._branch(outputs, running[members], position + 1, training)
            for index, value in zip(members, logits, strict=True):
                found[index] = value
        return found

    def _classify(self, features, training):
        """Logits [B, N] of the last cell's features, in float32 in any precision."""
        logits = self.classifier(self.pool(self.head(features, training=training)))
        return ops.cast(logits, "float32")

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "space": self.space.to_json(),
            "mean": list(self.mean),
            "std": list(self.std),
            "routed": self.routed,
            "bn_momentum": self.bn_momentum,
        }


def effective_policies(space: SearchSpace, policies: np.ndarray) -> np.ndarray:
    """The ops that really run under policies that are known beforehand.

    Args:
        space: the search space.
        policies: 0/1 [E, L, K].

    Returns:
        Float32 0/1 [E, L, K].

    Raises:
        ValueError: the policies have another shape or values other than 0 and 1.
    """
    policies = np.asarray(policies, np.float32)
    cells, candidates = space.num_cells, space.num_ops
    fits = policies.ndim == 3 and policies.shape[1:] == (cells, candidates) and len(policies) > 0
    if not fits or not np.isin(policies, (0, 1)).all():
        raise ValueError(
            f"`policies` must be 0/1 of shape (E, {cells}, {candidates}), E at least 1. "
            f"Received: shape {policies.shape}, values {np.unique(policies)[:5]}"
        )
    return space.effective(policies)
