r"""Accuracy and mean latency of a run's cascades against the number of experts K.

    python benchmarks/expert_count.py --workdir=RUN [--counts=1,2,4,8,16,32] [--target=0.5] \
        [--epochs=0] [--out=DIR]

For each K the experts are the K policies that k-medoids chooses out of all that the search of
RUN visited (whatever `config.experts.choice` says), frozen out of the search's supernet and
recalibrated; `config.experts.required` holds from the K on that has room for them. With
--epochs=0 the weights are as the search left them, so that nothing but K is compared; with more,
the K experts are trained together first, by the sandwich rule and the settings of
`config.finetune`. All of them are measured as TFLite files in one go. The cascade of whole
experts within the target is chosen on the validation split; the figures are of the test split.

RUN is read only. Writes expert_count.json and expert_count.png below --out; run the same command
again to go on after an interruption.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from instanas_tf import cli, files, startup
from instanas_tf.errors import InputError
from instanas_tf.pipeline.workdir import WorkDir, existing_workdir, locked

# Of the table. Accuracies are of the test split; the gain is over the K experts by themselves and
# random mixtures of two, at the latency of the cascade.
HEADER = ("K", "used", "accuracy", "ms", "ratio", "single", "single ms", "gain (95 % interval)")
COUNTS = (1, 2, 4, 8, 16, 32)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "Folder of the run; empty: the latest.", flag_values=values)
    flags.DEFINE_string(
        "counts", ",".join(map(str, COUNTS)), "Numbers of experts K.", flag_values=values
    )
    flags.DEFINE_float(
        "target",
        0.0,
        "Mean latency, as a share of the reference network's; 0: that of the run's variant A.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "epochs",
        0,
        "Epochs of training the K experts together by the sandwich rule; 0 leaves them as the "
        "search left them, so that K is what is compared.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string("out", "", "Folder to write; empty: RUN/expert_count.", flag_values=values)

    def command(parsed: flags.FlagValues) -> None:
        counts = parse_counts(parsed.counts)
        if not (math.isfinite(parsed.target) and parsed.target >= 0):
            raise InputError(f"--target must be a number above 0, or 0. Received: {parsed.target}")
        workdir = existing_workdir(parsed.workdir)
        for stage in ("measure", "search"):
            if not workdir.is_done(stage):
                raise InputError(
                    f"{workdir.root} has no result of {stage} yet; train on: python -m "
                    f"instanas_tf.train --config={workdir.config} --workdir={workdir.root}"
                )
        out = pathlib.Path(parsed.out).expanduser() if parsed.out else None
        out = out or workdir.root / "expert_count"
        if (out / "config.json").exists() or (out.exists() and not out.is_dir()):
            raise InputError(f"--out={out} holds a run or is a file; choose another folder")
        with locked(WorkDir(out)):
            compare(workdir, out, counts, parsed.target, parsed.epochs)

    return cli.run("expert_count", command, list(argv or sys.argv), __doc__ or "", values)


def parse_counts(text: str) -> list[int]:
    """The numbers of experts that `--counts` names, rising.

    Raises:
        InputError: anything but different whole numbers from 1 on.
    """
    words = [word.strip() for word in text.split(",")]
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if len(numbers) < len(words) or len(set(numbers)) < len(words) or 0 in numbers:
        raise InputError(
            "--counts must be different whole numbers from 1 on, with commas between. "
            f"Received: {text!r}"
        )
    return sorted(numbers)


def compare(
    workdir: WorkDir, out: pathlib.Path, counts: list[int], target: float, epochs: int
) -> None:
    """Makes table and picture; see the module.

    Args:
        workdir: of the run.
        out: the folder to write.
        counts: numbers of experts, rising.
        target: share of the reference network's latency; 0 takes the run's dearest target.
        epochs: of training the K experts together.

    Raises:
        InstanasError: whatever stops it, with its exit code.
    """
    startup.import_tensorflow()
    import counted_experts as counted

    run = counted.open_run(workdir, out, _say)
    pool = counted.judged_pool(run, counts[-1])
    chosen = {count: pool.choose(count) for count in counts}
    ms = counted.measure(run, pool, sorted({i for indices in chosen.values() for i in indices}))
    reference_ms, variants = ms[counted.REFERENCE], run.config.variants
    target = target or run.config.target_ms / reference_ms or max(variants.targets)
    entries = []
    for count, indices in chosen.items():
        measured = counted.measured_of(ms, indices)
        cascade = counted.cascade_of(run, pool, indices, measured, target, epochs)
        entries.append(
            {
                "count": count,
                "policies": counted.names_of(run, pool, indices),
                "latency_ms": measured.experts.tolist(),
                "cascade": cascade,
            }
        )
    results = {
        "dataset": run.config.data.name,
        "epochs": epochs,
        "candidates": len(pool.candidates.policies),
        "target": target,
        "budget_ms": target * reference_ms,
        "reference_latency_ms": reference_ms,
        "counts": entries,
    }
    check_reached(results)
    files.write_json(out / "expert_count.json", results)
    picture(results, out / "expert_count.png")
    print(cli.table(rows(results), HEADER))
    print(f"Results: {out / 'expert_count.json'} and {out / 'expert_count.png'}")


def _say(line: str) -> None:
    print(line, flush=True)


def check_reached(results: dict[str, Any]) -> None:
    """Refuses a target that no K can meet.

    Raises:
        InputError: says what the experts take.
    """
    if any(entry["cascade"] for entry in results["counts"]):
        return
    low = min(min(entry["latency_ms"]) for entry in results["counts"])
    reference_ms = results["reference_latency_ms"]
    raise InputError(
        f"--target must be at least {low / reference_ms:.2f} ({low:.3f} ms), what the cheapest of "
        f"these experts takes. Received: {results['target']:.2f} ({results['budget_ms']:.3f} ms)"
    )


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table: a row for each K, with dashes where every expert is dearer than the target."""
    found = []
    for entry in results["counts"]:
        cascade = entry["cascade"]
        if cascade is None:
            found.append([str(entry["count"]), *"-" * (len(HEADER) - 1)])
            continue
        single, gain = cascade["single"], cascade["gain"]
        ratio = cascade["mean_latency_ms"] / results["reference_latency_ms"]
        low, high = gain["interval"] if gain else (0.0, 0.0)
        found.append(
            [
                str(entry["count"]),
                str(len(cascade["experts"])),
                f"{cascade['accuracy']:.4f}",
                f"{cascade['mean_latency_ms']:.3f}",
                f"{ratio:.2f}",
                f"{single['accuracy']:.4f}",
                f"{single['latency_ms']:.3f}",
                f"{gain['gain']:+.4f} ({low:+.4f} to {high:+.4f})" if gain else "-",
            ]
        )
    return found


