"""Files are run in a process of their own, and its errors come back."""

import importlib.util

import numpy as np
import pytest

from export import runtime, worker
from instanas_tf.errors import CommandError, InputError, InstanasError, ModelError
from tests import fixtures_ring as ring

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))


def test_timings(exported):
    expert = exported / "expert_00.tflite"
    systems = [
        worker.System("alone", (expert,)),
        worker.System(
            "routed", tuple(sorted(exported.glob("expert_*"))), exported / "controller.tflite"
        ),
    ]
    found = worker.timings(systems, IMAGES, rounds=2, seed=0)
    assert set(found) == {"alone", "routed"}
    for values in found.values():
        assert values.shape == (2, 3)
        assert (values > 0).all()


def test_outputs_of_both_runtimes_agree(exported):
    missing = [name for name in runtime.RUNTIMES if importlib.util.find_spec(name) is None]
    if missing:  # tflite-runtime has no wheels for Python 3.12 and later.
        pytest.skip(f"{missing[0]} is not installed, so that there is nothing to compare with")
    paths = {"e": exported / "expert_00.tflite"}
    found = [worker.outputs(paths, IMAGES, name)["e"] for name in runtime.RUNTIMES]
    assert found[0].shape == (3, 10)
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)


def test_a_file_that_cannot_be_loaded(tmp_path):
    path = tmp_path / "bad.tflite"
    path.write_bytes(b"no model")
    with pytest.raises(CommandError, match="bad.tflite cannot be loaded .*export it again"):
        worker.outputs({"bad": path}, IMAGES)
    with pytest.raises(CommandError, match="none.tflite cannot be loaded"):
        worker.outputs({"none": tmp_path / "none.tflite"}, IMAGES)


def test_images_of_another_size(exported):
    images = np.zeros((1, 9, 9, 3), np.float32)
    with pytest.raises(ModelError):
        worker.outputs({"e": exported / "expert_00.tflite"}, images)


def test_no_runtime_is_installed(exported, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "runtimes = ('tflite_runtime', 'ai_edge_litert')\n"
        "util.find_spec = lambda name, *rest: None if name in runtimes else find(name, *rest)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ring.ROOT}")
    with pytest.raises(
        CommandError, match="pip install tflite-runtime .*pip install ai-edge-litert"
    ):
        worker.outputs({"e": exported / "expert_00.tflite"}, IMAGES)


def test_an_unknown_runtime_keeps_its_exit_code(exported):
    with pytest.raises(InstanasError, match="must be auto or one of") as caught:
        worker.outputs({"e": exported / "expert_00.tflite"}, IMAGES, "other")
    assert caught.value.exit_code == 2


def test_find_runtime(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert runtime.find_runtime("ai_edge_litert") == "ai_edge_litert.interpreter"
    assert runtime.find_runtime() == "tflite_runtime.interpreter"
    with pytest.raises(InputError, match="Received: 'other'"):
        runtime.find_runtime("other")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("auto", *runtime.RUNTIMES):
        with pytest.raises(ModelError, match="not installed; pip install"):
            runtime.find_runtime(name)
