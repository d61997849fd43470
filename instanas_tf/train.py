r"""Command: train controller, supernet and experts, and compare them with MobileNetV2.

    python -m instanas_tf.train --config=configs/digits.py --workdir=runs/digits \
        [--config.some.key=value] [--stage=all|pretrain|measure|search|finetune|route|evaluate]

With no flags it trains scikit-learn's digits into runs/digits. Run the same command again
to go on after an interruption. All settings: instanas_tf/pipeline/config.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from export.runtime import find_runtime
from instanas_tf import children, cli, files, startup
from instanas_tf.errors import CommandError, InputError, ModelError
from instanas_tf.pipeline import checks, config_files
from instanas_tf.pipeline.cluster import ALONE, join, read_tf_config
from instanas_tf.pipeline.workdir import (
    STAGES,
    WorkDir,
    drop_finished,
    is_answered,
    locked,
    open_workdir,
    start,
)

NEEDS = {
    "pretrain": (),
    "measure": (),
    "search": ("pretrain", "measure"),
    "finetune": ("pretrain", "measure", "search"),
    "route": ("pretrain", "measure", "search", "finetune"),
    "evaluate": ("pretrain", "measure", "search", "finetune", "route"),
}
ONLY_TENSORFLOW = ("measure", "route")
NEED_TENSORFLOW = (*ONLY_TENSORFLOW, "evaluate")


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
        config = override(config_files.load(parsed.config), overrides)
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
    config_files.check_names(names)
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
    task = read_tf_config(os.environ.get("TF_CONFIG", ""))
    backend = startup.backend()
    workdir = open_workdir(root, config)
    wanted = list(STAGES) if stage == "all" else [stage]
    missing = [name for name in NEEDS[wanted[0]] if not workdir.is_done(name)]
    if wanted[0] == "evaluate" and not missing and not is_answered(workdir.experts, config):
        missing = ["route"]
    if missing:
        raise InputError(
            f"--stage={stage} needs the result of {missing[0]}, which {root} does not hold; "
            f"run --stage={missing[0]} first, or --stage=all"
        )
    left = left_of(wanted, config, workdir)
    if not left:
        print(f"Nothing is left to do in {root}.")
    if task is not None:
        print(f"worker {task[0]} of {task[1]}: waits for the others", flush=True)
    if left and backend != "tensorflow":
        run_on_two_backends(left, config, workdir)
    elif left or task is not None:  # The others see by it that nothing is left.
        if set(left) & set(NEED_TENSORFLOW):
            find_runtime(config.latency.runtime)
        run_stages(left, config, workdir)
    if is_answered(workdir.results, config) and (task is None or task[0] == 0):
        print_results(workdir)


def left_of(wanted: Sequence[str], config: ConfigDict, workdir: WorkDir) -> list[str]:
    """The stages that have no result yet, or one for other targets.

    Raises:
        InputError: a result is damaged.
    """
    left = [name for name in wanted if not workdir.is_done(name)]
    answers = {"route": workdir.experts, "evaluate": workdir.results}
    for name, path in answers.items():
        if name in wanted and name not in left and not is_answered(path, config):
            left.append(name)
    if "route" in left and "evaluate" in wanted and "evaluate" not in left:
        left.append("evaluate")
    return [name for name in wanted if name in left]


def run_on_two_backends(names: Sequence[str], config: ConfigDict, workdir: WorkDir) -> None:
    """Runs stages where TFLite files are made in a process with TensorFlow, others here.

    Raises:
        InputError: TensorFlow is needed and not installed.
        CommandError: that process failed.
    """
    for name in names:
        if name not in ONLY_TENSORFLOW:
            run_stages([name], config, workdir)
        if name in NEED_TENSORFLOW:
            if importlib.util.find_spec("tensorflow") is None:
                raise InputError(
                    f"{name} converts and times TFLite files and needs TensorFlow; take "
                    f"{workdir.root} to a machine that has it, run --stage={name} there, and "
                    "bring it back"
                )
            run_stages([], config, workdir)  # It reads the settings that this leaves.
            arguments = [f"--config={workdir.config}", f"--workdir={workdir.root}"]
            code = children.follow_module(
                "instanas_tf.train", *arguments, f"--stage={name}", KERAS_BACKEND="tensorflow"
            )
            if code < 0:
                raise ModelError(
                    f"{name} under TensorFlow was ended by signal {-code}; run the same command "
                    "again to go on"
                )
            if code:
                raise CommandError(f"{name} under TensorFlow failed, see the line above", code)


def run_stages(names: Sequence[str], config: ConfigDict, workdir: WorkDir) -> None:
    """Joins the cluster if there is one, loads the data and runs stages in order."""
    startup.import_backend()
    cluster = join(config)
    # Another try helps where a chief was still writing its last result.
    cluster.agree("--stage, or what is left to do,", " ".join(names), kind=ModelError)
    workdir = dataclasses.replace(workdir, cluster=cluster)
    with locked(workdir) if cluster.is_chief else contextlib.nullcontext():
        cluster.wait()
        _run_stages(names, config, workdir)


def _run_stages(names: Sequence[str], config: ConfigDict, workdir: WorkDir) -> None:
    from instanas_tf.pipeline import data, fitting, precision

    images = data.load(config.data, config.seed)
    fitting.check_batches(config, images, workdir)
    fitting.check_splits(config, images)
    if workdir.cluster.is_chief:
        start(workdir, config)
        drop_finished(workdir)
        print(
            f"{config.data.name}: {images.train.count} training, {images.validation.count} "
            f"validation and {images.test.count} test images, {images.num_classes} classes",
            flush=True,
        )
    workdir.cluster.wait()
    if not workdir.config.exists():
        raise InputError(
            f"worker {workdir.cluster.worker} does not see {workdir.config}, which the chief "
            "wrote; give all workers a --workdir on a file system that they share"
        )
    if workdir.cluster.is_chief and set(names) - {"measure"}:
        precision.warn_if_slower(config, fitting.make_space(config, images.num_classes))
    for number, name in enumerate(names, 1):
        if workdir.cluster.is_chief:
            print(f"== {name} ({number} of {len(names)})", flush=True)
        with _as_one_line(name):
            _STAGES[name](config, images, workdir)
        fitting.finish(name, workdir)
        workdir.cluster.wait()


@contextlib.contextmanager
def _as_one_line(stage: str) -> Iterator[None]:
    """Turns what a backend raises in a stage into an error of one line.

    Raises:
        ModelError: always where TensorFlow or JAX raised.
    """
    if startup.backend() == "tensorflow":
        import tensorflow as tf

        kinds: tuple[type[BaseException], ...] = (tf.errors.OpError,)
    else:
        import jax

        kinds = (jax.errors.JaxRuntimeError,)
    try:
        yield
    except kinds as error:
        # Behind TensorFlow's heading and the places in the code comes what is the matter.
        lines = [line.strip() for line in str(error).splitlines()]
        places = ("Graph execution error", "Detected at node", "File ", "Stack trace", "[[{{")
        told = [line for line in lines if line and not line.startswith(places)]
        raise ModelError(
            f"{stage} was stopped by the backend ({(told or lines or ['no reason given'])[0]}); "
            "see to the data, the disk, the memory and the other workers, then run the same "
            "command again to go on"
        ) from error


def _say(line: str) -> None:
    print(line, flush=True)


def _pretrain(config: ConfigDict, images: Any, workdir: WorkDir) -> None:
    from instanas_tf.pipeline import pretrain

    pretrain.pretrain(config, images, workdir)


def _measure(config: ConfigDict, images: Any, workdir: WorkDir) -> None:
    from instanas_tf import measure
    from instanas_tf.pipeline import fitting

    if workdir.cluster.is_chief:
        space = fitting.make_space(config, images.num_classes)
        table = measure.measure(config, space, workdir, config.latency.device)
        _say(cli.table(measure.summary(table)))


def _search(config: ConfigDict, images: Any, workdir: WorkDir) -> None:
    from instanas_tf.pipeline import search

    search.search(config, images, workdir)


def _finetune(config: ConfigDict, images: Any, workdir: WorkDir) -> None:
    from instanas_tf.pipeline import finetune

    finetune.finetune(config, images, workdir)


def _route(config: ConfigDict, images: Any, workdir: WorkDir) -> None:
    from instanas_tf import route

    if workdir.cluster.is_chief:
        route.route(config, images, dataclasses.replace(workdir, cluster=ALONE), _say)


def _evaluate(config: ConfigDict, images: Any, workdir: WorkDir) -> None:
    """On another backend than TensorFlow: the trainings of this stage alone."""
    from instanas_tf.pipeline import baselines

    say = _say if workdir.cluster.is_chief else (lambda line: None)
    baselines.train(config, images, workdir, say)
    if workdir.cluster.is_chief and startup.backend() == "tensorflow":
        from instanas_tf import compare

        # What is trained is on disk now, and the other processes wait.
        compare.compare(config, images, dataclasses.replace(workdir, cluster=ALONE), say)


_STAGES = {
    "pretrain": _pretrain,
    "measure": _measure,
    "search": _search,
    "finetune": _finetune,
    "route": _route,
    "evaluate": _evaluate,
}


def result_rows(results: dict[str, Any]) -> list[list[str]]:
    """Rows of the closing table: name, accuracy, latency, share of the largest baseline."""
    largest = max(item["latency_ms"] for item in results["baselines"])

    def row(name: str, accuracy: float, latency_ms: float) -> list[str]:
        return [name, f"{accuracy:.4f}", f"{latency_ms:.3f}", f"{latency_ms / largest:.2f}"]

    rows = [
        row(f"variant {item['name']} ({item['kind']})", item["accuracy"], item["mean_latency_ms"])
        for item in results["variants"]
    ]
    rows += [row(b["name"], b["accuracy"], b["latency_ms"]) for b in results["baselines"]]
    for control, by_variant in results["controls"].items():
        if control == "seed_twin":
            continue
        for name, item in by_variant.items():
            latency = item.get("latency_ms", item.get("mean_latency_ms"))
            rows.append(row(f"{control.replace('_', ' ')} ({name})", item["accuracy"], latency))
    return rows


def print_results(workdir: WorkDir) -> None:
    """Prints the closing table and where everything is."""
    results = files.read_json(workdir.results, "delete it and run --stage=evaluate again")
    try:
        rows = result_rows(results)
        sentences = [f"{item['name']}: {item['sentence']}" for item in results["variants"]]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{workdir.results} is damaged ({error}); delete it and run --stage=evaluate again"
        ) from error
    print(cli.table(rows, ("on the test split, as TFLite files", "accuracy", "ms", "ratio")))
    print("\n".join(sentences))
    print(f"Results: {workdir.results} and {workdir.picture}")
    print(f"Next: export_tflite --workdir={workdir.root} --expert=all")


if __name__ == "__main__":
    sys.exit(main())
