"""Rules are strictly read, and a routed system does what a slow reading of them says."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from export.routed import Routed, Rules
from export.runtime import Output, TfliteModel
from instanas_tf.errors import ModelError

CASCADE = {
    "kind": "cascade",
    "first": 0,
    "following": [1, -1],
    "thresholds": [0.31, 0.0],
    "weights": [0.5, 1.0],
    "features": False,
}
IMAGE = np.zeros((1, 2, 2, 3), np.float32)


class Constant(TfliteModel):
    """A model without a file: outputs are given, and it keeps what it was run on."""

    def __init__(self, *values, input_shape=(1, 2, 2, 3)):
        self.input_shape = input_shape
        self.input_dtype = np.dtype(np.float32)
        self.values = values
        self.inputs = []
        self.outputs = tuple(
            Output(index, value.dtype.kind, value.shape) for index, value in enumerate(values)
        )

    def invoke(self, image):
        assert image.shape == self.input_shape
        self.inputs.append(image)

    def read(self, index):
        return self.values[index].copy()

    def run_one(self, image, index):
        self.invoke(image)
        return self.read(index)


def expert(*logits, **options):
    return Constant(softmax([logits]).astype(np.float32), **options)


def names(index):
    return np.array([index], np.int32)


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, float) - np.max(logits))
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)


def test_round_trip():
    rules = Rules(0, (1, -1), (0.31, 0.0), False, (0.5, 1.0))
    assert json.loads(json.dumps(rules.to_json("cascade"))) == CASCADE
    assert Rules.from_json(CASCADE) == rules
    named = Rules.named(2)
    assert named == Rules(None, (-1, -1), (0.0, 0.0), False, (1.0, 1.0))
    assert Rules.from_json(named.to_json("search")) == named
    assert [rules.needs_front, named.needs_front] == [False, True]
    assert Rules(0, (-1,), (0.0,), True).needs_front


MALFORMED = [
    (None, "`routing` is missing"),
    ([], "`routing` must have the keys"),
    ({}, "`routing` must have the keys"),
    ({**CASCADE, "more": 1}, "'more'"),
    *[({k: v for k, v in CASCADE.items() if k != key}, "must have the keys") for key in CASCADE],
    ({**CASCADE, "kind": ""}, "`kind` must be a text. Received: ''"),
    ({**CASCADE, "kind": 3}, "`kind` must be a text. Received: 3"),
    *[({**CASCADE, "first": first}, "`first` must be") for first in (2, -1, 0.0, True, "0", [])],
    *[
        ({**CASCADE, "following": following}, "`following")
        for following in (1, None, "1", [], [0, -1], [2, -1], [1, 1], [1, 0], [-2, -1])
    ],
    *[
        ({**CASCADE, "following": [following, -1]}, r"`following\[0\]` must be")
        for following in (1.0, True, None, "1", [1])
    ],
    ({**CASCADE, "following": [-1]}, "`thresholds` must have an entry for each of the 1"),
    ({**CASCADE, "following": [1, 2, -1]}, "`thresholds` must have an entry for each of the 3"),
    *[
        ({**CASCADE, "thresholds": thresholds}, "`thresholds` must")
        for thresholds in (0.3, None, "ab", [], [0.3], [0.3, 0.0, 0.0])
    ],
    *[
        ({**CASCADE, "thresholds": [value, 0.0]}, r"`thresholds\[0\]` must be a number from 0 to 1")
        for value in (-0.1, 1.1, float("nan"), float("inf"), 10**400, True, None, "0.3", [0.3])
    ],
    *[
        ({**CASCADE, "weights": weights}, "`weights` must")
        for weights in (0.5, None, "ab", [], [0.5], [1.0, 1.0, 1.0])
    ],
    *[
        ({**CASCADE, "weights": [value, 1.0]}, r"`weights\[0\]` must be a number above 0")
        for value in (0.0, -1.0, 1e7, float("nan"), float("inf"), True, None, "1", [1.0])
    ],
    *[({**CASCADE, "features": value}, "`features` must") for value in (None, 0, "no")],
]


@pytest.mark.parametrize(("content", "words"), MALFORMED)
def test_malformed(content, words):
    with pytest.raises(ValueError, match=words) as caught:
        Rules.from_json(content)
    assert "\n" not in str(caught.value)


def test_rules_take_tuples():
    with pytest.raises(ValueError, match="`following` must list"):
        Rules(0, [1, -1], (0.3, 0.0))
    with pytest.raises(ValueError, match="`thresholds` must have"):
        Rules(0, (1, -1), [0.3, 0.0])


def test_a_cascade_by_hand():
    # Softmax 0.5, 0.3, 0.2: a margin of 0.2. The second says 0.1, 0.7, 0.2: means 0.3, 0.5, 0.2.
    small, large = expert(*np.log([0.5, 0.3, 0.2])), expert(*np.log([0.1, 0.7, 0.2]))
    sure = Routed(None, [small, large], Rules(0, (1, -1), (0.19, 0.0))).run(IMAGE)
    assert sure.ran == (0,)
    np.testing.assert_allclose(sure.probabilities, [0.5, 0.3, 0.2], rtol=1e-6)
    assert large.inputs == []
    unsure = Routed(None, [small, large], Rules(0, (1, -1), (0.21, 0.0))).run(IMAGE)
    assert unsure.ran == (0, 1)
    np.testing.assert_allclose(unsure.probabilities, [0.3, 0.5, 0.2], rtol=1e-6)
    later = Routed(None, [small, large], Rules(1, (1, -1), (1.0, 1.0))).run(IMAGE)
    assert later.ran == (1,)


def test_weights_by_hand():
    # Softmax 0.5, 0.3, 0.2 counts once, and 0.1, 0.7, 0.2 thrice: 0.2, 0.6, 0.2.
    experts = [expert(*np.log(p)) for p in ([0.5, 0.3, 0.2], [0.1, 0.7, 0.2])]
    routed = Routed(None, experts, Rules(0, (1, -1), (0.21, 0.0), False, (1.0, 3.0)))
    answer = routed.run(IMAGE)
    assert answer.ran == (0, 1)
    np.testing.assert_allclose(answer.probabilities, [0.2, 0.6, 0.2], rtol=1e-6)
    # A margin does not depend on the scale of the weights.
    scaled = Routed(None, experts, Rules(0, (1, -1), (0.19, 0.0), False, (10.0, 30.0)))
    assert scaled.run(IMAGE).ran == (0,)


def test_the_margin_is_of_the_mean():
    # Alone the second has a margin of 0.6; the mean of both has 0.2, and the third is asked.
    experts = [expert(*np.log(p)) for p in ([0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.1, 0.1, 0.8])]
    routed = Routed(None, experts, Rules(0, (1, 2, -1), (0.3, 0.3, 0.0)))
    answer = routed.run(IMAGE)
    assert answer.ran == (0, 1, 2)
    np.testing.assert_allclose(answer.probabilities, [0.7 / 3, 1.1 / 3, 1.2 / 3], rtol=1e-6)


def test_the_margin_of_integers_is_of_what_they_sum_to():
    # They sum to 240 of 256; the margin is 60: 0.25 of the sum, as `decide` takes it.
    experts = [Constant(np.array([row], np.uint8)) for row in ([120, 60, 60], [60, 120, 60])]
    sure = Routed(None, experts, Rules(0, (1, -1), (0.24, 0.0))).run(IMAGE)
    assert sure.ran == (0,)
    np.testing.assert_allclose(sure.probabilities, [0.5, 0.25, 0.25], rtol=1e-6)
    unsure = Routed(None, experts, Rules(0, (1, -1), (0.26, 0.0), False, (1.0, 3.0))).run(IMAGE)
    assert unsure.ran == (0, 1)
    np.testing.assert_allclose(unsure.probabilities, [0.3125, 0.4375, 0.25], rtol=1e-6)


def test_the_front_names_the_first_expert_and_gives_features():
    features = np.full((1, 2, 2, 5), 7.0, np.float32)
    experts = [expert(0.0, index, input_shape=features.shape) for index in range(3)]
    front = Constant(names(1), np.zeros((1, 3), np.float32), features)
    answer = Routed(front, experts, Rules(None, (1, 2, -1), (1.0, 1.0, 0.0), True)).run(IMAGE)
    assert answer.ran == (1, 2)
    assert [len(model.inputs) for model in (front, *experts)] == [1, 0, 1, 1]
    np.testing.assert_array_equal(experts[1].inputs[0], features)
    constant = Constant(features)
    answer = Routed(constant, experts, Rules(0, (-1,) * 3, (0.0,) * 3, True)).run(IMAGE)
    assert answer.ran == (0,)


def test_equal_and_extreme_logits():
    tie = Routed(None, [expert(1, 1), expert(3, 2)], Rules(0, (1, -1), (1e-9, 0.0)))
    assert tie.run(IMAGE).ran == (0, 1)
    extreme = Routed(None, [expert(1e30, -1e30), expert(0, 0)], Rules(0, (1, -1), (1.0, 0.0)))
    answer = extreme.run(IMAGE)
    assert answer.ran == (0,)
    np.testing.assert_array_equal(answer.probabilities, [1.0, 0.0])


@st.composite
def systems(draw):
    """Rules, logits [E, N], and what the front names."""
    count, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    following = tuple(
        draw(st.sampled_from([-1, *range(index + 1, count)])) for index in range(count)
    )
    thresholds = tuple(draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0])) for _ in range(count))
    first = draw(st.sampled_from([None, *range(count)]))
    seed = draw(st.integers(0, 2**32 - 1))
    logits = np.random.default_rng(seed).normal(0, 2, (count, classes)).astype(np.float32)
    weights = tuple(draw(st.sampled_from([0.25, 1.0, 3.0])) for _ in range(count))
    rules = Rules(first, following, thresholds, draw(st.booleans()), weights)
    return rules, logits, draw(st.integers(0, count - 1))


def slow(rules, logits, named):
    """Mean softmax, experts that ran, and the nearest that a margin was to its threshold."""
    ran, nearest = [named if rules.first is None else rules.first], 1.0
    while True:
        weights = [rules.weights[index] for index in ran]
        mean = np.average([softmax(logits[index]) for index in ran], axis=0, weights=weights)
        second, largest = np.sort(mean)[-2:]
        following, threshold = rules.following[ran[-1]], rules.thresholds[ran[-1]]
        if following >= 0 and threshold > 0:
            nearest = min(nearest, abs(largest - second - threshold))
        if following < 0 or not largest - second < threshold:
            return mean, tuple(ran), nearest
        ran.append(following)


@given(systems())
@settings(deadline=None, max_examples=300)
def test_it_does_what_a_slow_reading_of_the_rules_says(system):
    rules, logits, named = system
    mean, ran, nearest = slow(rules, logits, named)
    assume(nearest > 1e-5)
    features = np.ones((1, 1, 1, 4), np.float32)
    front = Constant(features, names(named)) if rules.needs_front else None
    shape = features.shape if rules.features else IMAGE.shape
    routed = Routed(front, [expert(*row, input_shape=shape) for row in logits], rules)
    assert routed.image_shape == IMAGE.shape
    assert routed.classes == logits.shape[1]
    answer = routed.run(IMAGE)
    assert answer.ran == ran
    np.testing.assert_allclose(answer.probabilities, mean, rtol=1e-5, atol=1e-6)
    votes, same = routed.vote(IMAGE)
    assert same == ran
    assert np.argmax(votes) == np.argmax(mean)


FEATURES = np.zeros((1, 2, 2, 5), np.float32)
SCORES = np.zeros((1, 2), np.float32)
TWO = [expert(1, 2), expert(3, 4)]


@pytest.mark.parametrize(
    ("front", "experts", "rules", "words"),
    [
        (None, TWO, Rules.named(2), "a front must be there. Received: no front"),
        (None, TWO, Rules(0, (-1, -1), (0.0, 0.0), True), "a front must be there"),
        (Constant(names(0)), TWO, Rules.from_json(CASCADE), "a front must be absent"),
        (Constant(names(0)), TWO, Rules.named(3), "all 2 experts. Received: rules for 3"),
        (Constant(SCORES), TWO, Rules.named(2), "`first` must be an index where the front has no"),
        (Constant(np.zeros((1, 2), np.int32)), TWO, Rules.named(2), "no single integer output"),
        (Constant(names(0), FEATURES[0, :1, :, 0]), [TWO[0]], Rules.named(1), "score 1 experts"),
        (Constant(names(0), SCORES), TWO, Rules(None, (-1,) * 2, (0.0,) * 2, True), "`features`"),
        (Constant(FEATURES), TWO, Rules(0, (-1, -1), (0.0, 0.0), True), r"\(1, 2, 2, 5\). Rec"),
        (None, [TWO[0], expert(1, 2, 3)], Rules.from_json(CASCADE), r"classes. Received: \[2, 3\]"),
        (
            None,
            [TWO[0], expert(1, 2, input_shape=(1, 4, 4, 3))],
            Rules.from_json(CASCADE),
            r"expert 1 must take inputs of shape \(1, 2, 2, 3\). Received: \(1, 4, 4, 3\)",
        ),
    ],
)
def test_files_that_do_not_fit_the_rules(front, experts, rules, words):
    with pytest.raises(ValueError, match=words):
        Routed(front, experts, rules)


def test_an_expert_without_logits():
    with pytest.raises(ModelError, match="no output of kind 'f' with 2 axes; export it again"):
        Routed(None, [Constant(names(0))], Rules(0, (-1,), (0.0,)))


@pytest.mark.parametrize("index", [-1, 2])
def test_a_front_that_names_no_expert(index):
    routed = Routed(Constant(names(index), SCORES), TWO, Rules.named(2))
    with pytest.raises(ModelError, match=f"names expert {index} of 2; export it again"):
        routed.run(IMAGE)


def test_a_file_that_loads_but_does_not_run():
    class Broken(Constant):
        path = "expert_00.tflite"

        def invoke(self, image):
            raise RuntimeError("Input tensor 3 lacks data\nat node 0")

    routed = Routed(None, [Broken(np.array([[0.4, 0.6]], np.float32))], Rules(0, (-1,), (0.0,)))
    with pytest.raises(ModelError, match=r"expert_00.tflite does not run \(Input tensor 3 lacks"):
        routed.warm_up()
