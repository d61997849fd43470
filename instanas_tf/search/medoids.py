"""Of all policies that a search visited, the K whose networks replace the rest best.

The choice is a k-medoids problem, solved by PAM: a greedy build, then the best swaps
(Kaufman and Rousseeuw, "Finding Groups in Data", 1990, chapter 2). All swaps of a round are
weighed at once through each candidate's nearest and second nearest medoid (the bookkeeping
of FastPAM, Schubert and Rousseeuw, arXiv 1810.05691).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# Losses nearer than this share of the largest one are ties: sums of floats are no nearer.
TIE = 1e-12


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Policies that may become experts, and what each is worth.

    Attributes:
        policies: float 0/1 [n, L, K], after the rule for the empty cell; a policy may occur
            more than once.
        weights: how often each was wanted, [n], at least 0; 0 for one that nobody asked for.
        accuracy: of the supernet with that policy, its normalisation recalibrated, on the
            validation split; shares from 0 to 1, [n].
        latency_ms: of its network, in ms, above 0, [n].
    """

    policies: np.ndarray
    weights: np.ndarray
    accuracy: np.ndarray
    latency_ms: np.ndarray

    def __post_init__(self) -> None:
        shape = np.shape(self.policies)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"`policies` must be [n, L, K], none of them 0. Received: {shape}")
        if not np.isin(self.policies, (0.0, 1.0)).all():
            raise ValueError(
                "`policies` must be 0 or 1. "
                f"Received: values from {np.min(self.policies)} to {np.max(self.policies)}"
            )
        tiny = np.nextafter(0.0, 1.0)
        limits = {"weights": (0.0, np.inf), "accuracy": (0.0, 1.0), "latency_ms": (tiny, np.inf)}
        for name, (low, high) in limits.items():
            values = np.asarray(getattr(self, name))
            if values.shape != shape[:1]:
                raise ValueError(
                    f"`{name}` must have shape {shape[:1]}. Received: shape {values.shape}"
                )
            bad = ~((values >= low) & (values <= high) & np.isfinite(values))
            if bad.any():
                words = {"weights": "at least 0", "accuracy": "from 0 to 1"}.get(name, "above 0")
                raise ValueError(f"`{name}` must be finite and {words}. Received: {values[bad][0]}")

    @property
    def shares(self) -> np.ndarray:
        """Float64 [n]: `weights` divided by their sum; equal ones where all are 0."""
        weights = np.asarray(self.weights, np.float64)
        if not weights.any():
            return np.full(len(weights), 1.0 / len(weights))
        weights = weights / weights.max()  # First, so that the sum is finite.
        return weights / weights.sum()


def spread(latency_ms: np.ndarray) -> float:
    """How many times dearer the dearest network is than the cheapest.

    Args:
        latency_ms: of each network, in ms, above 0, [n].

    Raises:
        ValueError: no latency, or one that is not above 0.
    """
    latency_ms = np.asarray(latency_ms, np.float64)
    if latency_ms.size == 0 or not (latency_ms > 0.0).all():
        raise ValueError(f"`latency_ms` must be some numbers above 0. Received: {latency_ms}")
    return float(latency_ms.max() / latency_ms.min())


def default_price(candidates: Candidates) -> float:
    """The price that makes the whole range of latencies worth the whole range of accuracies.

    Returns:
        Accuracy per ms; 0 where all latencies are the same.
    """
    span_ms = float(np.ptp(np.asarray(candidates.latency_ms, np.float64)))
    return float(np.ptp(candidates.accuracy)) / span_ms if span_ms > 0.0 else 0.0


def replacement_loss(candidates: Candidates, price_per_ms: float) -> np.ndarray:
    """What is lost when an image that wants policy p gets policy m.

    The accuracy that m lacks, and a price on the time that it takes longer:
    `max(0, accuracy_p - accuracy_m) + price_per_ms * max(0, latency_m - latency_p)`.
    That m is more accurate or faster than p is no gain; the image did not ask for it.

    Args:
        candidates: n policies.
        price_per_ms: accuracy that a ms is worth, at least 0.

    Returns:
        Float64 [n, n], entry (p, m); 0 on the diagonal.

    Raises:
        ValueError: a price that is negative or not finite.
    """
    if not 0.0 <= price_per_ms < np.inf:
        raise ValueError(
            f"`price_per_ms` must be finite and at least 0. Received: price_per_ms={price_per_ms}"
        )
    accuracy = np.asarray(candidates.accuracy, np.float64)
    latency_ms = np.asarray(candidates.latency_ms, np.float64)
    lacking = np.maximum(0.0, accuracy[:, None] - accuracy[None, :])
    longer_ms = np.maximum(0.0, latency_ms[None, :] - latency_ms[:, None])
    return lacking + price_per_ms * longer_ms


def total_loss(
    candidates: Candidates, chosen: Sequence[int], *, price_per_ms: float | None = None
) -> float:
    """The mean loss of an image when each policy is replaced by the best of those chosen.

    Args:
        candidates: n policies, with how often each is wanted.
        chosen: indices of the experts among them, at least one.
        price_per_ms: see `replacement_loss`; None is `default_price`.

    Raises:
        ValueError: no index, or one that is not in 0 .. n - 1.
    """
    chosen = _indices("chosen", chosen, len(candidates.policies))
    if len(chosen) == 0:
        raise ValueError("`chosen` must hold at least one index. Received: none")
    loss = _loss(candidates, price_per_ms)
    return float(candidates.shares @ loss[:, chosen].min(axis=1))


