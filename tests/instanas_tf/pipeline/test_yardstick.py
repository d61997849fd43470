"""Gains over static networks, on rows that can be counted by hand and on synthetic images."""

import dataclasses

import numpy as np
import pytest

from instanas_tf.pipeline import yardstick
from instanas_tf.pipeline.yardstick import RoutingGain, StaticPoint, routing_gain


def bits(text):
    return np.array([letter == "1" for letter in text])


CHEAP = StaticPoint("expert_00", bits("1100000000"), 1.0)
MIDDLE = StaticPoint("expert_01", bits("1111110000"), 2.0)
DEAR = StaticPoint("expert_02", bits("0111111110"), 3.0)
STATIC = (CHEAP, MIDDLE, DEAR)
GAIN = RoutingGain(0.013, 0.007, 0.019, 0.6, 0.587, 1.1, 1000)


def test_a_static_point_knows_its_accuracy():
    assert [point.accuracy for point in STATIC] == [0.2, 0.6, 0.8]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hits": np.array([1, 0])}, r"`hits` of expert_00 must be bool .*int64 \(2,\)"),
        ({"hits": np.zeros((2, 2), bool)}, r"Received: bool \(2, 2\)"),
        ({"hits": np.zeros(0, bool)}, "at least one image"),
        ({"hits": [True]}, r"Received: list \(1,\)"),
        ({"latency_ms": 0.0}, "`latency_ms` of expert_00 must be finite and above 0"),
        ({"latency_ms": float("nan")}, "Received: nan"),
    ],
)
def test_a_static_point_that_is_none(changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(CHEAP, **changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"low": 0.02}, "`low` must be at most `high`. Received: low=0.02"),
        ({"low": float("nan")}, "Received: low=nan"),
        ({"confidence": 1.0}, "`confidence` in"),
        ({"resamples": 0}, "Received: resamples=0"),
    ],
)
def test_a_gain_that_is_none(changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(GAIN, **changes)


def test_what_a_gain_says():
    assert GAIN.pays
    assert not dataclasses.replace(GAIN, low=0.0).pays
    assert GAIN.half_width == pytest.approx(0.006)
    assert GAIN.to_json() == {
        "gain": 0.013,
        "interval": [0.007, 0.019],
        "static_accuracy": 0.587,
        "confidence": 0.95,
        "images": 1000,
        "resamples": 1000,
    }


def test_gain_over_the_line_between_two():
    found = routing_gain(bits("1111111000"), 2.5, STATIC, seed=0)
    assert found.accuracy == 0.7
    assert found.static_accuracy == pytest.approx(0.7)
    assert found.gain == pytest.approx(0.0)
    assert (found.latency_ms, found.images, found.resamples) == (2.5, 10, 1000)
    assert not found.pays


def test_gain_where_all_are_slower():
    assert routing_gain(bits("1111111111"), 0.99, STATIC, seed=0) is None


def test_the_same_images_are_drawn_for_all():
    """A system that answers as its only rival has a gain of exactly 0 in every resample."""
    found = routing_gain(MIDDLE.hits, 2.0, [MIDDLE], seed=0)
    assert (found.gain, found.low, found.high) == (0.0, 0.0, 0.0)


def test_the_interval_is_that_of_a_binomial():
    """Right on one more of each ten images, of 1,000: the gain is the share of those drawn.

    Its quantiles are those of a binomial(1000, 0.1) / 1000: 0.082 and 0.119. The quantile of
    4,000 resamples has a standard error of sqrt(0.025 * 0.975 / 4000) / density, which is
    0.0004 here; the tolerance is five of those.
    """
    rival = np.tile(bits("1110000000"), 100)
    hits = np.tile(bits("1111000000"), 100)
    found = routing_gain(hits, 1.0, [StaticPoint("a", rival, 1.0)], seed=0, resamples=4000)
    assert found.gain == pytest.approx(0.1)
    assert found.low == pytest.approx(0.082, abs=0.002)
    assert found.high == pytest.approx(0.119, abs=0.002)
    assert found.pays


def test_blocks_of_resamples_do_not_change_the_interval(monkeypatch):
    values = {"hits": bits("1111111000"), "latency_ms": 2.5, "static": STATIC, "seed": 3}
    whole = routing_gain(**values, resamples=50)
    monkeypatch.setattr(yardstick, "_COUNTS_AT_ONCE", 30)
    assert routing_gain(**values, resamples=50) == whole
    assert routing_gain(**{**values, "seed": 4}, resamples=50) != whole


def test_timings_that_vary_widen_the_interval():
    """The rivals are always and never right, so that only the latency can vary.

    The mean of 100 rows of 1 or 3 ms is 2 ± 0.1, and the envelope rises by 0.5 each ms:
    the half width is 1.96 * 0.05 = 0.098. A half width of 1,000 resamples has a relative
    standard error of 3 %; the tolerance is four of those.
    """
    bad = StaticPoint("bad", np.zeros(100, bool), 1.0)
    good = StaticPoint("good", np.ones(100, bool), 3.0)
    hits, rows = np.ones(100, bool), np.repeat([1.0, 3.0], 50)
    steady = routing_gain(hits, 2.0, [bad, good], seed=0)
    assert (steady.low, steady.gain, steady.high) == (0.5, 0.5, 0.5)
    found = routing_gain(hits, 2.0, [bad, good], seed=0, latency_rows=rows)
    assert found.gain == 0.5
    assert found.half_width == pytest.approx(0.098, rel=0.12)


def test_resampled_latencies_stay_on_the_envelope():
    """Half of the resamples are faster than the only rival, which then counts as it is."""
    rows = np.repeat([1.0, 3.0], 50)
    found = routing_gain(MIDDLE.hits, 2.0, [MIDDLE], seed=0, latency_rows=rows)
    assert (found.low, found.high) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"static": ()}, r"at least one network.* Received: 10 images, and \[\] of 0"),
        ({"hits": bits("11")}, r"Received: 2 images, and \[10\] of 3 networks"),
        ({"hits": np.ones(10)}, "`hits` must be bool"),
        ({"latency_ms": -1.0}, "`latency_ms` must be finite and above 0. Received: -1.0"),
        ({"resamples": 0}, "Received: resamples=0"),
        ({"confidence": 0.0}, "confidence=0.0"),
    ],
)
def test_gain_of_what_cannot_be_compared(changes, match):
    values = {"hits": MIDDLE.hits, "latency_ms": 2.0, "static": STATIC, "seed": 0}
    with pytest.raises(ValueError, match=match):
        routing_gain(**{**values, **changes})


