"""What each mode may change, in literal numbers."""

import numpy as np
import pytest

from export import tolerances
from instanas_tf.errors import ModelError

EXPECTED = np.array([[0.75, 0.25], [0.5, 0.25]], np.float32)


def test_every_mode_has_its_tolerance():
    assert {mode: tuple(item) for mode, item in tolerances.TOLERANCES.items()} == {
        "none": (1e-4, 1e-4, 0.0),
        "fp16": (1e-2, 1e-2, 0.0),
        "dynamic": (0.25, 0.02, 0.97),
        "int8": (np.inf, 0.02, 0.97),
    }
    with pytest.raises(TypeError):
        tolerances.TOLERANCES["none"] = None


def test_differences_are_relative_to_the_largest_value_from_one_on():
    assert tolerances.difference(EXPECTED, EXPECTED + 0.5) == 0.5
    assert tolerances.difference(8 * EXPECTED, 8 * EXPECTED + 3.0) == 0.5
    found = EXPECTED + np.array([[0.5, 0.0], [0.0, 0.0]])
    assert tolerances.difference(EXPECTED, found, np.mean) == 0.125


@pytest.mark.parametrize(
    ("mode", "passes", "fails"),
    [("none", 5e-5, 2e-4), ("fp16", 5e-3, 2e-2), ("dynamic", 0.015, 0.03), ("int8", 0.015, 0.03)],
)
def test_a_file_may_differ_as_far_as_its_mode_says(mode, passes, fails):
    found = tolerances.compare(mode, EXPECTED, EXPECTED + np.float32(passes))
    assert found == pytest.approx((passes, passes, 1.0), rel=1e-2)
    with pytest.raises(ModelError, match="two.tflite differs from the Keras model by .*nothing"):
        tolerances.compare(mode, EXPECTED, EXPECTED + np.float32(fails), "two")
    with pytest.raises(ModelError, match="differs"):
        tolerances.compare(mode, EXPECTED, np.full_like(EXPECTED, np.nan))


def test_bytes_are_steps_of_a_probability():
    found = tolerances.compare("int8", EXPECTED, np.array([[192, 64], [128, 60]], np.uint8))
    assert found == pytest.approx((4 / 256, 1 / 256, 1.0))


@pytest.mark.parametrize(("wrong", "passes"), [(3, True), (4, False)])
def test_at_most_three_of_a_hundred_images_get_another_top_class(wrong, passes):
    expected = np.tile(np.array([[0.51, 0.49]], np.float32), (100, 1))
    found = expected.copy()
    found[:wrong] = [0.49, 0.51]
    if passes:
        assert tolerances.compare("int8", expected, found).top_class == 0.97
        return
    with pytest.raises(ModelError, match="e.tflite ranks another .* 4.0% of 100 images .*fp16"):
        tolerances.compare("int8", expected, found, "e")
    assert tolerances.compare("int8", expected, found, output="scores").top_class == 0.96


def test_scores_may_jump_where_a_file_is_quantised():
    expected = np.tile(np.array([[0.5, 0.25]], np.float32), (100, 1))
    found = expected.copy()
    found[0] = [1.0, 0.25]
    assert tolerances.compare("fp16", expected, found, output="scores").largest == 0.5
    for mode, output in (("none", "scores"), ("fp16", "probabilities")):
        with pytest.raises(ModelError, match="by 0.5"):
            tolerances.compare(mode, expected, found, output=output)


def test_features_are_not_ranked():
    features = np.zeros((2, 4, 4, 8), np.float32)
    assert tolerances.compare("int8", features, features, output="features").top_class == 1.0


@pytest.mark.parametrize(
    ("mode", "found", "words"),
    [
        ("int4", EXPECTED, "`mode` must be one of .*Received: 'int4'"),
        ("int8", EXPECTED[:1], r"`found` must be of the shape \(2, 2\)"),
    ],
)
def test_what_cannot_be_compared(mode, found, words):
    with pytest.raises(ValueError, match=words):
        tolerances.compare(mode, EXPECTED, found)
    with pytest.raises(ValueError, match="at least one row"):
        tolerances.compare("none", EXPECTED[:0], EXPECTED[:0])
