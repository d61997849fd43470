"""What a hyperparameter search may turn: one table of knobs, and how they set a config."""

from __future__ import annotations

import dataclasses
import difflib
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from instanas_tf.errors import InputError
from instanas_tf.pipeline import config_files

KINDS = ("linear", "log", "choice")


@dataclasses.dataclass(frozen=True)
class Knob:
    """One hyperparameter, and which values are tried.

    Attributes:
        name: on the command line and in tables.
        setting: name of the setting below `config`; `{recipe}` stands for the search's.
        kind: `linear` or `log` between two ends, or a `choice` among values.
        values: the ends, or the choices.
        recipe: the only recipe that knows it; empty for both.
        knot: for a setting that is a list of (progress, value) knots, which value is set.
        usual: whether it is turned unless the user names others.
    """

    name: str
    setting: str
    kind: str
    values: tuple[float, ...]
    recipe: str = ""
    knot: int | None = None
    usual: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={self.kind!r}")
        rising = len(self.values) >= 2 and list(self.values) == sorted(set(self.values))
        if not rising or (self.kind != "choice" and len(self.values) != 2):
            raise ValueError(f"`values` must be two ends or rising choices. Received: {self}")
        if self.kind == "log" and self.values[0] <= 0:
            raise ValueError(f"`values` of a log knob must be above 0. Received: {self.values}")

    def nearest(self, value: float) -> float:
        """The value that is really used: a choice, or a number of four digits in the range.

        Four digits are what a person wants to copy, and they are the same whether or not the
        number was single precision in between, as it is between KerasTuner's processes.
        """
        if self.kind == "choice":
            return min(self.values, key=lambda choice: abs(choice - value))
        low, high = self.values
        return min(max(float(f"{float(np.float32(value)):.4g}"), low), high)


KNOBS = (
    Knob("pretrain_learning_rate", "pretrain.learning_rate", "log", (0.005, 0.2), usual=True),
    Knob(
        "controller_learning_rate",
        "search.controller_learning_rate",
        "log",
        (1e-4, 1e-2),
        usual=True,
    ),
    Knob("supernet_learning_rate", "search.supernet_learning_rate", "log", (1e-3, 0.1), usual=True),
    Knob("finetune_learning_rate", "finetune.learning_rate", "log", (1e-3, 0.1), usual=True),
    # α of the exploration bound at the start and at the end of the search.
    Knob("alpha_start", "search.{recipe}.alpha", "linear", (0.7, 0.99), knot=0),
    Knob("alpha_end", "search.{recipe}.alpha", "linear", (0.7, 1.0), knot=-1),
    # β, the weight of the policies' entropy.
    Knob("beta", "search.priced.entropy_weight", "linear", (0.0, 0.5), "priced"),
    Knob("beta", "search.published.entropy_weight", "linear", (0.0, 2.0), "published", usual=True),
    # γ, the power of the latency reward.
    Knob("gamma", "search.published.gamma", "log", (0.25, 4.0), "published", usual=True),
    Knob("reward_correct", "search.{recipe}.reward_correct", "log", (3.0, 300.0)),
    Knob("reward_wrong", "search.{recipe}.reward_wrong", "linear", (-30.0, 0.0)),
    Knob("price_rate", "search.priced.price_rate", "log", (0.05, 5.0), "priced", usual=True),
    Knob("diversity_weight", "search.priced.diversity_weight", "log", (0.1, 10.0), "priced"),
    # K, the networks that ship; and the width of all of them.
    Knob("experts", "experts.count", "choice", (4, 8, 16)),
    Knob("width", "space.width", "choice", (0.5, 0.75, 1.0, 1.25)),
)


def select(names: str, recipe: str) -> tuple[Knob, ...]:
    """The knobs that a search turns, in the order of the table.

    Args:
        names: separated by commas; empty for the recipe's usual ones, `all` for all of them.
        recipe: `config.search.recipe`.

    Raises:
        InputError: a name that is no knob, or one of the other recipe.
    """
    known = {knob.name: knob for knob in KNOBS if knob.recipe in ("", recipe)}
    if not names:
        return tuple(knob for knob in known.values() if knob.usual)
    if names == "all":
        return tuple(known.values())
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name in known:
            continue
        others = [knob.recipe for knob in KNOBS if knob.name == name]
        if others:
            raise InputError(
                f"--knobs={name} is a knob of the {others[0]} recipe; leave it out, or set "
                f"--config.search.recipe={others[0]}"
            )
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}"
        raise InputError(f"--knobs={name} is no knob; {hint}")
    return tuple(knob for knob in known.values() if knob.name in wanted)


def setting(knob: Knob, config: ConfigDict) -> str:
    """The dotted name of a knob's setting, such as `config.experts.count`."""
    return f"config.{knob.setting.format(recipe=config.search.recipe)}"


def turned(config: ConfigDict, knobs: Iterable[Knob], values: Mapping[str, float]) -> ConfigDict:
    """A copy of a config with knobs set.

    Args:
        config: left as it is.
        knobs: those that are set.
        values: knob's name -> value; brought to the knob's `nearest`.
    """
    changed = config.copy_and_resolve_references()
    for knob in knobs:
        *path, name = setting(knob, config).split(".")[1:]
        holder = changed
        for part in path:
            holder = holder[part]
        value: Any = knob.nearest(values[knob.name])
        if knob.knot is not None:
            points = [list(point) for point in holder[name]]
            if len(points) == 1:  # A constant has two ends too.
                points = [[0.0, points[0][1]], [1.0, points[0][1]]]
            points[knob.knot][1] = value
            value = tuple(tuple(point) for point in points)
        holder[name] = value
    return changed.lock()


def shortened(config: ConfigDict, share: float) -> ConfigDict:
    """A copy of a config with a share of all stages' epochs, one each at the least.

    Args:
        config: left as it is.
        share: above 0, at most 1.
    """
    changed = config.copy_and_resolve_references()
    for holder, name in (
        (changed.pretrain, "epochs"),
        (changed.search, "epochs"),
        (changed.search, "controller_decay_epochs"),
        (changed.finetune, "epochs"),
        (changed.route, "epochs"),
    ):
        if holder[name]:
            holder[name] = max(1, math.floor(share * holder[name] + 0.5))
    return changed.lock()


def arguments(config: ConfigDict, knobs: Sequence[Knob]) -> list[str]:
    """`--config.…` arguments, quoted for a shell, that set knobs as they are in a config."""
    values = config_files.flatten(config)
    names = dict.fromkeys(setting(knob, config) for knob in knobs)
    return [f"--{name}={shlex.quote(str(values[name]))}" for name in names]
