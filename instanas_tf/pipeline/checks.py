"""Ranges of the settings, checked before a run starts."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from instanas_tf.errors import InputError
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import config_files
from instanas_tf.spaces import controllers, mobilenet_v2
from instanas_tf.spaces.space import MERGES

CHOICES = {
    "config.space.name": tuple(sorted(mobilenet_v2.LAYOUTS)),
    "config.space.merge": MERGES,
    "config.controller.kind": controllers.KINDS,
    "config.train.precision": ("float32", "mixed_bfloat16"),
    "config.pretrain.schedule": ("cosine", "step", "constant"),
    "config.search.recipe": config_module.RECIPES,
    "config.search.priced.alternate": ("step", "epoch"),
    "config.search.priced.entropy": ("full", "half"),
    "config.search.published.alternate": ("step", "epoch"),
    "config.search.published.entropy": ("full", "half"),
    "config.experts.choice": ("history", "picked"),
    "config.finetune.rule": ("sandwich", "assigned"),
    "config.latency.device": ("host",),
    "config.latency.runtime": ("auto", "tflite_runtime", "ai_edge_litert"),
}
MAX_TARGETS = 26  # Variants are called A to Z.
MAX_CHAIN = 4  # Each expert more takes 64 times longer to fit.
MAX_SECS = 10  # Of one visit of `android_bench`.
AT_LEAST = {
    "config.seed": 0,
    "config.data.image_size": 8,
    "config.train.batch_size": 2,
    "config.train.clip_norm": 0,
    "config.pretrain.weight_decay": 0,
    "config.search.supernet_weight_decay": 0,
    "config.finetune.weight_decay": 0,
    "config.pretrain.epochs": 1,
    "config.search.epochs": 1,
    "config.finetune.epochs": 1,
    "config.experts.count": 1,
    "config.experts.candidates": 1,
    "config.experts.explore": 0,
    "config.experts.shared_cells": 0,
    "config.experts.recalibration_images": 1,
    "config.finetune.between": 1,
    "config.route.epochs": 1,
    "config.route.longest": 1,
    "config.route.lead": 0,
    "config.route.interval": 0,
    "config.evaluate.alone": 0,
    "config.target_ms": 0,
    "config.latency.threads": 1,
    "config.latency.rounds": 1,
    "config.latency.warmup_runs": 0,
    "config.latency.min_runs": 1,
    "config.latency.calibration_experts": 6,
    "config.latency.validation_experts": 0,
    "config.search.controller_decay_epochs": 0,
    "config.search.priced.entropy_weight": 0,
    "config.search.priced.diversity_weight": 0,
    "config.search.priced.diversity_ratio": 0,
    "config.search.priced.price_rate": 0,
    "config.search.published.entropy_weight": 0,
    "config.search.published.gamma": 0,
    "config.evaluate.rounds": 1,
    "config.evaluate.timed_images": 1,
    "config.controller.logit_stddev": 0,
    "config.search.batch_size": 0,
    "config.finetune.batch_size": 0,
}
ABOVE_ZERO = (
    "config.space.width",
    "config.pretrain.learning_rate",
    "config.search.controller_learning_rate",
    "config.search.supernet_learning_rate",
    "config.finetune.learning_rate",
    "config.route.learning_rate",
    "config.route.temperature",
    "config.search.published.upper_start",
    "config.search.published.upper_end",
    "config.search.published.lower_guard",
    "config.latency.min_secs",
    "config.train.checkpoint_secs",
)
SHARES = (
    "config.search.priced.shuffle_share",
    "config.search.published.shuffle_share",
    "config.train.label_smoothing",
    "config.train.bn_momentum",
    "config.pretrain.keep_random_from",
    "config.finetune.distillation",
)
NAMES = {  # Tuples of different names.
    "config.route.kinds": ("search", "image", "features", "cascade", "start"),
    "config.route.image_controllers": controllers.KINDS,
}
ANCHORS = ("least", "half_even", "half_odd", "half_early", "half_late", "cheap", "most")
KNOTS = {  # With the range of the values.
    "config.pretrain.keep": (0, 1),
    "config.search.priced.alpha": (0.5, 1),
    "config.search.priced.target": (0, 100),
    "config.search.published.alpha": (0.5, 1),
}
POSITIVE_LISTS = {"config.variants.targets": 100, "config.evaluate.baseline_widths": 8}


def from_json(path: pathlib.Path) -> ConfigDict:
    """The config that a work directory was started with, checked.

    Raises:
        InputError: the file is damaged, or holds what cannot be run.
    """
    config = config_files.from_json(path)
    try:
        check(config)
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}); choose another --workdir") from error
    return config


def check(config: ConfigDict) -> None:
    """Refuses a config that cannot be run.

    Raises:
        InputError: naming the first setting that is wrong and what it may be.
    """
    config_files.check_keys(config)
    values = config_files.flatten(config)
    for name, value in values.items():
        if not _is_finite(value):
            _refuse(name, "finite", value)
    for name, allowed in CHOICES.items():
        if values[name] not in allowed:
            _refuse(name, f"one of {', '.join(allowed)}", values[name])
    for name, least in AT_LEAST.items():
        if not values[name] >= least:
            _refuse(name, f"at least {least}", values[name])
    if config.latency.min_secs > MAX_SECS:
        _refuse("config.latency.min_secs", f"at most {MAX_SECS}", config.latency.min_secs)
    _check_names(config, values)
    widths = config.evaluate.baseline_widths
    if len(set(widths)) != len(widths):
        _refuse("config.evaluate.baseline_widths", "a tuple of different numbers", widths)
    if config.seed >= 2**31:
        _refuse("config.seed", "below 2**31", config.seed)
    for name in ABOVE_ZERO:
        if not 0 < values[name] < float("inf"):
            _refuse(name, "above 0", values[name])
    for name in SHARES:
        if not 0 <= values[name] <= 1:
            _refuse(name, "from 0 to 1", values[name])
    for name, (low, high) in KNOTS.items():
        if not _are_knots(values[name], low, high):
            expected = (
                f"(progress, value) pairs, progress rising in [0, 1], values in {low}..{high}"
            )
            _refuse(name, expected, values[name])
    for name, high in POSITIVE_LISTS.items():
        if not values[name] or not all(_is_number(v) and 0 < v <= high for v in values[name]):
            _refuse(name, f"a tuple of numbers above 0 and at most {high}", values[name])
    widest = config.space.width * max(1.0, *config.evaluate.baseline_widths)
    if widest > mobilenet_v2.MAX_WIDTH:
        _refuse(
            "config.space.width, with the widest of config.evaluate.baseline_widths,",
            f"at most {mobilenet_v2.MAX_WIDTH}",
            widest,
        )
    _check_ranges(config, values)
    if values["config.search.published.lower_guard"] >= 1:
        _refuse(
            "config.search.published.lower_guard",
            "below 1",
            values["config.search.published.lower_guard"],
        )
    layout = mobilenet_v2.LAYOUTS[config.space.name]
    cells = sum(count for _, count, _ in layout.stages)
    if config.experts.shared_cells >= cells:
        _refuse("config.experts.shared_cells", f"below {cells}", config.experts.shared_cells)
    size = layout.image_size
    if config.data.image_size != size:
        _refuse(
            "config.data.image_size",
            f"{size}, the size of the space {config.space.name}",
            config.data.image_size,
        )


def _check_ranges(config: ConfigDict, values: dict[str, Any]) -> None:
    """Refuses pairs that are no ranges, and weights that mean nothing."""
    for name, least, most in (
        ("config.pretrain.keep_range", 0, 1),
        ("config.route.price_range", 1e-6, 100),
    ):
        low_high = values[name]
        numbers = len(low_high) == 2 and all(map(_is_number, low_high))
        if not numbers or not least <= low_high[0] <= low_high[1] <= most:
            _refuse(name, f"(lowest, highest) in [{least:g}, {most:g}]", low_high)
    targets = config.variants.targets
    if len(targets) > MAX_TARGETS:
        _refuse("config.variants.targets", f"at most {MAX_TARGETS} numbers", targets)
    if config.route.longest > MAX_CHAIN:
        _refuse("config.route.longest", f"at most {MAX_CHAIN}", config.route.longest)
    powers = config.route.weight_powers
    if not powers or not all(_is_number(power) and 0 <= power <= 4 for power in powers):
        _refuse("config.route.weight_powers", "a tuple of numbers from 0 to 4", powers)


def _check_names(config: ConfigDict, values: dict[str, Any]) -> None:
    """Refuses lists of names that are unknown, twice there, or too few or too many."""
    ops = mobilenet_v2.LAYOUTS[config.space.name].ops
    anchors = (*ANCHORS, *(op.name for op in ops))
    lists = NAMES | {"config.pretrain.anchors": anchors, "config.experts.required": anchors}
    for name, allowed in lists.items():
        given = values[name]
        if len(set(given)) != len(given) or not set(given) <= set(allowed):
            _refuse(name, f"a tuple of different names out of {', '.join(allowed)}", given)
    if not config.route.kinds:
        _refuse("config.route.kinds", "at least one name", config.route.kinds)
    looks_at_images = {"image", "start"} & set(config.route.kinds)
    if looks_at_images and not config.route.image_controllers:
        _refuse("config.route.image_controllers", "at least one name", ())
    chosen = config.experts.choice == "history"
    if chosen and len(config.experts.required) > config.experts.count:
        _refuse(
            "config.experts.required",
            f"at most {config.experts.count} names, the number of experts",
            config.experts.required,
        )


def _is_finite(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_knots(points: Any, low: float, high: float) -> bool:
    if not points or not all(isinstance(p, (tuple, list)) and len(p) == 2 for p in points):
        return False
    if not all(_is_number(x) and _is_number(y) for x, y in points):
        return False
    progress = [x for x, _ in points]
    if not all(low <= y <= high for _, y in points):
        return False
    return progress == sorted(progress) and progress[0] >= 0 and progress[-1] <= 1


def _refuse(name: str, expected: str, received: Any) -> None:
    raise InputError(f"{name} must be {expected}. Received: {received!r}")
