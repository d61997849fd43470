"""What static networks, and random mixtures of two, reach at a latency.

S networks, B rows of accuracies. Accuracies are shares of 1.
"""

from __future__ import annotations

import numpy as np


def envelope(latency_ms: np.ndarray, accuracy: np.ndarray, at_ms: float) -> float | None:
    """Accuracy that static networks, and random mixtures of two, reach at a latency.

    The upper concave envelope of the points: flat to the right of the most accurate one,
    without a value to the left of the cheapest.

    Args:
        latency_ms: of each network, [S].
        accuracy: of each network, [S].
        at_ms: the latency asked for.

    Returns:
        The accuracy; None if every network is slower than `at_ms`.
    """
    found = envelopes(latency_ms, np.asarray(accuracy)[np.newaxis], at_ms)[0]
    return None if np.isnan(found) else float(found)


def envelopes(
    latency_ms: np.ndarray, accuracy: np.ndarray, at_ms: np.ndarray | float
) -> np.ndarray:
    """`envelope` of each of B rows of accuracies.

    The envelope is the best mixture of at most two networks whose mean latency is at most
    `at_ms`, so it is the maximum over one network that is no slower, and over that network
    mixed with a slower one.

    Args:
        latency_ms: of each network, the same in all rows, [S].
        accuracy: [B, S].
        at_ms: one latency, or one for each row, [B].

    Returns:
        [B]; NaN where every network is slower.
    """
    latency_ms, accuracy = np.asarray(latency_ms, float), np.asarray(accuracy, float)
    if latency_ms.shape != accuracy.shape[1:] or not latency_ms.size:
        raise ValueError(
            "`latency_ms` and `accuracy` must have one value for each of at least one network. "
            f"Received: shapes {latency_ms.shape} and {accuracy.shape}"
        )
    at_ms = np.broadcast_to(np.asarray(at_ms, float), len(accuracy))
    best = np.full(len(accuracy), np.nan)
    for own_ms, own in zip(latency_ms, accuracy.T, strict=True):
        beyond_ms = latency_ms - own_ms
        is_slower = beyond_ms > 0
        share = (at_ms - own_ms)[:, np.newaxis] / np.where(is_slower, beyond_ms, 1.0)
        share = np.where(is_slower, np.minimum(share, 1.0), 0.0)  # Of images for the other, [B, S].
        mixed = np.max(own[:, np.newaxis] + share * (accuracy - own[:, np.newaxis]), axis=1)
        best = np.where(at_ms >= own_ms, np.fmax(best, mixed), best)
    return best
