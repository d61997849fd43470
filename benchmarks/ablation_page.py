"""The page of `ablations.py`: tables, a picture, and facts, all computed from the rows."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from ablation_rows import Row
from ablation_settings import quoted

from instanas_tf import files

_INTRO = """\
# What each piece buys

Made by `benchmarks/ablations.py` from [{data}]({data}); do not edit. Each setting changes what
its line says, and nothing else. The weights of all settings see the training images equally
often, and so do those of the networks that are trained alone. In a step by the sandwich rule
several experts see the same images, so it takes longer.

`published` is the recipe of the paper (arXiv 1811.10201) and `priced` is this project's search;
both pick the experts among the last policies, train each on the images that the controller of
the search gives it, and let that controller decide. Then come single pieces on top of `priced`;
`all` has all of them, and `all_*` all with one kind of decision only.

- *latency*: mean on the test images, controller included, over that of MobileNetV2 1.0; in
  brackets over that of the dearest expert of the run.
- *routing gain*: points of accuracy beyond what static networks reach at the same latency, with
  its 95 % interval; it *pays* if the interval lies above 0. A dash: faster than all of them.
- *expert gap*: points that an expert trained alone is better by, at most.
"""
_HEAD = ("setting", "variant", "kind", "accuracy, %", "latency", "routing gain", "pays")
_POINTS = 100.0


def spread(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """The mean, and behind it the least and the greatest where there are several values."""
    scaled = [scale * value for value in values]
    mean = _fixed(float(np.mean(scaled)), digits)
    if len(scaled) == 1:
        return mean
    return f"{mean} ({_fixed(min(scaled), digits)} to {_fixed(max(scaled), digits)})"


def _fixed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # Adding 0 turns -0.0 into 0.0.


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by a key, in order of appearance."""
    found = collections.defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def gains(rows: Iterable[Row]) -> list[float]:
    """The routing gains that there are."""
    return [row.routing_gain for row in rows if row.routing_gain is not None]