def choose_medoids(
    candidates: Candidates,
    count: int,
    *,
    required: Sequence[int] = (),
    price_per_ms: float | None = None,
) -> np.ndarray:
    """Picks the K candidates that lose the least in total; see `total_loss`.

    PAM: from the required ones, the candidate that helps most is added until there are K;
    then, as long as one helps, the best swap of a chosen candidate for another is made.
    That is a local optimum, and never worse than the greedy build. The same input always
    gives the same choice; ties go to the lower index. Once those that nothing surpasses in
    both accuracy and latency are chosen, no loss is left and the rest are all ties: hand in
    the candidates in the order in which you would have them then.

    Args:
        candidates: n policies, with how often each is wanted.
        count: K experts.
        required: indices that are chosen in any case, all of different policies.
        price_per_ms: see `replacement_loss`; None is `default_price`.

    Returns:
        Int [count]: indices of different policies, from cheap to dear.

    Raises:
        ValueError: more experts than there are different policies, fewer than 1 or than
            are required, or a required index that is not there or is there twice.
    """
    required = _indices("required", required, len(candidates.policies))
    allowed = _one_of_each(candidates, required)
    if not max(1, len(required)) <= count <= len(allowed):
        raise ValueError(
            f"`count` must be at least {max(1, len(required))} and at most {len(allowed)}, the "
            f"number of different policies. Received: count={count}"
        )
    loss = _loss(candidates, price_per_ms)[:, allowed]
    fixed = np.searchsorted(allowed, required)
    built = _build(loss, candidates.shares, fixed, count)
    chosen = allowed[_swap(loss, candidates.shares, built, fixed)]
    return chosen[np.argsort(np.asarray(candidates.latency_ms)[chosen], kind="stable")]


def _indices(name: str, indices: Sequence[int], n: int) -> np.ndarray:
    found = np.asarray(indices, np.int64 if len(indices) == 0 else None)
    whole = found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    if not whole or not ((found >= 0) & (found < n)).all():
        raise ValueError(
            f"`{name}` must be whole numbers from 0 to {n - 1}. Received: {list(indices)}"
        )
    return found


def _loss(candidates: Candidates, price_per_ms: float | None) -> np.ndarray:
    price = default_price(candidates) if price_per_ms is None else price_per_ms
    return replacement_loss(candidates, price)


def _one_of_each(candidates: Candidates, required: np.ndarray) -> np.ndarray:
    """Indices, rising, of one candidate a policy: the required one, else the first."""
    flat = np.asarray(candidates.policies, np.uint8).reshape(len(candidates.policies), -1)
    _, first, group = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    if len(np.unique(group[required])) != len(required):
        raise ValueError(f"`required` must be of different policies. Received: {required.tolist()}")
    first[group[required]] = required
    return np.sort(first)


def _first_least(losses: np.ndarray, tie: float) -> int:
    """The lowest index among the least, those that only rounding sets apart included."""
    return int(np.flatnonzero(losses <= losses.min() + tie)[0])


def _build(loss: np.ndarray, shares: np.ndarray, fixed: np.ndarray, count: int) -> np.ndarray:
    """Greedy: adds to `fixed` the column of `loss` [n, m] that helps most, up to `count`."""
    chosen = fixed.tolist()
    nearest = loss[:, chosen].min(axis=1, initial=np.inf)
    while len(chosen) < count:
        totals = shares @ np.minimum(nearest[:, None], loss)
        totals[chosen] = np.inf
        chosen.append(_first_least(totals, TIE * loss.max()))
        nearest = np.minimum(nearest, loss[:, chosen[-1]])
    return np.sort(np.array(chosen, np.int64))


def _swap(
    loss: np.ndarray, shares: np.ndarray, chosen: np.ndarray, fixed: np.ndarray
) -> np.ndarray:
    """Makes the best swap of a chosen column, none of `fixed`, until none helps.

    With medoid i out and candidate x in, a policy whose nearest medoid is i goes to x or to
    its second nearest; any other one to x or to its nearest.
    """
    tie = TIE * loss.max()
    rows = np.arange(len(loss))
    while True:
        own = loss[:, chosen]
        position = own.argmin(axis=1)
        nearest = own[rows, position]
        own[rows, position] = np.inf
        second = own.min(axis=1)
        stays = np.minimum(nearest[:, None], loss)
        leaves = shares[:, None] * (np.minimum(second[:, None], loss) - stays)
        is_nearest = position[None, :] == np.arange(len(chosen))[:, None]
        totals = (shares @ stays)[None, :] + is_nearest.astype(np.float64) @ leaves
        totals[np.isin(chosen, fixed), :] = np.inf
        totals[:, chosen] = np.inf
        best = _first_least(totals.ravel(), tie)
        if not totals.ravel()[best] < shares @ nearest - 2 * tie:
            return chosen
        out, new = divmod(best, loss.shape[1])
        chosen = np.sort(np.append(np.delete(chosen, out), new))
