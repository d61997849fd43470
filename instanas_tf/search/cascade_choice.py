"""Chooses the cascade that answers labelled images best within a mean latency.

Every rising chain of experts is tried. How many images go on is searched along the images
sorted by margin: what a share costs is linear in it, and what it answers is a cumulative
sum, so nothing is run twice. That more images go on is not always better.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from instanas_tf.search.cascades import (
    Cascade,
    check_costs,
    check_labelled,
    margins,
    mean_of_experts,
)

# Margins that are nearer to each other than this are never parted: a runtime that computes
# in float32 could not tell them apart.
GAP = 1e-5


@dataclasses.dataclass(frozen=True)
class Choice:
    """A cascade, and what it did on the images that it was chosen on.

    Attributes:
        first: index of the expert that every image starts at.
        cascade: where to go on to from there.
        accuracy: share of these images that were answered right.
        mean_ms: what they cost.
    """

    first: int
    cascade: Cascade
    accuracy: float
    mean_ms: float


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """Ways of one chain: [m, length - 1] thresholds, [m] images answered right, [m] ms."""

    chain: tuple[int, ...]
    thresholds: np.ndarray
    hits: np.ndarray
    mean_ms: np.ndarray


def choose(
    probabilities: np.ndarray,
    labels: np.ndarray,
    expert_ms: np.ndarray,
    budget_ms: float,
    *,
    front_ms: float = 0.0,
    longest: int = 3,
    candidates: int = 64,
    tolerance: float = 0.0005,
    weights: Sequence[float] = (),
) -> Choice | None:
    """Returns the best cascade whose mean latency on these images is within the budget.

    A longer chain is taken only if it is more accurate by more than `tolerance`; of chains of
    the same length that are within `tolerance` of the best, the cheapest is.

    Args:
        probabilities: softmax [E, n, N] of every expert for every image.
        labels: integers [n].
        expert_ms: [E], of one run of each expert.
        budget_ms: the mean latency may be at most this.
        front_ms: what runs for every image before.
        longest: experts in a chain at most. Each one above 3 costs `candidates` times more.
        candidates: thresholds tried for each step of a chain: they part off evenly spaced
            numbers of images, up to the largest that the budget allows.
        tolerance: differences in accuracy that are too small to pay for.
        weights: of the experts' softmaxes in the mean, [E]; all 1 by default.

    Returns:
        The choice, with thresholds midway between neighbouring margins; or `None`, if even
        the cheapest expert costs more.

    Raises:
        ValueError: shapes that do not fit, or numbers that make no sense.
    """
    probabilities, labels = check_labelled(probabilities, labels)
    expert_ms = check_costs(expert_ms, front_ms)
    if len(expert_ms) != len(probabilities):
        raise ValueError(
            f"`expert_ms` must be of {len(probabilities)} experts. Received: {expert_ms!r}"
        )
    if not math.isfinite(budget_ms):
        raise ValueError(f"`budget_ms` must be finite. Received: {budget_ms}")
    if longest < 1 or candidates < 1 or not tolerance >= 0:
        raise ValueError(
            "`longest` and `candidates` must be at least 1, and `tolerance` at least 0. "
            f"Received: {longest}, {candidates}, {tolerance}"
        )
    weights = tuple(map(float, weights)) or (1.0,) * len(expert_ms)
    search = _Search(probabilities, labels, expert_ms, budget_ms, longest, candidates, weights)
    found = [one for one in search.all(float(front_ms)) if len(one.hits)]
    return _best(found, weights, len(labels), tolerance) if found else None


class _Search:
    """Tries all chains; `answered` remembers what is asked for many times."""

    def __init__(self, probabilities, labels, expert_ms, budget_ms, longest, candidates, weights):
        self.probabilities, self.labels = probabilities, labels
        self.expert_ms, self.budget_ms = expert_ms, budget_ms
        self.longest, self.candidates = longest, candidates
        self.weights = weights
        self.answered = functools.cache(self._answered)

    def _answered(self, chain: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Margins [n], and 0 or 1 [n] for right, if all images run the whole chain."""
        mean = mean_of_experts(self.probabilities, chain, self.weights)
        return margins(mean), (mean.argmax(axis=-1) == self.labels).astype(np.int64)

    def all(self, front_ms: float) -> Iterator[_Found]:
        """Yields the single experts and all that goes on from them."""
        everyone = np.arange(len(self.labels))
        for expert, own_ms in enumerate(self.expert_ms):
            if (mean_ms := front_ms + own_ms) <= self.budget_ms:
                chain, hits = (expert,), self.answered((expert,))[1].sum()
                yield _Found(chain, np.zeros((1, 0)), np.array([hits]), np.array([mean_ms]))
                yield from self.longer(chain, everyone, (), hits, mean_ms)

    def longer(
        self,
        chain: tuple[int, ...],
        images: np.ndarray,
        thresholds: tuple[float, ...],
        hits: int,
        mean_ms: float,
    ) -> Iterator[_Found]:
        """Yields what goes on from a chain.

        Args:
            chain: experts that ran.
            images: those for which the last of them ran.
            thresholds: of each expert of the chain but the last.
            hits: images answered right if nobody goes on from here.
            mean_ms: over all images, if nobody goes on from here.
        """
        if len(chain) == self.longest:
            return
        margin, right = self.answered(chain)
        order = images[np.argsort(margin[images], kind="stable")]
        above = np.append(margin[order], 1.0)
        for expert in range(chain[-1] + 1, len(self.expert_ms)):
            extended = (*chain, expert)
            each_ms = self.expert_ms[expert] / len(self.labels)
            most = min(len(order), math.floor((self.budget_ms - mean_ms) / each_ms + 1e-9))
            counts = cuts(above[:-1], most, self.candidates)
            counts = counts[mean_ms + each_ms * counts <= self.budget_ms]
            cut_at = (above[counts - 1] + above[counts]) / 2
            gains = np.cumsum(self.answered(extended)[1][order] - right[order])
            found = _Found(
                extended,
                np.array([(*thresholds, cut) for cut in cut_at]).reshape(len(counts), len(chain)),
                hits + gains[counts - 1],
                mean_ms + each_ms * counts,
            )
            yield found
            for row, count in enumerate(counts):
                along = tuple(found.thresholds[row])
                now = found.hits[row], found.mean_ms[row]
                yield from self.longer(extended, order[:count], along, *now)


