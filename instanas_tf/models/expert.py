"""Experts: one policy made into a plain static network."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import numpy as np

from instanas_tf.models.blocks import ConvNorm, image_normalization, make_op
from instanas_tf.models.supernet import Supernet, has_own_shortcut
from instanas_tf.spaces.space import CellSpec, SearchSpace


def static_network(
    space: SearchSpace, policy: np.ndarray, mean, std, bn_momentum: float = 0.9
) -> keras.Model:
    """A functional model that runs one policy for every image, with fresh weights.

    Args:
        space: the search space.
        policy: 0/1 [L, K].
        mean: mean of each colour channel, 0 to 255.
        std: standard deviation of each colour channel.
        bn_momentum: momentum of the moving statistics.

    Returns:
        images [B, H, W, 3] of raw pixels -> logits [B, N].

    Raises:
        ValueError: the policy has another shape or values other than 0 and 1.
    """
    policy = np.asarray(policy, np.float32)
    if policy.shape != (space.num_cells, space.num_ops) or not np.isin(policy, (0, 1)).all():
        raise ValueError(
            f"`policy` must be 0/1 of shape ({space.num_cells}, {space.num_ops}). "
            f"Received: shape {policy.shape}, values {np.unique(policy)[:5]}"
        )
    size = space.image_size
    images = keras.Input((size, size, 3), name="images")
    features = image_normalization(mean, [s * s for s in std])(images)
    features = ConvNorm(
        space.stem_channels, 3, space.stem_stride, "relu", bn_momentum, name="stem"
    )(features)
    for position, (cell, bits) in enumerate(zip(space.cells, space.effective(policy), strict=True)):
        features = _static_cell(space, cell, bits, features, position, bn_momentum)
    features = ConvNorm(space.head_channels, 1, 1, "relu", bn_momentum, name="head")(features)
    features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    logits = keras.layers.Dense(space.num_classes, name="classifier")(features)
    return keras.Model(images, logits, name="expert")


def _static_cell(
    space: SearchSpace, cell: CellSpec, bits, features, position: int, bn_momentum: float
):
    """Adds one cell, with the ops whose bit is on, to a functional model."""
    outputs = [
        make_op(
            spec,
            channels=cell.out_channels,
            stride=cell.stride,
            shortcut=has_own_shortcut(cell, spec, space.merge),
            bn_momentum=bn_momentum,
            name=_layer_name(position, spec.name),
        )(features)
        for spec, bit in zip(space.ops, bits, strict=True)
        if bit > 0.5
    ]
    if cell.keeps_shape and (space.merge == "shortcut" or not outputs):
        outputs = [features, *outputs]
    if len(outputs) == 1:
        return outputs[0]
    averaged = space.merge == "shortcut" and not cell.keeps_shape
    merge = keras.layers.Average if averaged else keras.layers.Add
    return merge(name=f"cell_{position:02d}_merge")(outputs)


def _layer_name(position: int, op_name: str) -> str:
    return f"cell_{position:02d}_{op_name}"


def build_expert(supernet: Supernet, policy: np.ndarray) -> keras.Model:
    """Freezes one policy into a plain static model with the supernet's weights.

    Args:
        supernet: where the weights come from; they are copied.
        policy: 0/1 [L, K].

    Returns:
        images [B, H, W, 3] of raw pixels -> logits [B, N], equal to what the supernet
        gives for that policy in inference mode.

    Raises:
        ValueError: the policy does not fit the supernet's space.
    """
    expert = static_network(
        supernet.space, policy, supernet.mean, supernet.std, supernet.bn_momentum
    )
    sources = {layer.name: layer for layer in (supernet.stem, supernet.head, supernet.classifier)}
    for position, cell in enumerate(supernet.cells):
        for op in cell.candidates:
            sources[_layer_name(position, op.name)] = op
    for layer in expert.layers:
        if layer.name in sources:
            layer.set_weights(sources[layer.name].get_weights())
    return expert


def recalibrate(expert: keras.Model, batches: Iterable[np.ndarray]) -> None:
    """Sets the normalisation statistics of a network to those of given images.

    In a supernet the statistics are those of many policies mixed; an expert runs one.
    Mean and variance over all images are pooled from the batches' own moments (the law
    of total variance, equal weights), each batch normalised by itself.

    Args:
        expert: a static network; its moving statistics are replaced.
        batches: images [B, H, W, 3] of raw pixels, in batches of equal size.

    Raises:
        ValueError: no batch came, or batches of several sizes.
    """
    norms = [
        layer
        for layer in expert._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    means: list = [0.0] * len(norms)
    squares: list = [0.0] * len(norms)
    sizes = []
    try:
        for norm in norms:
            norm.momentum = 0.0  # So that the moving statistics are those of the last batch.
        for images in batches:
            expert(images, training=True)
            sizes.append(len(images))
            for i, norm in enumerate(norms):
                mean = norm.moving_mean.numpy().astype(np.float64)
                means[i] = means[i] + mean
                squares[i] = squares[i] + norm.moving_variance.numpy() + mean * mean
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if len(set(sizes)) != 1:
        raise ValueError(f"`batches` must be of one size, at least one. Received sizes: {sizes}")
    for i, norm in enumerate(norms):
        mean = means[i] / len(sizes)
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(np.maximum(squares[i] / len(sizes) - mean * mean, 0.0))
