"""Run an op only on the images that chose it, or on all of them under a mask.

Both ways give the same outputs, gradients and normalisation statistics. Routing costs a
gather and a scatter and saves the work of the images that did not choose the op; masking
is the slow reference, and the form that accelerators without dynamic shapes need.
"""

from __future__ import annotations

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


def run_routed(op, inputs, chosen, training=None):
    """Gathers the images that chose the op, runs it, scatters the outputs back; TensorFlow only.

    Convolutions on an empty batch are not safe, so when no image chose the op it runs on
    the first image of the batch and the output is multiplied by 0; its normalisation
    statistics stay as they are. (A `tf.cond` would save that work, which is small, and
    more than doubles the time that a supernet takes to trace.)

    Args:
        op: a built Keras layer of `models/blocks.py`, [B, H, W, C] -> [B, H', W', C'].
        inputs: [B, H, W, C].
        chosen: float 0/1 [B].
        training: passed to the op.

    Returns:
        [B, H', W', C'], zero for the images that did not choose the op.
    """
    where = tf.where(chosen > 0.5)
    none = tf.equal(tf.size(where), 0)
    where = tf.concat([where, tf.zeros([tf.cast(none, tf.int32), 1], where.dtype)], axis=0)
    active = 1.0 - tf.cast(none, inputs.dtype)
    outputs = op(tf.gather(inputs, where[:, 0]), training=training, chosen=active) * active
    shape = tf.concat([tf.shape(inputs)[:1], tf.shape(outputs)[1:]], axis=0)
    return tf.scatter_nd(where, outputs, tf.cast(shape, where.dtype))


def run_masked(op, inputs, chosen, training=None):
    """Runs the op on all images and keeps the outputs of those that chose it.

    Args:
        op: a built Keras layer of `models/blocks.py`.
        inputs: [B, H, W, C].
        chosen: float 0/1 [B].
        training: passed to the op.

    Returns:
        [B, H', W', C'], zero for the images that did not choose the op.
    """
    outputs = op(inputs, training=training, chosen=chosen)
    return outputs * ops.reshape(chosen, (-1, 1, 1, 1))
