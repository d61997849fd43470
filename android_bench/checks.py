"""Checks of single values, shared by everything that validates itself."""

from __future__ import annotations

import math
import re


def is_count(value: object, lowest: int = 0) -> bool:
    """Returns whether a value is a whole number of at least `lowest`; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def is_finite(value: object) -> bool:
    """Returns whether a value is a number that a float can hold; a bool is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_text(value: object) -> bool:
    """Returns whether a value is a string that is not empty."""
    return isinstance(value, str) and value != ""


def is_sha256(value: object) -> bool:
    """Returns whether a value is a sha256 in lower-case hex."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
