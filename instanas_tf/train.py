r"""Command: train controller, supernet and experts, and compare them with MobileNetV2.

    python -m instanas_tf.train --config=configs/digits.py --workdir=runs/digits \
        [--config.some.key=value] [--stage=all|pretrain|measure|search|finetune|evaluate]

With no flags it trains scikit-learn's digits into runs/digits. Run the same command again
to go on after an interruption. All settings: instanas_tf/pipeline/config.py.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from export.runtime import find_runtime
from instanas_tf import cli, files, startup
from instanas_tf.errors import InputError, ModelError
from instanas_tf.pipeline import checks
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline.workdir import STAGES, WorkDir, drop_finished, locked, open_workdir, start


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    argv = list(argv or sys.argv)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "Folder of the run; empty: runs/NAME.", flag_values=values)
    flags.DEFINE_enum(
        "stage",
        "all",
        ["all", *STAGES],
        "Run one stage, or all that are left.",
        flag_values=values,
    )
    flags.DEFINE_string("config", "", "Path of a config file.", flag_values=values)
    overrides = [a for a in argv[1:] if a.startswith(("--config.", "-config."))]
    rest = [a for a in argv if a not in overrides]

    def command(parsed: flags.FlagValues) -> None:
        config = override(config_module.load(parsed.config), overrides)
        checks.check(config)
        name = pathlib.Path(parsed.config).stem if parsed.config else config.data.name
        root = parsed.workdir or f"runs/{name.replace('/', '_')}"
        train(config, pathlib.Path(root).expanduser(), parsed.stage)

    return cli.run("train", command, rest, __doc__ or "", values)


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Sets `--config.some.key=value` arguments.

    Raises:
        InputError: an unknown setting, or a value of the wrong type.
    """
    names = [a.lstrip("-").split("=", 1)[0] for a in arguments]
    for name, argument in zip(names, arguments, strict=True):
        if "=" not in argument:
            raise InputError(f"{argument} needs a value: --{name}=VALUE")
    config_module.check_names(names)
    values = flags.FlagValues()
    argv = ["train", *arguments]
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError, SyntaxError) as error:
        raise InputError(f"{error}; see instanas_tf/pipeline/config.py") from error
    return holder.value


def train(config: ConfigDict, root: pathlib.Path, stage: str) -> None:
    """Runs the stages that are left, and prints the results.

    Raises:
        InstanasError: whatever stops the run, with its exit code.
    """
    workdir = open_workdir(root, config)
    wanted = list(STAGES) if stage == "all" else [stage]
    for earlier in STAGES[: STAGES.index(wanted[0])]:
        if not workdir.is_done(earlier):
            raise InputError(
                f"--stage={stage} needs the result of {earlier}, which {root} does not hold; "
                f"run --stage={earlier} first, or --stage=all"
            )
    left = [name for name in wanted if not workdir.is_done(name)]
    if left:
        if "measure" in left or "evaluate" in left:
            find_runtime(config.latency.runtime)
        with locked(workdir):
            run_stages(left, config, workdir)
    else:
        print(f"Nothing is left to do in {root}.")
    if workdir.is_done("evaluate"):
        print_results(workdir)


def run_stages(names: Sequence[str], config: ConfigDict, workdir: WorkDir) -> None:
    """Loads the data and runs stages in order."""
    startup.import_tensorflow()
    import tensorflow as tf

    from instanas_tf import compare, measure
    from instanas_tf.pipeline import data, finetune, fitting, pretrain, search

    images = data.load(config.data, config.seed)
    data.steps_per_epoch(images.train, config.train.batch_size)
    start(workdir, config)
    drop_finished(workdir)
    print(
        f"{config.data.name}: {images.train.count} training, {images.validation.count} "
        f"validation and {images.test.count} test images, {images.num_classes} classes",
        flush=True,
    )

    def say(line: str) -> None:
        print(line, flush=True)

    def run_measure() -> None:
        space = fitting.make_space(config, images.num_classes)
        table = measure.measure(config, space, workdir, config.latency.device)
        print(cli.table(measure.summary(table)), flush=True)

    stages = {
        "pretrain": lambda: pretrain.pretrain(config, images, workdir),
        "measure": run_measure,
        "search": lambda: search.search(config, images, workdir),
        "finetune": lambda: finetune.finetune(config, images, workdir),
        "evaluate": lambda: compare.compare(config, images, workdir, say),
    }
    for number, name in enumerate(names, 1):
        print(f"== {name} ({number} of {len(names)})", flush=True)
        try:
            stages[name]()
        except tf.errors.OpError as error:
            raise ModelError(
                f"{name} was stopped by TensorFlow ({str(error).splitlines()[0]}); see to the "
                "data, the disk and the memory, then run the same command again to go on"
            ) from error
        fitting.finish(name, workdir)


def result_rows(results: dict[str, Any]) -> list[list[str]]:
    """Rows of the closing table: name, accuracy, latency, share of the largest baseline."""
    largest = max(item["latency_ms"] for item in results["baselines"])

    def row(name: str, accuracy: float, latency_ms: float) -> list[str]:
        return [name, f"{accuracy:.4f}", f"{latency_ms:.3f}", f"{latency_ms / largest:.2f}"]

    rows = [
        row(f"variant {item['name']}", item["accuracy"], item["mean_latency_ms"])
        for item in results["variants"]
    ]
    rows += [row(b["name"], b["accuracy"], b["latency_ms"]) for b in results["baselines"]]
    for control, by_variant in results["controls"].items():
        for name, item in by_variant.items():
            latency = item.get("latency_ms", item.get("mean_latency_ms"))
            rows.append(row(f"{control.replace('_', ' ')} ({name})", item["accuracy"], latency))
    return rows


def print_results(workdir: WorkDir) -> None:
    """Prints the closing table and where everything is."""
    results = files.read_json(workdir.results, "delete it and run --stage=evaluate again")
    try:
        rows = result_rows(results)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{workdir.results} is damaged ({error}); delete it and run --stage=evaluate again"
        ) from error
    print(cli.table(rows, ("on the test split, as TFLite files", "accuracy", "ms", "ratio")))
    print(f"Results: {workdir.results} and {workdir.picture}")
    print(f"Next: export_tflite --workdir={workdir.root} --expert=all")


if __name__ == "__main__":
    sys.exit(main())
