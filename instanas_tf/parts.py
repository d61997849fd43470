"""Latencies of all parts that a variant may be made of, each measured on its own."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

from export import convert, graphs, manifest
from export.bench import bench
from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.models.expert import copy_layers, rest_network, static_network
from instanas_tf.pipeline import decide, routers, variants
from instanas_tf.pipeline.baselines import Say
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.spaces.space import SearchSpace

_REFERENCE = "reference"
_FRONT = "front"
_TAIL = "tail_"
_ROUTER = "router_"


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
    space = SearchSpace.from_json(content["space"])
    image = (1, space.image_size, space.image_size, 3)
    features = (1, *content["feature_shape"])
    reference = space.single_op_policy(space.reference_op)
    mean, std = content["mean"], content["std"]
    models: dict[str, keras.Model] = {
        _REFERENCE: graphs.Classifier(static_network(space, reference, mean, std))
    }
    shapes = {_REFERENCE: image}
    front = variants.front(content, workdir)
    if with_features:
        models[_FRONT], shapes[_FRONT] = graphs.DeployedFront(front, None, None), image
    for index, policy in enumerate(variants.policies(content)):
        name = variants.expert_name(index)
        whole = variants.expert(index, content, workdir)
        models[name], shapes[name] = graphs.Classifier(whole), image
        if with_features:
            rest = rest_network(space, policy, content["shared_cells"])
            copy_layers(whole, rest)
            tail = f"{_TAIL}{index}"
            models[tail], shapes[tail] = graphs.Classifier(rest), features
    biases = np.zeros(len(content["experts"]))
    for name in names:
        router = routers.build(name, content, tuple(content["feature_shape"]))
        before = front if name == routers.FEATURES else None
        models[f"{_ROUTER}{name}"] = graphs.DeployedFront(before, router, biases)
        shapes[f"{_ROUTER}{name}"] = image
    return models, shapes
