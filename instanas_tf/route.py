"""Stage 5: measure the experts, train controllers for them, and meet the targets asked for.

Everything is decided on the validation split and on measured latencies. For each target the
controllers and cascades are compared, and the best becomes a variant.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

from export import convert, manifest
from export.bench import bench
from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.models.expert import (
    copy_layers,
    rest_network,
    shared_cells,
    static_network,
)
from instanas_tf.pipeline import data, decide, fitting, routers, variants
from instanas_tf.pipeline.workdir import WorkDir, asked
from instanas_tf.search import cascades
from instanas_tf.spaces.space import SearchSpace

Say = Callable[[str], None]
_REFERENCE = "reference"
_FRONT = "front"
_TAIL = "tail_"
_ROUTER = "router_"


class OutOfReachError(InputError):
    """A mean latency is asked for that these experts cannot meet."""


def route(
    config: ConfigDict,
    images: data.ImageData,
    workdir: WorkDir,
    say: Say,
    measuring: contextlib.AbstractContextManager | None = None,
) -> None:
    """Runs stage 5 and leaves `experts.json`.

    Args:
        config: of the run.
        images: the dataset; the controller and the validation split are used.
        workdir: of a run whose experts are trained.
        say: told in a line what is going on.
        measuring: held while latencies are measured; None: nothing is.

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
    with measuring or contextlib.nullcontext():
        measured = measure(content, names, with_features, config, workdir, say)
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
    entries = []
    for letter, (target, budget) in zip(_letters(len(budgets)), budgets, strict=True):
        found = decide.candidates(budget, scores, probabilities, labels, measured, config.route)
        if not found:
            raise OutOfReachError(_out_of_reach(budget, config, measured))
        chosen = decide.pick(found, config.route.lead)
        entries.append(_entry(letter, target, budget, chosen, found))
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


def measure(
    content: dict[str, Any],
    names: list[str],
    with_features: bool,
    config: ConfigDict,
    workdir: WorkDir,
    say: Say,
) -> decide.Measured:
    """Latencies of all parts that a variant may be made of, measured once.

    Weights do not matter for latency, so routers are measured before they are trained.

    Args:
        content: of the experts, with `shared_cells` and `feature_shape`.
        names: of the routers.
        with_features: whether the experts' tails are measured too.
        config: of the run.
        workdir: where measurements go.
        say: told in a line what is going on.
    """
    out = workdir.parts / "measurements.jsonl"
    models, shapes = _parts(content, names, with_features, workdir)
    median = _medians(out) if out.exists() else {}
    if set(median) != set(models):
        say(f"measuring {len(models)} experts and controllers")
        with tempfile.TemporaryDirectory(prefix="parts") as temporary:
            folder = pathlib.Path(temporary)
            paths = convert.write_models(models, folder, shapes)
            entries = [manifest.entry(name, "probe", path) for name, path in paths.items()]
            listed = manifest.write(folder, entries)
            fresh = folder / "measurements.jsonl"
            bench(listed, fresh, config.latency, config.latency.device)
            files.write_text(out, fresh.read_text("utf-8"))
        median = _medians(out)
    count = len(content["experts"])
    tails = None
    if with_features:
        tails = np.array([median[f"{_TAIL}{index}"] for index in range(count)])
    fronts = {name: median[f"{_ROUTER}{name}"] for name in names}
    return decide.Measured(
        experts=np.array([median[variants.expert_name(index)] for index in range(count)]),
        tails=tails,
        fronts=fronts | ({"": median[_FRONT]} if with_features else {}),
        reference=median[_REFERENCE],
    )


def _medians(path: pathlib.Path) -> dict[str, float]:
    """Latency of each model that was measured.

    Raises:
        InputError: the file is damaged.
    """
    remedy = "delete it and run --stage=route again"
    rows = files.read_json_lines(path, remedy)
    try:
        return {row["model"]: float(row["median_ms"]) for row in rows}
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}); {remedy}") from error


def _parts(
    content: dict[str, Any], names: list[str], with_features: bool, workdir: WorkDir
) -> tuple[dict[str, keras.Model], dict[str, tuple[int, ...]]]:
    """Models to measure and their input shapes, by name."""
    space = space_of(content)
    image = (1, space.image_size, space.image_size, 3)
    features = (1, *content["feature_shape"])
    reference = space.single_op_policy(space.reference_op)
    mean, std = content["mean"], content["std"]
    models = {_REFERENCE: static_network(space, reference, mean, std)}
    shapes = {_REFERENCE: image}
    front = variants.front(content, workdir)
    if with_features:
        models[_FRONT], shapes[_FRONT] = convert.DeployedFront(front, None, None), image
    for index, policy in enumerate(variants.policies(content)):
        name = variants.expert_name(index)
        models[name], shapes[name] = variants.expert(index, content, workdir), image
        if with_features:
            rest = rest_network(space, policy, content["shared_cells"])
            copy_layers(models[name], rest)
            models[f"{_TAIL}{index}"], shapes[f"{_TAIL}{index}"] = rest, features
    biases = np.zeros(len(content["experts"]))
    for name in names:
        router = routers.build(name, content, tuple(content["feature_shape"]))
        before = front if name == routers.FEATURES else None
        models[f"{_ROUTER}{name}"] = convert.DeployedFront(before, router, biases)
        shapes[f"{_ROUTER}{name}"] = image
    return models, shapes


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
