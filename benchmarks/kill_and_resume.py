"""Kills a training run again and again, and compares it with one that was left alone.

    python benchmarks/kill_and_resume.py [--kills=20] [--seed=0] [--workdir=DIR] \
        [--config=FILE] [--config.some.key=value] [--backend=tensorflow]

One run is left alone; its log says how long each part of it takes. A second one gets SIGKILL,
with every process that it started, at random moments of every part, and is resumed each time.
Both must end with the same files. Latencies are measured anew by every run, so the second run
makes its own table, under fire like all else, and goes on with the first one's; and it takes over
what the first one measured of its experts and controllers.

Compared: all weights, bit by bit; `experts.json` and `metrics.jsonl`; `results.json` without
what was timed; and the names of all files, so that nothing is left behind. The last line is
one JSON object; the exit code is 0 if all is equal, else 1.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import app, flags
from compare_runs import compare, read_lines, show

_KILLS = flags.DEFINE_integer("kills", 20, "Times that the run is killed.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments at which it is killed.")
_WORKDIR = flags.DEFINE_string("workdir", "", "New folder for both runs; empty: a temporary one.")
_CONFIG = flags.DEFINE_string("config", "", "Config file; empty: a run of one to two minutes.")
_BACKEND = flags.DEFINE_enum("backend", "tensorflow", ["tensorflow", "jax", "torch"], "Of Keras.")

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SMALL = {
    "space.name": "tiny",
    "data.image_size": 8,
    "data.train_images": 640,
    "data.validation_images": 100,
    "data.test_images": 100,
    "train.batch_size": 32,
    "pretrain.epochs": 12,
    "search.epochs": 10,
    "search.batch_size": 32,
    "finetune.epochs": 8,
    "finetune.batch_size": 32,
    "experts.count": 3,
    "experts.recalibration_images": 160,
    "variants.targets": "(1.0,)",
    "latency.rounds": 2,
    "latency.min_secs": 0.01,
    "latency.calibration_experts": 6,
    "latency.validation_experts": 4,
    "evaluate.rounds": 1,
    "evaluate.timed_images": 20,
    "evaluate.baseline_widths": "(1.0,)",
}
_START = "start"
_MARKS = (
    (re.compile(r"== (\w+) \("), r"\1"),
    (re.compile(r"training (.+) alone"), r"evaluate: \1"),
    (re.compile(r"converting, checking and timing "), "evaluate: files"),
)
_SHORTEST = 0.3  # Seconds; a part that takes less is not aimed at.


class ResumeFailed(Exception):
    """A command ended by itself with an error."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """A kill that was delivered: in which part of the run, and how far into it."""

    phase: str
    seconds: float

    @property
    def stage(self) -> str:
        """The stage that the part belongs to."""
        return self.phase.split(":")[0]


class Command:
    """A training command in a process group of its own, watched through its log.

    Args:
        workdir: of the run; the log lies beside it.
        stage: what `--stage` gets.
        arguments: the config.
    """

    def __init__(self, workdir: pathlib.Path, stage: str, arguments: Sequence[str]):
        self.log = workdir.parent / f"{workdir.name}.log"
        self.metrics = workdir / "metrics.jsonl"
        temporary = workdir.parent / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "KERAS_BACKEND": _BACKEND.value,
            "PYTHONPATH": str(_ROOT),
            "TMPDIR": str(temporary),
        }
        command = [sys.executable, "-m", "instanas_tf.train"]
        command += [f"--workdir={workdir}", f"--stage={stage}", *arguments]
        with open(self.log, "ab") as log:
            self.offset = log.tell()
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=_ROOT,
                env=environment,
                start_new_session=True,
            )
        self.phase, self.since = _START, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the present part began."""
        return time.monotonic() - self.since

    def watch(self) -> Iterator[str | None]:
        """Yields the part that was left whenever another begins, else None, until the end.

        Raises:
            ResumeFailed: the command ended with an error.
        """
        while True:
            code = self.process.poll()
            for line in self.new_lines():
                for pattern, name in _MARKS:
                    if found := pattern.match(line):
                        left, self.phase, now = self.phase, found.expand(name), time.monotonic()
                        yield left
                        self.since = now
            if code is not None:
                if code:
                    said = self.log.read_text(errors="replace").splitlines()[-5:]
                    raise ResumeFailed(f"exit code {code} in {self.phase}: " + " | ".join(said))
                yield self.phase
                return
            yield None
            time.sleep(0.01)

    def new_lines(self) -> list[str]:
        """Whole lines that were logged since the last call."""
        with open(self.log, "rb") as log:
            log.seek(self.offset)
            text = log.read()
        text = text[: text.rfind(b"\n") + 1]
        self.offset += len(text)
        return text.decode(errors="replace").splitlines()

    def epochs(self) -> list[tuple[str, int]]:
        """(stage, epoch) of the rows of `metrics.jsonl`."""
        return [(row["stage"], row["epoch"]) for row in read_lines(self.metrics)]

    def kill(self) -> Kill:
        """Kills the whole process group."""
        done = Kill(self.phase, round(self.seconds, 2))
        self.end()
        return done

    def end(self) -> None:
        """Kills what is left."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclasses.dataclass
class Reference:
    """What the undisturbed run took: seconds of each part, and when its epochs ended.

    Attributes:
        seconds: of each part, in order.
        epochs: (stage, epoch) of a row of metrics -> (part, seconds into it).
    """

    seconds: dict[str, float]
    epochs: dict[tuple[str, int], tuple[str, float]]

    def remaining(self, phase: str, done: Sequence[tuple[str, int]]) -> float:
        """Seconds that a part is expected to take when resumed after some epochs.

        That is what the reference took after the last of them, and until the end of the first
        epoch, as the step must be compiled again.
        """
        mine = [epoch for epoch in done if self.epochs.get(epoch, ("", 0))[0] == phase]
        if not mine:
            return self.seconds[phase]
        stage, last = mine[-1]
        before = [t for (s, _), (p, t) in self.epochs.items() if p == phase and s != stage]
        first = self.epochs[stage, 1][1]
        begin = max([t for t in before if t < first], default=0.0)
        return self.seconds[phase] - self.epochs[stage, last][1] + (first - begin)


def undisturbed(workdir: pathlib.Path, arguments: Sequence[str]) -> Reference:
    """Runs all stages and learns how long each takes."""
    command = Command(workdir, "all", arguments)
    found = Reference({}, {})
    try:
        for left in command.watch():
            phase = left or command.phase
            for epoch in command.epochs():
                found.epochs.setdefault(epoch, (phase, command.seconds))
            if left:
                found.seconds[left] = command.seconds
    finally:
        command.end()
    return found


class Plan:
    """How many kills each part is still to get, and when.

    Every part gets one, a tenth goes to the start, and the rest is drawn by duration. What a
    part was too short for goes to the next one.

    Args:
        reference: how long the parts take.
        kills: in all.
        generator: draws parts and moments.
    """

    def __init__(self, reference: Reference, kills: int, generator: np.random.Generator):
        self.reference, self.generator = reference, generator
        self.phases = [p for p, s in reference.seconds.items() if p != _START and s >= _SHORTEST]
        names = [_START, *self.phases]
        self.left = collections.Counter({_START: kills // 10})
        one_each = generator.permutation(self.phases)[: kills - self.left[_START]]
        self.left.update(one_each.tolist())
        weights = np.array([reference.seconds[name] for name in self.phases])
        rest = generator.multinomial(kills - self.left.total(), weights / weights.sum())
        self.left.update(dict(zip(self.phases, rest.tolist(), strict=True)))
        self.planned = {name: self.left[name] for name in names}

    def moment(self, phase: str, done: Sequence[tuple[str, int]]) -> float | None:
        """Seconds into a part at which to kill, or None to let it pass."""
        if not self.left[phase]:
            return None
        if phase == _START:
            total = self.left.total()
            if self.generator.random() >= self.left[phase] / total:
                return None
        # One moment from each of as many equal slices as there are kills: early, middle and
        # late ones occur. A single one must not come too late, or the part goes without.
        slices = max(1, self.planned[phase])
        number = min(self.planned[phase] - self.left[phase], slices - 1)
        if number < 0:  # Handed on by the part before.
            number = self.generator.integers(slices)
        share = (number + self.generator.random()) / slices
        last = 0.95 if slices > 1 else 0.6
        return last * share * self.reference.remaining(phase, done)

    def leave(self, phase: str) -> None:
        """Hands what is left for a finished part to the next one; the last one keeps it."""
        if phase in self.phases[:-1]:
            following = self.phases[self.phases.index(phase) + 1]
            self.left[following] += self.left.pop(phase, 0)

    def leave_all(self) -> None:
        """Hands all that is left to the last part, the only one that will run again."""
        self.left = collections.Counter({self.phases[-1]: self.left.total()})


def attempt(command: Command, plan: Plan) -> Kill | None:
    """Watches a command until it is killed (returns the kill) or done (returns None)."""
    try:
        moment = plan.moment(_START, ())
        for left in command.watch():
            if left:
                plan.leave(left)
                moment = plan.moment(command.phase, command.epochs())
            elif moment is not None and command.seconds >= moment:
                plan.left[command.phase] -= 1
                return command.kill()
        return None
    finally:
        command.end()


def disturbed(
    workdir: pathlib.Path, reference: pathlib.Path, arguments: Sequence[str], plan: Plan
) -> list[Kill]:
    """Runs all stages under fire, by the latencies that another run measured."""
    kills: list[Kill] = []
    total = plan.left.total()
    started = time.monotonic()

    def until_done(stage: str) -> None:
        while kill := attempt(Command(workdir, stage, arguments), plan):
            kills.append(kill)
            took = time.monotonic() - started
            print(
                f"kill {len(kills):3} of {total}  {kill.phase:36} {kill.seconds:6.2f} s into it"
                f"  ({took:.0f} s in all)",
                flush=True,
            )

    until_done("pretrain")
    until_done("measure")
    shutil.copy(reference / "latency_table.json", workdir)
    until_done("search")
    until_done("finetune")
    shutil.copytree(reference / "parts", workdir / "parts")
    until_done("all")
    while plan.left.total() > 0:  # The end came too early for some: once more from there.
        plan.leave_all()
        (workdir / "results.json").unlink()
        until_done("all")
    return kills


def benchmark(root: pathlib.Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs both, compares them, prints the table and returns the result."""
    started = time.monotonic()
    result: dict[str, Any] = {"kills": 0, "kills_by_stage": {}, "equal": False}
    try:
        reference = undisturbed(root / "reference", arguments)
        plan = Plan(reference, _KILLS.value, np.random.default_rng(_SEED.value))
        for phase, seconds in reference.seconds.items():
            print(f"{phase:36} {seconds:6.1f} s, {plan.planned.get(phase, 0)} kills planned")
        kills = disturbed(root / "killed", root / "reference", arguments, plan)
    except ResumeFailed as error:
        return {**result, "failed": str(error)}
    compared = compare(root / "reference", root / "killed")
    largest = show(compared)
    by_stage = collections.Counter(kill.stage for kill in kills)
    return {
        "kills": len(kills),
        "kills_by_stage": dict(by_stage),
        "kills_by_part": dict(collections.Counter(kill.phase for kill in kills)),
        "equal": largest == 0.0,
        "largest_difference": largest if np.isfinite(largest) else None,
        "unequal": [name for name, (_, difference) in compared.items() if difference],
        "left_in_tmp": len(list((root / "tmp").iterdir())),
        "seconds_undisturbed": round(sum(reference.seconds.values()), 1),
        "seconds": round(time.monotonic() - started, 1),
        "seed": _SEED.value,
        "backend": _BACKEND.value,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("keras", _BACKEND.value)},
    }


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; the last line is the JSON object."""
    overrides = dict(argument.lstrip("-").split("=", 1) for argument in argv[1:])
    if not _CONFIG.value:
        overrides = {f"config.{name}": value for name, value in _SMALL.items()} | overrides
    arguments = [f"--{name}={value}" for name, value in overrides.items()]
    if _CONFIG.value:
        arguments.insert(0, f"--config={pathlib.Path(_CONFIG.value).resolve()}")
    root = pathlib.Path(_WORKDIR.value or tempfile.mkdtemp(prefix="kill_and_resume")).resolve()
    if root.exists() and any(root.iterdir()):
        raise app.UsageError(f"--workdir={root} is not empty; give a new folder")
    root.mkdir(parents=True, exist_ok=True)
    result = benchmark(root, arguments)
    if result["equal"] and not _WORKDIR.value:
        shutil.rmtree(root)
    else:
        print(f"Both runs: {root}")
    print(json.dumps(result))
    return 0 if result["equal"] else 1


def parse(argv: list[str]) -> list[str]:
    """Parses the flags and leaves `--config.some.key=value` for the command."""
    try:
        rest = flags.FLAGS(argv, known_only=True)
    except flags.Error as error:
        sys.exit(f"kill_and_resume: {error}")
    for argument in rest[1:]:
        if not re.match(r"--?config\.[\w.]+=", argument):
            sys.exit(f"kill_and_resume: unknown argument {argument}; see --help")
    return rest


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
