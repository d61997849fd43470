"""Stage 5: measure the experts, train controllers for them, and meet the targets asked for.

Everything is decided on the validation split and on measured latencies. For each target the
controllers and cascades are compared, and the best becomes a variant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

from instanas_tf import files, parts
from instanas_tf.errors import InputError
from instanas_tf.models.expert import shared_cells
from instanas_tf.pipeline import data, decide, fitting, routers, variants
from instanas_tf.pipeline.baselines import Say
from instanas_tf.pipeline.workdir import WorkDir, asked
from instanas_tf.search import cascades
from instanas_tf.spaces.space import SearchSpace
from instanas_tf.systems import Measuring, Stopwatch

TOLERANCE = 0.02  # By which a variant, measured end to end, may be off its target.
_ATTEMPTS = 4  # At meeting a target end to end.


class OutOfReachError(InputError):
    """A mean latency is asked for that these experts cannot meet."""


def route(
    config: ConfigDict,
    images: data.ImageData,
    workdir: WorkDir,
    say: Say,
    measuring: Measuring = contextlib.nullcontext,
) -> None:
    """Runs stage 5 and leaves `experts.json`.

    Args:
        config: of the run.
        images: the dataset; the controller and the validation split are used.
        workdir: of a run whose experts are trained.
        say: told in a line what is going on.
        measuring: makes a context that is held while latencies are measured.

    Raises:
        OutOfReachError: a target below what the cheapest expert takes.
        InputError: too few images.
    """
    fitting.check_splits(config, images)
    content = variants.read_trained(workdir)
    content |= {"shared_cells": shared_cells(variants.policies(content), space_of(content))}
    front = variants.front(content, workdir)
    content |= {"feature_shape": list(front.output_shape[1:]), "asked": asked(config)}
    names = routers.names(config, content["epochs"])
    with_features = routers.FEATURES in names or "cascade" in config.route.kinds
    with measuring():
        measured = parts.measure(content, names, with_features, config, workdir, say)
    budgets = budgets_ms(config, measured)
    routers.drop_others(config.route, workdir)

    networks = [variants.expert(i, content, workdir) for i in range(len(content["experts"]))]
    labels = fitting.labels_of(images.validation)
    answers = np.stack([fitting.predict(network, images.validation) for network in networks])
    probabilities = cascades.softmax(answers)
    learned = [name for name in names if routers.is_learned(name)]
    if learned:
        train(learned, networks, front, answers, labels, measured, config, images, workdir, content)
    scores = {name: scores_of(name, content, front, images.validation, workdir) for name in names}

    def within(budget_ms: float) -> list[decide.Candidate]:
        return decide.candidates(budget_ms, scores, probabilities, labels, measured, config.route)

    pixels = data.to_arrays(images.validation)[0]
    stopwatch = Stopwatch(content, config, measured, pixels, workdir, measuring)
    entries = meet(budgets, within, stopwatch, config, say)
    for item, measured_ms in zip(content["experts"], measured.experts, strict=True):
        item["measured_latency_ms"] = float(measured_ms)
    content |= {
        "reference_latency_ms": measured.reference,
        "controllers_ms": {name: measured.fronts[name] for name in names},
        "selected": select(entries),
        "variants": entries,
    }
    for path in (workdir.results, workdir.picture):  # They are of other variants.
        path.unlink(missing_ok=True)
    files.write_json(workdir.experts, content)


def meet(
    budgets: list[tuple[float, float]],
    within: Callable[[float], list[decide.Candidate]],
    stopwatch: Stopwatch,
    config: ConfigDict,
    say: Say,
) -> list[dict[str, Any]]:
    """Finds a variant for each target that meets it end to end, not only as a sum of parts.

    What is chosen by the sum of its parts is timed as a whole, and where that is off the
    target, another one is chosen by as much less or more.

    Args:
        budgets: share of the reference and ms of each target, dearest first.
        within: the candidates whose parts sum up to at most some ms.
        stopwatch: times variants.
        config: of the run.
        say: told of a target that is missed.

    Returns:
        Entries of `experts.json`.

    Raises:
        OutOfReachError: there is no candidate for a target.
    """
    reference_ms = stopwatch.measured.reference
    best: dict[str, dict[str, Any]] = {}
    overheads = dict.fromkeys(_letters(len(budgets)), 1.0)  # Of the targets that are open.
    targets = dict(zip(overheads, budgets, strict=True))
    for _ in range(_ATTEMPTS):
        tried, chosen = [], []
        for letter, overhead in overheads.items():
            target, budget = targets[letter]
            found = within(budget / overhead)
            if found:
                chosen.append(decide.pick(found, config.route.lead))
                tried.append(_entry(letter, target, budget, chosen[-1], found))
            elif letter not in best:
                raise OutOfReachError(_out_of_reach(budget, config, stopwatch.measured))
        expected, overheads = overheads, {}
        for entry, overhead in zip(tried, stopwatch.overheads(tried, chosen), strict=True):
            letter = entry["name"]
            entry["overhead"] = overhead
            entry["validation_latency_ms"] *= overhead
            known = best.get(letter)
            best[letter] = _better(known, entry) if known else entry
            off = entry["validation_latency_ms"] / entry["budget_ms"] - 1
            has_room = off < -TOLERANCE and overhead < expected[letter]
            if off > TOLERANCE or has_room:
                overheads[letter] = overhead
        if not overheads:
            break
    for letter, entry in sorted(best.items()):
        if not _is_met(entry):
            ratio = entry["validation_latency_ms"] / reference_ms
            say(f"{letter} takes {ratio:.2f} of the reference network end to end, the least found")
    return [best[letter] for letter in targets]


def _is_met(entry: dict[str, Any]) -> bool:
    return entry["validation_latency_ms"] <= entry["budget_ms"] * (1 + TOLERANCE)


def _better(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The more accurate of those that meet the target, or the faster one if none does."""
    met = [entry for entry in (first, second) if _is_met(entry)]
    if met:
        return max(met, key=lambda entry: entry["validation_accuracy"])
    return min((first, second), key=lambda entry: entry["validation_latency_ms"])


