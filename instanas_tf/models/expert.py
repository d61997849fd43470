"""Experts: one policy made into a plain static network, whole or in two parts.

A part of a network has the layers of the whole one, by the same names: `copy_layers` takes
the weights across.
"""

from __future__ import annotations

from collections.abc import Iterable

import keras
import numpy as np

from instanas_tf.models.blocks import ConvNorm, image_normalization, make_op
from instanas_tf.models.supernet import (
    Supernet,
    effective_policies,
    has_own_shortcut,
    merge_terms,
)
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
    running = _running(space, policy)
    images = _images(space)
    features = _stem(space, images, mean, std, bn_momentum)
    features = _cells(space, running, features, range(space.num_cells), bn_momentum)
    return keras.Model(images, _head(space, features, bn_momentum), name="expert")


def front_network(
    space: SearchSpace, policy: np.ndarray, mean, std, cells: int, bn_momentum: float = 0.9
) -> keras.Model:
    """The first part of a `static_network`: normalisation, stem and the first cells.

    Args:
        space: the search space.
        policy: 0/1 [L, K].
        mean: mean of each colour channel, 0 to 255.
        std: standard deviation of each colour channel.
        cells: how many cells, 0 to L.
        bn_momentum: momentum of the moving statistics.

    Returns:
        images [B, H, W, 3] of raw pixels -> features [B, h, w, c], the inputs of the
        `rest_network` of the same policy and the same number of cells.

    Raises:
        ValueError: the policy or the number of cells does not fit the space.
    """
    running = _running(space, policy)
    _check_cells(space, cells)
    images = _images(space)
    features = _stem(space, images, mean, std, bn_momentum)
    features = _cells(space, running, features, range(cells), bn_momentum)
    return keras.Model(images, features, name="front")


def rest_network(
    space: SearchSpace, policy: np.ndarray, cells: int, bn_momentum: float = 0.9
) -> keras.Model:
    """The second part of a `static_network`: the other cells, head and classifier.

    Args:
        space: the search space.
        policy: 0/1 [L, K].
        cells: how many cells are left out in front, 0 to L.
        bn_momentum: momentum of the moving statistics.

    Returns:
        features [B, h, w, c] of a `front_network` -> logits [B, N].

    Raises:
        ValueError: the policy or the number of cells does not fit the space.
    """
    running = _running(space, policy)
    _check_cells(space, cells)
    if cells < space.num_cells:
        size, channels = space.cells[cells].size, space.cells[cells].in_channels
    else:
        size, channels = space.cells[-1].out_size, space.cells[-1].out_channels
    inputs = keras.Input((size, size, channels), name="features")
    features = _cells(space, running, inputs, range(cells, space.num_cells), bn_momentum)
    return keras.Model(inputs, _head(space, features, bn_momentum), name="rest")


def shared_cells(policies: np.ndarray, space: SearchSpace) -> int:
    """How many cells, from the first on, run the same ops under all policies.

    Args:
        policies: 0/1 [E, L, K].
        space: the search space; its rule for the empty cell counts.

    Returns:
        0 to L.

    Raises:
        ValueError: the policies have another shape or values other than 0 and 1.
    """
    running = effective_policies(space, policies)
    agree = (running == running[:1]).all(axis=(0, 2))
    return int(np.cumprod(agree).sum())


def _running(space: SearchSpace, policy) -> np.ndarray:
    """The ops [L, K] that run under one policy [L, K], which is checked."""
    policy = np.asarray(policy, np.float32)
    if policy.shape != (space.num_cells, space.num_ops) or not np.isin(policy, (0, 1)).all():
        raise ValueError(
            f"`policy` must be 0/1 of shape ({space.num_cells}, {space.num_ops}). "
            f"Received: shape {policy.shape}, values {np.unique(policy)[:5]}"
        )
    return space.effective(policy)


def _check_cells(space: SearchSpace, cells: int) -> None:
    if not 0 <= cells <= space.num_cells:
        raise ValueError(f"`cells` must be from 0 to {space.num_cells}. Received: cells={cells}")


def _images(space: SearchSpace):
    """The input of a functional model of images."""
    return keras.Input((space.image_size, space.image_size, 3), name="images")


def _stem(space: SearchSpace, images, mean, std, bn_momentum: float):
    """Adds what stands before the cells to a functional model."""
    features = image_normalization(mean, [s * s for s in std])(images)
    return ConvNorm(space.stem_channels, 3, space.stem_stride, "relu", bn_momentum, name="stem")(
        features
    )


def _cells(space: SearchSpace, running, features, positions: Iterable[int], bn_momentum: float):
    """Adds the cells at some positions to a functional model."""
    for position in positions:
        cell, bits = space.cells[position], running[position]
        features = _static_cell(space, cell, bits, features, position, bn_momentum)
    return features


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
    terms, averaged = merge_terms(cell, space.merge, features, outputs)
    if len(terms) == 1:
        return terms[0]
    merge = keras.layers.Average if averaged else keras.layers.Add
    return merge(name=f"cell_{position:02d}_merge")(terms)


def _head(space: SearchSpace, features, bn_momentum: float):
    """Adds what stands behind the cells to a functional model."""
    features = ConvNorm(space.head_channels, 1, 1, "relu", bn_momentum, name="head")(features)
    features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    return keras.layers.Dense(space.num_classes, name="classifier")(features)


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
    copy_layers(supernet, expert)
    return expert


def copy_layers(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of all layers that two networks have by the same name.

    Args:
        source: a supernet, or a network of this module, whole or a part.
        target: a network of this module, whole or a part; other layers of it stay as they
            are.

    Raises:
        ValueError: they share no layer with weights, or a shared one has other shapes.
    """
    found = _named_layers(source)
    shared = [layer for layer in target.layers if layer.weights and layer.name in found]
    if not shared:
        raise ValueError(
            "`source` and `target` must share the name of a layer with weights. Received: "
            f"{sorted(found)} and {[layer.name for layer in target.layers]}"
        )
    for layer in shared:
        layer.set_weights(found[layer.name].get_weights())


def _named_layers(source: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers of a network by the names that they have in a static one."""
    found = {layer.name: layer for layer in source.layers}
    if isinstance(source, Supernet):
        for position, cell in enumerate(source.cells):
            found |= {_layer_name(position, op.name): op for op in cell.candidates}
    return found


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
