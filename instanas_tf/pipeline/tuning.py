"""What a hyperparameter search is asked for, where its files lie, and its table of trials."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.pipeline import checks, objectives
from instanas_tf.pipeline.knobs import Knob, turned
from instanas_tf.pipeline.workdir import WorkDir, first_difference

FORMAT = "instanas_tf/tune"
VERSION = 1
TUNERS = ("hyperband", "bayesian", "random")
DEFAULT_TRIALS = 20
FACTOR = 3  # Of Hyperband: one trial of three goes on, with three times the epochs.
_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One hyperparameter search.

    Attributes:
        config: that the knobs are set in.
        objective: one of `objectives.OBJECTIVES`.
        tuner: one of `TUNERS`.
        knobs: what is turned.
        trials: at most; None for the tuner's own number.
    """

    config: ConfigDict
    objective: str
    tuner: str
    knobs: tuple[Knob, ...]
    trials: int | None = None

    @property
    def target(self) -> float:
        """T of the score: the least of the latencies asked for, as a share."""
        return min(self.config.variants.targets)

    @property
    def direction(self) -> str:
        """`max` or `min`."""
        return objectives.OBJECTIVES[self.objective]

    @property
    def max_trials(self) -> int | None:
        """How many trials are run at most; None for all that Hyperband's brackets have."""
        if self.trials is None and self.tuner != "hyperband":
            return DEFAULT_TRIALS
        return self.trials

    def check(self) -> None:
        """Refuses a plan that some of its trials could not run.

        Raises:
            InputError: naming the setting that is wrong.
        """
        checks.check(self.config)
        for end in (0, -1):
            checks.check(
                turned(self.config, self.knobs, {k.name: k.values[end] for k in self.knobs})
            )

    def to_json(self) -> dict[str, Any]:
        """All that must be the same when the search goes on; more trials may be asked for."""
        return {
            "objective": self.objective,
            "tuner": self.tuner,
            "knobs": {knob.name: [knob.kind, *knob.values] for knob in self.knobs},
            "config": json.loads(self.config.to_json()),
        }


@dataclasses.dataclass(frozen=True)
class TuneDir:
    """Paths of one hyperparameter search."""

    root: pathlib.Path

    @property
    def plan(self) -> pathlib.Path:
        """What was asked for."""
        return self.root / "tune.json"

    @property
    def table(self) -> pathlib.Path:
        """The trials, best first."""
        return self.root / "trials.json"

    @property
    def state(self) -> pathlib.Path:
        """KerasTuner's own files."""
        return self.root / "keras_tuner"

    @property
    def tables(self) -> WorkDir:
        """Latency tables that trials share; held by whoever measures."""
        return WorkDir(self.root / "latency_tables")

    def trial(self, trial_id: str) -> WorkDir:
        """Work directory of a trial."""
        return WorkDir(self.root / "trials" / trial_id)

    def worker(self, worker_id: str) -> WorkDir:
        """A folder that is held for as long as a worker lives."""
        return WorkDir(self.root / "workers" / worker_id)


@dataclasses.dataclass(frozen=True)
class Role:
    """This process's part in a search of several.

    Attributes:
        name: KERASTUNER_TUNER_ID; `tuner0` alone.
        address: IP:PORT of the chief; empty if there is but this process.
    """

    name: str = "tuner0"
    address: str = ""

    @property
    def is_chief(self) -> bool:
        """Whether it hands out the trials and runs none."""
        return bool(self.address) and "chief" in self.name  # KerasTuner's rule.

    @property
    def is_worker(self) -> bool:
        """Whether it runs trials that a chief hands out."""
        return bool(self.address) and not self.is_chief


