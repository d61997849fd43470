"""What outputs and timings of TFLite files say: variants, baselines and controls.

Pure arithmetic on arrays. n test images, m timed images.
"""

from __future__ import annotations

import math
import statistics

import numpy as np


def mean_latency_ms(measured_ms: np.ndarray) -> float:
    """Mean over images of the median over rounds, so that one hiccup counts little.

    Args:
        measured_ms: [rounds, m].

    Returns:
        Milliseconds.
    """
    return float(np.mean(np.median(measured_ms, axis=0)))


def standard_error(accuracy: float, count: int) -> float:
    """Binomial standard error of an accuracy on `count` images."""
    return float(np.sqrt(accuracy * (1.0 - accuracy) / count))


def images_needed(half_width: float, disagreement: float = 0.1, confidence: float = 0.95) -> int:
    """Images that a paired difference of two accuracies needs for an interval of a width.

    By the normal approximation; the variance of the difference on one image is at most the
    share of images on which the two differ.

    Args:
        half_width: of the interval, a share: 0.01 for ± 1 point.
        disagreement: share of images that one of the two answers right and the other wrong.
        confidence: of the interval.
    """
    if not (half_width > 0.0 and 0.0 < disagreement <= 1.0 and 0.0 < confidence < 1.0):
        raise ValueError(
            "`half_width` must be above 0, `disagreement` in (0, 1] and `confidence` in (0, 1). "
            f"Received: half_width={half_width}, disagreement={disagreement}, "
            f"confidence={confidence}"
        )
    deviations = statistics.NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    return math.ceil(disagreement * (deviations / half_width) ** 2)


def seed_twin(
    first_hits: np.ndarray, second_hits: np.ndarray, cheap_hits: np.ndarray, dear_hits: np.ndarray
) -> dict[str, float]:
    """Headroom of an oracle over two experts, beside that over one network trained twice.

    An oracle that knows which of two networks is right seems to leave much room. Two seeds of
    one network leave room as well, though none is better for some kind of image: as much of
    the experts' headroom is noise, which no controller can find.

    Args:
        first_hits: of a network on each image, bool [n].
        second_hits: of the same network trained from another seed, bool [n].
        cheap_hits: of the cheapest expert, bool [n].
        dear_hits: of the dearest expert, bool [n].

    Returns:
        For `twin` and `expert`: `_oracle`, the share of images that at least one of the two
        answers right, `_best`, the accuracy of the better one, and `_headroom`, the rest.
    """
    rows = (first_hits, second_hits, cheap_hits, dear_hits)
    if len({np.shape(hits) for hits in rows}) > 1 or any(hits.dtype != bool for hits in rows):
        received = [f"{hits.dtype} {np.shape(hits)}" for hits in rows]
        raise ValueError(f"all hits must be bool, of the same images. Received: {received}")
    found = {}
    for name, one, other in (("twin", *rows[:2]), ("expert", *rows[2:])):
        oracle = float(np.mean(one | other))
        best = float(max(np.mean(one), np.mean(other)))
        found |= {
            f"{name}_oracle": oracle,
            f"{name}_best": best,
            f"{name}_headroom": oracle - best,
        }
    return found
