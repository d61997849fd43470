"""Cascades: run an expert, and a larger one only for the images that it is unsure of.

The answer for an image is the weighted mean of the softmaxes of the experts that ran for it,
and it goes on while the margin between the two largest entries of that mean is small. Everything
here is NumPy on answers that were computed before; no network runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

STOP = -1


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Where each of E experts goes on to, and for which images.

    Attributes:
        following: for each expert the index of the larger one to go on to, or `STOP`.
        thresholds: for each expert the margin, in 0 to 1, below which an image goes on;
            0 where `following` is `STOP`.
        weights: of each expert's softmax in the mean, above 0; all 1 by default.
    """

    following: tuple[int, ...]
    thresholds: tuple[float, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        experts = len(self.following)
        if experts < 1 or len(self.thresholds) != experts:
            raise ValueError(
                "`following` and `thresholds` must have the same length, at least 1. "
                f"Received: following={self.following!r}, thresholds={self.thresholds!r}"
            )
        if not self.weights:
            object.__setattr__(self, "weights", (1.0,) * experts)
        are_weights = all(_is_number(weight) and weight > 0 for weight in self.weights)
        if len(self.weights) != experts or not are_weights:
            raise ValueError(
                f"`weights` must be {experts} numbers above 0. Received: {self.weights!r}"
            )
        for own, other in enumerate(self.following):
            if type(other) is not int or not (other == STOP or own < other < experts):
                raise ValueError(
                    f"`following[{own}]` must be {STOP} (stop) or an integer above {own} "
                    f"and below {experts}. Received: {other!r}"
                )
        for own, threshold in enumerate(self.thresholds):
            if not _is_number(threshold) or not 0 <= threshold <= 1:
                raise ValueError(
                    f"`thresholds[{own}]` must be a number in [0, 1]. Received: {threshold!r}"
                )
            if self.following[own] == STOP and threshold != 0:
                raise ValueError(
                    f"`thresholds[{own}]` must be 0, as nothing follows that expert. "
                    f"Received: {threshold!r}"
                )

    @classmethod
    def alone(cls, experts: int) -> Cascade:
        """Returns the cascade of that many experts in which nobody goes on."""
        return cls((STOP,) * experts, (0.0,) * experts)

    @classmethod
    def of_chain(
        cls,
        experts: int,
        chain: Sequence[int],
        thresholds: Sequence[float],
        weights: Sequence[float] = (),
    ) -> Cascade:
        """Returns the cascade that leads along one chain.

        Args:
            experts: E.
            chain: indices of the experts to run, rising.
            thresholds: of each expert in the chain but the last.
            weights: of all experts.

        Raises:
            ValueError: the chain does not rise, or the lengths do not fit.
        """
        following, margin = [STOP] * experts, [0.0] * experts
        for own, other, threshold in zip(chain[:-1], chain[1:], thresholds, strict=True):
            following[own], margin[own] = int(other), float(threshold)
        return cls(tuple(following), tuple(margin), tuple(weights))

    def to_json(self) -> dict[str, Any]:
        """Returns plain lists, for a file."""
        return {
            "following": list(self.following),
            "thresholds": list(self.thresholds),
            "weights": list(self.weights),
        }

    @classmethod
    def from_json(cls, value: Any) -> Cascade:
        """Reads what `to_json` gave, strictly.

        Raises:
            ValueError: other keys or types, or no valid cascade.
        """
        names = ("following", "thresholds", "weights")
        if not isinstance(value, dict) or set(value) != set(names):
            raise ValueError(f"A cascade must have exactly the keys {names}. Received: {value!r}")
        for name in names:
            if not isinstance(value[name], list):
                raise ValueError(f"`{name}` must be a list. Received: {value[name]!r}")
        for name in names[1:]:
            if not all(_is_number(item) for item in value[name]):
                raise ValueError(f"`{name}` must be numbers. Received: {value[name]!r}")
        numbers = (tuple(map(float, value[name])) for name in names[1:])
        return cls(tuple(value["following"]), *numbers)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What n images were answered.

    Attributes:
        ran: bool [n, E], the experts that ran for each image.
        probabilities: [n, N], the weighted mean of the softmaxes of those.
    """

    ran: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self) -> None:
        shapes = np.shape(self.ran), np.shape(self.probabilities)
        if [len(shape) for shape in shapes] != [2, 2] or shapes[0][0] != shapes[1][0]:
            raise ValueError(
                "`ran` and `probabilities` must have shapes [n, E] and [n, N]. "
                f"Received: {shapes[0]} and {shapes[1]}"
            )

    @property
    def classes(self) -> np.ndarray:
        """Integers [n], the likeliest class of each image."""
        return self.probabilities.argmax(axis=-1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis, float64 [..., N]."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def margins(probabilities: np.ndarray) -> np.ndarray:
    """Returns the difference of the two largest of the last axis.

    Args:
        probabilities: [..., N], of two classes at least.

    Returns:
        [...], 0 where two classes are equally likely, 1 where one is certain.

    Raises:
        ValueError: there are fewer than two classes.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim < 1 or probabilities.shape[-1] < 2:
        raise ValueError(
            "`probabilities` must have at least 2 classes in the last axis. "
            f"Received: shape {probabilities.shape}"
        )
    largest = np.partition(probabilities, -2, axis=-1)
    return largest[..., -1] - largest[..., -2]


def mean_of_experts(
    probabilities: np.ndarray, experts: Sequence[int], weights: Sequence[float]
) -> np.ndarray:
    """Returns the weighted mean of some experts' softmaxes for all images.

    Args:
        probabilities: [E, n, N].
        experts: indices of those that ran, rising.
        weights: of all experts, [E].

    Returns:
        Float64 [n, N]; summed in the order of running, so that `run` gives the same bits.
    """
    total, weight = np.zeros(np.shape(probabilities)[1:]), 0.0
    for expert in experts:
        total += weights[expert] * probabilities[expert]
        weight += weights[expert]
    return total / weight


def run(cascade: Cascade, probabilities: np.ndarray, first: np.ndarray) -> Answers:
    """Leads each image through a cascade.

    Args:
        cascade: of E experts.
        probabilities: softmax [E, n, N] of every expert for every image.
        first: integers [n], the expert that each image starts at.

    Raises:
        ValueError: shapes that do not fit, or a start that is no expert.
    """
    probabilities, first = _softmaxes(probabilities), np.asarray(first)
    experts, count, _ = probabilities.shape
    if len(cascade.following) != experts:
        raise ValueError(
            f"`probabilities` must be of the {len(cascade.following)} experts of the cascade. "
            f"Received: shape {probabilities.shape}"
        )
    is_index = first.shape == (count,) and np.issubdtype(first.dtype, np.integer)
    if not is_index or np.any((first < 0) | (first >= experts)):
        raise ValueError(
            f"`first` must be {count} integers from 0 to {experts - 1}. "
            f"Received: {first.dtype} of shape {first.shape}, {first!r}"
        )
    ran = np.zeros((count, experts), bool)
    total = np.zeros(probabilities.shape[1:])
    weight = np.zeros((count, 1))
    current = first.copy()
    # One pass is enough, as whoever goes on goes on to a larger expert.
    for expert, (other, threshold) in enumerate(
        zip(cascade.following, cascade.thresholds, strict=True)
    ):
        here = np.flatnonzero(current == expert)
        ran[here, expert] = True
        total[here] += cascade.weights[expert] * probabilities[expert, here]
        weight[here] += cascade.weights[expert]
        if other != STOP:
            mean = total[here] / weight[here]
            current[here[margins(mean) < threshold]] = other
    return Answers(ran, total / weight)


def answers_of_route(
    probabilities: np.ndarray, ran_row: np.ndarray, weights: Sequence[float]
) -> np.ndarray:
    """Answers all images by one route.

    Args:
        probabilities: softmax [E, n, N].
        ran_row: bool [E], the experts that run.
        weights: of all experts, [E].

    Returns:
        Integers [n], the likeliest classes.

    Raises:
        ValueError: shapes that do not fit, or no expert runs.
    """
    probabilities, ran_row = _softmaxes(probabilities), np.asarray(ran_row)
    is_row = ran_row.dtype == bool and ran_row.shape == probabilities.shape[:1]
    if not is_row or not ran_row.any():
        raise ValueError(
            f"`ran_row` must be {len(probabilities)} booleans, at least one of them true. "
            f"Received: {ran_row!r}"
        )
    mean = mean_of_experts(probabilities, np.flatnonzero(ran_row), weights)
    return mean.argmax(axis=-1)


def shuffled_accuracy(
    probabilities: np.ndarray, labels: np.ndarray, ran: np.ndarray, weights: Sequence[float]
) -> float:
    """Returns the expected accuracy if the same routes were dealt to the images at random.

    Every image is then as likely to get any row of `ran`, so the expectation over all
    permutations is exactly the sum over the routes of share times accuracy on all images.

    Args:
        probabilities: softmax [E, n, N].
        labels: integers [n].
        ran: bool [n, E], the route of each image.
        weights: of all experts, [E].

    Raises:
        ValueError: shapes that do not fit, no image, or a row in which no expert runs.
    """
    probabilities, labels = check_labelled(probabilities, labels)
    experts, count, _ = probabilities.shape
    if np.shape(ran) != (count, experts):
        raise ValueError(f"`ran` must be of shape {(count, experts)}. Received: {np.shape(ran)}")
    routes, counts = np.unique(ran, axis=0, return_counts=True)
    right = [np.sum(answers_of_route(probabilities, route, weights) == labels) for route in routes]
    return float(counts @ np.array(right)) / count**2


def costs_ms(ran: np.ndarray, expert_ms: np.ndarray, front_ms: float = 0.0) -> np.ndarray:
    """Returns what each image costs.

    Args:
        ran: bool [n, E].
        expert_ms: [E], of one run of each expert.
        front_ms: what runs for every image before, such as a controller.

    Returns:
        Float64 [n], in ms.
    """
    return front_ms + np.asarray(ran, np.float64) @ np.asarray(expert_ms, np.float64)


def check_costs(expert_ms: np.ndarray, front_ms: float) -> np.ndarray:
    """Returns `expert_ms` as float64 [E].

    Raises:
        ValueError: a latency that is none.
    """
    expert_ms = np.asarray(expert_ms, np.float64)
    is_row = expert_ms.ndim == 1 and expert_ms.size > 0
    if not is_row or not np.all(np.isfinite(expert_ms) & (expert_ms > 0)):
        raise ValueError(f"`expert_ms` must be finite numbers above 0. Received: {expert_ms!r}")
    if not math.isfinite(front_ms) or front_ms < 0:
        raise ValueError(f"`front_ms` must be a finite number from 0. Received: {front_ms!r}")
    return expert_ms


def check_labelled(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns softmaxes [E, n, N] as float64, and labels [n], of at least one image.

    Raises:
        ValueError: shapes that do not fit.
    """
    probabilities, labels = _softmaxes(probabilities), np.asarray(labels)
    if labels.shape != probabilities.shape[1:2] or not labels.size:
        raise ValueError(
            "`labels` must be one for each image of `probabilities`, at least one. "
            f"Received: shape {labels.shape} beside {probabilities.shape}"
        )
    return probabilities, labels


def _softmaxes(probabilities: np.ndarray) -> np.ndarray:
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 3 or probabilities.shape[0] < 1 or probabilities.shape[2] < 2:
        raise ValueError(
            "`probabilities` must have shape [E, n, N] with E >= 1 and N >= 2. "
            f"Received: {probabilities.shape}"
        )
    return probabilities


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)
