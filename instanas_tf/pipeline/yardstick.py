"""Whether choosing by image pays: accuracy beyond what static networks reach at the same latency.

Pure arithmetic on arrays. n images, S static networks, B resamples, m timed images.
Accuracies and gains are shares of 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from instanas_tf.pipeline.envelope import envelope, envelopes

_SLACK = 1.01  # Of a latency that counts as no slower.
_COUNTS_AT_ONCE = 2**22  # Counts of one block of resamples, 32 MiB as float64.


@dataclasses.dataclass(frozen=True, eq=False)
class StaticPoint:
    """A network that runs by itself for every image.

    Attributes:
        name: of an expert, a baseline or a network trained alone.
        hits: whether it answers each image right, bool [n].
        latency_ms: mean latency, end to end.
    """

    name: str
    hits: np.ndarray
    latency_ms: float

    def __post_init__(self):
        """Refuses hits that are no bool row, and latencies that are none."""
        _check_hits(f"`hits` of {self.name}", self.hits)
        _check_latency(f"`latency_ms` of {self.name}", self.latency_ms)

    @property
    def accuracy(self) -> float:
        """Share of the images that it answers right."""
        return float(np.mean(self.hits))


@dataclasses.dataclass(frozen=True)
class RoutingGain:
    """What choosing by image adds to static networks of the same latency.

    Attributes:
        gain: `accuracy` - `static_accuracy`.
        low: lower end of the interval of the gain.
        high: upper end of it.
        accuracy: of the system.
        static_accuracy: that static networks reach at `latency_ms`.
        latency_ms: mean latency of the system, controller included.
        images: that the accuracies are of, n.
        confidence: of the interval.
        resamples: that the interval was read off, B.
    """

    gain: float
    low: float
    high: float
    accuracy: float
    static_accuracy: float
    latency_ms: float
    images: int
    confidence: float = 0.95
    resamples: int = 1000

    def __post_init__(self):
        """Refuses an interval that is none."""
        if not self.low <= self.high:
            raise ValueError(
                f"`low` must be at most `high`. Received: low={self.low}, high={self.high}"
            )
        _check_bootstrap(self.resamples, self.confidence)

    @property
    def pays(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0.0

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2.0

    def to_json(self) -> dict[str, Any]:
        """The part of `results.json` that states the gain."""
        return {
            "gain": self.gain,
            "interval": [self.low, self.high],
            "static_accuracy": self.static_accuracy,
            "confidence": self.confidence,
            "images": self.images,
            "resamples": self.resamples,
        }


def static_envelope(static: Sequence[StaticPoint]) -> dict[str, list[float]]:
    """The line that `report.picture` draws: the envelope at the latency of each network.

    Args:
        static: the networks.

    Returns:
        `latency_ms`, rising, and `accuracy`, both as long as `static`.
    """
    latency_ms = np.array([point.latency_ms for point in static])
    accuracy = np.array([point.accuracy for point in static])
    at_ms = np.sort(latency_ms)
    rows = np.broadcast_to(accuracy, (len(static), len(static)))
    return {
        "latency_ms": at_ms.tolist(),
        "accuracy": envelopes(latency_ms, rows, at_ms).tolist(),
    }


def routing_gain(
    hits: np.ndarray,
    latency_ms: float,
    static: Sequence[StaticPoint],
    *,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
    latency_rows: np.ndarray | None = None,
) -> RoutingGain | None:
    """Gain of a system over the envelope of static networks, with a bootstrap interval.

    Images are drawn with replacement, the same ones for the system and for all static
    networks; the interval is that of the percentiles. Which networks make up the envelope is
    decided on these same images, and anew in every resample: a maximum over noisy accuracies
    makes the static side look better than it is, so a gain that is stated is, if anything,
    too small.

    Args:
        hits: whether the system answers each image right, bool [n].
        latency_ms: mean latency of the system, controller included.
        static: the networks that it is held against, on the same images.
        seed: of the resamples.
        resamples: how many, B.
        confidence: of the interval.
        latency_rows: milliseconds of the system for each timed image, [m]; where given, the
            mean latency varies from resample to resample as theirs does, independently of
            the hits. Where it falls below the fastest static network, that one counts.

    Returns:
        None if the system is faster than every static network: then there is nothing to hold
        it against.
    """
    _check_hits("`hits`", hits)
    _check_latency("`latency_ms`", latency_ms)
    _check_bootstrap(resamples, confidence)
    lengths = {len(point.hits) for point in static}
    if lengths != {len(hits)}:
        raise ValueError(
            "`static` must hold at least one network, and hits of the same images as `hits`. "
            f"Received: {len(hits)} images, and {sorted(lengths)} of {len(static)} networks"
        )
    static_ms = np.array([point.latency_ms for point in static])
    static_accuracy = envelope(static_ms, np.array([p.accuracy for p in static]), latency_ms)
    if static_accuracy is None:
        return None

    generator = np.random.default_rng(seed)
    columns = np.stack([hits, *(point.hits for point in static)], axis=1)
    accuracies = _resampled_means(columns, generator, resamples)
    at_ms = np.full(resamples, latency_ms)
    if latency_rows is not None:
        rows = np.asarray(latency_rows, float)
        at_ms += _resampled_means(rows[:, np.newaxis], generator, resamples)[:, 0] - np.mean(rows)
        at_ms = np.maximum(at_ms, np.min(static_ms))
    gains = accuracies[:, 0] - envelopes(static_ms, accuracies[:, 1:], at_ms)
    low, high = np.quantile(gains, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    accuracy = float(np.mean(hits))
    return RoutingGain(
        gain=accuracy - static_accuracy,
        low=float(low),
        high=float(high),
        accuracy=accuracy,
        static_accuracy=static_accuracy,
        latency_ms=float(latency_ms),
        images=len(hits),
        confidence=confidence,
        resamples=resamples,
    )


def sentence(
    gain: RoutingGain | None,
    reference_ms: float,
    static_name: str,
    reference_name: str = "the largest expert",
) -> str:
    """The outcome in one sentence.

    Args:
        gain: of the system; None if it is faster than every static network.
        reference_ms: latency that the system's is a share of.
        static_name: what one would ship instead.
        reference_name: of the network with `reference_ms`.
    """
    _check_latency("`reference_ms`", reference_ms)
    if gain is None:
        return (
            "choosing by image is faster than every static network here, so there is none to "
            f"hold it against: the fastest is {static_name}"
        )
    # Adding 0 turns -0.0 into 0.0.
    points = f"{round(100 * gain.gain, 1) + 0.0:.1f} ± {100 * gain.half_width:.1f} points"
    if not gain.pays:
        return f"choosing by image does not pay here: ship {static_name} alone ({points})"
    ratio = gain.latency_ms / reference_ms
    return f"choosing by image gains {points} at {ratio:.2f} of the latency of {reference_name}"


def _resampled_means(
    rows: np.ndarray, generator: np.random.Generator, resamples: int
) -> np.ndarray:
    """Means over n rows drawn with replacement, [resamples, columns], of `rows` [n, columns].

    Equal rows are counted together: how often each *kind* of row is drawn is multinomial too,
    and of hits there are far fewer kinds than images.
    """
    kinds, sizes = np.unique(rows, axis=0, return_counts=True)
    kinds, shares = kinds.astype(float), sizes / len(rows)
    block = max(1, _COUNTS_AT_ONCE // len(kinds))
    means = []
    for start in range(0, resamples, block):
        draws = min(block, resamples - start)
        counts = generator.multinomial(len(rows), shares, size=draws)
        means.append(counts.astype(float) @ kinds / len(rows))
    return np.concatenate(means)


def _check_hits(name: str, hits: np.ndarray) -> None:
    if not (isinstance(hits, np.ndarray) and hits.dtype == bool and hits.ndim == 1 and len(hits)):
        received = f"{getattr(hits, 'dtype', type(hits).__name__)} {np.shape(hits)}"
        raise ValueError(f"{name} must be bool [n] of at least one image. Received: {received}")


def _check_latency(name: str, latency_ms: float) -> None:
    if not 0.0 < latency_ms < math.inf:
        raise ValueError(f"{name} must be finite and above 0. Received: {latency_ms}")


def _check_bootstrap(resamples: int, confidence: float) -> None:
    if not (resamples >= 1 and 0.0 < confidence < 1.0):
        raise ValueError(
            "`resamples` must be at least 1 and `confidence` in (0, 1). "
            f"Received: resamples={resamples}, confidence={confidence}"
        )
