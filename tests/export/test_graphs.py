"""The graph that decides does what the rules say, as a file too."""

import keras
import numpy as np
import pytest

from export import convert, graphs, worker
from export.routed import Rules
from tests import fixtures_ring as ring

RULES = Rules(0, (1, 2, -1), (0.3, 0.1, 0.0), weights=(0.5, 1.0, 2.0))
PROBABILITIES = np.array([[0.5, 0.3, 0.2]], np.float32)


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))


def decide(probabilities, votes, expert, rules=RULES):
    given = {
        "probabilities": np.asarray([probabilities], np.float32),
        "votes": np.asarray([votes], np.float32),
        "expert": np.array([expert], np.int32),
    }
    found = graphs.Decide(rules, len(votes))(given)
    return {name: np.asarray(values)[0] for name, values in found.items()}


def test_by_hand():
    # A margin of 0.2 is below 0.3, whatever the weight of the expert.
    first = decide([0.5, 0.3, 0.2], [0, 0, 0], 0)
    assert first["next"] == 1
    np.testing.assert_allclose(first["total"], [0.25, 0.15, 0.1], rtol=1e-6)
    np.testing.assert_allclose(first["mean"], [0.5, 0.3, 0.2], rtol=1e-6)
    # 0.25 + 0.1, 0.15 + 0.7, 0.1 + 0.2 of 1.5: a margin of 1/3 is above 0.1.
    second = decide([0.1, 0.7, 0.2], first["total"], 1)
    assert second["next"] == -1
    np.testing.assert_allclose(second["mean"], np.array([0.35, 0.85, 0.3]) / 1.5, rtol=1e-6)
    # Nobody follows the last one.
    assert decide([0.4, 0.3, 0.3], [0, 0, 0], 2)["next"] == -1


def test_classes():
    with pytest.raises(ValueError, match="`classes` must be at least 2. Received: classes=1"):
        graphs.Decide(RULES, 1)


def test_the_file_decides_as_keras_does(tmp_path):
    generator = np.random.default_rng(0)
    count = 60
    inputs = {
        "probabilities": generator.dirichlet([1.0] * 3, count).astype(np.float32),
        "votes": generator.dirichlet([1.0] * 3, count).astype(np.float32),
        "expert": generator.integers(0, 3, count).astype(np.int32),
    }
    inputs["votes"][::2] = 0.0
    model = graphs.Decide(RULES, 3)
    paths = convert.write_models({"decide": model}, tmp_path, {"decide": model.inputs_by_name})
    found = worker.every_output(paths, inputs)["decide"]
    assert set(found) == {"next", "total", "mean"}
    assert set(found["next"]) == {-1, 1, 2}
    assert convert.check({"decide": model}, paths, inputs)["decide"].largest <= 1e-6


def test_a_classifier_ends_with_its_softmax():
    network = keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(1.0)])
    found = graphs.Classifier(network)(np.log(PROBABILITIES))
    np.testing.assert_allclose(found["probabilities"], PROBABILITIES, rtol=1e-6)
