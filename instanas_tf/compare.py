"""Stage 5: everything as TFLite files, side by side, on the test split.

Variants, MobileNetV2 baselines and networks trained alone are converted, checked against
Keras, run on every test image for their accuracy, and timed interleaved in one process.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

from export import convert, deploy, worker
from instanas_tf import files
from instanas_tf.latency import LatencyTable
from instanas_tf.pipeline import baselines, data, evaluate, report, variants
from instanas_tf.pipeline.pretrain import weight_epochs
from instanas_tf.pipeline.workdir import WorkDir

CHECK_IMAGES = 16


def compare(
    config: ConfigDict, images: data.ImageData, workdir: WorkDir, say: baselines.Say
) -> dict[str, Any]:
    """Runs stage 5, writes `results.json` and `results.png`, and returns the results.

    Args:
        config: of the run.
        images: the dataset; the test split is used.
        workdir: of the run.
        say: told in a line what is going on.
    """
    table = LatencyTable.load(workdir.latency_table)
    found = variants.load(workdir)
    static, alone = baselines.train(config, images, workdir, say)
    models: dict[str, keras.Model] = {item.name: item.network for item in static}
    models |= {item.name: item.network for item in alone.values()}
    for variant in found:
        models |= {f"{variant.name}_{n}": m for n, m in deploy.models(variant).items()}

    say(f"converting and checking {len(models)} models, then timing them on test images")
    test_images, labels = data.to_arrays(images.test)
    with tempfile.TemporaryDirectory(prefix="compare") as folder:
        shape = (1, images.image_size, images.image_size, 3)
        paths = convert.write_models(models, pathlib.Path(folder), {name: shape for name in models})
        convert.check(models, paths, test_images[:CHECK_IMAGES], config.latency.runtime)
        results = _measure(config, found, static, alone, paths, test_images, labels)
    results = {
        "dataset": config.data.name,
        "test_images": len(labels),
        "device": table.device,
        "runtime": table.runtime,
        "latency_table": table.calibration,
        "weight_epochs": weight_epochs(config),
        "selected": variants.read(workdir)["selected"],
        **results,
    }
    report.picture(results, workdir.picture)
    files.write_json(workdir.results, results)
    return results


def _measure(config, found, static, alone, paths, test_images, labels) -> dict[str, Any]:
    """Accuracies and latencies of all systems as the parts of `results.json`."""
    settings, runtime = config.evaluate, config.latency.runtime
    controllers = {f"{v.name}_controller": paths[f"{v.name}_controller"] for v in found}
    networks = {name: path for name, path in paths.items() if name not in controllers}
    logits = worker.outputs(networks, test_images, runtime)
    hits = {name: np.argmax(rows, axis=-1) == labels for name, rows in logits.items()}
    chosen = worker.choices(controllers, test_images, runtime)

    systems = [worker.System(name, (path,)) for name, path in networks.items()]
    systems += [worker.System(name, (path,)) for name, path in controllers.items()]
    for variant in found:
        experts = tuple(paths[f"{variant.name}_{name}"] for name in variant.expert_names)
        controller = paths[f"{variant.name}_controller"]
        systems.append(worker.System(variant.name, experts, controller))
    picked = np.linspace(0, len(labels) - 1, min(len(labels), settings.timed_images), dtype=int)
    timed = worker.timings(
        systems,
        test_images[np.unique(picked)],
        rounds=settings.rounds,
        seed=config.seed,
        threads=config.latency.threads,
        runtime=runtime,
    )
    ms = {name: evaluate.mean_latency_ms(values) for name, values in timed.items()}

    def entry(name: str) -> dict[str, Any]:
        accuracy = float(np.mean(hits[name]))
        return {
            "name": name,
            "accuracy": accuracy,
            "accuracy_standard_error": evaluate.standard_error(accuracy, len(labels)),
            "latency_ms": ms[name],
        }

    outcomes = {
        variant.name: evaluate.VariantOutcome(
            hits=np.stack([hits[f"{variant.name}_{name}"] for name in variant.expert_names]),
            chosen=chosen[f"{variant.name}_controller"],
            latency_ms=ms[variant.name],
            controller_ms=ms[f"{variant.name}_controller"],
            expert_ms=np.array([ms[f"{variant.name}_{name}"] for name in variant.expert_names]),
        )
        for variant in found
    }
    return {
        "timed_images": len(np.unique(picked)),
        "variants": [_variant_entry(v, outcomes[v.name], len(labels)) for v in found],
        "baselines": [entry(item.name) for item in static],
        "controls": {
            "majority_policy": {n: o.majority_policy() for n, o in outcomes.items()},
            "shuffled_policies": {n: o.shuffled_policies(config.seed) for n, o in outcomes.items()},
            "best_static_expert": {n: o.best_static_expert() for n, o in outcomes.items()},
            "static_trained_alone": {v.name: entry(alone[v.name].name) for v in found},
        },
    }


def _variant_entry(
    variant: variants.Variant, outcome: evaluate.VariantOutcome, count: int
) -> dict[str, Any]:
    """A variant's entry in `results.json`."""
    experts = [
        {
            "name": name,
            "accuracy": float(np.mean(outcome.hits[index])),
            "latency_ms": float(outcome.expert_ms[index]),
            "share": float(outcome.shares[index]),
        }
        for index, name in enumerate(variant.expert_names)
    ]
    return {
        "name": variant.name,
        "accuracy": outcome.accuracy,
        "accuracy_standard_error": evaluate.standard_error(outcome.accuracy, count),
        "mean_latency_ms": outcome.latency_ms,
        "controller_ms": outcome.controller_ms,
        "predicted_latency_ms": variant.entry["predicted_latency_ms"],
        "experts": len(experts),
        "unique_policies": variant.entry["unique_policies"],
        "varying_bits": variant.entry["varying_bits"],
        "validation_accuracy": variant.entry["validation_accuracy"],
        "expert_results": experts,
    }
