"""Thousands of policies become K experts, and each image is assigned one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from keras import ops
from sklearn.cluster import KMeans

from instanas_tf.spaces.size import op_macs, policy_macs
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
    return _counted(running, np.ones(len(running), np.int64))


def merge_counts(parts: Sequence[PolicyCounts]) -> PolicyCounts:
    """Adds up what was asked for at several times: the history of a search.

    Args:
        parts: of each epoch, say; all of the same space.

    Returns:
        Each network once, with the sum of its counts, most frequent first.

    Raises:
        ValueError: no part, or parts of different shapes.
    """
    shapes = sorted({part.policies.shape[1:] for part in parts})
    if len(shapes) != 1:
        raise ValueError(f"`parts` must be of one space. Received: shapes {shapes}")
    policies = np.concatenate([part.policies for part in parts])
    return _counted(policies, np.concatenate([part.counts for part in parts]))


def _counted(running: np.ndarray, images: np.ndarray) -> PolicyCounts:
    """The different ones of `running` [n, L, K], each asked for by `images` [n]."""
    flat, which = np.unique(
        running.reshape(len(running), -1).astype(np.uint8), axis=0, return_inverse=True
    )
    counts = np.zeros(len(flat), images.dtype)
    np.add.at(counts, which.reshape(-1), images)
    order = np.argsort(-counts, kind="stable")
    policies = flat[order].astype(np.float32).reshape(-1, *running.shape[1:])
    return PolicyCounts(policies, counts[order])


def anchors(space: SearchSpace) -> list[tuple[str, np.ndarray]]:
    """Policies made by hand, so that a pool of candidates reaches from cheap to dear.

    `least`: the op with the fewest MACs in each cell that cannot be skipped, the other
    cells skipped; no network of the space has fewer MACs. `cheap`: that op in every cell.
    `half_*`: as `least`, and that op in the even, odd, early or late half of the cells that
    may be skipped. `most`: in every cell the two inverted residuals with the most MACs (or
    the only one; of all ops where the space has none). Each op's name: it alone everywhere.

    Returns:
        (name, float32 0/1 [L, K]), all different networks, from few MACs to many. Of names
        for the same network the reference op's is kept, then the first of those above,
        then the first op's.
    """
    different: dict[bytes, tuple[str, np.ndarray]] = {}
    for name, policy in _all_named(space).items():
        running = np.asarray(space.effective(policy), np.float32)
        different.setdefault(running.tobytes(), (name, running))
    return sorted(different.values(), key=lambda anchor: policy_macs(space, anchor[1]))


def _all_named(space: SearchSpace) -> dict[str, np.ndarray]:
    """Every policy that has a name, the preferred name first where two are the same network."""
    macs = op_macs(space)
    cheapest = np.eye(space.num_ops, dtype=np.float32)[macs.argmin(axis=1)]
    skippable = np.array([cell.keeps_shape for cell in space.cells])
    order = np.flatnonzero(skippable)
    half = -(-len(order) // 2)
    halves = {"even": order[::2], "odd": order[1::2], "early": order[:half], "late": order[half:]}
    residual = np.array([op.kind == "inverted_residual" for op in space.ops])
    eligible = np.where(residual | ~residual.any(), macs, -1)
    dearest = np.argsort(-eligible, axis=1, kind="stable")[:, :2]
    most = np.zeros_like(cheapest)
    np.put_along_axis(most, dearest, 1.0, axis=1)

    reference = space.reference_op
    named = {reference: space.single_op_policy(reference)}
    named["least"] = np.where(skippable[:, None], 0.0, cheapest)
    named["cheap"] = cheapest
    for name, cells in halves.items():
        runs = ~skippable
        runs[cells] = True
        named[f"half_{name}"] = np.where(runs[:, None], cheapest, 0.0)
    named["most"] = np.where(eligible >= 0, most, 0.0)
    named.update({name: space.single_op_policy(name) for name in space.op_names})
    return named


def named_anchors(space: SearchSpace, names: Sequence[str]) -> np.ndarray:
    """Some anchors by name; an op's name is that op in every cell.

    Returns:
        Float 0/1 [A, L, K], in the order of the names.

    Raises:
        ValueError: an unknown name.
    """
    known = _all_named(space)
    for name in names:
        if name not in known:
            raise ValueError(f"Anchors must be among {sorted(known)}. Received: {name!r}")
    shape = (len(names), space.num_cells, space.num_ops)
    found = np.array([known[name] for name in names], np.float32).reshape(shape)
    return np.asarray(space.effective(found), np.float32)


def with_shared_cells(policies: np.ndarray, first: np.ndarray, cells: int) -> np.ndarray:
    """Gives all policies the same first cells, whose features are then computed once.

    Args:
        policies: 0/1 [n, L, K].
        first: 0/1 [L, K], of which the first cells are taken.
        cells: how many, 0 to L.

    Returns:
        A copy, [n, L, K]; policies that differed may now be the same.

    Raises:
        ValueError: shapes that do not fit, or too few or too many cells.
    """
    policies, first = np.array(policies, np.float32), np.asarray(first, np.float32)
    if policies.ndim != 3 or policies.shape[1:] != first.shape:
        raise ValueError(
            "`policies` must be [n, L, K] and `first` [L, K]. "
            f"Received: shapes {policies.shape} and {first.shape}"
        )
    if not 0 <= cells <= len(first):
        raise ValueError(f"`cells` must be from 0 to {len(first)}. Received: cells={cells}")
    policies[:, :cells] = first[:cells]
    return policies


def mutations(
    policies: np.ndarray, space: SearchSpace, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Random neighbours: a policy of the pool, its ops drawn anew in one or two cells.

    In such a cell none (where it may be skipped), one or two ops run, each number equally
    likely, and of each number each choice. A neighbour may by chance be in the pool.

    Args:
        policies: the pool, 0/1 [n, L, K], n at least 1.
        space: the search space.
        count: how many neighbours.
        generator: of all that is random.

    Returns:
        Float32 0/1 [count, L, K], after the rule for the empty cell.

    Raises:
        ValueError: an empty pool, one of another space, or a negative count.
    """
    shape = (space.num_cells, space.num_ops)
    if len(policies) == 0 or np.shape(policies)[1:] != shape:
        raise ValueError(
            f"`policies` must be [n, {shape[0]}, {shape[1]}], n at least 1. "
            f"Received: shape {np.shape(policies)}"
        )
    if count < 0:
        raise ValueError(f"`count` must be at least 0. Received: count={count}")
    pool = np.asarray(space.effective(np.asarray(policies, np.float32)), np.float32)
    found = pool[generator.integers(len(pool), size=count)]
    for policy in found:
        changed = min(int(generator.integers(1, 3)), space.num_cells)
        for cell in generator.choice(space.num_cells, size=changed, replace=False):
            fewest = 0 if space.cells[cell].keeps_shape else 1
            running = int(generator.integers(fewest, min(2, space.num_ops) + 1))
            policy[cell] = 0.0
            policy[cell, generator.choice(space.num_ops, size=running, replace=False)] = 1.0
    return found


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