def table(rows: Sequence[Row]) -> str:
    """A line for each setting and variant: means over the seeds, with the spread."""
    seeds = len({row.seed for row in rows})
    head = [*_HEAD, "expert gap"]
    lines = [head, ["---"] * len(head)]
    for (setting, name, target), group in grouped(
        rows, lambda row: (row.setting, row.name, row.target)
    ).items():
        few = f" ({len(group)} of {seeds} seeds)" if len(group) < seeds else ""
        lines.append(
            [
                f"`{setting}`{few}",
                f"{name} (asked: {target:g})",
                ", ".join(sorted({row.kind for row in group})),
                spread([row.accuracy for row in group], 1, _POINTS),
                f"{spread([row.latency_ratio for row in group], 2)} "
                f"[{float(np.mean([row.latency_share for row in group])):.2f}]",
                _gain_cell(group),
                f"{sum(row.pays for row in group)} of {len(group)}",
                spread([row.expert_gap for row in group], 1, _POINTS),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gain_cell(group: Sequence[Row]) -> str:
    """Mean gain and its spread, and the mean ends of the intervals."""
    found = gains(group)
    if not found:
        return "—"
    ends = np.mean([row.routing_gain_interval for row in group if row.routing_gain_interval], 0)
    low, high = (_fixed(_POINTS * float(end), 1) for end in ends)
    return f"{spread(found, 1, _POINTS)}, {low} … {high}"


def facts(rows: Sequence[Row], base: str = "priced") -> list[str]:
    """Sentences on one dataset: who gains most, what pays, and what each piece adds to `base`."""
    by_setting = grouped(rows, lambda row: row.setting)
    mean = {
        name: float(np.mean(gains(group))) for name, group in by_setting.items() if gains(group)
    }
    said = []
    if mean:
        most, least = max(mean, key=mean.get), min(mean, key=mean.get)
        others = f", and `{least}` least, {_fixed(_POINTS * mean[least], 1)}"
        said.append(
            f"Over its variants and seeds `{most}` gains most over static networks as fast, "
            f"{_fixed(_POINTS * mean[most], 1)} points on average{others if len(mean) > 1 else ''}."
        )
    pays = {
        name: (sum(row.pays for row in group), len(group)) for name, group in by_setting.items()
    }
    kinds = {
        "every": [name for name, (count, total) in pays.items() if count == total],
        "some": [name for name, (count, total) in pays.items() if 0 < count < total],
        "no": [name for name, (count, _) in pays.items() if not count],
    }
    for word, names in kinds.items():
        if names:
            whole = "variants of some seeds" if word == "some" else "variant of any seed"
            whole = "variant of every seed" if word == "every" else whole
            start = "Choosing by image pays in"
            said.append(f"{start} {word} {whole}: {_names(names)}.")
    if base in mean:
        added = {name: mean[name] - mean[base] for name in mean if name != base}
        listed = [f"`{name}` {_POINTS * value:+.1f}" for name, value in added.items()]
        if listed:
            said.append(f"Mean gain against `{base}`, in points: {', '.join(listed)}.")
    gap = {name: max(row.expert_gap for row in group) for name, group in by_setting.items()}
    widest, narrowest = max(gap, key=gap.get), min(gap, key=gap.get)
    if widest != narrowest:
        said.append(
            f"Experts lose most against training alone in `{widest}` "
            f"({_fixed(_POINTS * gap[widest], 1)} points) and least in `{narrowest}` "
            f"({_fixed(_POINTS * gap[narrowest], 1)})."
        )
    return said


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def section(dataset: str, header: dict[str, Any], rows: Sequence[Row], picture_name: str) -> str:
    """What the page says of one dataset."""
    machine, images, epochs = header["machine"], header["images"], header["epochs"]
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    trained = images["training"] or "all that are left for it"
    seeds = sorted({row.seed for row in rows})
    by_setting = grouped(rows, lambda row: row.setting)
    ran = {name: own for name, own in header["settings"].items() if name in by_setting}
    commands = "\n".join(f"    {command}" for command in header["commands"])
    said = [
        f"## {dataset}",
        commands,
        f"{header['date']}; {machine['cpu']}, {machine['cores']} cores; {versions}; "
        f"{header['device']}, {header['runtime']}. Seeds {', '.join(map(str, seeds))}. "
        f"Training images: {trained}; {images['test']} test images judge, and latency is taken "
        f"on {images['timed']} of them. Weights see {header['weight_epochs']} epochs: "
        + ", ".join(f"{stage} {count}" for stage, count in epochs.items())
        + " (twice as many of a search that gives every second one to the controller).",
        f"![Routing gain of each setting]({picture_name})",
        table(rows),
        " ".join(facts(rows)),
    ]
    if header["missed"]:
        missed = [
            f"`{item['setting']}` (seed {item['seed']}): {', '.join(map(str, item['targets']))}"
            for item in header["missed"]
        ]
        said.append(
            "Targets that no choice among the experts of a setting meets, so that there is no "
            f"such variant: {'; '.join(missed)}."
        )
    said.append("Arguments of `instanas_tf.train` of each setting, beside `--config.seed`:")
    said.append(
        "\n".join(f"- `{name}`: `{' '.join(map(quoted, own))}`" for name, own in ran.items())
    )
    return "\n\n".join(said)


def page(datasets: dict[str, Any], rows: Sequence[Row], data_name: str, picture_name: str) -> str:
    """The whole page as Markdown.

    Args:
        datasets: headers by name.
        rows: of all datasets.
        data_name: of the JSON file, as the page links it.
        picture_name: of the PNG, likewise.
    """
    by_dataset = grouped(rows, lambda row: row.dataset)
    sections = [
        section(name, datasets[name], group, picture_name) for name, group in by_dataset.items()
    ]
    return "\n\n".join([_INTRO.format(data=data_name).rstrip(), *sections]) + "\n"


def picture(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the routing gain with its interval for each setting, a panel for each dataset.

    Args:
        rows: of all datasets.
        path: of the PNG; written in one piece.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_dataset = grouped(rows, lambda row: row.dataset)
    heights = [1 + len({row.setting for row in group}) for group in by_dataset.values()]
    figure = Figure(figsize=(8, 1.5 + 0.42 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(by_dataset), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (dataset, group) in zip(panels, by_dataset.items(), strict=True):
        _draw(axes, group)
        axes.set_title(f"{dataset}: accuracy beyond static networks of the same latency")
    panels[-1].set_xlabel("routing gain, points (95 % interval; one mark a variant and seed)")
    with files.replacing(path, suffix=".png") as temporary:
        figure.savefig(temporary, dpi=120)


def _draw(axes, rows: Sequence[Row]) -> None:
    """One line a setting; variants by colour, beneath each other."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    names = sorted({row.name for row in rows})
    for number, name in enumerate(names):
        mine = [row for row in rows if row.name == name and row.routing_gain is not None]
        if not mine:
            continue
        seeds = sorted({row.seed for row in rows})
        at = [
            settings.index(row.setting)
            + 0.7 * ((number + (seeds.index(row.seed) + 0.5) / len(seeds)) / len(names) - 0.5)
            for row in mine
        ]
        gain = np.array([row.routing_gain for row in mine])
        low, high = np.array([row.routing_gain_interval for row in mine]).T
        axes.errorbar(
            _POINTS * gain,
            at,
            xerr=_POINTS * np.maximum([gain - low, high - gain], 0.0),
            fmt="o",
            markersize=4,
            capsize=2,
            linewidth=1,
            color=f"C{number}",
            label=f"variant {name}",
        )
    axes.axvline(0.0, color="0.35", linewidth=0.8)
    axes.set_yticks(range(len(settings)), settings)
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize="small")
