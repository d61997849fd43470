"""What happens at the end of an epoch: logs, kept controllers, a look at the losses."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import keras

from instanas_tf import files
from instanas_tf.errors import InputError, ModelError

_METRICS_REMEDY = "mend the line, or train again in another --workdir"


class MetricsLog(keras.callbacks.Callback):
    """Adds one JSON object an epoch to `metrics.jsonl`.

    Args:
        path: of the file.
        stage: name of the stage; rows of epochs that are run again are replaced.
        first_epoch: epochs of the stage done before.
    """

    def __init__(self, path: pathlib.Path, stage: str, first_epoch: int):
        super().__init__()
        self.path, self.stage = path, stage
        self.rows = [
            row
            for row in read_metrics(path)
            if row["stage"] != stage or row["epoch"] <= first_epoch
        ]

    def on_epoch_end(self, epoch, logs=None):
        """Writes the file with the new row, in one piece."""
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.rows.append({"stage": self.stage, "epoch": epoch + 1, **values})
        files.write_text(
            self.path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows)
        )


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; none if there is no file.

    Raises:
        InputError: a line is no JSON object with a stage, an epoch and numbers.
    """
    if not path.exists():
        return []
    rows = files.read_json_lines(path, _METRICS_REMEDY)
    for number, row in enumerate(rows, 1):
        values = {**row} if isinstance(row, dict) else {}
        named = isinstance(values.pop("stage", None), str)
        if not named or type(values.get("epoch")) is not int or values["epoch"] < 1:
            raise InputError(f"{path}, line {number} is damaged; {_METRICS_REMEDY}")
        if not all(map(_is_number, values.values())):
            raise InputError(f"{path}, line {number} is damaged; {_METRICS_REMEDY}")
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class KeepController(keras.callbacks.Callback):
    """Keeps the controller of every epoch, so that variants can be chosen afterwards.

    Args:
        controller: whose weights are saved.
        path_of: epoch (from 1) -> file.
    """

    def __init__(self, controller: keras.Model, path_of: Callable[[int], pathlib.Path]):
        super().__init__()
        self.controller = controller
        self.path_of = path_of

    def on_epoch_end(self, epoch, logs=None):
        """Saves the weights in one piece."""
        save_weights(self.controller, self.path_of(epoch + 1))


class StopWhenDiverged(keras.callbacks.Callback):
    """Ends the run with a clear error when a loss is no longer finite."""

    def on_epoch_end(self, epoch, logs=None):
        """Checks every value of the epoch."""
        for name, value in (logs or {}).items():
            if not math.isfinite(value):
                raise ModelError(
                    f"{name} is {value} after epoch {epoch + 1}; lower the learning rate "
                    "(config.*.learning_rate) or set config.train.clip_norm, in a new --workdir"
                )


def save_weights(model: keras.Model, path: pathlib.Path) -> None:
    """Writes a model's weights in Keras's HDF5 form, in one piece.

    Room is looked for first, because the HDF5 library does not survive a full disk.

    Raises:
        ModelError: the disk is full, or the folder cannot be written.
    """
    files.require_space(path, 2 * sum(weight.nbytes for weight in model.get_weights()))
    with files.replacing(path, suffix=".weights.h5") as temporary:
        model.save_weights(temporary)


def load_weights(model: keras.Model, path: pathlib.Path) -> None:
    """Reads weights that `save_weights` wrote.

    Raises:
        InputError: the file is missing or damaged, or of another model.
    """
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = "does not exist" if not path.exists() else "is damaged or of another model"
        raise InputError(
            f"{path} {reason} ({str(error).splitlines()[0]}); run the stage that makes it "
            "again in another --workdir"
        ) from error
