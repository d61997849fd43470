"""What a hyperparameter search improves: pure functions of accuracy and latency."""

from __future__ import annotations

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
