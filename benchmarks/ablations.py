r"""What each piece buys: the ring with and without it, at the same budget, as a table.

    python benchmarks/ablations.py --dataset=digits|cifar10 [--workdir=runs/ablations] \
        [--data_dir=FOLDER] [--seeds=0,1] [--only=NAME,NAME] [--out=docs/ablations.json] \
        [--page=docs/ablations.md] [--page_only] [--config.some.key=value]

Each setting (see ablation_settings.py) and seed is a run of `instanas_tf.train` below --workdir,
one after the other. A finished one is read, a killed one goes on: give the same command again.
Overrides hold for all settings; what a setting changes wins. A setting that fails does not stop
the others.

A new run starts from what its siblings, those of the same dataset and seed, have trained: the
stages before the first that the two settings disagree on, and all networks trained alone. Those
carry a digest of their policy in their names (the baselines their width), and are trained with
equal budget and seed on the same images, so equal names are equal networks. Targets that the
experts of a setting cannot meet are left out there, and listed.

The JSON file keeps the rows of other datasets, and holds all finished runs of this one; the page
and its picture are made from it. Exit code 0: all of them are in it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

import ablation_page
import ablation_rows
import ablation_settings
from absl import flags
from ml_collections import ConfigDict

from instanas_tf import children, cli, files
from instanas_tf.errors import CommandError, InputError, ModelError
from instanas_tf.pipeline.workdir import WorkDir

CONFIGS = {"digits": "digits.py", "cifar10": "cifar10_small.py"}
_ROOT = pathlib.Path(__file__).resolve().parent.parent
_VERSIONS = ("tensorflow", "keras", "numpy")
_BAD_INPUT, _INTERRUPTED = 2, 130


class Plan:
    """What is to be run: the configs of all settings of one dataset.

    Args:
        dataset: key of `CONFIGS`.
        root: of the work directories.
        own: `--config.…` arguments that hold for all settings.
    """

    def __init__(self, dataset: str, root: pathlib.Path, own: Sequence[str]):
        self.dataset, self.root, self.own = dataset, root, list(own)
        self.path = str(_ROOT / "configs" / CONFIGS[dataset])

    def workdir(self, name: str, seed: int) -> WorkDir:
        """Of one run."""
        return WorkDir(self.root / self.dataset / name / f"seed_{seed}")

    def of(self, name: str, seed: int) -> tuple[ConfigDict, list[str]]:
        """The config of one run, and the arguments that give it."""
        own = [*self.own, f"--config.seed={seed}"]
        return ablation_settings.planned(self.path, own, name)

    def present(self, seed: int) -> dict[str, WorkDir]:
        """The runs with this seed that have begun as planned, by setting."""
        found = {name: self.workdir(name, seed) for name in ablation_settings.SETTINGS}
        return {
            name: workdir
            for name, workdir in found.items()
            if ablation_settings.is_of(workdir, self.of(name, seed)[0])
        }


def run(plan: Plan, name: str, seed: int) -> int:
    """Trains one setting, or goes on with it; returns the exit code.

    Raises:
        InputError: its folder holds something else.
    """
    config, arguments = plan.of(name, seed)
    workdir = plan.workdir(name, seed)
    label = f"{plan.dataset}, {name}, seed {seed}"
    if workdir.config.exists() and not ablation_settings.is_of(workdir, config):
        raise InputError(
            f"{workdir.root} holds a run with another config; choose another --workdir, or give "
            "the overrides that it was started with"
        )
    if workdir.results.exists():
        _say(f"{label}: is there")
        return 0
    siblings = {n: found for n, found in plan.present(seed).items() if n != name}
    for line in ablation_settings.prepare(workdir, config, siblings):
        _say(f"{label}: takes over {line}")
    targets = sorted(config.variants.targets, reverse=True)
    while True:
        _say(f"{label}: {' '.join(arguments)}")
        code = children.follow_module("instanas_tf.train", *arguments, f"--workdir={workdir.root}")
        unmet = workdir.is_done("finetune") and not workdir.is_done("route")
        if code != _BAD_INPUT or not unmet or len(targets) == 1 or config.target_ms:
            return code
        _say(f"{label}: goes on without the target {targets.pop():g}")
        chosen = [a for a in arguments if not a.startswith("--config.variants.targets=")]
        arguments = [*chosen, f"--config.variants.targets={tuple(targets)}"]


def run_all(plan: Plan, names: Sequence[str], seeds: Sequence[int], out: pathlib.Path) -> None:
    """Runs everything and writes the table after each run.

    Raises:
        CommandError: settings failed, or one was interrupted.
        ModelError: one was killed.
    """
    failed: list[tuple[str, int]] = []
    jobs = [(name, seed) for seed in seeds for name in names]
    for number, (name, seed) in enumerate(jobs, 1):
        _say(f"== {name}, seed {seed} ({number} of {len(jobs)})")
        code = run(plan, name, seed)
        if code == _INTERRUPTED:
            raise CommandError("interrupted; run the same command again to go on", code)
        if code < 0:
            raise ModelError(
                f"{name}, seed {seed}, was ended by signal {-code}; run the same command again "
                "to go on"
            )
        if code:
            failed.append((f"{name} (seed {seed})", code))
        else:
            write(plan, seeds, out)
    if failed:
        listed = ", ".join(label for label, _ in failed)
        raise CommandError(
            f"{len(failed)} of {len(jobs)} runs failed, see their lines above: {listed}; the "
            "same command tries them again",
            failed[0][1],
        )


def collect(plan: Plan, seeds: Sequence[int]) -> tuple[dict[str, Any], list[ablation_rows.Row]]:
    """The header and the rows of all finished runs with some seeds.

    Raises:
        InputError: a run's results are damaged, or runs cannot be compared.
    """
    rows, missed, said = [], [], {}
    for name in ablation_settings.SETTINGS:
        for seed in seeds:
            config, _ = plan.of(name, seed)
            workdir = plan.workdir(name, seed)
            if not (ablation_settings.is_of(workdir, config) and workdir.results.exists()):
                continue
            found = ablation_rows.read_results(workdir.results, plan.dataset, name, seed)
            rows += found.pop("rows")
            said = said or found
            if found != said:
                raise InputError(
                    f"{workdir.results} cannot be compared with the others ({found} there, "
                    f"{said} before); delete that folder and run the same command again"
                )
            theirs = files.read_json(workdir.config, "delete that folder")["variants"]["targets"]
            if left := sorted(set(config.variants.targets) - set(theirs)):
                missed.append({"setting": name, "seed": seed, "targets": left})
    if not rows:
        return {}, []
    return header(plan, seeds, said, missed), rows


def header(
    plan: Plan, seeds: Sequence[int], said: dict[str, Any], missed: list[dict[str, Any]]
) -> dict[str, Any]:
    """What `docs/ablations.json` says of a dataset beside its rows."""
    config, _ = plan.of("priced", seeds[0])
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {"cpu": cpu(), "cores": os.cpu_count()},
        "versions": {
            "Python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _VERSIONS},
        },
        "device": said["device"],
        "runtime": said["runtime"],
        "commands": [command(plan, seeds)],
        "images": {
            "training": config.data.train_images,
            "test": said["test_images"],
            "timed": said["timed_images"],
        },
        "epochs": {stage: config[stage].epochs for stage in ("pretrain", "search", "finetune")},
        "weight_epochs": said["weight_epochs"],
        "settings": {
            name: _own_arguments(plan, name, seeds[0]) for name in ablation_settings.SETTINGS
        },
        "missed": missed,
    }


def _own_arguments(plan: Plan, name: str, seed: int) -> list[str]:
    """What one setting changes, without what is a folder of this machine."""
    return plan.of(name, seed)[1][len(plan.own) + 2 :]


def command(plan: Plan, seeds: Sequence[int]) -> str:
    """The command line, with words in place of this machine's folders."""
    folder = "--config.data.data_dir="
    parts = [f"--dataset={plan.dataset}", f"--seeds={','.join(map(str, seeds))}"]
    quoted = ablation_settings.quoted
    parts += ["--data_dir=FOLDER" if a.startswith(folder) else quoted(a) for a in plan.own]
    return " ".join(["python benchmarks/ablations.py", *parts])


