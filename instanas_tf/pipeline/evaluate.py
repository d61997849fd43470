"""What outputs and timings of TFLite files say: variants, baselines and controls.

Pure arithmetic on arrays. n test images, m timed images, E experts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_SHUFFLES = 100


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


@dataclasses.dataclass(frozen=True)
class VariantOutcome:
    """What was measured of one variant on the test split.

    Attributes:
        hits: whether each expert answers each image right, bool [E, n].
        chosen: expert that the controller names for each image, int [n].
        latency_ms: mean latency, end to end.
        controller_ms: mean latency of the controller alone.
        expert_ms: mean latency of each expert alone, [E].
    """

    hits: np.ndarray
    chosen: np.ndarray
    latency_ms: float
    controller_ms: float
    expert_ms: np.ndarray

    @property
    def accuracy(self) -> float:
        """Of the experts that the controller names."""
        return float(np.mean(self.hits[self.chosen, np.arange(len(self.chosen))]))

    @property
    def shares(self) -> np.ndarray:
        """Share of images that each expert gets, [E]."""
        return np.bincount(self.chosen, minlength=len(self.hits)) / len(self.chosen)

    def majority_policy(self) -> dict[str, Any]:
        """The expert that most images get, for all images; no controller is needed."""
        index = int(np.argmax(self.shares))
        return self._static(index)

    def shuffled_policies(self, seed: int) -> dict[str, Any]:
        """The same experts as often, but for other images: mean of many permutations."""
        generator = np.random.default_rng(seed)
        positions = np.arange(len(self.chosen))
        accuracies = [
            np.mean(self.hits[generator.permutation(self.chosen), positions])
            for _ in range(_SHUFFLES)
        ]
        return {
            "accuracy": float(np.mean(accuracies)),
            "accuracy_spread": float(np.std(accuracies)),
            "mean_latency_ms": self.latency_ms,
            "permutations": _SHUFFLES,
        }

    def best_static_expert(self) -> dict[str, Any]:
        """The most accurate expert that alone takes no longer than the variant.

        Chosen on these same images, which flatters it, as a control should be. If none is
        as fast, the fastest.
        """
        fast = np.flatnonzero(self.expert_ms <= self.latency_ms)
        if not len(fast):
            fast = np.array([np.argmin(self.expert_ms)])
        accuracies = self.hits.mean(axis=1)[fast]
        return self._static(int(fast[np.argmax(accuracies)]))

    def _static(self, index: int) -> dict[str, Any]:
        return {
            "expert": f"expert_{index:02d}",
            "accuracy": float(np.mean(self.hits[index])),
            "latency_ms": float(self.expert_ms[index]),
        }


def closest_below(latencies_ms: np.ndarray, limit_ms: float, slack: float = 1.02) -> int:
    """Index of the dearest network that costs at most `limit_ms`; else of the cheapest.

    Args:
        latencies_ms: [E].
        limit_ms: what may be spent.
        slack: factor on the limit that still counts as the same latency.
    """
    fitting = np.flatnonzero(latencies_ms <= slack * limit_ms)
    if not len(fitting):
        return int(np.argmin(latencies_ms))
    return int(fitting[np.argmax(latencies_ms[fitting])])
