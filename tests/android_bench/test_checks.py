"""Tests of android_bench.checks."""

import pytest

from android_bench.checks import is_count, is_finite, is_sha256, is_text


@pytest.mark.parametrize(
    ("value", "expected"), [(0, True), (3, True), (-1, False), (True, False), (1.0, False)]
)
def test_is_count(value, expected):
    assert is_count(value) is expected


def test_is_count_lowest():
    assert is_count(2, 2)
    assert not is_count(1, 2)


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_is_finite_accepts_numbers(value):
    assert is_finite(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None, 10**400])
def test_is_finite_rejects(value):
    assert not is_finite(value)


def test_is_text():
    assert is_text("a")
    assert not is_text("")
    assert not is_text(1)


def test_is_sha256():
    assert is_sha256("0a" * 32)
    assert not is_sha256("0A" * 32)
    assert not is_sha256("0a" * 31)
    assert not is_sha256("0a" * 32 + "\n")
