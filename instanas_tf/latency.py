"""The latency table: measured milliseconds of each op in each cell, and what follows.

    latency(policy) = scale · (stem + head + Σ ops that run) + controller

Ops that are measured alone run with a warm cache, so their plain sum underestimates a
whole network; one scale factor, fitted on whole experts, mends most of it. The controller
is measured whole and is not scaled.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.spaces.space import SearchSpace

FORMAT = "instanas_tf/latency_table"
VERSION = 1
REMEDY = "measure again: python -m instanas_tf.measure --workdir=DIR --device=host"


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Latencies of a space's parts on one device with one runtime, in ms.

    Attributes:
        space: the space that was measured.
        op_ms: L rows of K latencies of single ops, as measured alone.
        stem_ms: of the stem, likewise.
        head_ms: of the head, likewise.
        controller_ms: of the whole controller.
        controller_kind: which controller that was.
        scale: factor from the sum of the parts to a whole network.
        calibration: the experts that `scale` was fitted on and checked on, and the error.
        device: fingerprint of the device.
        runtime: name, version and hash of the TFLite runtime.
        protocol: how it was measured, threads included.
        quantization: of the probes, such as `none`.
        created: time of the measurement, ISO 8601.
    """

    space: SearchSpace
    op_ms: tuple[tuple[float, ...], ...]
    stem_ms: float
    head_ms: float
    controller_ms: float
    controller_kind: str
    scale: float = 1.0
    calibration: dict[str, Any] = dataclasses.field(default_factory=dict)
    device: dict[str, Any] = dataclasses.field(default_factory=dict)
    runtime: dict[str, Any] = dataclasses.field(default_factory=dict)
    protocol: dict[str, Any] = dataclasses.field(default_factory=dict)
    quantization: str = "none"
    created: str = ""

    def __post_init__(self) -> None:
        shape = (self.space.num_cells, self.space.num_ops)
        if np.shape(self.op_ms) != shape:
            raise ValueError(f"`op_ms` must have shape {shape}. Received: {np.shape(self.op_ms)}")
        for name in ("controller_kind", "quantization", "created"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` must be text. Received: {getattr(self, name)!r}")
        numbers = [*np.ravel(self.op_ms), self.stem_ms, self.head_ms, self.controller_ms]
        for number in [*numbers, self.scale]:
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"Latencies and scale must be above 0 ms. Received: {number}")

    @property
    def costs_ms(self) -> np.ndarray:
        """Float32 [L, K]: what each op adds to a whole network."""
        return np.asarray(self.op_ms, np.float32) * np.float32(self.scale)

    @property
    def fixed_ms(self) -> float:
        """What stem and head add to every network."""
        return self.scale * (self.stem_ms + self.head_ms)

    def static_ms(self, policy: Any, reduce_sum=np.sum) -> Any:
        """Latency of a policy's network alone, without a controller.

        Args:
            policy: 0/1 bits, or independent probabilities, for which the result is the
                exact expectation; [..., L, K], NumPy or tensor.
            reduce_sum: the array library's sum; `keras.ops.sum` for tensors.

        Returns:
            [...], in ms.
        """
        costs = self.space.effective(policy) * self.costs_ms
        return reduce_sum(costs, axis=(-2, -1)) + self.fixed_ms

    def latency_ms(self, policy: Any, reduce_sum=np.sum) -> Any:
        """Latency of controller and network; arguments as in `static_ms`."""
        return self.static_ms(policy, reduce_sum) + self.controller_ms

    @property
    def reference_ms(self) -> float:
        """The reference op in every cell, without a controller: the MobileNetV2 to beat."""
        return float(self.static_ms(self.space.single_op_policy(self.space.reference_op)))

    @property
    def l_base_ms(self) -> float:
        """L_base: the reference op in every cell, controller included."""
        return self.reference_ms + self.controller_ms

    @property
    def l_max_ms(self) -> float:
        """L_max: every op on, controller included."""
        return float(self.latency_ms(np.ones((self.space.num_cells, self.space.num_ops))))

    @property
    def l_min_ms(self) -> float:
        """L_min as published: default ops only, controller included; not the least."""
        return float(self.latency_ms(np.zeros((self.space.num_cells, self.space.num_ops))))

    def save(self, path: pathlib.Path) -> None:
        """Writes the table with a checksum, in one piece."""
        content = {"format": FORMAT, "version": VERSION, "space_hash": self.space.hash}
        content |= {**dataclasses.asdict(self), "space": self.space.to_json()}
        files.write_json(path, {**content, "checksum": files.digest(content)})

    @classmethod
    def load(
        cls,
        path: pathlib.Path,
        space: SearchSpace | None = None,
        controller_kind: str | None = None,
        quantization: str = "none",
    ) -> LatencyTable:
        """Reads a table, strictly.

        Args:
            path: `latency_table.json`.
            space: the space it must be of, or None for any.
            controller_kind: the controller it must hold, or None for any.
            quantization: the quantization it must be of.

        Raises:
            InputError: a missing or damaged file, a missing or unknown key, a wrong
                checksum, or a table of another space, controller or quantization.
        """
        content = files.read_json(path, REMEDY)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path} is no latency table; {REMEDY}")
        if content.get("version") != VERSION:
            raise InputError(
                f"{path} has version {content.get('version')}, not {VERSION}; {REMEDY}"
            )
        expected = {"format", "version", "space_hash", "checksum"}
        expected |= {field.name for field in dataclasses.fields(cls)}
        wrong = sorted(expected ^ set(content))
        if wrong:
            raise InputError(f"{path}: missing or unknown key {wrong[0]!r}; {REMEDY}")
        checksum = content.pop("checksum")
        if checksum != files.digest(content):
            raise InputError(f"{path}: the checksum is wrong, it was changed by hand; {REMEDY}")
        for key in ("format", "version", "space_hash"):
            content.pop(key)
        try:
            table = cls(
                **{
                    **content,
                    "space": SearchSpace.from_json(content["space"]),
                    "op_ms": tuple(tuple(row) for row in content["op_ms"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}); {REMEDY}") from error
        wanted = {
            "space": (table.space.hash, space.hash if space else table.space.hash),
            "controller": (table.controller_kind, controller_kind or table.controller_kind),
            "quantization": (table.quantization, quantization),
        }
        for what, (found, asked) in wanted.items():
            if found != asked:
                raise InputError(
                    f"{path} is of another {what} ({found[:16]}, not {asked[:16]}); {REMEDY}"
                )
        return table


def prediction_error(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> dict:
    """How well a table predicts whole networks.

    Args:
        predicted_ms: n predictions.
        measured_ms: n measurements of the same networks.

    Returns:
        `count`, `mean_absolute_percentage_error`, `bias_percent` (mean of predicted over
        measured, minus 1), and `ordered_right`: share of pairs that differ by more than
        5 % whose order is predicted right (None without such a pair).
    """
    predicted, measured = np.asarray(predicted_ms, float), np.asarray(measured_ms, float)
    relative = predicted / measured - 1.0
    first, second = np.triu_indices(len(measured), k=1)
    ratio = measured[first] / measured[second]
    apart = np.maximum(ratio, 1.0 / ratio) > 1.05
    right = (predicted[first] > predicted[second]) == (measured[first] > measured[second])
    return {
        "count": len(measured),
        "mean_absolute_percentage_error": float(np.mean(np.abs(relative)) * 100.0),
        "bias_percent": float(np.mean(relative) * 100.0),
        "ordered_right": float(np.mean(right[apart])) if apart.any() else None,
    }
