"""Every kind of controller ships, and the files do what was decided with Keras."""

import json

import numpy as np
import pytest

from android_bench import __main__ as android_bench
from export import deploy, manifest
from instanas_tf.pipeline import checks, data, fitting, variants
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import cascades, prices
from tests import fixtures_ring as ring

TELL = """
import json, sys
import numpy as np
from export.predictor import Predictor
predictor = Predictor(sys.argv[1])
found = predictor.predict(np.load(sys.argv[2]))
json.dump([[item.class_index, list(item.experts)] for item in found], sys.stdout)
"""
SLOW = pytest.mark.slow
NAMES = [pytest.param(name, marks=SLOW if name in "AD" else ()) for name in ring.KINDS]


@pytest.fixture(scope="module")
def images(kinds):
    config = checks.from_json(kinds / "config.json")
    return data.load(config.data, config.seed)


def by_keras(variant, pixels):
    """Classes [n] and what ran, bool [n, E], by whole experts and the rules as numbers."""
    names, rules = variant.expert_names, variant.rules
    inputs = pixels.astype(np.float32)
    logits = [np.asarray(variant.expert(index)(inputs)) for index in variant.indices]
    probabilities = cascades.softmax(np.stack(logits))
    if rules["first"] is None:
        front = variant.front()
        features = inputs if front is None else front(inputs)
        scores = np.asarray(variant.router()(features), float)
        first = prices.decide(scores, np.array(variant.entry["biases"]), 1.0)
    else:
        first = np.full(len(pixels), rules["first"])
    parts = (tuple(rules[key]) for key in ("following", "thresholds", "weights"))
    found = cascades.run(cascades.Cascade(*parts), probabilities, first)
    return found.classes, [[n for n, on in zip(names, row, strict=True) if on] for row in found.ran]


@pytest.mark.parametrize("name", NAMES)
def test_the_files_do_what_keras_does(kinds, exported, images, name, tmp_path):
    variant = variants.pick(WorkDir(kinds), name)
    assert (variant.kind, variant.rules["features"]) == ring.KINDS[name]
    folder = exported if name == "C" else ring.export(kinds, name, tmp_path / "export")
    content = manifest.read(folder)
    front = [] if name == "A" else [deploy.CONTROLLER]
    decide = [deploy.DECIDE] if name in "ABF" else []
    names = [*front, *decide, *variant.expert_names]
    assert [model.name for model in content.models] == names
    assert [entry.routing for entry in content.variants] == [variant.rules]
    for model in content.models:
        assert model.details["largest_difference_from_keras"] <= 1e-4

    pixels, _ = data.to_arrays(images.validation)
    np.save(tmp_path / "images.npy", pixels)
    done = ring.python("-c", TELL, folder, tmp_path / "images.npy")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    classes, ran = by_keras(variant, pixels)
    # An image whose margin lies within rounding of a threshold may go the other way.
    assert np.mean([item[0] == index for item, index in zip(found, classes, strict=True)]) > 0.96
    assert np.mean([item[1] == names for item, names in zip(found, ran, strict=True)]) > 0.96
    shares = [np.mean([n in item[1] for item in found]) for n in variant.expert_names]
    np.testing.assert_allclose(shares, variant.entry["shares"], atol=0.04)
    labels = fitting.labels_of(images.validation)
    accuracy = np.mean([item[0] == label for item, label in zip(found, labels, strict=True)])
    assert accuracy == pytest.approx(variant.entry["validation_accuracy"], abs=0.04)


def test_the_bench_measures_experts_that_take_features(kinds, tmp_path):
    folder = ring.export(kinds, "B", tmp_path / "export")
    out = tmp_path / "measurements.jsonl"
    arguments = [f"--manifest={folder / 'manifest.json'}", f"--out={out}", "--rounds=1"]
    arguments += ["--min_secs=0.001", "--min_runs=2", "--warmup_runs=1"]
    assert android_bench.main(arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = [model.name for model in manifest.read(folder).models]
    assert [row["model"] for row in rows] == names
    assert all(row["median_ms"] > 0 for row in rows)