def role(environment: Mapping[str, str] = os.environ) -> Role:
    """The role that KerasTuner's environment variables give this process.

    Raises:
        InputError: some of the three are missing, or cannot be used.
    """
    found = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    if not found:
        return Role()
    missing = [name for name in _VARIABLES if name not in found]
    if missing:
        raise InputError(
            f"set {' and '.join(missing)} too, beside {' and '.join(found)}; a search of several "
            "processes needs all three, and one alone none of them"
        )
    name, ip, port = (found[key] for key in _VARIABLES)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == "oracle":
        raise InputError(f"KERASTUNER_TUNER_ID must be a plain name. Received: {name!r}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise InputError(f"KERASTUNER_ORACLE_PORT must be from 1 to 65535. Received: {port!r}")
    return Role(name, f"{ip}:{port}")


def open_folder(root: pathlib.Path, plan: Plan) -> TuneDir:
    """The folder of a search, new or of the same plan; writes nothing.

    Raises:
        InputError: it holds a search with another plan, or something else.
    """
    folder = TuneDir(pathlib.Path(root))
    if root.exists() and not root.is_dir():
        raise InputError(f"--workdir={root} is a file; choose a folder")
    if WorkDir(root).config.exists():
        raise InputError(f"{root} holds a run of training; choose another --workdir")
    if not folder.plan.exists():
        return folder
    theirs = files.read_json(folder.plan, "choose another --workdir")
    header = {"format": FORMAT, "version": VERSION}
    if not isinstance(theirs, dict) or {name: theirs.get(name) for name in header} != header:
        raise InputError(f"{folder.plan} is damaged; choose another --workdir")
    for name, ours in plan.to_json().items():
        difference = first_difference(ours, theirs.get(name, "(absent)"), name)
        if difference:
            raise InputError(
                f"{root} holds another search ({difference}); choose another --workdir, or "
                "give what it was started with"
            )
    return folder


def start(folder: TuneDir, plan: Plan) -> None:
    """Writes the plan of a new search, once its data is known to be good."""
    if not folder.plan.exists():
        content = {"format": FORMAT, "version": VERSION, **plan.to_json()}
        files.write_json(folder.plan, content)


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial in the table.

    Attributes:
        trial: its id.
        status: `done`, `failed` or `interrupted`.
        knobs: knob's name -> value.
        share: of the epochs that it was given.
        value: of the objective; None unless it is done.
        accuracy: on the validation split, likewise.
        latency_ms: mean measured latency, likewise.
        latency_ratio: its share of the reference network's, likewise.
        reason: why it failed.
    """

    trial: str
    status: str
    knobs: dict[str, float]
    share: float = 1.0
    value: float | None = None
    accuracy: float | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    reason: str = ""


def ordered(rows: Sequence[Row], direction: str) -> list[Row]:
    """Best first; those without a result at the end."""
    sign = -1.0 if direction == "max" else 1.0
    done = [row for row in rows if row.value is not None]
    rest = [row for row in rows if row.value is None]
    return sorted(done, key=lambda row: sign * row.value) + rest


def write_table(folder: TuneDir, plan: Plan, rows: Sequence[Row]) -> None:
    """Writes `trials.json`, best first."""
    trials = [dataclasses.asdict(row) for row in ordered(rows, plan.direction)]
    content = {"objective": plan.objective, "target": plan.target, "tuner": plan.tuner}
    files.write_json(folder.table, {**content, "trials": trials})


def text_rows(rows: Sequence[Row], plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the closing table, best first."""
    names = [knob.name for knob in plan.knobs]
    shares = ["epochs"] if plan.tuner == "hyperband" else []
    header = ["trial", plan.objective, "accuracy", "ms", "ratio", *shares, *names, "status"]

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = []
    for row in ordered(rows, plan.direction):
        numbers = [number(row.value, 4), number(row.accuracy, 4)]
        numbers += [number(row.latency_ms, 3), number(row.latency_ratio, 2)]
        given = [f"{row.share:.0%}"] if shares else []
        knobs = [f"{row.knobs[name]:g}" for name in names]
        lines.append([row.trial, *numbers, *given, *knobs, row.status])
    return header, lines