def cpu() -> str:
    """The name of the processor."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def write(plan: Plan, seeds: Sequence[int], out: pathlib.Path) -> None:
    """Puts all finished runs of a dataset into the JSON file, beside those of others."""
    said, rows = collect(plan, seeds)
    if not rows:
        return
    datasets, others = ablation_rows.read_table(out) if out.exists() else ({}, [])
    others = [row for row in others if row.dataset != plan.dataset]
    ablation_rows.write_table(out, datasets | {plan.dataset: said}, [*others, *rows])


def make_page(out: pathlib.Path, page: pathlib.Path) -> None:
    """Makes the page and its picture from the JSON file."""
    datasets, rows = ablation_rows.read_table(out)
    drawn = page.with_suffix(".png")
    linked = pathlib.Path(os.path.relpath(out, page.parent)).as_posix()
    ablation_page.picture(rows, drawn)
    files.write_text(page, ablation_page.page(datasets, rows, linked, drawn.name))
    _say(f"{page} and {drawn} are made from {out}")


def _say(line: str) -> None:
    print(line, flush=True)


def define(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    texts = {
        "workdir": ("runs/ablations", "Folder of all runs."),
        "data_dir": ("", "Where the dataset lies, if it does not come with scikit-learn."),
        "out": ("docs/ablations.json", "The rows."),
        "page": ("docs/ablations.md", "The page; its picture lies beside it."),
    }
    for name, (default, text) in texts.items():
        flags.DEFINE_string(name, default, text, flag_values=values)
    flags.DEFINE_enum("dataset", "digits", list(CONFIGS), "What is trained.", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "Seeds, with commas between.", flag_values=values)
    flags.DEFINE_list("only", [], "Settings to run; empty: all.", flag_values=values)
    flags.DEFINE_bool("page_only", False, "Make the page from the rows.", flag_values=values)


def seeds_of(texts: Sequence[str]) -> list[int]:
    """The seeds that are asked for.

    Raises:
        InputError: they are no different numbers.
    """
    if not texts or len(set(texts)) != len(texts) or not all(t.isdecimal() for t in texts):
        raise InputError(
            f"--seeds must be different whole numbers, as in 0,1. Received: {','.join(texts)!r}"
        )
    return [int(text) for text in texts]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    argv = list(argv or sys.argv)
    values = flags.FlagValues()
    define(values)
    overrides = [a for a in argv[1:] if a.startswith(("--config.", "-config."))]
    rest = [a for a in argv if a not in overrides]

    def work(parsed: flags.FlagValues) -> None:
        out, page = (pathlib.Path(p).expanduser() for p in (parsed.out, parsed.page))
        names = ablation_settings.check_names(parsed.only)
        seeds = seeds_of(parsed.seeds)
        if not parsed.page_only:
            folder = [f"--config.data.data_dir={parsed.data_dir}"] if parsed.data_dir else []
            root = pathlib.Path(parsed.workdir).expanduser().resolve()
            try:
                run_all(Plan(parsed.dataset, root, [*overrides, *folder]), names, seeds, out)
            finally:
                if out.exists():
                    make_page(out, page)
        else:
            make_page(out, page)

    return cli.run("ablations", work, rest, __doc__ or "", values)


if __name__ == "__main__":
    sys.exit(main())
