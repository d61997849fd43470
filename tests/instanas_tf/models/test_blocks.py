"""The layers of the ops: literal outputs, and the shared runner for layers."""

import keras
import numpy as np
import pytest

from instanas_tf.models.blocks import (
    BasicBlock,
    ChosenBatchNormalization,
    ConvNorm,
    InvertedResidual,
    image_normalization,
    make_op,
)
from instanas_tf.spaces.space import OpSpec


# Parameters: weights of the convolutions and 4 numbers a channel of normalisation.
@pytest.mark.parametrize(
    ("layer", "size", "output_shape", "params"),
    [
        (ConvNorm(4, 3, 2, "relu", 0.5, name="conv_norm"), 5, (2, 3, 3, 4), 9 * 2 * 4 + 16),
        (ConvNorm(None, 3, 1, "relu6"), 5, (2, 5, 5, 2), 9 * 2 + 8),
        (
            InvertedResidual(4, 5, 3, 2),
            5,
            (2, 3, 3, 4),
            2 * 6 + 24 + 25 * 6 + 24 + 6 * 4 + 16,
        ),
        (
            InvertedResidual(2, 3, 6, 1, shortcut=True),
            4,
            (2, 4, 4, 2),
            2 * 12 + 48 + 9 * 12 + 48 + 12 * 2 + 8,
        ),
        (BasicBlock(4, 3, 1, 2), 7, (2, 4, 4, 4), 9 * 2 * 4 + 16 + 9 * 4 * 4 + 16),
        (BasicBlock(2, 3, shortcut=True), 1, (2, 1, 1, 2), 2 * (9 * 2 * 2 + 8)),
        (ChosenBatchNormalization(momentum=0.5), 3, (2, 3, 3, 2), 8),
    ],
    ids=["conv", "depthwise", "ir5_e3", "ir3_e6", "basic", "basic_shortcut", "norm"],
)
def test_layers(check_layer, tmp_path, layer, size, output_shape, params):
    check_layer(layer, (2, size, size, 2), output_shape, params, tmp_path)


@pytest.mark.parametrize(
    ("spec", "kind", "hidden"),
    [
        (OpSpec("x", "inverted_residual", 5, 3), InvertedResidual, (5, 5, 12, 1)),
        (OpSpec("y", "basic", 3), BasicBlock, (3, 3, 2, 2)),
    ],
)
def test_make_op_makes_the_layer_of_a_spec(spec, kind, hidden):
    op = make_op(spec, channels=2, stride=2, shortcut=False, bn_momentum=0.7, name=spec.name)
    op.build((None, 4, 4, 4))
    assert type(op) is kind
    assert op.name == spec.name
    assert op.chain[1].conv.kernel.shape == hidden
    assert [part.bn_momentum for part in op.chain] == [0.7] * len(op.chain)
    assert op.compute_output_shape((None, 4, 4, 4)) == (None, 2, 2, 2)


def fill(op, value):
    """Sets every kernel to `value`; normalisation stays the identity but for its epsilon."""
    for layer in op.chain:
        layer.conv.set_weights([np.full_like(layer.conv.get_weights()[0], value)])


def test_an_inverted_residual_adds_its_input_only_with_a_shortcut():
    inputs = np.full((1, 1, 1, 1), 2.0, np.float32)
    # 2 -> relu(1 * 2) = 2 -> depthwise, centre of the kernel only: 2 -> linear: 2.
    for shortcut, expected in ((False, 2.0), (True, 4.0)):
        op = InvertedResidual(1, 3, 1, 1, shortcut=shortcut)
        op.build(inputs.shape)
        fill(op, 1.0)
        np.testing.assert_allclose(op(inputs), [[[[expected]]]], rtol=1e-4)
    # -2 is cut off by the first ReLU.
    np.testing.assert_allclose(op(-inputs), [[[[-2.0]]]], rtol=1e-4)


