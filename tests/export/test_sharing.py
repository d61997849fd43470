"""Kernels that differ by a factor per channel become one, and nothing else does."""

import numpy as np
import pytest

from export import sharing

FIRST = np.array([[1.0, -2.0, 4.0], [0.0, 0.0, 0.0], [3.0, 1.0, 0.5]], np.float32)


def test_factors_of_a_kernel():
    other = FIRST * np.array([[0.5], [7.0], [-2.0]], np.float32)
    np.testing.assert_allclose(sharing._factors(FIRST, other), [0.5, 1.0, -2.0], rtol=1e-12)


def test_rounding_is_allowed_and_no_more():
    third = FIRST / np.float32(3.0)
    factors = sharing._factors(FIRST, third * np.float32(7.0))
    np.testing.assert_allclose(factors, [7 / 3, 1.0, 7 / 3], rtol=1e-6)
    third[2, 1] *= 1.0001
    assert sharing._factors(FIRST, third) is None
    assert sharing._factors(FIRST, FIRST + np.float32(0.01)) is None


def test_factors_of_a_half_precision_kernel():
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(4, 100))
    scale = np.array([[0.3], [0.7], [1.1], [1.9]])
    factors = sharing._factors(kernel.astype(np.float16), (kernel * scale).astype(np.float16))
    np.testing.assert_allclose(factors, scale[:, 0], rtol=2e-4)
    kernel[2, 5] *= 1.01
    assert (
        sharing._factors(kernel.astype(np.float16), (kernel * scale).astype(np.float16)) is not None
    )
    changed = kernel.copy()
    changed[3, 7] *= 1.01
    assert sharing._factors(kernel.astype(np.float16), changed.astype(np.float16)) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({5: 1, 700: -1}, True), ({5: 2}, False), ({5: 1, 6: 1, 7: 1}, False)],
)
def test_nearly_equal_bytes(changes, expected):
    first = np.arange(2000).reshape(2, 1000).astype(np.int8)
    first = np.clip(first, -100, 100)
    other = first.copy()
    for index, change in changes.items():
        other.ravel()[index] += change
    assert sharing._is_nearly(first, other) == expected
