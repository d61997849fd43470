"""The rows of `docs/ablations.json`, read strictly off the `results.json` of runs.

Accuracies, gains and gaps are shares of 1.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

from instanas_tf import files
from instanas_tf.errors import InputError

REFERENCE = "mobilenet_v2_1.0"
FORMAT = "instanas_tf/ablations"
_WRONG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_SHARES = ("accuracy", "expert_gap", "routing_gain")
_ABOVE_ZERO = ("latency_ratio", "latency_share", "target")


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of one run.

    Attributes:
        dataset: that it was trained on.
        setting: of the table.
        seed: of the run.
        name: letter of the variant.
        kind: who decides.
        target: mean latency asked for, as a share of the reference network's.
        accuracy: on the test split, as TFLite files.
        latency_ratio: mean latency over that of `mobilenet_v2_1.0`, both of this run.
        latency_share: mean latency over that of the run's dearest expert.
        routing_gain: accuracy beyond static networks as fast; None if there is none as fast.
        routing_gain_interval: (low, high) of it, or None.
        expert_gap: the most that an expert gains by being trained alone.
        pays: whether choosing by image does.
    """

    dataset: str
    setting: str
    seed: int
    name: str
    kind: str
    target: float
    accuracy: float
    latency_ratio: float
    latency_share: float
    routing_gain: float | None
    routing_gain_interval: tuple[float, float] | None
    expert_gap: float
    pays: bool

    def __post_init__(self):
        """Refuses values of the wrong type, and those that no run can have."""
        for name in ("dataset", "setting", "name", "kind"):
            if not (isinstance(getattr(self, name), str) and getattr(self, name)):
                self._refuse(name, "a name")
        if type(self.seed) is not int or self.seed < 0:
            self._refuse("seed", "an int of at least 0")
        if type(self.pays) is not bool:
            self._refuse("pays", "a bool")
        if (self.routing_gain is None) != (self.routing_gain_interval is None):
            self._refuse("routing_gain_interval", "there if `routing_gain` is")
        for name in _SHARES:
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and -1.0 <= value <= 1.0):
                self._refuse(name, "a share from -1 to 1")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if not (_is_number(value) and 0.0 < value < math.inf):
                self._refuse(name, "a finite number above 0")
        if self.routing_gain_interval is not None:
            low, high = self.routing_gain_interval
            if not (_is_number(low) and _is_number(high) and -1.0 <= low <= high <= 1.0):
                self._refuse("routing_gain_interval", "(low, high), shares of 1")

    def _refuse(self, name: str, expected: str) -> None:
        raise ValueError(f"`{name}` must be {expected}. Received: {getattr(self, name)!r}")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Row:
        """Out of its JSON object, with exactly its keys.

        Raises:
            ValueError: a value is wrong.
            TypeError: a key is missing or unknown.
        """
        given = dict(value)
        if isinstance(given.get("routing_gain_interval"), list):
            given["routing_gain_interval"] = tuple(given["routing_gain_interval"])
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def rows_of(results: dict[str, Any], dataset: str, setting: str, seed: int) -> list[Row]:
    """The rows of one run.

    Args:
        results: the content of its `results.json`.
        dataset: that it was trained on.
        setting: of the table.
        seed: of the run.

    Raises:
        ValueError: a value that no run can have, or no network that is needed.
        LookupError: a key is missing.
        TypeError: a value of the wrong type.
    """
    reference = [b["latency_ms"] for b in results["baselines"] if b["name"] == REFERENCE]
    others = ("width", "expert")  # Keys of baselines and of networks trained alone.
    experts = [item for item in results["static"] if not any(key in item for key in others)]
    gaps = [item["gap"] for item in experts if "gap" in item]
    if len(reference) != 1 or not gaps:
        raise ValueError(
            f"it must hold {REFERENCE} and an expert trained alone. Received: "
            f"{len(reference)} and {len(gaps)}"
        )
    dearest = max(item["latency_ms"] for item in experts)
    found = []
    for variant in results["variants"]:
        gain = variant["routing_gain"]
        found.append(
            Row(
                dataset=dataset,
                setting=setting,
                seed=seed,
                name=variant["name"],
                kind=variant["kind"],
                target=variant["target"],
                accuracy=variant["accuracy"],
                latency_ratio=variant["mean_latency_ms"] / reference[0],
                latency_share=variant["mean_latency_ms"] / dearest,
                routing_gain=None if gain is None else gain["gain"],
                routing_gain_interval=None if gain is None else tuple(gain["interval"]),
                expert_gap=max(gaps),
                pays=variant["pays"],
            )
        )
    if not found:
        raise ValueError("it must hold a variant. Received: none")
    return found


def read_results(path: pathlib.Path, dataset: str, setting: str, seed: int) -> dict[str, Any]:
    """The rows of a run, and what the header of the table says of it.

    Returns:
        `rows`, and `test_images`, `timed_images`, `weight_epochs`, `device` and `runtime`.

    Raises:
        InputError: the file is missing or damaged.
    """
    remedy = "delete it and run the same command again"
    content = files.read_json(path, remedy)
    names = ("test_images", "timed_images", "weight_epochs")
    try:
        if content["dataset"] != dataset:
            raise ValueError(f"it is of {content['dataset']!r}")
        rows = rows_of(content, dataset, setting, seed)
        runtime = content["runtime"]
        return {
            "rows": rows,
            **{name: content[name] for name in names},
            "device": content["device"]["name"],
            "runtime": f"{runtime['name']} {runtime['version']}",
        }
    except _WRONG as error:
        raise InputError(f"{path} is damaged ({_reason(error)}); {remedy}") from error


def read_table(path: pathlib.Path) -> tuple[dict[str, Any], list[Row]]:
    """The headers of the datasets by name, and the rows, of a `docs/ablations.json`.

    Raises:
        InputError: the file is missing or damaged.
    """
    remedy = "make it anew without --page_only, or name another file with --out"
    content = files.read_json(path, remedy)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        rows = [Row.from_json(row) for row in content["rows"]]
        datasets = content["datasets"]
        missing = {row.dataset for row in rows} - set(datasets)
        if missing:
            raise ValueError(f"no header for {sorted(missing)[0]}")
    except _WRONG as error:
        raise InputError(f"{path} is damaged ({_reason(error)}); {remedy}") from error
    return datasets, rows


def write_table(path: pathlib.Path, datasets: dict[str, Any], rows: list[Row]) -> None:
    """Writes what `read_table` reads."""
    content = {
        "format": FORMAT,
        "datasets": datasets,
        "rows": [row.to_json() for row in rows],
    }
    files.write_json(path, content)


def _reason(error: BaseException) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
