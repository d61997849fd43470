"""Golden numbers of the schedules."""

import pytest

from instanas_tf.search import schedules


def at(schedule, *places):
    return pytest.approx([schedule(place) for place in places])


def test_knots():
    schedule = schedules.knots([(0.2, 1.0), (0.6, 3.0), (1.0, 2.0)])
    assert at(schedule, 0.0, 0.2, 0.3, 0.6, 0.8, 1.0) == [1.0, 1.0, 1.5, 3.0, 2.5, 2.0]
    assert at(schedules.knots([(0.5, 4)]), 0.0, 0.5, 1.0) == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    "points", [[], [(0.5, 1.0), (0.2, 1.0)], [(-0.1, 1.0)], [(0.0, 1.0), (1.1, 1.0)]]
)
def test_knots_refuses_points_that_do_not_rise_from_0_to_1(points):
    with pytest.raises(ValueError, match="`points` must be .* Received: "):
        schedules.knots(points)


def test_cosine():
    # cos(pi / 3) = 0.5.
    assert at(schedules.cosine(0.4), 0.0, 1 / 3, 0.5, 1.0, 1.5) == [0.4, 0.3, 0.2, 0.0, 0.0]


def test_steps():
    schedule = schedules.steps(8.0, (0.5, 0.75), factor=0.5)
    assert at(schedule, 0.0, 0.49, 0.5, 0.74, 0.75, 1.0) == [8, 8, 4, 4, 2, 2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cosine", [2.0, 1.0, 0.0]), ("step", [2.0, 0.2, 0.02]), ("constant", [2.0, 2.0, 2.0])],
)
def test_learning_rates(name, expected):
    assert at(schedules.LEARNING_RATES[name](2.0), 0.0, 0.5, 1.0) == expected


def test_every_learning_rate_is_tested():
    assert set(schedules.LEARNING_RATES) == {"cosine", "step", "constant"}