def space_of(content: dict[str, Any]) -> SearchSpace:
    """The search space of a run's experts."""
    return SearchSpace.from_json(content["space"])


def budgets_ms(config: ConfigDict, measured: decide.Measured) -> list[tuple[float, float]]:
    """The targets that are asked for, dearest first: (share of the reference, ms).

    Raises:
        OutOfReachError: one that no expert can meet; says what range can be met.
    """
    targets = [config.target_ms / measured.reference] if config.target_ms else None
    targets = targets or sorted(set(config.variants.targets), reverse=True)
    found = [(target, target * measured.reference) for target in targets]
    for _, budget in found:
        if budget < decide.lowest_ms(config.route.kinds, measured):
            raise OutOfReachError(_out_of_reach(budget, config, measured))
    return found


def _out_of_reach(budget_ms: float, config: ConfigDict, measured: decide.Measured) -> str:
    """The line for a target that cannot be met."""
    low = decide.lowest_ms(config.route.kinds, measured)
    high, reference = float(measured.experts.max()), measured.reference
    return (
        f"a mean latency of {budget_ms:.3f} ms ({budget_ms / reference:.2f} of the reference "
        f"network) cannot be met: these experts and controllers take {low:.3f} to {high:.3f} ms "
        f"({low / reference:.2f} to {high / reference:.2f}); set config.variants.targets or "
        "config.target_ms within that and run --stage=route"
    )


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + number) for number in range(count)]


def train(
    names: list[str],
    networks: list[keras.Model],
    front: keras.Model,
    answers: np.ndarray,
    labels: np.ndarray,
    measured: decide.Measured,
    config: ConfigDict,
    images: data.ImageData,
    workdir: WorkDir,
    content: dict[str, Any],
) -> None:
    """Trains the learned routers on what the experts got on the controller split."""
    seen = fitting.labels_of(images.controller)
    hits = np.stack(
        [np.argmax(fitting.predict(n, images.controller), axis=-1) == seen for n in networks]
    ).T
    val_hits = (np.argmax(answers, axis=-1) == labels).T
    for name in names:
        features = name == routers.FEATURES
        costs = (measured.tails if features else measured.experts) / measured.reference
        routers.train(
            name,
            content,
            front if features else None,
            hits,
            val_hits,
            costs,
            config,
            images,
            workdir,
        )


def scores_of(
    name: str,
    content: dict[str, Any],
    front: keras.Model,
    split: data.Split,
    workdir: WorkDir,
) -> np.ndarray:
    """Scores [n, E] that a trained router gives all images of a split, in order."""
    router = routers.load(name, content, workdir)
    features = name == routers.FEATURES

    def infer(inputs):
        if features:
            inputs = front(inputs, training=False)
        return router(inputs, training=False)

    variables = [*router.variables, *(front.variables if features else [])]
    return fitting.outputs(infer, variables, fitting.images_of(split))


def _entry(
    letter: str,
    target: float,
    budget_ms: float,
    chosen: decide.Candidate,
    found: list[decide.Candidate],
) -> dict[str, Any]:
    """A variant's entry in `experts.json`: only the experts that it may run."""
    kept = decide.reachable(chosen)
    position = {index: place for place, index in enumerate(kept)}
    rules = chosen.cascade
    return {
        "name": letter,
        "target": target,
        "budget_ms": budget_ms,
        "kind": chosen.kind,
        "controller": chosen.controller,
        "price": chosen.price,
        "biases": [chosen.biases[index] for index in kept] if chosen.biases else [],
        "experts": kept,
        "routing": {
            "kind": chosen.kind,
            "first": None if chosen.first is None else position[chosen.first],
            "following": [position.get(rules.following[index], cascades.STOP) for index in kept],
            "thresholds": [rules.thresholds[index] for index in kept],
            "weights": [rules.weights[index] for index in kept],
            "features": chosen.features,
        },
        "shares": [float(share) for share in chosen.ran.mean(axis=0)[kept]],
        "validation_accuracy": chosen.accuracy,
        "validation_latency_ms": chosen.mean_ms,
        "candidates": [candidate.summary() for candidate in found],
    }


def select(entries: list[dict[str, Any]], tolerance: float = 0.005) -> str:
    """Name of the variant to ship unless the user says otherwise.

    The one with the least measured latency among those within `tolerance` of the best
    validation accuracy.
    """
    best = max(entry["validation_accuracy"] for entry in entries)
    near = [entry for entry in entries if entry["validation_accuracy"] >= best - tolerance]
    return min(near, key=lambda entry: entry["validation_latency_ms"])["name"]
