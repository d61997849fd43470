"""Stage 6: everything as TFLite files, side by side, on the test split.

Variants, the run's experts, MobileNetV2 baselines and networks trained alone are converted,
checked against Keras, run on every test image for their accuracy, and timed interleaved in
one process. What choosing by image gains over static networks of the same latency is the
yardstick that every variant is held to.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

from export import convert, deploy, graphs, worker
from instanas_tf import files, systems
from instanas_tf.latency import LatencyTable
from instanas_tf.pipeline import (
    baselines,
    data,
    evaluate,
    fitting,
    report,
    variants,
    yardstick,
)
from instanas_tf.pipeline.pretrain import weight_epochs
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import cascades

CHECK_IMAGES = 16


@dataclasses.dataclass(frozen=True)
class Networks:
    """The static networks that are compared, by name.

    Attributes:
        experts: those of the run.
        alone: name of the network trained alone -> index of the same expert.
        references: name of the MobileNetV2 baseline -> its width.
        twin: name of the seed twin of the cheapest expert.
        models: all of them.
    """

    experts: list[str]
    alone: dict[str, int]
    references: dict[str, float]
    twin: str
    models: dict[str, keras.Model]


@dataclasses.dataclass(frozen=True)
class Tested:
    """What was measured on the test split.

    Attributes:
        labels: of the images, [n].
        probabilities: of each static network by name, [n, N].
        ms: mean latency of each network, variant and controller by name.
        answers: of each variant by name: classes [n] and bool [n, E] of what ran.
        rows: latencies of each variant on the timed images by name, [m].
    """

    labels: np.ndarray
    probabilities: dict[str, np.ndarray]
    ms: dict[str, float]
    answers: dict[str, tuple[np.ndarray, np.ndarray]]
    rows: dict[str, np.ndarray]

    def hits(self, name: str) -> np.ndarray:
        """Whether a static network answers right, bool [n]."""
        return np.argmax(self.probabilities[name], axis=-1) == self.labels

    def point(self, name: str) -> yardstick.StaticPoint:
        """A static network as the yardstick sees it."""
        return yardstick.StaticPoint(name, self.hits(name), self.ms[name])


def compare(
    config: ConfigDict, images: data.ImageData, workdir: WorkDir, say: baselines.Say
) -> dict[str, Any]:
    """Runs stage 6, writes `results.json` and `results.png`, and returns the results.

    Args:
        config: of the run.
        images: the dataset; the test split is used.
        workdir: of the run.
        say: told in a line what is going on.
    """
    table = LatencyTable.load(workdir.latency_table)
    content = variants.read(workdir)
    networks = _networks(config, images, workdir, content, say)
    found = variants.load(workdir)
    tested = _test(config, images, networks, found, say)
    static = _static(networks, tested, images)
    points = [tested.point(item["name"]) for item in static]
    entries = [
        _variant_entry(variant, tested, networks, points, static, config.seed) for variant in found
    ]
    results = {
        "dataset": config.data.name,
        "test_images": len(tested.labels),
        "timed_images": len(next(iter(tested.rows.values()))),
        "device": table.device,
        "runtime": table.runtime,
        "latency_table": table.calibration,
        "weight_epochs": weight_epochs(config),
        "asked": content["asked"],
        "selected": content["selected"],
        "variants": entries,
        "baselines": [item for item in static if item["name"] in networks.references],
        "controls": _controls(found, entries, networks, tested, static),
        "static": static,
        "static_envelope": yardstick.static_envelope(points),
    }
    report.picture(results, workdir.picture)
    files.write_json(workdir.results, results)
    return results


def _networks(config, images, workdir: WorkDir, content, say: baselines.Say) -> Networks:
    """Trains what is missing, and loads all static networks."""
    references, alone, twin = baselines.train(config, images, workdir, say)
    experts = [item["name"] for item in content["experts"]]
    models = {name: variants.expert(index, content, workdir) for index, name in enumerate(experts)}
    models |= {item.name: item.network for item in references}
    models |= {item.name: item.network for item in alone.values()}
    models[twin.name] = twin.network
    return Networks(
        experts=experts,
        alone={item.name: index for index, item in alone.items()},
        references={item.name: item.width for item in references},
        twin=twin.name,
        models=models,
    )


def _test(
    config: ConfigDict,
    images: data.ImageData,
    networks: Networks,
    found: list[variants.Variant],
    say: baselines.Say,
) -> Tested:
    """Converts and checks everything, runs it on the test split, and times it."""
    settings, runtime = config.evaluate, config.latency.runtime
    test_images, labels = data.to_arrays(images.test)
    say(f"converting, checking and timing on {len(labels)} test images")
    with tempfile.TemporaryDirectory(prefix="compare") as temporary:
        folder = pathlib.Path(temporary)
        shape = (1, images.image_size, images.image_size, 3)
        models = {name: graphs.Classifier(network) for name, network in networks.models.items()}
        paths = convert.write_models(models, folder, dict.fromkeys(models, shape))
        convert.check(models, paths, test_images[:CHECK_IMAGES], runtime)
        routed, fronts = [], []
        for variant in found:
            checked = test_images[:CHECK_IMAGES]
            system, front = systems.system(variant, paths, folder, checked, runtime)
            routed.append(system)
            fronts += [front] if front else []
        probabilities = worker.outputs(paths, test_images, runtime)
        answers = worker.answers(routed, test_images, runtime)
        single = [worker.System(name, (path,)) for name, path in paths.items()]
        picked = np.linspace(0, len(labels) - 1, min(len(labels), settings.timed_images), dtype=int)
        timed = worker.timings(
            [*single, *fronts, *routed],
            test_images[np.unique(picked)],
            rounds=settings.rounds,
            seed=config.seed,
            threads=config.latency.threads,
            runtime=runtime,
        )
    return Tested(
        labels=labels,
        probabilities=probabilities,
        ms={name: evaluate.mean_latency_ms(values) for name, values in timed.items()},
        answers=answers,
        rows={system.name: np.median(timed[system.name], axis=0) for system in routed},
    )


def _static(networks: Networks, tested: Tested, images: data.ImageData) -> list[dict[str, Any]]:
    """The static networks that variants are held against, as entries of `results.json`."""
    labels = fitting.labels_of(images.validation)
    found = []
    for name in [*networks.experts, *networks.references, *networks.alone]:
        accuracy = float(np.mean(tested.hits(name)))
        answers = np.argmax(fitting.predict(networks.models[name], images.validation), axis=-1)
        found.append(
            {
                "name": name,
                "accuracy": accuracy,
                "accuracy_standard_error": evaluate.standard_error(accuracy, len(tested.labels)),
                "validation_accuracy": float(np.mean(answers == labels)),
                "latency_ms": tested.ms[name],
            }
        )
    by_name = {item["name"]: item for item in found}
    for name, width in networks.references.items():
        by_name[name]["width"] = width
    for name, index in networks.alone.items():
        item = by_name[networks.experts[index]]
        by_name[name]["expert"] = index
        item["alone"] = name
        item["gap"] = by_name[name]["accuracy"] - item["accuracy"]
    return found


def _variant_entry(
    variant: variants.Variant,
    tested: Tested,
    networks: Networks,
    points: list[yardstick.StaticPoint],
    static: list[dict[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """A variant's entry in `results.json`."""
    name, entry = variant.name, variant.entry
    classes, ran = tested.answers[name]
    hits = np.asarray(classes == tested.labels)
    gain = yardstick.routing_gain(
        hits, tested.ms[name], points, seed=seed, latency_rows=tested.rows[name]
    )
    accuracy, mean_ms = float(np.mean(hits)), tested.ms[name]
    instead = static_instead(static, mean_ms)
    dearest = max((tested.ms[n], n) for n in networks.experts)[1]
    return {
        "name": name,
        "kind": variant.kind,
        "accuracy": accuracy,
        "accuracy_standard_error": evaluate.standard_error(accuracy, len(hits)),
        "mean_latency_ms": mean_ms,
        "controller_ms": tested.ms.get(f"{name}_{deploy.CONTROLLER}", 0.0),
        "target": entry["target"],
        "budget_ms": entry["budget_ms"],
        "predicted_latency_ms": entry["validation_latency_ms"],
        "validation_accuracy": entry["validation_accuracy"],
        "experts": len(variant.indices),
        "unique_policies": len(np.unique(ran, axis=0)),
        "visited_policies": variant.content["unique_policies"],
        "varying_bits": variant.content["varying_bits"],
        "routing_gain": gain.to_json() if gain else None,
        "pays": gain is None or gain.pays,
        "static_instead": instead,
        "sentence": yardstick.sentence(gain, tested.ms[dearest], instead),
        "expert_results": [
            {
                "name": expert,
                "accuracy": float(np.mean(tested.hits(expert))),
                "latency_ms": tested.ms[expert],
                "share": float(np.mean(ran[:, place])),
            }
            for place, expert in enumerate(variant.expert_names)
        ],
        "candidates": entry["candidates"],
    }


