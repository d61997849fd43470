"""Thousands of policies become K experts, and each image is assigned one."""

from __future__ import annotations

import dataclasses

import numpy as np
from keras import ops
from sklearn.cluster import KMeans

from instanas_tf.spaces.space import SearchSpace


@dataclasses.dataclass(frozen=True)
class PolicyCounts:
    """The different networks that a controller asks for, most frequent first.

    Attributes:
        policies: float 0/1 [n, L, K], after the rule for the empty cell.
        counts: images that asked for each, [n].
    """

    policies: np.ndarray
    counts: np.ndarray

    @property
    def unique(self) -> int:
        """How many networks differ."""
        return len(self.counts)

    @property
    def varying_bits(self) -> int:
        """How many of the L x K bits are on for some images and off for others."""
        return int(np.sum(self.policies.min(axis=0) != self.policies.max(axis=0)))


def count_policies(policies: np.ndarray, space: SearchSpace) -> PolicyCounts:
    """Counts the different networks among policies.

    Args:
        policies: 0/1 [n, L, K] as the controller gave them; those that build the same
            network are one.
        space: the search space.
    """
    running = np.asarray(space.effective(np.asarray(policies, np.float32)))
    flat, counts = np.unique(
        running.reshape(len(running), -1).astype(np.uint8), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    shape = (-1, space.num_cells, space.num_ops)
    return PolicyCounts(flat[order].astype(np.float32).reshape(shape), counts[order])


def choose_experts(found: PolicyCounts, count: int, seed: int) -> np.ndarray:
    """Picks the policies that stand for all.

    All of them where they are few enough; else k-means on the bits, weighted by how often
    a policy is wanted, and of each cluster the policy nearest to its centre.

    Args:
        found: the networks asked for.
        count: K experts at most.
        seed: of k-means.

    Returns:
        Float 0/1 [K or fewer, L, K], all different.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1. Received: count={count}")
    if found.unique <= count:
        return found.policies
    flat = found.policies.reshape(found.unique, -1)
    clusters = KMeans(count, n_init=10, random_state=seed).fit(flat, sample_weight=found.counts)
    distances = clusters.transform(flat)
    own = clusters.labels_[:, None] == np.arange(count)[None, :]
    nearest = np.where(own, distances, np.inf).argmin(axis=0)
    return found.policies[np.unique(nearest)]


def scores(logits, experts: np.ndarray, space: SearchSpace):
    """How likely each expert is under the controller, up to a constant an image.

    With independent bits the log-likelihood of a policy is linear in the log-odds, so the
    scores are one matrix product. Where no op is on in a cell that needs one, the log-odds
    of the default op change sign, so that a greedy policy which is an expert always wins.

    Args:
        logits: the controller's log-odds, [B, L, K].
        experts: 0/1 [E, L, K], after the rule for the empty cell.
        space: the search space.

    Returns:
        [B, E].
    """
    empty = ops.all(logits < 0.0, axis=-1, keepdims=True)
    falls_back = ops.logical_and(empty, ops.convert_to_tensor(space.fallback > 0.5))
    running = ops.where(falls_back, ops.abs(logits), logits)
    bits = space.num_cells * space.num_ops
    matrix = np.asarray(experts, np.float32).reshape(-1, bits).T
    return ops.matmul(ops.reshape(running, (-1, bits)), matrix)
