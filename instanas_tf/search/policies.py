"""Policies as tensors: probabilities to bits and what is computed of them.

Shapes: B images, L cells, K ops. Source unless said otherwise: InstaNAS, arXiv 1811.10201,
section 3.3, and its official code.
"""

from __future__ import annotations

import keras
from keras import ops

from instanas_tf.models import replicas

_TINY = 1e-6


def mix(probabilities, alpha):
    """The exploration bound p' = αp + (1-α)(1-p).

    Args:
        probabilities: p, [B, L, K].
        alpha: share of p, 0.5 to 1; every bit keeps a chance of at least 1-α.

    Returns:
        p', [B, L, K].
    """
    return alpha * probabilities + (1.0 - alpha) * (1.0 - probabilities)


def sample(probabilities, seed):
    """Draws each bit by itself: a ~ Bernoulli(p).

    Args:
        probabilities: [B, L, K].
        seed: a `keras.random.SeedGenerator`.

    Returns:
        Float 0/1 [B, L, K], without gradient.
    """
    uniform = replicas.uniform(ops.shape(probabilities), seed)
    return ops.stop_gradient(ops.cast(uniform < probabilities, probabilities.dtype))


def greedy(probabilities):
    """The bits that are more likely on than off: 1[p ≥ 0.5]; used when not training.

    Args:
        probabilities: [B, L, K].

    Returns:
        Float 0/1 [B, L, K], without gradient.
    """
    return ops.stop_gradient(ops.cast(probabilities >= 0.5, probabilities.dtype))


def log_probability(policy, probabilities):
    """Log-likelihood of a policy under independent bits.

    Args:
        policy: 0/1 [B, L, K].
        probabilities: [B, L, K].

    Returns:
        Σ log p(a) over cells and ops, [B].
    """
    likelihood = policy * probabilities + (1.0 - policy) * (1.0 - probabilities)
    return ops.sum(ops.log(ops.maximum(likelihood, _TINY)), axis=(-2, -1))


def entropy(probabilities, half: bool = False):
    """Entropy of independent bits in nats, summed over cells and ops.

    Args:
        probabilities: [..., L, K].
        half: only the published term -p log p, which favours bits that are off.

    Returns:
        [...].
    """
    p = ops.clip(probabilities, _TINY, 1.0 - _TINY)
    terms = -p * ops.log(p)
    if not half:
        terms = terms - (1.0 - p) * ops.log(1.0 - p)
    return ops.sum(terms, axis=(-2, -1))


def diversity(probabilities, ratio: float):
    """H(mean p) - ratio · mean H(p): high when images are decided, and decided differently.

    Without the ratio it is the mutual information of image and policy (bits independent);
    a ratio above 1 also makes each image's own policy sharp.

    Args:
        probabilities: [B, L, K].
        ratio: weight of the mean entropy.

    Returns:
        Scalar, in nats.
    """
    of_mean = entropy(replicas.mean(ops.mean(probabilities, axis=0)))
    return of_mean - ratio * ops.mean(entropy(probabilities))


def shuffle(policy, seed):
    """Permutes whole policies within the batch ("policy shuffling").

    Args:
        policy: [B, L, K].
        seed: a `keras.random.SeedGenerator`.

    Returns:
        The same policies in another order, [B, L, K].
    """
    everybodys = replicas.all_rows(policy)
    order = ops.argsort(keras.random.uniform((ops.shape(everybodys)[0],), seed=seed))
    return replicas.own_rows(ops.take(everybodys, order, axis=0))


def dropout(batch_size, shape, keep, seed):
    """Path dropout: all ops on, each bit of each image kept by itself.

    Args:
        batch_size: B.
        shape: (L, K).
        keep: probability of keeping a bit, scalar or [B, 1, 1].
        seed: a `keras.random.SeedGenerator`.

    Returns:
        Float 0/1 [B, L, K].
    """
    uniform = replicas.uniform((batch_size, *shape), seed)
    return ops.cast(uniform < keep, "float32")
