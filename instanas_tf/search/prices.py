"""Prices: a controller scores the experts, and a price on cost decides among them.

The same scores serve every budget, as the price alone moves the mean cost.
"""

from __future__ import annotations

import math

import numpy as np

from instanas_tf.search.cascades import softmax

# Doublings of 1 after which a price is enormous: 2 ** 100 is about 1e30.
DOUBLINGS = 100


def decide(scores: np.ndarray, costs: np.ndarray, price: float) -> np.ndarray:
    """Returns the expert of each image: the largest score less the priced cost.

    Args:
        scores: [n, E], such as expected accuracies; the unit of `price` times cost.
        costs: [E] or [n, E], in ms.
        price: at least 0, score for each ms.

    Returns:
        Integers [n]; of experts that are equally good, the cheaper.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, or a negative price.
    """
    scores, costs = _checked(scores, costs, price)
    return _decide(scores, costs, price)


def find_price(
    scores: np.ndarray, costs: np.ndarray, budget: float, iterations: int = 60
) -> float | None:
    """Returns the smallest price at which the mean cost of what is decided meets a budget.

    The mean cost never rises with the price, so bisection finds it.

    Args:
        scores: [n, E].
        costs: [E] or [n, E], in ms.
        budget: the mean cost may be at most this.
        iterations: halvings of the interval in which the price lies. The upper end is
            returned, so the budget is met whatever their number.

    Returns:
        The price, 0 if the budget is met without one; `None` if no price meets it.

    Raises:
        ValueError: as in `decide`, no image, or a budget that is not finite.
    """
    scores, costs = _checked(scores, costs, 0.0)
    if not len(scores) or not math.isfinite(budget) or iterations < 0:
        raise ValueError(
            "There must be an image, a finite `budget`, and `iterations` of at least 0. "
            f"Received: {len(scores)} images, budget={budget}, iterations={iterations}"
        )

    def meets(price: float) -> bool:
        decided = _decide(scores, costs, price)
        return np.take_along_axis(costs, decided[:, None], axis=1).mean() <= budget

    if meets(0.0):
        return 0.0
    if costs.min(axis=1).mean() > budget:
        return None
    low, high = 0.0, 1.0
    for _ in range(DOUBLINGS):
        if meets(high):
            break
        low, high = high, 2.0 * high
    else:
        return None
    for _ in range(iterations):
        middle = (low + high) / 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def expected_reward(
    scores: np.ndarray, hits: np.ndarray, costs: np.ndarray, price: float, temperature: float
) -> float:
    """Returns what a training step of a controller maximises.

    The mean over the images of Σ_k p_k · (hits_k - price · costs_k) with
    p = softmax((scores - price · costs) / temperature). The outcome of every expert is known,
    so this is exact and nothing is sampled.

    Args:
        scores: [n, E].
        hits: [n, E], 1 where the expert is right and 0 where it is wrong.
        costs: [E] or [n, E], in ms.
        price: at least 0, hits for each ms.
        temperature: above 0; the nearer to 0, the nearer to what `decide` does.

    Raises:
        ValueError: as in `decide`, no image, or a temperature that is not above 0.
    """
    scores, costs = _checked(scores, costs, price)
    hits = np.asarray(hits, np.float64)
    if hits.shape != scores.shape or not len(scores):
        raise ValueError(
            "`hits` must have the shape of `scores`, of one image at least. "
            f"Received: {hits.shape} and {scores.shape}"
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"`temperature` must be above 0. Received: {temperature}")
    shares = softmax((scores - price * costs) / temperature)
    return float(np.mean(np.sum(shares * (hits - price * costs), axis=1)))


def _decide(scores: np.ndarray, costs: np.ndarray, price: float) -> np.ndarray:
    values = scores - price * costs
    is_best = values == values.max(axis=1, keepdims=True)
    return np.where(is_best, costs, np.inf).argmin(axis=1)


def _checked(scores: np.ndarray, costs: np.ndarray, price: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores and costs as float64 [n, E]."""
    scores, costs = np.asarray(scores, np.float64), np.asarray(costs, np.float64)
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(f"`scores` must have shape [n, E], E >= 1. Received: {scores.shape}")
    if costs.shape not in (scores.shape, scores.shape[1:]):
        raise ValueError(
            f"`costs` must have shape {scores.shape[1:]} or {scores.shape}. Received: {costs.shape}"
        )
    if not (np.all(np.isfinite(scores)) and np.all(np.isfinite(costs))):
        raise ValueError("`scores` and `costs` must be finite. Received: NaN or infinity")
    if not (math.isfinite(price) and price >= 0):
        raise ValueError(f"`price` must be finite and at least 0. Received: {price}")
    return scores, np.broadcast_to(costs, scores.shape)
