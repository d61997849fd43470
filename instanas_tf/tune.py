r"""Command: search hyperparameters with KerasTuner, by accuracy and measured latency.

    python -m instanas_tf.tune --config=configs/digits.py --objective=score \
        [--tuner=hyperband|bayesian|random] [--trials=N] [--workdir=runs/tune_digits] \
        [--knobs=all|NAME,NAME] [--config.some.key=value]

Each trial pretrains, searches and fine-tunes with its own values, and its variant is then
measured beside the reference network; the test split is not looked at. Run the same command
again to go on after an interruption. All knobs: instanas_tf/pipeline/knobs.py.

Several processes share a search if all are started with the same arguments and these
variables: KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT, and KERASTUNER_TUNER_ID, which is
chief for the one that hands out the trials and tuner0, tuner1, ... for those that run them.
"""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from export.runtime import find_runtime
from instanas_tf import cli, startup, train
from instanas_tf.pipeline import config_files, objectives, tuning
from instanas_tf.pipeline import knobs as knobs_module
from instanas_tf.pipeline.tuning import Plan, Role, Row, TuneDir
from instanas_tf.pipeline.workdir import WorkDir, locked


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    argv = list(argv or sys.argv)
    values = flags.FlagValues()
    flags.DEFINE_string("config", "", "Path of a config file.", flag_values=values)
    flags.DEFINE_string(
        "workdir", "", "Folder of the search; empty: runs/tune_NAME.", flag_values=values
    )
    flags.DEFINE_enum(
        "objective",
        "score",
        list(objectives.OBJECTIVES),
        "score: accuracy with a soft price on latency (MnasNet); accuracy; or latency.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "tuner", "hyperband", list(tuning.TUNERS), "How values are chosen.", flag_values=values
    )
    flags.DEFINE_integer(
        "trials",
        None,
        f"Trials at most; empty: {tuning.DEFAULT_TRIALS}, or all that Hyperband wants.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "knobs", "", "What is tuned: all, or names; empty: the usual ones.", flag_values=values
    )
    overrides = [a for a in argv[1:] if a.startswith(("--config.", "-config."))]
    rest = [a for a in argv if a not in overrides]

    def command(parsed: flags.FlagValues) -> None:
        config = train.override(config_files.load(parsed.config), overrides)
        knobs = knobs_module.select(parsed.knobs, config.search.recipe)
        plan = Plan(config, parsed.objective, parsed.tuner, knobs, parsed.trials)
        name = pathlib.Path(parsed.config).stem if parsed.config else config.data.name
        name = f"tune_{name.replace('/', '_')}"
        root = pathlib.Path(parsed.workdir or f"runs/{name}").expanduser()
        again = [f"--config={shlex.quote(parsed.config)}"] if parsed.config else []
        tune(plan, root, tuning.role(), [*again, *map(shlex.quote, overrides)])

    return cli.run("tune", command, rest, __doc__ or "", values)


def tune(plan: Plan, root: pathlib.Path, role: Role, arguments: Sequence[str]) -> None:
    """Runs the trials that are left, and prints the table of all.

    Args:
        plan: of the search.
        root: its folder.
        role: of this process.
        arguments: of the config, quoted, for the command that is printed at the end.

    Raises:
        InstanasError: whatever stops the search, with its exit code.
    """
    plan.check()
    folder = tuning.open_folder(root, plan)
    if not role.is_chief:
        find_runtime(plan.config.latency.runtime)
    with locked(folder.worker(role.name) if role.is_worker else WorkDir(root)):
        rows = run(plan, folder, role)
    if role.is_worker:
        print("No trial is left for this worker; the chief prints the table.")
        return
    tuning.write_table(folder, plan, rows)
    print_table(plan, folder, rows, arguments)


def run(plan: Plan, folder: TuneDir, role: Role) -> list[Row]:
    """Loads the data, and runs this process's part of the search; the rows of its trials."""
    startup.import_tensorflow()
    from instanas_tf import tuner as tuner_module
    from instanas_tf.pipeline import data, fitting

    images = None
    if not role.is_chief:
        images = data.load(plan.config.data, plan.config.seed)
        for size in (
            plan.config.train.batch_size,
            plan.config.search.batch_size,
            plan.config.finetune.batch_size,
        ):
            if size:
                data.steps_per_epoch(images.train, size)
        fitting.check_splits(plan.config, images)
    tuning.start(folder, plan)
    tuner = tuner_module.TrialTuner(plan, folder, role, images, say)
    if role.is_chief:
        say(f"handing out trials at {role.address}")
    elif role.is_worker:
        say(f"{role.name} asks the chief at {role.address} for trials")
    tuner_module.search(tuner)
    return [] if role.is_worker else tuner.rows()


def say(line: str) -> None:
    """Prints a line at once, even into a pipe."""
    print(line, flush=True)


def print_table(plan: Plan, folder: TuneDir, rows: Sequence[Row], arguments: Sequence[str]) -> None:
    """Prints the trials, best first, and the command that trains with the best settings."""
    header, lines = tuning.text_rows(rows, plan)
    print(cli.table(lines, header))
    ordered = tuning.ordered(rows, plan.direction)
    for row in ordered:
        if row.reason:
            print(f"trial {row.trial} failed: {row.reason}")
    unfinished = sum(row.status == "interrupted" for row in rows)
    if unfinished:
        print(f"{unfinished} trials were interrupted; run the same command again to go on")
    print(f"Trials: {folder.table}")
    if ordered and ordered[0].value is not None:
        best = knobs_module.turned(plan.config, plan.knobs, ordered[0].knobs)
        workdir = shlex.quote(f"{folder.root}_best")
        settings = knobs_module.arguments(best, plan.knobs)
        line = ["python -m instanas_tf.train", f"--workdir={workdir}", *arguments, *settings]
        print(f"Best: {' '.join(line)}")


if __name__ == "__main__":
    sys.exit(main())