def picture(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws accuracy and mean latency against K as a PNG.

    Args:
        results: the content of `expert_count.json`.
        path: of the PNG; written in one piece.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    met = [entry for entry in results["counts"] if entry["cascade"]]
    counts, found = [entry["count"] for entry in met], [entry["cascade"] for entry in met]
    upper.errorbar(
        counts,
        [100 * item["accuracy"] for item in found],
        yerr=[100 * item["accuracy_standard_error"] for item in found],
        fmt="o-",
        color="tab:red",
        label="cascade (\u00b1 standard error)",
    )
    alone = [item["single"] for item in found]
    upper.plot(
        counts,
        [100 * item["accuracy"] for item in alone],
        "d--",
        color="0.35",
        label="best single expert within the target",
    )
    upper.set_ylabel("test accuracy (%)")
    mean_ms = [item["mean_latency_ms"] for item in found]
    lower.plot(counts, mean_ms, "o-", color="tab:red")
    lower.plot(counts, [item["latency_ms"] for item in alone], "d--", color="0.35")
    lower.axhline(
        results["budget_ms"], color="tab:purple", linewidth=0.8, label="target (on validation)"
    )
    lower.set_ylim(bottom=0)
    lower.set_ylabel("mean latency (ms)")
    lower.set_xlabel("experts K")
    lower.set_xscale("log", base=2)
    every = [entry["count"] for entry in results["counts"]]
    lower.set_xticks(every, [str(count) for count in every])
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    how = f"trained for {results['epochs']} epochs" if results["epochs"] else "as searched"
    upper.set_title(f"{results['dataset']}: K experts, {how}")
    with files.replacing(path, suffix=".png") as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
