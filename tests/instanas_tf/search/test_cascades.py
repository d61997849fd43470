"""Margins, cascades led by hand, routes dealt at random, and costs."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instanas_tf.search.cascades import (
    STOP,
    Answers,
    Cascade,
    answers_of_route,
    check_costs,
    costs_ms,
    margins,
    run,
    shuffled_accuracy,
    softmax,
)

# Three experts, four images, two classes: the probability of class 1.
SECOND = np.array([[0.05, 0.4, 0.55, 0.3], [0.9, 0.9, 0.3, 0.6], [0.2, 0.1, 0.9, 0.9]])
PROBABILITIES = np.stack([1 - SECOND, SECOND], axis=-1)
ONES = (1.0, 1.0, 1.0)
LABELS = np.array([0, 1, 1, 1])


def test_softmax():
    np.testing.assert_allclose(softmax([[0.0, np.log(3.0)]]), [[0.25, 0.75]])
    np.testing.assert_allclose(softmax([1000.0, 1000.0, -1000.0]), [0.5, 0.5, 0.0])
    assert softmax(np.zeros((2, 4), np.float32)).dtype == np.float64


def test_margins():
    found = margins([[[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]], [[1.0, 0.0, 0.0], [0.1, 0.2, 0.7]]])
    np.testing.assert_allclose(found, [[0.5, 0.0], [1.0, 0.5]])
    with pytest.raises(ValueError, match="at least 2 classes"):
        margins([[1.0]])
    with pytest.raises(ValueError, match="at least 2 classes"):
        margins(1.0)


def test_a_cascade_by_hand():
    # Margins of expert 0: 0.9, 0.2, 0.1, 0.4. Images 1 and 2 go on to expert 1; the mean of
    # image 1 is then 0.65 (margin 0.3), that of image 2 is 0.425 (margin 0.15): it goes on.
    cascade = Cascade((1, 2, STOP), (0.3, 0.2, 0.0))
    answers = run(cascade, PROBABILITIES, np.zeros(4, int))
    np.testing.assert_array_equal(
        answers.ran.astype(int), [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    )
    np.testing.assert_allclose(answers.probabilities[:, 1], [0.05, 0.65, 1.75 / 3, 0.3])
    np.testing.assert_array_equal(answers.classes, [0, 1, 1, 0])
    np.testing.assert_allclose(costs_ms(answers.ran, [1, 2, 4], 0.5), [1.5, 3.5, 7.5, 1.5])


def test_images_may_start_at_different_experts():
    answers = run(Cascade((2, 2, STOP), (0.5, 0.5, 0.0)), PROBABILITIES, np.array([0, 1, 2, 1]))
    np.testing.assert_array_equal(
        answers.ran.astype(int), [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]]
    )
    np.testing.assert_allclose(answers.probabilities[:, 1], [0.05, 0.9, 0.9, 0.75])


def test_an_image_on_the_threshold_stays():
    half = np.array([[[0.75, 0.25]], [[0.0, 1.0]]])
    assert run(Cascade((1, STOP), (0.5, 0.0)), half, np.array([0])).ran.tolist() == [[True, False]]
    assert run(Cascade((1, STOP), (0.51, 0.0)), half, np.array([0])).ran.all()


def test_alone_is_each_image_s_own_expert():
    first = np.array([2, 1, 0, 2])
    answers = run(Cascade.alone(3), PROBABILITIES, first)
    np.testing.assert_array_equal(answers.ran, np.eye(3, dtype=bool)[first])
    np.testing.assert_array_equal(answers.probabilities, PROBABILITIES[first, np.arange(4)])


def one_by_one(cascade, probabilities, first):
    """The definition, an image at a time."""
    ran, means = [], []
    for image, expert in enumerate(first):
        route = [expert]
        while True:
            total, weight = 0.0, 0.0
            for k in route:
                total = total + cascade.weights[k] * probabilities[k, image]
                weight += cascade.weights[k]
            mean = total / weight
            smaller, larger = np.sort(mean)[-2:]
            if cascade.following[expert] == STOP or larger - smaller >= cascade.thresholds[expert]:
                break
            expert = cascade.following[expert]
            route.append(expert)
        ran.append([k in route for k in range(len(probabilities))])
        means.append(mean)
    return np.array(ran), np.array(means)


@st.composite
def cascades(draw):
    experts = draw(st.integers(1, 5))
    following = [draw(st.sampled_from([STOP, *range(k + 1, experts)])) for k in range(experts)]
    chances = st.floats(0, 1)
    thresholds = [0.0 if other == STOP else draw(chances) for other in following]
    weights = [draw(st.floats(0.1, 2.0)) for _ in following]
    return Cascade(tuple(following), tuple(thresholds), tuple(weights))


@given(cascades(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_cascade_is_what_its_definition_says(cascade, seed):
    rng = np.random.default_rng(seed)
    experts = len(cascade.following)
    probabilities = softmax(2 * rng.normal(size=(experts, 9, 3)))
    first = rng.integers(0, experts, 9)
    answers = run(cascade, probabilities, first)
    ran, means = one_by_one(cascade, probabilities, first)
    np.testing.assert_array_equal(answers.ran, ran)
    np.testing.assert_array_equal(answers.probabilities, means)
    assert Cascade.from_json(json.loads(json.dumps(cascade.to_json()))) == cascade


def test_a_chain_is_a_cascade():
    assert Cascade.of_chain(4, (1, 3), (0.25,)) == Cascade((-1, 3, -1, -1), (0.0, 0.25, 0.0, 0.0))
    assert Cascade.of_chain(2, (1,), ()) == Cascade.alone(2)
    with pytest.raises(ValueError, match="shorter|longer"):
        Cascade.of_chain(3, (0, 1), ())
    with pytest.raises(ValueError, match="above 1"):
        Cascade.of_chain(3, (1, 0), (0.5,))


def test_json():
    value = {"following": [1, -1], "thresholds": [0.5, 0], "weights": [0.5, 1]}
    cascade = Cascade((1, STOP), (0.5, 0.0), (0.5, 1.0))
    assert Cascade.from_json(value) == cascade
    assert cascade.to_json() == value
    assert Cascade((1, STOP), (0.5, 0.0)).weights == (1.0, 1.0)


@pytest.mark.parametrize(
    ("following", "thresholds", "message"),
    [
        ((), (), "same length"),
        ((STOP,), (0.0, 0.0), "same length"),
        ((0,), (0.0,), r"following\[0\]"),
        ((2, STOP), (0.5, 0.0), r"following\[0\]"),
        ((-2,), (0.0,), r"following\[0\]"),
        ((STOP, 0), (0.0, 0.5), r"following\[1\]"),
        ((True, STOP), (0.5, 0.0), r"following\[0\]"),
        ((1.0, STOP), (0.5, 0.0), r"following\[0\]"),
        ((1, STOP), (1.5, 0.0), r"thresholds\[0\]"),
        ((1, STOP), (-0.5, 0.0), r"thresholds\[0\]"),
        ((1, STOP), (float("nan"), 0.0), r"thresholds\[0\]"),
        ((1, STOP), ("0.5", 0.0), r"thresholds\[0\]"),
        ((1, STOP), (np.float32(0.5), 0.0), r"thresholds\[0\]"),
        ((1, STOP), (0.5, 0.5), r"thresholds\[1\]` must be 0"),
    ],
)
def test_what_is_no_cascade(following, thresholds, message):
    with pytest.raises(ValueError, match=message):
        Cascade(following, thresholds)
    with pytest.raises(ValueError, match="Received"):
        Cascade.from_json({"following": list(following), "thresholds": list(thresholds)})


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"following": [STOP]},
        {"following": [STOP], "thresholds": [0.0], "first": 0},
        {"following": "1", "thresholds": [0.0]},
        {"following": [STOP], "thresholds": 0.0},
        {"following": [STOP], "thresholds": [None]},
        {"following": [STOP], "thresholds": [False]},
        {"following": [[STOP]], "thresholds": [0.0]},
    ],
)
def test_json_that_is_no_cascade(value):
    with pytest.raises(ValueError, match="Received"):
        Cascade.from_json(value)


def test_one_route_for_all_images():
    first, both = np.array([True, False, False]), np.array([True, False, True])
    assert answers_of_route(PROBABILITIES, first, ONES).tolist() == [0, 0, 1, 0]
    # Means of experts 0 and 2: 0.125, 0.25, 0.725, 0.6.
    assert answers_of_route(PROBABILITIES, both, ONES).tolist() == [0, 0, 1, 1]


def test_routes_dealt_at_random_by_hand():
    # Expert 0 is right for 2 of 4 images, expert 1 for 2, experts 0 and 2 together for 3.
    ran = np.array([[1, 0, 0], [1, 0, 1], [1, 0, 1], [0, 1, 0]], bool)
    assert shuffled_accuracy(PROBABILITIES, LABELS, ran, ONES) == (1 * 2 + 2 * 3 + 1 * 2) / 16
    same = np.tile([True, False, True], (4, 1))
    assert shuffled_accuracy(PROBABILITIES, LABELS, same, ONES) == 0.75


def test_routes_dealt_at_random_are_the_mean_of_all_permutations():
    ran = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 1]], bool)
    right = np.array([answers_of_route(PROBABILITIES, row, ONES) == LABELS for row in ran])
    dealt = [right[list(order), range(4)].mean() for order in itertools.permutations(range(4))]
    assert shuffled_accuracy(PROBABILITIES, LABELS, ran, ONES) == pytest.approx(np.mean(dealt))


def test_shapes_that_do_not_fit():
    stop, first = Cascade.alone(3), np.zeros(4, int)
    with pytest.raises(ValueError, match=r"`probabilities` must have shape \[E, n, N\]"):
        run(stop, PROBABILITIES[0], first)
    with pytest.raises(ValueError, match="2 experts of the cascade"):
        run(Cascade.alone(2), PROBABILITIES, first)
    for bad in (first[:3], first + 3, first - 1, first + 0.5):
        with pytest.raises(ValueError, match="`first` must be 4 integers from 0 to 2"):
            run(stop, PROBABILITIES, bad)
    for bad in (np.zeros(3, bool), np.ones(2, bool), np.ones(3)):
        with pytest.raises(ValueError, match="`ran_row` must be 3 booleans"):
            answers_of_route(PROBABILITIES, bad, ONES)
    with pytest.raises(ValueError, match="`labels` must be one for each image"):
        shuffled_accuracy(PROBABILITIES, LABELS[:3], np.ones((4, 3), bool), ONES)
    with pytest.raises(ValueError, match="`ran` must be of shape"):
        shuffled_accuracy(PROBABILITIES, LABELS, np.ones((3, 3), bool), ONES)
    with pytest.raises(ValueError, match="`ran` and `probabilities` must have shapes"):
        Answers(np.ones((4, 3), bool), np.ones((3, 2)))


@pytest.mark.parametrize("bad", [[], [1.0, 0.0], [1.0, -1.0], [np.inf], [[1.0]]])
def test_latencies_that_are_none(bad):
    with pytest.raises(ValueError, match="`expert_ms` must be"):
        check_costs(bad, 0.0)
    with pytest.raises(ValueError, match="`front_ms` must be"):
        check_costs([1.0], -1.0)
