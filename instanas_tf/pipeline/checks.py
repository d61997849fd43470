"""Ranges of the settings, checked before a run starts."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from instanas_tf.errors import InputError
from instanas_tf.pipeline import config as config_module
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
    "config.latency.device": ("host",),
    "config.latency.runtime": ("auto", "tflite_runtime", "ai_edge_litert"),
}
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
    "config.experts.recalibration_images": 1,
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
)
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
    config = config_module.from_json(path)
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
    config_module.check_keys(config)
    values = config_module.flatten(config)
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
    low_high = values["config.pretrain.keep_range"]
    numbers = len(low_high) == 2 and all(map(_is_number, low_high))
    if not numbers or not 0 <= low_high[0] <= low_high[1] <= 1:
        _refuse("config.pretrain.keep_range", "(lowest, highest) in [0, 1]", low_high)
    if values["config.search.published.lower_guard"] >= 1:
        _refuse(
            "config.search.published.lower_guard",
            "below 1",
            values["config.search.published.lower_guard"],
        )
    size = mobilenet_v2.LAYOUTS[config.space.name].image_size
    if config.data.image_size != size:
        _refuse(
            "config.data.image_size",
            f"{size}, the size of the space {config.space.name}",
            config.data.image_size,
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
