"""What a hyperparameter search improves: pure functions of accuracy and latency."""

from __future__ import annotations

from collections.abc import Sequence

# Name -> whether the most or the least is best.
OBJECTIVES = {"score": "max", "accuracy": "max", "latency": "min"}
MNASNET_WEIGHT = -0.07


def mnasnet_score(
    accuracy: float, latency: float, target: float, weight: float = MNASNET_WEIGHT
) -> float:
    """Accuracy with a soft price on latency: ACC · (LAT / T)^w.

    Source: MnasNet, arXiv 1807.11626, equations 2 and 3 with the soft constraint α = β =
    -0.07, chosen there so that twice the latency weighs as much as 5 % of the accuracy. It
    holds on both sides of the target: to be faster than asked is worth as much.

    Args:
        accuracy: 0 to 1.
        latency: any unit, above 0.
        target: T, same unit.
        weight: w.

    Raises:
        ValueError: a latency or target that is not above 0.
    """
    if not (latency > 0 and target > 0):
        raise ValueError(
            f"`latency` and `target` must be above 0. Received: latency={latency}, target={target}"
        )
    return accuracy * (latency / target) ** weight


def mean_latency_ms(
    controller_ms: float, shares: Sequence[float], experts_ms: Sequence[float]
) -> float:
    """Mean latency of a variant: the controller for each image, then its expert.

    Args:
        controller_ms: of the controller.
        shares: of the images that each of E experts gets; they sum to 1.
        experts_ms: of each expert.

    Raises:
        ValueError: E differs, or the shares do not sum to 1.
    """
    if len(shares) != len(experts_ms) or abs(sum(shares) - 1.0) > 1e-6:
        raise ValueError(
            "`shares` must sum to 1, one for each expert. "
            f"Received: shares={list(shares)}, experts_ms={list(experts_ms)}"
        )
    return controller_ms + sum(s * ms for s, ms in zip(shares, experts_ms, strict=True))


def value(objective: str, accuracy: float, latency_ratio: float, target: float) -> float:
    """An objective's value.

    Args:
        objective: one of `OBJECTIVES`.
        accuracy: on the validation split, 0 to 1.
        latency_ratio: mean latency as a share of the reference network's.
        target: the ratio asked for.

    Raises:
        ValueError: an unknown objective.
    """
    if objective == "score":
        return mnasnet_score(accuracy, latency_ratio, target)
    if objective == "accuracy":
        return accuracy
    if objective == "latency":
        return latency_ratio
    raise ValueError(
        f"`objective` must be one of {tuple(OBJECTIVES)}. Received: objective={objective!r}"
    )
