"""A converted model is the Keras model, and a file that is not is refused."""

import keras
import numpy as np
import pytest

from export import convert, deploy, worker
from instanas_tf import spaces
from instanas_tf.errors import ModelError
from instanas_tf.models.controller import Controller
from instanas_tf.pipeline import variants
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set
from tests import fixtures_ring as ring

SPACE = spaces.get("tiny", merge="shortcut")
SHAPE = (1, 8, 8, 3)

OPS = """
import sys
from tflite_runtime.interpreter import Interpreter
for path in sys.argv[1:]:
    interpreter = Interpreter(path)
    print(*sorted({op["op_name"] for op in interpreter._get_ops_details()}))
"""


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))


def pixels(count=8, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, 8, 8, 3)).astype(np.float32)


def test_a_changed_model_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(10))
    paths = convert.write_models({"one": model}, tmp_path, {"one": SHAPE})
    assert convert.check({"one": model}, paths, pixels())["one"] <= convert.FLOAT_TOLERANCE
    model.layers[-1].bias.assign_add(np.ones(10, np.float32))
    with pytest.raises(ModelError, match="one.tflite differs from the Keras model .*nothing was"):
        convert.check({"one": model}, paths, pixels())


def test_outputs_that_are_no_numbers_are_refused(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    monkeypatch.setattr(worker, "outputs", lambda *args: {"one": np.full((8, 192), np.nan)})
    with pytest.raises(ModelError, match="differs"):
        convert.check({"one": model}, {"one": tmp_path / "one.tflite"}, pixels())


def test_a_model_that_cannot_be_converted():
    class Odd(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.linalg.svd(inputs[..., 0])[1]

    model = keras.Sequential([keras.Input((8, 8, 3)), Odd()], name="odd")
    with pytest.raises(ModelError, match="odd cannot be converted"):
        convert.to_tflite(model, SHAPE)


def test_exported_files_hold_built_in_ops_alone(exported):
    paths = sorted(exported.glob("*.tflite"))
    done = ring.python("-c", OPS, *paths)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for line in lines:
        assert "CONV_2D" in line
        assert "VAR_HANDLE" not in line
        assert "READ_VARIABLE" not in line
        assert "Flex" not in line


def test_the_deployed_controller_picks_the_best_score(exported, trained):
    variant = variants.pick(WorkDir(trained))
    images = pixels(64)
    logits = variant.controller().logits(images, training=False)
    expected = np.argmax(np.asarray(expert_set.scores(logits, variant.policies, variant.space)), -1)
    deployed = deploy.models(variant)["controller"](images)
    np.testing.assert_array_equal(deployed["expert"], expected)
    paths = {"c": exported / "controller.tflite"}
    np.testing.assert_array_equal(worker.choices(paths, images)["c"], expected)
    np.testing.assert_allclose(
        worker.outputs(paths, images)["c"], deployed["scores"], rtol=1e-4, atol=1e-3
    )


def test_a_greedy_policy_that_is_an_expert_is_chosen():
    controller = Controller(SPACE, "small", logit_stddev=2.0)
    images = pixels(32)
    logits = np.asarray(controller.logits(images, training=False))
    found = expert_set.count_policies(logits >= 0.0, SPACE)
    deployed = convert.DeployedController(controller, found.policies)
    running = SPACE.effective((logits >= 0.0).astype(np.float32))
    chosen = np.asarray(deployed(images)["expert"])
    np.testing.assert_array_equal(found.policies[chosen], running)


def test_a_full_disk(tmp_path, monkeypatch):
    import errno
    import pathlib

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(ModelError, match="cannot write .*one.tflite: No space left"):
        convert.write_models({"one": model}, tmp_path, {"one": SHAPE})
    assert list(tmp_path.iterdir()) == []