def static_instead(static: list[dict[str, Any]], mean_ms: float) -> str:
    """The static network to ship instead of a variant: the best on validation of those as fast."""
    as_fast = [item for item in static if item["latency_ms"] <= 1.01 * mean_ms]
    if not as_fast:
        return min(static, key=lambda item: item["latency_ms"])["name"]
    return max(as_fast, key=lambda item: (item["validation_accuracy"], -item["latency_ms"]))["name"]


def _controls(
    found: list[variants.Variant],
    entries: list[dict[str, Any]],
    networks: Networks,
    tested: Tested,
    static: list[dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """The controls of each variant by name, and those of the whole run."""
    by_name = {item["name"]: item for item in static}
    controls: dict[str, dict[str, Any]] = {
        "majority_policy": {},
        "shuffled_policies": {},
        "best_static_expert": {},
        "static_trained_alone": {},
    }
    for variant, entry in zip(found, entries, strict=True):
        name, ran = variant.name, tested.answers[variant.name][1]
        names, weights = variant.expert_names, variant.rules["weights"]
        probabilities = np.stack([tested.probabilities[n] for n in names])
        routes, counts = np.unique(ran, axis=0, return_counts=True)
        majority = routes[np.argmax(counts)]
        answers = cascades.answers_of_route(probabilities, majority, weights)
        controls["majority_policy"][name] = {
            "experts": [n for n, on in zip(names, majority, strict=True) if on],
            "accuracy": float(np.mean(answers == tested.labels)),
            "latency_ms": _route_ms(variant, majority, tested),
        }
        shuffled = cascades.shuffled_accuracy(probabilities, tested.labels, ran, weights)
        controls["shuffled_policies"][name] = {
            "accuracy": shuffled,
            "mean_latency_ms": entry["mean_latency_ms"],
        }
        of_experts = [by_name[n] for n in networks.experts]
        alone = [by_name[n] for n in networks.alone]
        for control, pool in (("best_static_expert", of_experts), ("static_trained_alone", alone)):
            controls[control][name] = by_name[static_instead(pool, entry["mean_latency_ms"])]
    first = next(n for n, index in networks.alone.items() if index == 0)
    hits = [tested.hits(n) for n in (first, networks.twin, networks.experts[0])]
    twin = evaluate.seed_twin(*hits, tested.hits(networks.experts[-1]))
    return controls | {"seed_twin": twin}


def _route_ms(variant: variants.Variant, route: np.ndarray, tested: Tested) -> float:
    """What a route takes if all images take it: a front that experts share runs once."""
    names = [name for name, on in zip(variant.expert_names, route, strict=True) if on]
    total = sum(tested.ms[name] for name in names)
    if variant.split_after is not None and not variant.entry["controller"]:
        total -= (len(names) - 1) * tested.ms[f"{variant.name}_{deploy.CONTROLLER}"]
    return total