def cuts(margins_in_order: np.ndarray, most: int, candidates: int) -> np.ndarray:
    """Returns how many images may go on, among those that a threshold can part off.

    Args:
        margins_in_order: [n], rising.
        most: images that may go on at most.
        candidates: numbers wanted, evenly spaced up to `most`; each is lowered to the next
            one at which neighbouring margins are more than `GAP` apart.

    Returns:
        Rising integers from 1 to `most`, at most `candidates` of them.
    """
    places = np.flatnonzero(np.diff(margins_in_order, append=1.0) > GAP) + 1
    wanted = np.linspace(0, most, candidates + 1).round().astype(np.int64)
    nearest = np.searchsorted(places, wanted, side="right") - 1
    return np.unique(places[nearest[nearest >= 0]])


def _best(found: list[_Found], weights: tuple[float, ...], images: int, tolerance: float) -> Choice:
    hits = np.concatenate([one.hits for one in found])
    mean_ms = np.concatenate([one.mean_ms for one in found])
    owner = np.repeat(np.arange(len(found)), [len(one.hits) for one in found])
    length = np.repeat([len(one.chain) for one in found], [len(one.hits) for one in found])
    hair, to_beat, good = tolerance * images, -math.inf, np.zeros(len(hits), bool)
    for own_length in np.unique(length):
        better = (length == own_length) & (hits > to_beat + hair)
        if better.any():
            to_beat = hits[better].max()
            good = better & (hits >= to_beat - hair)
    among = np.flatnonzero(good)
    best = among[np.lexsort((-hits[among], mean_ms[among]))[0]]
    one = found[owner[best]]
    thresholds = one.thresholds[best - np.searchsorted(owner, owner[best])]
    cascade = Cascade.of_chain(len(weights), one.chain, thresholds, weights)
    return Choice(one.chain[0], cascade, float(hits[best]) / images, float(mean_ms[best]))