def trials(route, count):
    """Gains of a system that takes the dear one of two networks where `route` says so.

    400 images, of which the dear network answers 0.8 right and the cheap one 0.6.
    """
    generator = np.random.default_rng(0)
    found = []
    for seed in range(count):
        cheap, dear = generator.random(400) < 0.6, generator.random(400) < 0.8
        takes_dear = route(generator, cheap, dear)
        static = [StaticPoint("cheap", cheap, 1.0), StaticPoint("dear", dear, 3.0)]
        hits = np.where(takes_dear, dear, cheap)
        latency_ms = 1.0 + 2.0 * np.mean(takes_dear)
        found.append(routing_gain(hits, latency_ms, static, seed=seed, resamples=400))
    return found


def test_mixing_at_random_gains_nothing():
    """The interval covers 0 in 0.95 of the trials.

    Of 400 trials 20 may miss. It is 16 (as 4,000 trials say): the latency is that of the images
    that were drawn, while the share of the dear network varies over resamples. The standard
    deviation is 4, so the limits lie three and four away, and what they are there to find lies
    beyond them: images that are not paired miss less than 1 of 400, a standard error that is a
    third too small misses 68.
    """
    found = trials(lambda generator, cheap, dear: generator.random(400) < 0.5, 400)
    missed = sum(not gain.low <= 0.0 <= gain.high for gain in found)
    assert 4 <= missed <= 32
    # The mean of 400 gains, each with a standard error of about 0.016.
    assert np.mean([gain.gain for gain in found]) == pytest.approx(0.0, abs=5 * 0.016 / 20)


def test_taking_the_dear_one_where_the_cheap_one_is_wrong_gains():
    """Right on 0.92 of the images at 1.8 ms, where the line is at 0.68: a dozen standard errors."""
    found = trials(lambda generator, cheap, dear: ~cheap, 5)
    assert all(gain.pays for gain in found)
    # Each gain has a standard error of about 0.02.
    assert [gain.gain for gain in found] == pytest.approx([0.24] * 5, abs=0.1)


def test_static_envelope():
    line = yardstick.static_envelope([DEAR, CHEAP, dataclasses.replace(MIDDLE, hits=CHEAP.hits)])
    assert line["latency_ms"] == [1.0, 2.0, 3.0]
    assert line["accuracy"] == pytest.approx([0.2, 0.5, 0.8])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "choosing by image gains 1.3 ± 0.6 points at 0.55 of the latency of the largest expert",
        ),
        (
            {"gain": 0.002, "low": -0.004, "high": 0.008},
            "choosing by image does not pay here: ship expert_03 alone (0.2 ± 0.6 points)",
        ),
        (
            {"gain": -0.0001, "low": -0.01, "high": 0.01},
            "choosing by image does not pay here: ship expert_03 alone (0.0 ± 1.0 points)",
        ),
        (
            {"gain": -0.012, "low": -0.02, "high": -0.004},
            "choosing by image does not pay here: ship expert_03 alone (-1.2 ± 0.8 points)",
        ),
    ],
)
def test_sentence(changes, expected):
    gain = dataclasses.replace(GAIN, **changes)
    assert yardstick.sentence(gain, 2.0, "expert_03") == expected


def test_sentence_names_what_the_latency_is_a_share_of():
    found = yardstick.sentence(GAIN, 2.2, "expert_03", "mobilenet_v2_1.0")
    assert found.endswith("at 0.50 of the latency of mobilenet_v2_1.0")


def test_sentence_where_all_are_slower():
    assert yardstick.sentence(None, 2.0, "expert_00") == (
        "choosing by image is faster than every static network here, so there is none to "
        "hold it against: the fastest is expert_00"
    )
    with pytest.raises(ValueError, match="`reference_ms` must be finite and above 0"):
        yardstick.sentence(None, 0.0, "expert_00")
