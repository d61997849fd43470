"""The envelope of static networks, on points that can be checked by hand, and its properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instanas_tf.pipeline.envelope import envelope, envelopes

CORNERS = ([1.0, 2.0, 4.0], [0.5, 0.7, 0.9])
# As CORNERS, with a slow bad network, one below a line, one twice and a slower one as good.
CROWDED = (
    [4.0, 1.0, 2.0, 3.0, 2.0, 1.0, 5.0, 3.0],
    [0.9, 0.5, 0.7, 0.2, 0.7, 0.4, 0.9, 0.75],
)


@pytest.mark.parametrize("points", [CORNERS, CROWDED], ids=["corners", "crowded"])
@pytest.mark.parametrize(
    ("at_ms", "expected"),
    [(1.0, 0.5), (1.5, 0.6), (2.0, 0.7), (3.0, 0.8), (3.5, 0.85), (4.0, 0.9), (9.0, 0.9)],
)
def test_envelope(points, at_ms, expected):
    assert envelope(*points, at_ms) == pytest.approx(expected)


@pytest.mark.parametrize("points", [CORNERS, CROWDED, ([1.0], [0.5])])
def test_left_of_the_cheapest_there_is_none(points):
    assert envelope(*points, 0.999) is None


@pytest.mark.parametrize(("at_ms", "expected"), [(1.0, 0.5), (7.0, 0.5)])
def test_one_point(at_ms, expected):
    assert envelope([1.0], [0.5], at_ms) == expected


def test_a_corner_below_the_line_of_its_neighbours_is_skipped():
    assert envelope([1.0, 2.0, 3.0], [0.2, 0.3, 0.8], 2.0) == pytest.approx(0.5)


def test_the_cheapest_wins_if_it_is_the_best():
    assert envelope([1.0, 2.0, 3.0], [0.8, 0.5, 0.7], 2.5) == 0.8


def test_of_two_that_are_equally_slow_the_better_counts():
    assert envelope([1.0, 1.0], [0.4, 0.6], 1.0) == 0.6


def test_a_row_each():
    accuracy = [[0.5, 0.7], [0.6, 0.6], [0.5, 0.9]]
    found = envelopes([1.0, 2.0], accuracy, [1.5, 1.5, 0.5])
    np.testing.assert_allclose(found, [0.6, 0.6, np.nan])
    np.testing.assert_allclose(envelopes([1.0, 2.0], accuracy, 1.25), [0.55, 0.6, 0.6])


@pytest.mark.parametrize(
    ("latency_ms", "accuracy"), [([], []), ([1.0], [0.5, 0.6]), ([1.0, 2.0], [0.5])]
)
def test_points_that_do_not_fit(latency_ms, accuracy):
    with pytest.raises(ValueError, match="must have one value for each .* Received: shapes"):
        envelope(latency_ms, accuracy, 1.0)


def by_scanning(latency_ms, accuracy, at_ms):
    """The same by the corners of the upper hull (Andrew's scan) and lines between them."""
    corners = []
    for x, y in sorted(zip(latency_ms, accuracy, strict=True), key=lambda p: (p[0], -p[1])):
        if corners and y <= corners[-1][1]:
            continue
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y1 - y0) * (x - x0) > (y - y0) * (x1 - x0):
                break
            corners.pop()
        corners.append((x, y))
    return np.interp(at_ms, *zip(*corners, strict=True))


POINTS = st.lists(
    st.tuples(st.integers(1, 500), st.integers(0, 1000)), min_size=1, max_size=12
).map(lambda points: (np.array(points) / [100, 1000]).T)


@given(POINTS, st.integers(1, 600), st.integers(1, 600))
def test_properties(points, one, other):
    latency_ms, accuracy = points
    at = [np.min(latency_ms) + value / 100 for value in sorted((one, other))]
    low, high = (envelope(latency_ms, accuracy, value) for value in at)
    middle = envelope(latency_ms, accuracy, np.mean(at))
    assert low <= high + 1e-12  # Rises.
    assert middle >= (low + high) / 2 - 1e-12  # Is concave.
    assert high <= np.max(accuracy) + 1e-12
    for own_ms, own in zip(latency_ms, accuracy, strict=True):
        assert envelope(latency_ms, accuracy, own_ms) >= own
    assert middle == pytest.approx(by_scanning(latency_ms, accuracy, np.mean(at)), abs=1e-9)
