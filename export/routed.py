"""A front and experts as one system: which of them run for an image, and what they say.

Every kind of controller ships as the same three things: a front file or none, the experts
in order from cheap to dear, and rules. NumPy and a TFLite runtime are all it needs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from export.runtime import TfliteModel
from instanas_tf.errors import ModelError

_UINT8_STEP = np.float32(1 / 256)  # TFLite's fixed scale of a softmax.
LEAST = 1e-6  # What votes count together at least; rounded to bytes, all of them may be 0.
_KEYS = {"kind", "first", "following", "thresholds", "weights", "features"}


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which experts run for an image: one first, and larger ones while there is doubt.

    After each expert the weighted mean of the probabilities of all that ran is taken. While the
    margin between its two largest entries is below the threshold, the next expert runs.

    Attributes:
        first: index of the expert that runs first; None: the front names it.
        following: for each of the E experts, the index of the one to go on to, which is
            larger, or -1 to stop.
        thresholds: [E], 0 to 1: go on while the margin is below; 0 stops.
        features: whether the experts go on from the front's features, not from the image.
        weights: [E], above 0, of each expert's probabilities in the mean; all 1 by default.

    Raises:
        ValueError: a value that is not as stated.
    """

    first: int | None
    following: tuple[int, ...]
    thresholds: tuple[float, ...]
    features: bool = False
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        if not isinstance(self.following, tuple) or not self.following:
            raise ValueError(f"`following` must list the experts. Received: {self.following!r}")
        count = len(self.following)
        if self.first is not None and not (_is_int(self.first) and 0 <= self.first < count):
            raise ValueError(
                f"`first` must be None or an index from 0 to {count - 1}. Received: {self.first!r}"
            )
        for index, following in enumerate(self.following):
            if not _is_int(following) or not (following == -1 or index < following < count):
                raise ValueError(
                    f"`following[{index}]` must be -1 or an index from {index + 1} to {count - 1}. "
                    f"Received: {following!r}"
                )
        if not isinstance(self.thresholds, tuple) or len(self.thresholds) != count:
            raise ValueError(
                f"`thresholds` must have an entry for each of the {count} experts. "
                f"Received: {self.thresholds!r}"
            )
        for index, value in enumerate(self.thresholds):
            if not (_is_int(value) or isinstance(value, float)) or not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"`thresholds[{index}]` must be a number from 0 to 1. Received: {value!r}"
                )
        if self.weights == ():
            object.__setattr__(self, "weights", (1.0,) * count)
        if not isinstance(self.weights, tuple) or len(self.weights) != count:
            raise ValueError(
                f"`weights` must have an entry for each of the {count} experts. "
                f"Received: {self.weights!r}"
            )
        for index, value in enumerate(self.weights):
            if not (_is_int(value) or isinstance(value, float)) or not 0.0 < value <= 1e6:
                raise ValueError(
                    f"`weights[{index}]` must be a number above 0. Received: {value!r}"
                )
        if not isinstance(self.features, bool):
            raise ValueError(f"`features` must be true or false. Received: {self.features!r}")

    @classmethod
    def named(cls, count: int) -> Rules:
        """The front names one of `count` experts, and it alone runs."""
        return cls(None, (-1,) * count, (0.0,) * count)

    @property
    def limits(self) -> tuple[float, ...]:
        """Thresholds [E], 0 for an expert that nobody follows: no margin is below 0."""
        pairs = zip(self.following, self.thresholds, strict=True)
        return tuple(value if following >= 0 else 0.0 for following, value in pairs)

    @property
    def is_cascade(self) -> bool:
        """Whether a second expert may run."""
        return any(self.limits)

    @property
    def needs_front(self) -> bool:
        """Whether a front must run before the experts."""
        return self.first is None or self.features

    def require_parts(self, front: bool, experts: int) -> None:
        """Raises ValueError if a system does not have the parts that the rules speak of.

        Args:
            front: whether it has a front.
            experts: how many experts it has.
        """
        if experts != len(self.following):
            raise ValueError(
                f"the rules must speak of all {experts} experts. "
                f"Received: rules for {len(self.following)}"
            )
        if front != self.needs_front:
            raise ValueError(
                f"with first={self.first} and features={self.features} a front must be "
                f"{'there' if self.needs_front else 'absent'}. "
                f"Received: {'a' if front else 'no'} front"
            )

    def to_json(self, kind: str) -> dict[str, Any]:
        """The manifest's `routing`.

        Args:
            kind: what made the rules, such as `search` or `cascade`; for people.
        """
        return {
            "kind": kind,
            "first": self.first,
            "following": list(self.following),
            "thresholds": list(self.thresholds),
            "weights": list(self.weights),
            "features": self.features,
        }

    @classmethod
    def from_json(cls, content: Any) -> Rules:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: it is anything else.
        """
        if content is None:
            raise ValueError("`routing` is missing, so an older version wrote it")
        if not isinstance(content, dict) or set(content) != _KEYS:
            found = sorted(map(str, content)) if isinstance(content, dict) else repr(content)
            raise ValueError(f"`routing` must have the keys {sorted(_KEYS)}. Received: {found}")
        kind = content["kind"]
        lists = {name: content[name] for name in ("following", "thresholds", "weights")}
        if not isinstance(kind, str) or not kind:
            raise ValueError(f"`kind` must be a text. Received: {kind!r}")
        for name, value in lists.items():
            if not isinstance(value, list) or not value:
                raise ValueError(f"`{name}` must be a list with entries. Received: {value!r}")
        tuples = {name: tuple(value) for name, value in lists.items()}
        return cls(first=content["first"], features=content["features"], **tuples)


class Answer(NamedTuple):
    """What a system says of an image.

    Attributes:
        probabilities: weighted mean of those of the experts that ran, float32 [N].
        ran: their indices, in order.
    """

    probabilities: np.ndarray
    ran: tuple[int, ...]


class Routed:
    """A system that is loaded: runs the front, if any, then experts by the rules.

    Args:
        front: image -> an integer, the first expert, if the rules leave it open; and
            features [1, h, w, c], if the experts go on from them. Other outputs are not read.
        experts: image or features -> probabilities [1, N], in the order of the rules.
        rules: which of them run.

    Attributes:
        image_shape: of an image, with the batch of 1.
        image_dtype: of an image: float32 or uint8.
        classes: N.

    Raises:
        ValueError: the files are not what the rules speak of.
        ModelError: a file lacks its probabilities.
    """

    def __init__(self, front: TfliteModel | None, experts: list[TfliteModel], rules: Rules):
        rules.require_parts(front is not None, len(experts))
        self.rules = rules
        self._front, self._experts = front, experts
        outputs = [expert.find("u", 2) or expert.output("f", 2) for expert in experts]
        self._outputs = [output.index for output in outputs]
        self._is_uint8 = outputs[0].kind == "u"
        self.classes = outputs[0].shape[1]
        if any(output.shape != (1, self.classes) for output in outputs):
            raise ValueError(
                "all experts must have the same number of classes. "
                f"Received: {[output.shape[1] for output in outputs]}"
            )
        self._choice = None if rules.first is not None else _choice(front, len(experts))
        features = front.find("f", 4) if rules.features else None
        if rules.features and features is None:
            raise ValueError("`features` must be false where the front has no float [1, h, w, c]")
        self._features = None if features is None else features.index
        self.image_shape = (front or experts[0]).input_shape
        self.image_dtype = (front or experts[0]).input_dtype
        wanted = self.image_shape if features is None else features.shape
        for index, expert in enumerate(experts):
            if expert.input_shape != wanted:
                raise ValueError(
                    f"expert {index} must take inputs of shape {wanted}. "
                    f"Received: {expert.input_shape}"
                )
        self._limits = rules.limits

    def run(self, image: np.ndarray) -> Answer:
        """Mean probabilities and the experts that ran, for one image [1, H, W, 3].

        Raises:
            ModelError: the front names an expert that does not exist.
        """
        votes, ran = self.vote(image)
        if self._limits[ran[0]]:
            return Answer(votes / _whole(votes), ran)
        return Answer(votes, ran)

    def vote(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        """As `run`, without arithmetic that the class does not need.

        Args:
            image: [1, H, W, 3] of `image_dtype`.

        Returns:
            Float32 [N], largest at the class: the weighted sum of the experts' probabilities,
            or those of an expert that runs alone whatever it says; and the experts that ran.

        Raises:
            ModelError: the front names an expert that does not exist.
        """
        expert = self.rules.first
        inputs = image
        if self._front is not None:
            self._front.invoke(image)
            if expert is None:
                expert = self._named()
            if self._features is not None:
                inputs = self._front.read(self._features)
        votes = self._probabilities(expert, inputs)
        ran = (expert,)
        if not self._limits[expert]:
            return votes, ran
        weights = self.rules.weights
        votes *= weights[expert]
        # Votes of integers do not sum to the weights: `decide` divides by what they sum to.
        while self._limits[expert] and _margin(votes) < self._limits[expert] * _whole(votes):
            expert = self.rules.following[expert]
            votes += self._probabilities(expert, inputs) * weights[expert]
            ran += (expert,)
        return votes, ran

    def warm_up(self) -> None:
        """Runs every file once.

        Raises:
            ModelError: a file was loaded, but does not run.
        """
        for model in filter(None, (self._front, *self._experts)):
            try:
                model.invoke(np.zeros(model.input_shape, model.input_dtype))
            except (RuntimeError, ValueError) as error:
                reason = (str(error).splitlines() or ["no reason given"])[0]
                raise ModelError(
                    f"{model.path} does not run ({reason}); export it again"
                ) from error

    def _probabilities(self, expert: int, inputs: np.ndarray) -> np.ndarray:
        """Float32 [N] of an expert; a file of integers gives them times 256."""
        found = self._experts[expert].run_one(inputs, self._outputs[expert])[0]
        return found * _UINT8_STEP if self._is_uint8 else found

    def _named(self) -> int:
        """The expert that the front named when it last ran."""
        index = self._front.read(self._choice).item()
        if not 0 <= index < len(self._experts):
            raise ModelError(
                f"the front names expert {index} of {len(self._experts)}; export it again"
            )
        return index


def _choice(front: TfliteModel, experts: int) -> int:
    """Index of the output by which a front names one of the experts."""
    output, scores = front.find("i"), front.find("f", 2)
    if output is None or math.prod(output.shape) != 1:
        raise ValueError("`first` must be an index where the front has no single integer output")
    if scores is not None and scores.shape[1] != experts:
        raise ValueError(f"the front must score {experts} experts. Received: {scores.shape[1]}")
    return output.index


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(votes: np.ndarray) -> float:
    """What votes [N] count together: the weights of the experts, but for rounding."""
    return max(float(np.add.reduce(votes)), LEAST)


def _margin(votes: np.ndarray) -> float:
    """Difference of the two largest entries of votes [N], none of them negative."""
    # `argmax` goes straight to C, where `max` and `partition` pass through Python: this runs on
    # every image, next to files that take some 20 microseconds.
    best = votes.argmax()
    largest = votes[best]
    votes[best] = -1.0
    second = votes[votes.argmax()]
    votes[best] = largest
    return float(largest - second)
