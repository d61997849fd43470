"""Which variant of an export to run: by name, or by the time that an image may take."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from instanas_tf.errors import InputError

# The latency that counts -> its key in the manifest's entry of a variant.
LATENCIES = {
    "mean": "mean_latency_ms",
    "p95": "p95_latency_ms",
    "worst": "worst_latency_ms",
}
_ACCURACY = "validation_accuracy"
_REMEDY = "export again: export_tflite --expert=all --variant=all"
_MOST_MS = 1e9
_DIGITS = 4  # Of the milliseconds in errors; rounded up, so that they are enough as a budget.


def choose(
    variants: Sequence[dict[str, Any]],
    budget_ms: float | None = None,
    by: str = "mean",
    name: str = "",
    selected: str = "",
) -> dict[str, Any]:
    """The variant to run: the named one, the best within a budget, or the selected one.

    Args:
        variants: the manifest's `variants`.
        budget_ms: milliseconds that an image may take, as measured when exporting; None: any.
        by: which latency must stay within the budget: `mean`, `p95` or `worst`. A variant
            without a measurement of that kind never does.
        name: of the variant to run; empty: leave it to the budget.
        selected: the variant that runs with neither name nor budget; the manifest's `selected`.

    Returns:
        The variant's entry. Within a budget the most accurate; of equals the quicker one.

    Raises:
        InputError: no such variant, both name and budget, a budget that is not a finite number
            above 0 or that no variant meets, or entries without the numbers that this needs.
    """
    if by not in LATENCIES:
        raise InputError(f"`by` must be one of {', '.join(LATENCIES)}. Received: {by!r}")
    if budget_ms is not None and not (_is_number(budget_ms) and budget_ms > 0):
        raise InputError(f"`budget_ms` must be a number above 0. Received: {budget_ms!r}")
    if budget_ms is None:
        return _named(variants, name or selected)
    if name:
        raise InputError(
            f"give a variant or a budget, not both. Received: {name!r} and {budget_ms} ms"
        )
    return _within(variants, budget_ms, by)


def _named(variants: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    for variant in variants:
        if variant.get("name") == name:
            return variant
    names = ", ".join(str(variant.get("name")) for variant in variants) or "none"
    raise InputError(f"the export must hold the variant asked for, {name!r}. Received: {names}")


def _within(variants: Sequence[dict[str, Any]], budget_ms: float, by: str) -> dict[str, Any]:
    """The most accurate variant within a budget."""
    key = LATENCIES[by]
    measured = [variant for variant in variants if _is_latency(variant.get(key))]
    if not measured:
        raise InputError(f"no variant of the export has a measured {key}; {_REMEDY}")
    fitting = [variant for variant in measured if variant[key] <= budget_ms]
    if not fitting:
        cheapest = min(measured, key=lambda variant: variant[key])
        takes = math.ceil(cheapest[key] * 10**_DIGITS) / 10**_DIGITS
        raise InputError(
            f"no variant takes at most {budget_ms} ms ({by}); the cheapest is "
            f"{cheapest.get('name')} with {takes} ms: allow that, or export a cheaper variant"
        )
    unknown = [variant for variant in fitting if not _is_number(variant.get(_ACCURACY))]
    if unknown:
        raise InputError(f"variant {unknown[0].get('name')} lacks its {_ACCURACY}; {_REMEDY}")
    return max(fitting, key=lambda variant: (variant[_ACCURACY], -variant[key]))


def _is_latency(value: Any) -> bool:
    """Whether an image can take so many milliseconds."""
    return _is_number(value) and 0 <= value <= _MOST_MS


def _is_number(value: Any) -> bool:
    """Whether this is a finite real number of Python or NumPy."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and abs(value) < math.inf
