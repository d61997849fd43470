"""What outputs and timings say, on numbers that can be checked by hand."""

import numpy as np
import pytest

from instanas_tf.pipeline import evaluate


def test_one_hiccup_counts_little():
    calm = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    disturbed = calm.copy()
    disturbed[1, 0] = 1000.0
    assert evaluate.mean_latency_ms(calm) == 1.5
    assert evaluate.mean_latency_ms(disturbed) == 1.5


def test_standard_error():
    assert evaluate.standard_error(0.5, 100) == pytest.approx(0.05)
    assert evaluate.standard_error(1.0, 100) == 0.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"half_width": 0.01}, 3842),
        ({"half_width": 0.1}, 39),
        ({"half_width": 0.01, "disagreement": 0.2}, 7683),
        ({"half_width": 0.01, "confidence": 0.6827}, 1001),  # One standard deviation.
    ],
)
def test_images_needed(values, expected):
    assert evaluate.images_needed(**values) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"half_width": 0.0},
        {"half_width": 0.01, "disagreement": 0.0},
        {"half_width": 0.01, "disagreement": 1.1},
        {"half_width": 0.01, "confidence": 1.0},
    ],
)
def test_images_needed_of_no_interval(values):
    with pytest.raises(ValueError, match="`half_width` must be above 0.* Received: half_width"):
        evaluate.images_needed(**values)


def bits(text):
    return np.array([letter == "1" for letter in text])


def test_seed_twin():
    # Twins are right on 2 and 3 of 5 images, on 4 together; the experts on 1 and 4, on all.
    found = evaluate.seed_twin(bits("11000"), bits("01110"), bits("00001"), bits("11110"))
    assert found == pytest.approx(
        {
            "twin_oracle": 0.8,
            "twin_best": 0.6,
            "twin_headroom": 0.2,
            "expert_oracle": 1.0,
            "expert_best": 0.8,
            "expert_headroom": 0.2,
        }
    )


@pytest.mark.parametrize("wrong", [bits("110"), np.array([1, 0])])
def test_seed_twin_of_hits_that_do_not_fit(wrong):
    with pytest.raises(ValueError, match="must be bool, of the same images. Received: .*bool"):
        evaluate.seed_twin(bits("11"), bits("11"), bits("11"), wrong)
