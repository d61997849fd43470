"""The picture of a run: accuracy against measured latency."""

from __future__ import annotations

import pathlib
from typing import Any

from instanas_tf import files

_MARKS = {
    "majority_policy": ("s", "one policy for all images"),
    "shuffled_policies": ("x", "policies shuffled over images"),
    "best_static_expert": ("d", "best static expert"),
    "static_trained_alone": ("^", "static network trained alone"),
}


def picture(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws variants, baselines and controls as a PNG.

    Args:
        results: the content of `results.json`; where it has a `static_envelope` with
            `latency_ms` and `accuracy`, both rising, that line is drawn too.
        path: of the PNG; written in one piece.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    percent = [100 * item["accuracy"] for item in results["baselines"]]
    axes.plot(
        [item["latency_ms"] for item in results["baselines"]],
        percent,
        "o-",
        color="0.35",
        label="MobileNetV2, same budget",
    )
    for item, accuracy in zip(results["baselines"], percent, strict=True):
        axes.annotate(
            item["name"].removeprefix("mobilenet_v2_"),
            (item["latency_ms"], accuracy),
            textcoords="offset points",
            xytext=(6, -12),
            color="0.35",
        )
    for name, (mark, label) in _MARKS.items():
        items = results["controls"][name].values()
        axes.plot(
            [item.get("latency_ms", item.get("mean_latency_ms")) for item in items],
            [100 * item["accuracy"] for item in items],
            mark,
            alpha=0.7,
            label=label,
        )
    if line := results.get("static_envelope"):
        axes.plot(
            line["latency_ms"],
            [100 * accuracy for accuracy in line["accuracy"]],
            "-",
            color="tab:purple",
            linewidth=0.8,
            zorder=1,
            label="static networks, mixed at random",
        )
    _draw_variants(axes, results["variants"])
    axes.set_xlim(left=0)
    axes.set_xlabel("mean latency measured on the test images, controller included (ms)")
    axes.set_ylabel("test accuracy of the TFLite files (%)")
    axes.set_title(f"{results['dataset']}: accuracy against latency")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    with files.replacing(path, suffix=".png") as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_variants(axes, variants: list[dict[str, Any]]) -> None:
    """Stars with error bars, and beside each its name and, where it has one, its kind."""
    axes.errorbar(
        [item["mean_latency_ms"] for item in variants],
        [100 * item["accuracy"] for item in variants],
        yerr=[100 * item["accuracy_standard_error"] for item in variants],
        fmt="*",
        markersize=14,
        color="tab:red",
        label="InstaNAS variants (± standard error)",
    )
    for item in variants:
        axes.annotate(
            f"{item['name']} ({item['kind']})" if item.get("kind") else item["name"],
            (item["mean_latency_ms"], 100 * item["accuracy"]),
            textcoords="offset points",
            xytext=(9, 6),
            color="tab:red",
            weight="bold",
        )
