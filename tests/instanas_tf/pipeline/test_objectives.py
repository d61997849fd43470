"""Objectives by hand."""

import pytest

from instanas_tf.pipeline import objectives


def test_at_the_target_the_score_is_the_accuracy():
    assert objectives.mnasnet_score(0.9, 0.5, 0.5) == 0.9


def test_the_score_of_mnasnet():
    # 2^-0.07 = 0.952638, 2^0.07 = 1.049717; the soft constraint holds on both sides.
    assert objectives.mnasnet_score(0.8, 1.0, 0.5) == pytest.approx(0.7621104)
    assert objectives.mnasnet_score(0.8, 0.25, 0.5) == pytest.approx(0.8397734)
    assert objectives.mnasnet_score(0.8, 2.0, 0.5) == pytest.approx(0.7260155)  # Twice.
    assert objectives.mnasnet_score(0.8, 1.0, 0.5, weight=-1.0) == pytest.approx(0.4)


def test_twice_the_latency_weighs_as_much_as_five_percent_of_the_accuracy():
    slow = objectives.mnasnet_score(0.8 * 1.05, 1.0, 0.5)
    assert slow == pytest.approx(objectives.mnasnet_score(0.8, 0.5, 0.5), rel=1e-3)


@pytest.mark.parametrize(("latency", "target"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_no_score_without_latency(latency, target):
    with pytest.raises(ValueError, match="Received: latency="):
        objectives.mnasnet_score(0.5, latency, target)


def test_values():
    found = {name: objectives.value(name, 0.8, 1.0, 0.5) for name in objectives.OBJECTIVES}
    assert found == {
        "score": pytest.approx(0.7621104),
        "accuracy": 0.8,
        "latency": 1.0,
    }
    with pytest.raises(ValueError, match="must be one of"):
        objectives.value("speed", 0.8, 1.0, 0.5)
