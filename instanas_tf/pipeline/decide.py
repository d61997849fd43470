"""For each target latency: who decides which experts run, by price, threshold or not at all.

Pure arithmetic on what the experts answered on the validation split and on measured
latencies. E experts from cheap to dear, n images, N classes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from instanas_tf.search import cascade_choice, cascades, prices

_PRICES = 48  # Prices that are tried for a controller in front of a cascade.
_SHARES = 8  # Thresholds that are tried there, as quantiles of the margins.
SIMPLEST = ("cascade", "search", "image", "features", "start")  # Who wins a tie.


@dataclasses.dataclass(frozen=True)
class Measured:
    """Latencies of the parts, in ms.

    Attributes:
        experts: of each whole expert, [E].
        tails: of what comes behind the shared front, [E]; None if that was not made.
        fronts: by the name of a router, of the file that names the expert; `""` is the shared
            front without a router.
        reference: of the reference network.
    """

    experts: np.ndarray
    tails: np.ndarray | None
    fronts: Mapping[str, float]
    reference: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way of running the experts, and what it is worth on the validation split.

    Attributes:
        kind: one of `variants.KINDS`.
        controller: name of the router; empty in a plain cascade.
        features: whether the experts go on from the shared front.
        first: the expert that always runs first; None if the router names it.
        cascade: who follows whom.
        price: accuracy for the latency of the reference network; 0 without a router.
        ran: bool [n, E], what ran for each image.
        accuracy: of the answers.
        mean_ms: of latency, front included.
        biases: what the router's scores of the E experts are lowered by; empty without one.
    """

    kind: str
    controller: str
    features: bool
    first: int | None
    cascade: cascades.Cascade
    price: float
    ran: np.ndarray
    accuracy: float
    mean_ms: float
    biases: tuple[float, ...] = ()

    def summary(self) -> dict[str, Any]:
        """What `experts.json` says of a candidate."""
        return {
            "kind": self.kind,
            "controller": self.controller,
            "features": self.features,
            "validation_accuracy": self.accuracy,
            "validation_latency_ms": self.mean_ms,
        }


def weights_of(measured: Measured, power: float) -> tuple[float, ...]:
    """Weights [E] of the experts' softmaxes: a power of their latency, the dearest has 1."""
    relative = measured.experts / measured.experts.max()
    return tuple(float(weight) for weight in relative**power)


def costs_ms(candidate: Candidate, measured: Measured) -> np.ndarray:
    """The sum of the parts that run for each image, [n] ms."""
    expert_ms = measured.tails if candidate.features else measured.experts
    has_front = candidate.controller or candidate.features
    front_ms = measured.fronts[candidate.controller] if has_front else 0.0
    return cascades.costs_ms(candidate.ran, expert_ms, front_ms)


def lowest_ms(kinds: Sequence[str], measured: Measured) -> float:
    """The least mean latency that some kinds can meet: the cheapest expert, and who names it."""
    found = []
    if "cascade" in kinds:
        found.append(measured.experts.min())
        if measured.tails is not None:
            found.append(measured.fronts[""] + measured.tails.min())
    for name, front_ms in measured.fronts.items():
        kind = name.partition("_")[0]
        if kind in kinds or (kind == "image" and "start" in kinds):
            own = measured.tails if kind == "features" else measured.experts
            found.append(front_ms + own.min())
    return float(min(found))


def reachable(candidate: Candidate) -> list[int]:
    """Indices of the experts that a candidate may run, from cheap to dear."""
    if candidate.first is None:
        return list(range(len(candidate.cascade.following)))
    found = [candidate.first]
    while candidate.cascade.following[found[-1]] != cascades.STOP:
        found.append(candidate.cascade.following[found[-1]])
    return found


def cascade(
    probabilities: np.ndarray,
    labels: np.ndarray,
    measured: Measured,
    budget_ms: float,
    longest: int,
    powers: Sequence[float],
) -> list[Candidate]:
    """The best cascade within a budget, of whole experts and of ones that share a front.

    Args:
        probabilities: softmax [E, n, N].
        labels: [n].
        measured: latencies.
        budget_ms: what an image may cost on average.
        longest: experts that may run for an image.
        powers: of latency, that the experts' weights in the mean are tried to be.

    Returns:
        At most two candidates for each power.
    """
    found = []
    for features, power in itertools.product((False, True), powers):
        if features and measured.tails is None:
            continue
        expert_ms = measured.tails if features else measured.experts
        front_ms = measured.fronts[""] if features else 0.0
        best = cascade_choice.choose(
            probabilities,
            labels,
            expert_ms,
            budget_ms,
            front_ms=front_ms,
            longest=longest,
            weights=weights_of(measured, power),
        )
        if best is None:
            continue
        first = np.full(len(labels), best.first)
        answers = cascades.run(best.cascade, probabilities, first)
        found.append(
            Candidate(
                kind="cascade",
                controller="",
                features=features,
                first=best.first,
                cascade=best.cascade,
                price=0.0,
                ran=answers.ran,
                accuracy=float(np.mean(answers.classes == labels)),
                mean_ms=float(np.mean(cascades.costs_ms(answers.ran, expert_ms, front_ms))),
            )
        )
    return found


