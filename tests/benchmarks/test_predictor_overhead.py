"""The bare calls are those of the predictor, and the benchmark runs as a whole."""

import json
import types

import numpy as np
import pytest

from benchmarks import predictor_worker as worker
from tests import fixtures_ring as ring


class Interpreter:
    """Doubles what it is given; its calls are listed."""

    log = []

    def __init__(self, model_path):
        self.value = None

    def set_tensor(self, index, value):
        self.log.append(("set", index))
        self.value = value

    def invoke(self):
        self.log.append(("invoke", float(self.value.max())))
        self.value = self.value * 2

    def get_tensor(self, index):
        self.log.append(("get", index))
        return self.value


@pytest.fixture
def runtime(monkeypatch):
    """A runtime, and a predictor that runs an expert, what decides, and for white both again."""
    module = types.SimpleNamespace(Interpreter=Interpreter)

    class Predictor:
        image_shape = (2, 2, 3)

        def __init__(self, folder, runtime):
            names = ("expert_00.tflite", "decide.tflite")
            self.models = [module.Interpreter(f"{folder}/{name}") for name in names]

        def predict(self, images):
            for image in images if images.ndim == 4 else [images]:
                for model in self.models * (2 if image.min() == 255 else 1):
                    model.set_tensor(3, image.astype(np.float32))
                    model.invoke()
                    model.get_tensor(7)

    monkeypatch.setattr(worker, "Predictor", Predictor)
    monkeypatch.setattr(worker, "find_runtime", lambda name: name)
    monkeypatch.setattr("importlib.import_module", lambda name: module)
    monkeypatch.setattr(Interpreter, "log", [])
    return module


def test_the_calls_of_a_predictor_are_made_again(runtime):
    images = np.zeros((2, 2, 2, 3), np.uint8)
    images[1] = 255
    watched = worker.watch(runtime, "x", "any", images)
    assert runtime.Interpreter is Interpreter
    one = ["set_tensor", "invoke", "get_tensor"]
    assert [call.name for call in watched[0]] == one * 2
    assert [call.interpreter for call in watched[1]] == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    before = list(Interpreter.log)
    Interpreter.log.clear()
    for calls in watched:
        worker.replay(calls, [Interpreter("a"), Interpreter("b")])()
    assert Interpreter.log == before
    assert before[-3:] == [("set", 3), ("invoke", 255.0), ("get", 7)]


def test_a_predictor_that_cannot_be_watched(runtime, monkeypatch):
    monkeypatch.setattr(worker.Predictor, "predict", lambda self, images: None)
    with pytest.raises(RuntimeError, match="by other methods than `Interpreter.invoke`"):
        worker.watch(runtime, "x", "any", np.zeros((1, 2, 2, 3), np.uint8))


def test_shares(runtime, monkeypatch):
    seconds = {"predict": 1.32, "bare": 1.2, "invoke": 1.0}
    timed = {("batch", 0): 2.52} | {(name, n): s for name, s in seconds.items() for n in (0, 1)}
    seen = []

    def time_all(tasks, rounds, generator):
        Interpreter.log.clear()
        for (name, number), task in tasks.items():
            task()
            if number == 0:
                seen.append((name, len(Interpreter.log)))
            Interpreter.log.clear()
        return timed

    monkeypatch.setattr(worker, "time_all", time_all)
    found = worker.measure("x", "any", 1, 2, 0)
    assert seen == [("batch", 12), ("predict", 6), ("bare", 6), ("invoke", 2)]
    assert found == {
        "overhead": pytest.approx(0.1),
        "overhead_batch": pytest.approx(0.05),
        "overhead_over_invoke": pytest.approx(0.32),
        "overhead_us": pytest.approx(120_000),
        "bare_ms": pytest.approx(1200),
    }


def test_every_task_is_timed():
    runs = {"a": 0, "b": 0}

    def task(name):
        def run():
            runs[name] += 1

        return run

    found = worker.time_all({name: task(name) for name in runs}, 3, np.random.default_rng(0))
    assert set(found) == {"a", "b"}
    assert runs == {"a": 3 + worker.WARM_UP_PASSES, "b": 3 + worker.WARM_UP_PASSES}


@pytest.mark.slow
def test_the_whole(tmp_path):
    command = ("benchmarks/predictor_overhead.py", "--space=tiny", "--rounds=1", "--images=2")
    done = ring.python(*command, f"--keep={tmp_path / 'kept'}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name for exports in found.values() for name in exports} == {
        "alone",
        "controller",
        "cascade",
    }
    kept = {path.name for path in (tmp_path / "kept" / "cascade").iterdir()}
    assert kept >= {"manifest.json", "controller.tflite", "expert_02.tflite"}