def test_a_basic_block_ends_in_relu6():
    op = BasicBlock(1)
    op.build((1, 1, 1, 1))
    fill(op, 2.0)
    # 1 -> 2 -> 4; 5 -> 10 -> 20, cut off at 6; -1 -> 0.
    for value, expected in ((1.0, 4.0), (5.0, 6.0), (-1.0, 0.0)):
        found = op(np.full((1, 1, 1, 1), value, np.float32))
        np.testing.assert_allclose(found, [[[[expected]]]], rtol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride"),
    [(4, 1, 1), (4, 3, 2), (3, 1, 2), (None, 3, 1), (None, 5, 2)],
)
def test_inference_in_one_convolution_equals_convolution_then_normalisation(
    scramble, channels, kernel, stride, frozen
):
    layer = ConvNorm(channels, kernel, stride, "relu6")
    inputs = np.random.default_rng(4).normal(0, 1, (2, 5, 5, 3)).astype(np.float32)
    layer.build(inputs.shape)
    scramble(layer)
    # A frozen normalisation uses its moving statistics in training too.
    layer.norm.trainable = not frozen
    found = layer(inputs, training=frozen)
    gamma, beta, mean, variance = layer.norm.get_weights()
    normalized = (layer.conv(inputs) - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    np.testing.assert_allclose(found, np.clip(normalized, 0, 6), atol=1e-5)


def norm_of(values, chosen, training=True):
    """Normalises one number an image; momentum 0.5. Returns the outputs and the statistics."""
    norm = ChosenBatchNormalization(momentum=0.5, epsilon=1e-5)
    norm.build((None, 1, 1, 1))
    inputs = np.array(values, np.float32).reshape(-1, 1, 1, 1)
    outputs = norm(inputs, training=training, chosen=chosen)
    statistics = [norm.moving_mean.numpy().item(), norm.moving_variance.numpy().item()]
    return np.ravel(outputs), statistics


def test_statistics_come_from_the_chosen_images_alone():
    # Mean and variance of 1 and 3 are 2 and 1; the 100 that was not chosen plays no part.
    outputs, statistics = norm_of([1, 100, 3], np.array([1, 0, 1], np.float32))
    np.testing.assert_allclose(outputs[[0, 2]], [-1, 1], atol=1e-4)
    np.testing.assert_allclose(statistics, [0.5 * 0 + 0.5 * 2, 0.5 * 1 + 0.5 * 1], atol=1e-5)


@pytest.mark.parametrize("chosen", [None, np.float32(1), np.ones(2, np.float32)])
def test_all_chosen_is_ordinary_normalisation(chosen):
    # Mean 5, variance 16.
    outputs, statistics = norm_of([1, 9], chosen)
    np.testing.assert_allclose(outputs, [-1, 1], atol=1e-4)
    np.testing.assert_allclose(statistics, [2.5, 8.5], atol=1e-4)


@pytest.mark.parametrize("chosen", [np.float32(0), np.zeros(2, np.float32)])
def test_without_a_chosen_image_the_statistics_stay(chosen):
    outputs, statistics = norm_of([1, 9], chosen)
    assert np.isfinite(outputs).all()
    assert statistics == [0.0, 1.0]


def test_inference_ignores_who_is_chosen():
    outputs, statistics = norm_of([1, 9], np.array([1, 0], np.float32), training=False)
    np.testing.assert_allclose(outputs, [1, 9], rtol=1e-4)
    assert statistics == [0.0, 1.0]


def test_a_frozen_normalisation_stays_as_it_is():
    norm = ChosenBatchNormalization()
    norm.build((None, 1, 1, 1))
    norm.trainable = False
    inputs = np.array([1, 9], np.float32).reshape(2, 1, 1, 1)
    for chosen in (None, np.float32(1), np.ones(2, np.float32)):
        outputs = norm(inputs, training=True, chosen=chosen)
        np.testing.assert_allclose(np.ravel(outputs), [1, 9], rtol=1e-3)
    assert (norm.moving_mean.numpy().item(), norm.moving_variance.numpy().item()) == (0.0, 1.0)


def test_image_normalization_is_by_channel():
    layer = image_normalization((10.0, 20.0, 30.0), (4.0, 9.0, 16.0))
    found = layer(np.array([[[[12.0, 20.0, 22.0]]]], np.float32))
    np.testing.assert_allclose(found, [[[[1.0, 0.0, -2.0]]]], atol=1e-6)
    model = keras.Sequential([keras.Input((1, 1, 3)), layer])
    assert model.count_params() == 0