def routed(
    kind: str,
    controller: str,
    scores: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    measured: Measured,
    budget_ms: float,
    cascade: cascades.Cascade | None = None,
) -> Candidate | None:
    """A router at the price at which it meets a budget; None if it cannot.

    Args:
        kind: of the candidate.
        controller: name of the router.
        scores: [n, E].
        probabilities: softmax [E, n, N].
        labels: [n].
        measured: latencies.
        budget_ms: what an image may cost on average.
        cascade: what may follow the expert that it names; nothing by default.
    """
    features = kind == "features"
    expert_ms = measured.tails if features else measured.experts
    front_ms = measured.fronts[controller]
    count = len(labels)
    if cascade is None:
        cascade = cascades.Cascade.alone(len(probabilities))
        costs = expert_ms / measured.reference
        price = prices.find_price(scores, costs, (budget_ms - front_ms) / measured.reference)
        tried = [] if price is None else [price]
    else:
        starts = [
            cascades.run(cascade, probabilities, np.full(count, first))
            for first in range(len(probabilities))
        ]
        costs = np.array([np.mean(cascades.costs_ms(start.ran, expert_ms)) for start in starts])
        costs = costs / measured.reference
        tried = list(np.geomspace(1e-3, 10.0, _PRICES))
    best = None
    for price in tried:
        answers = cascades.run(cascade, probabilities, prices.decide(scores, costs, price))
        mean_ms = float(np.mean(cascades.costs_ms(answers.ran, expert_ms, front_ms)))
        accuracy = float(np.mean(answers.classes == labels))
        if mean_ms <= budget_ms * (1 + 1e-9) and (best is None or accuracy > best.accuracy):
            biases = tuple((price * costs).tolist())
            common = (kind, controller, features, None, cascade, price, answers.ran)
            best = Candidate(*common, accuracy, mean_ms, biases)
    return best


def start_anywhere(
    controller: str,
    scores: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    measured: Measured,
    budget_ms: float,
    powers: Sequence[float],
) -> Candidate | None:
    """A router that names the first expert of a cascade that ends with the dearest one.

    One threshold for all experts is tried at several heights, each with its best price.
    """
    experts = len(probabilities)
    if experts < 2:
        return None
    following = (experts - 1,) * (experts - 1) + (cascades.STOP,)
    weights = weights_of(measured, max(powers))
    margins = cascades.margins(probabilities[:-1])
    found = []
    for share in np.linspace(0.0, 0.7, _SHARES)[1:]:
        threshold = float(np.quantile(margins, share))
        rising = cascades.Cascade(following, (threshold,) * (experts - 1) + (0.0,), weights)
        candidate = routed(
            "start", controller, scores, probabilities, labels, measured, budget_ms, rising
        )
        found += [candidate] if candidate else []
    return max(found, key=lambda item: (item.accuracy, -item.mean_ms), default=None)


def candidates(
    budget_ms: float,
    scores: Mapping[str, np.ndarray],
    probabilities: np.ndarray,
    labels: np.ndarray,
    measured: Measured,
    settings: ConfigDict,
) -> list[Candidate]:
    """All ways of running the experts within a budget.

    Args:
        budget_ms: what an image may cost on average.
        scores: of each router by name, [n, E].
        probabilities: softmax [E, n, N].
        labels: [n].
        measured: latencies.
        settings: `config.route`.
    """
    found: list[Candidate | None] = []
    if "cascade" in settings.kinds:
        found += cascade(
            probabilities, labels, measured, budget_ms, settings.longest, settings.weight_powers
        )
    for name, rows in scores.items():
        kind = name.partition("_")[0]
        common = (name, rows, probabilities, labels, measured, budget_ms)
        if kind in settings.kinds:
            found.append(routed(kind, *common))
        if kind == "image" and "start" in settings.kinds:
            found.append(start_anywhere(*common, settings.weight_powers))
    return [candidate for candidate in found if candidate is not None]


def pick(found: list[Candidate], lead: float) -> Candidate:
    """The candidate that becomes a variant: the most accurate; the cascade wins what is close.

    Args:
        found: at least one, all within the budget.
        lead: by which another kind must be more accurate than the best cascade.
    """
    best = max(found, key=lambda item: (item.accuracy, -SIMPLEST.index(item.kind), -item.mean_ms))
    plain = [item for item in found if item.kind == "cascade"]
    if not plain:
        return best
    simple = max(plain, key=lambda item: (item.accuracy, -item.mean_ms))
    return best if best.accuracy > simple.accuracy + lead else simple
