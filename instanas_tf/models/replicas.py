"""What the replicas of a model must agree on when a batch is shared out among them.

Within `tf.distribute.Strategy.run` each replica sees its rows of the global batch. These
functions make it compute what one process would compute for the whole batch: random
numbers are drawn for all rows and each replica keeps its own, and means are taken over all
replicas. With one replica, and on other backends than TensorFlow, they do nothing.
"""

from __future__ import annotations

import keras
from keras import ops

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
if ON_TENSORFLOW:
    import tensorflow as tf


def _context():
    """The replica context of TensorFlow if there are several replicas, else None."""
    context = tf.distribute.get_replica_context() if ON_TENSORFLOW else None
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def count() -> int:
    """How many replicas share the batch."""
    context = _context()
    return 1 if context is None else context.num_replicas_in_sync


def total(value):
    """Sum over all replicas; differentiable.

    Args:
        value: a tensor of the same shape on every replica, or a list of such tensors.
    """
    context = _context()
    return value if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def mean(value):
    """Mean over all replicas; differentiable; see `total`."""
    replicas = count()
    if replicas == 1:
        return value
    summed = total(value)
    if isinstance(summed, (list, tuple)):
        return [item / replicas for item in summed]
    return summed / replicas


def all_rows(rows):
    """The rows of the global batch, in order, out of this replica's [B, ...]."""
    context = _context()
    return rows if context is None else context.all_gather(rows, axis=0)


def own_rows(rows):
    """This replica's rows out of those of the global batch."""
    context = _context()
    if context is None:
        return rows
    size = ops.shape(rows)[0] // context.num_replicas_in_sync
    start = context.replica_id_in_sync_group * size
    return rows[start : start + size]


def uniform(shape, seed, low=0.0, high=1.0):
    """Uniform random numbers, one row for each image.

    Args:
        shape: (B, ...), B the images of this replica.
        seed: a `keras.random.SeedGenerator` with the same state on every replica.
        low: least value.
        high: bound of the values.

    Returns:
        [B, ...]: this replica's rows of what is drawn for the global batch.
    """
    rows, *rest = shape
    return own_rows(keras.random.uniform((rows * count(), *rest), low, high, seed=seed))
