"""Routed and masked runs of one op: the same outputs, gradients and statistics."""

import numpy as np
import pytest
import tensorflow as tf

from instanas_tf.models.blocks import BasicBlock, InvertedResidual
from instanas_tf.models.routing import run_masked, run_routed

INPUTS = np.random.default_rng(0).normal(0, 1, (4, 5, 5, 2)).astype(np.float32)
TARGET = np.random.default_rng(1).normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
OPS = {
    "inverted_residual": lambda: InvertedResidual(3, 3, 2, 2),
    "basic": lambda: BasicBlock(3, 3, 1, 2),
}
CHOSEN = [(1, 0, 1, 0), (0, 0, 0, 1), (1, 1, 1, 1), (0, 0, 0, 0)]


def run_op(run, op, chosen, training):
    """Outputs, gradients of the inputs and of all weights, and the statistics after it."""
    inputs = tf.constant(INPUTS)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = run(op, inputs, tf.constant(chosen, tf.float32), training)
        loss = tf.reduce_sum(outputs * TARGET)
    gradients = tape.gradient(loss, [inputs, *op.trainable_weights])
    statistics = [weight.numpy() for weight in op.non_trainable_weights]
    return outputs.numpy(), [tf.convert_to_tensor(g).numpy() for g in gradients], statistics


def both_ways(kind, scramble, chosen, training):
    results = []
    for run in (run_routed, run_masked):
        op = OPS[kind]()
        op.build(INPUTS.shape)
        results.append(run_op(run, scramble(op), chosen, training))
    return results


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize("kind", OPS)
def test_routed_equals_masked(scramble, kind, chosen, training):
    routed, masked = both_ways(kind, scramble, chosen, training)
    for one, other in zip(routed, masked, strict=True):
        for a, b in zip(one, other, strict=True):
            # Both sum the same 32-bit products, in another order.
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    not_chosen = np.array(chosen) == 0
    assert not routed[0][not_chosen].any()
    assert not routed[1][0][not_chosen].any()
    assert routed[0][~not_chosen].any() or not_chosen.all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("run", [run_routed, run_masked])
@pytest.mark.parametrize("kind", OPS)
def test_an_op_that_nobody_chose_changes_nothing(scramble, kind, run, training):
    op = OPS[kind]()
    op.build(INPUTS.shape)
    before = [weight.numpy() for weight in scramble(op).weights]
    outputs, gradients, _ = run_op(run, op, (0, 0, 0, 0), training)
    assert not outputs.any()
    assert not any(gradient.any() for gradient in gradients)
    for old, weight in zip(before, op.weights, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_routing_runs_the_op_on_those_images_alone():
    seen = []

    def op(inputs, training=None, chosen=None):
        seen.append((np.ravel(inputs).tolist(), training, float(chosen)))
        return inputs * 10.0

    inputs = tf.reshape(tf.constant([1.0, 2.0, 3.0]), (3, 1, 1, 1))
    outputs = run_routed(op, inputs, tf.constant([0.0, 1.0, 1.0]), True)
    np.testing.assert_array_equal(np.ravel(outputs), [0, 20, 30])
    outputs = run_routed(op, inputs, tf.constant([0.0, 0.0, 0.0]), False)
    np.testing.assert_array_equal(np.ravel(outputs), [0, 0, 0])
    assert seen == [([2.0, 3.0], True, 1.0), ([1.0], False, 0.0)]


def test_routing_traces_with_any_batch_size():
    op = OPS["basic"]()
    op.build(INPUTS.shape)
    signature = [tf.TensorSpec([None, 5, 5, 2]), tf.TensorSpec([None])]
    run = tf.function(lambda x, chosen: run_routed(op, x, chosen), input_signature=signature)
    whole = run(INPUTS, tf.ones(4))
    np.testing.assert_allclose(run(INPUTS[:1], tf.ones(1)), whole[:1], atol=1e-5)
    assert run(INPUTS[:3], tf.zeros(3)).shape == (3, 3, 3, 3)
