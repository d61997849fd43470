"""Quantised exports of several variants, from end to end."""

import json

import numpy as np
import pytest

from export import convert, export_tflite, manifest, ship, tolerances, worker
from export.routed import Rules
from instanas_tf.pipeline import checks, data
from tests import fixtures_ring as ring

TELL = """
import json, sys
import numpy as np
from export.predictor import Predictor
predictor = Predictor(sys.argv[1], variant=sys.argv[3])
found = predictor.predict(np.load(sys.argv[2]))
json.dump([item.class_index for item in found], sys.stdout)
"""


@pytest.mark.slow
def test_integers_throughout(kinds, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))
    # Networks that were trained on 160 images differ more than useful ones may.
    allowed = tolerances.TOLERANCES | {"int8": tolerances.Tolerance(np.inf, 0.2, 0.5)}
    monkeypatch.setattr(tolerances, "TOLERANCES", allowed)
    out = tmp_path / "export"
    arguments = [f"--workdir={kinds}", f"--out={out}", "--variant=A,E,F", "--quantize=int8"]
    arguments += ["--io=uint8", "--representative=150"]
    code, printed, err = ring.quietly(export_tflite.main, *arguments)
    assert code == 0, err
    content = manifest.read(out)
    assert content.content["input"]["dtype"] == "uint8"
    for model in content.of_kind("expert"):
        assert model.details["outputs"]["probabilities"]["dtype"] == "uint8"
        assert (
            abs(model.details["validation_accuracy"] - model.details["float_validation_accuracy"])
            < 0.2
        )
    config = checks.from_json(kinds / "config.json")
    pixels, labels = data.to_arrays(data.load(config.data, config.seed).validation)
    np.save(tmp_path / "images.npy", pixels)
    for variant in content.variants:
        done = ring.python("-c", TELL, out, tmp_path / "images.npy", variant.name)
        assert done.returncode == 0, done.stderr
        accuracy = np.mean(np.array(json.loads(done.stdout)) == labels)
        assert accuracy == pytest.approx(variant.details["validation_accuracy"], abs=1e-9)


def test_halves(kinds, tmp_path):
    out = tmp_path / "export"
    arguments = [f"--workdir={kinds}", f"--out={out}", "--variant=A,B", "--quantize=fp16"]
    code, printed, err = ring.quietly(export_tflite.main, *arguments)
    assert code == 0, err
    content = manifest.read(out)
    assert [entry.details["complete"] for entry in content.variants] == [True, True]
    for model in content.of_kind("expert"):
        assert model.details["same_top_class_as_keras"] > 0.9
    bundle = content.content["bundle"]
    assert sorted(bundle["signatures"]) == sorted(model.name for model in content.models)
    assert bundle["bytes"] < 0.9 * sum(model.details["bytes"] for model in content.models)


def test_a_file_that_decides_does_what_the_rules_say(tmp_path, monkeypatch):
    """The loop of an app, for probabilities as bytes, beside `Routed`."""
    from export import graphs
    from export.routed import Routed
    from tests.export.test_routed import Constant

    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))
    classes, rules = 300, Rules(0, (1, -1), (0.02, 0.0), weights=(0.5, 1.0))
    generator = np.random.default_rng(0)
    rows = generator.dirichlet([0.02] * classes, (2, 60))
    rows[:, :5] = 1 / classes  # Every byte is 0 or 1.
    steps = np.floor(rows * 256).clip(0, 255).astype(np.uint8)
    model = graphs.Decide(rules, classes)
    inputs = ship._inputs(ship.deploy.Part("decide", model, model.inputs_by_name), "uint8")
    paths = convert.write_models({"decide": model}, tmp_path, {"decide": inputs})
    first = {
        "probabilities": steps[0],
        "votes": np.zeros((60, classes), np.float32),
        "expert": np.zeros(60, np.int32),
    }
    found = worker.every_output(paths, first)["decide"]
    assert np.isfinite(found["mean"]).all()
    goes_on = found["next"] == 1
    assert 0 < goes_on.mean() < 1 and goes_on[:5].all()
    for index in range(60):
        experts = [Constant(steps[k, index][None]) for k in range(2)]
        answer = Routed(None, experts, rules).run(np.zeros((1, 2, 2, 3), np.float32))
        assert answer.ran == ((0, 1) if goes_on[index] else (0,))
        if not goes_on[index]:
            np.testing.assert_allclose(answer.probabilities, found["mean"][index], atol=1e-6)
