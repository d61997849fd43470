"""Compiled functions and steps: on TensorFlow here, on JAX in a process of its own."""

import importlib.util
import json

import keras
import numpy as np
import pytest

from instanas_tf.models import compiled
from instanas_tf.models.training import Objective, TrainedModel
from tests import fixtures_ring as ring
from tests import fixtures_twins as twins

WITH_JAX = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None,
    reason="JAX is not installed; pip install '.[jax]' to test with it",
)


def test_a_function_is_traced_once_for_all_batch_sizes():
    scale, traced = keras.Variable(3.0), []

    def call(images, bits):
        traced.append(images.shape)
        return {"product": images * scale, "sum": keras.ops.sum(bits, axis=-1)}

    run = compiled.function(call, [scale])
    for size in (4, 1, 7):
        found = run(np.ones((size, 2), np.float32), np.ones((size, 5), np.float32))
        np.testing.assert_array_equal(found["product"], np.full((size, 2), 3.0))
        np.testing.assert_array_equal(found["sum"], np.full(size, 5.0))
    assert len(traced) == 1
    scale.assign(4.0)
    found = run(np.ones((2, 2), np.float32), np.ones((2, 5), np.float32))
    np.testing.assert_array_equal(found["product"], np.full((2, 2), 4.0))


class Pair(TrainedModel):
    """Two numbers that two objectives count down from what a knob says."""

    def __init__(self):
        super().__init__(("first", "second"))
        self.numbers = [self.add_weight(shape=(), initializer="zeros") for _ in range(2)]
        self.knob = self.add_weight(shape=(), initializer="ones", trainable=False)
        self.rates = [keras.optimizers.SGD(1.0) for _ in self.numbers]
        for optimizer, number in zip(self.rates, self.numbers, strict=True):
            optimizer.build([number])
        self.traced = 0

    def objectives(self):
        def loss(index, name):
            self.traced += 1
            value = self.numbers[index] * self.knob
            return value, {name: value}

        return tuple(
            Objective(lambda *_, i=i, n=n: loss(i, n), [self.numbers[i]], self.rates[i])
            for i, n in enumerate(("first", "second"))
        )


def test_a_stepper():
    model = Pair()
    run = compiled.stepper(model, [model.knob])
    images, labels = np.zeros((2, 1, 1, 3), np.float32), np.zeros(2, np.int32)
    assert {name: float(v) for name, v in run(images, labels, (0, 1)).items()} == {
        "first": 0.0,
        "second": 0.0,
    }
    model.knob.assign(10.0)
    assert {name: float(v) for name, v in run(images, labels, (1,)).items()} == {"second": -10.0}
    run.write()
    assert [float(number) for number in model.numbers] == [-1.0, -11.0]
    traced = model.traced
    for _ in range(3):
        run(images, labels, (0, 1))
    assert model.traced == traced


JOBS = [
    {"stage": stage, "routed": True, "steps": 10, "alike": True}
    for stage in ("pretrain", "search_priced", "sandwich", "assigned", "alone")
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the jobs come to on TensorFlow, routed, and from its checkpoints on JAX, masked."""
    folder = tmp_path_factory.mktemp("backends")
    found = {}
    for backend, routed in (("tensorflow", True), ("jax", False)):
        jobs = [{**job, "routed": routed, "saved": str(folder / job["stage"])} for job in JOBS]
        done = ring.python(
            "-m",
            "tests.fixtures_twins",
            json.dumps(jobs),
            folder / f"{backend}.npz",
            KERAS_BACKEND=backend,
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # They take longer than the steps.
        )
        assert done.returncode == 0, done.stderr
        found[backend] = twins.read(folder / f"{backend}.npz")
    return found


# Of values and weights 1e-5 was the most that was seen, after ten steps. Adam divides small
# gradients by their size, so rounding errors grow in the controller.
@WITH_JAX
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(JOBS)), ids=lambda n: JOBS[n]["stage"])
def test_ten_steps_on_jax_are_those_on_tensorflow(both, number):
    ours, theirs = both["tensorflow"][number], both["jax"][number]
    assert ours.keys() == theirs.keys()
    assert len(ours["loss"]) == 10
    differences = {name: twins.difference(ours[name], theirs[name]) for name in ours}
    assert {n: d for n, d in differences.items() if d > 1e-4} == {}
