"""A converted model is the Keras model, and a file that is not is refused."""

import keras
import numpy as np
import pytest

from export import convert, deploy, graphs, inspect_file, worker
from instanas_tf import spaces
from instanas_tf.errors import ModelError
from instanas_tf.models.controller import Controller
from instanas_tf.pipeline import variants
from instanas_tf.pipeline.routers import SearchRouter
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set
from tests import fixtures_ring as ring

SPACE = spaces.get("tiny", merge="shortcut")
SHAPE = (1, 8, 8, 3)


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))


def pixels(count=8, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, 8, 8, 3)).astype(np.float32)


def test_a_changed_model_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(10))
    paths = convert.write_models({"one": model}, tmp_path, {"one": SHAPE})
    assert convert.check({"one": model}, paths, pixels())["one"].largest <= 1e-4
    model.layers[-1].bias.assign_add(np.ones(10, np.float32))
    with pytest.raises(ModelError, match="one.tflite differs from the Keras model .*nothing was"):
        convert.check({"one": model}, paths, pixels())


def test_outputs_that_are_no_numbers_are_refused(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    found = {"probabilities": np.full((8, 192), np.nan)}
    monkeypatch.setattr(worker, "every_output", lambda *args: {"one": found})
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
    for path in sorted(exported.glob("*.tflite")):
        ops = set(inspect_file.ops_of(path))  # Which refuses Flex and custom ops.
        assert not ops & {"VAR_HANDLE", "READ_VARIABLE"}
        assert path.stem == "decide" or "CONV_2D" in ops


def test_the_deployed_controller_picks_the_best_score(exported, kinds):
    variant = variants.pick(WorkDir(kinds), "C")
    images = pixels(64)
    logits = variant.router().controller.logits(images, training=False)
    scores = np.asarray(expert_set.scores(logits, variant.policies, variant.space))
    deployed = deploy.deploy(variant).front(images)
    np.testing.assert_allclose(deployed["scores"], scores, rtol=1e-4, atol=1e-3)
    expected = np.argmax(scores - variant.entry["biases"], axis=-1)
    np.testing.assert_array_equal(deployed["expert"], expected)
    paths = {"c": exported / "controller.tflite"}
    found = worker.every_output(paths, images)["c"]
    np.testing.assert_array_equal(np.ravel(found["expert"]), expected)
    np.testing.assert_allclose(
        worker.outputs(paths, images)["c"], deployed["scores"], rtol=1e-4, atol=1e-3
    )


def test_a_greedy_policy_that_is_an_expert_is_chosen():
    controller = Controller(SPACE, "small", logit_stddev=2.0)
    images = pixels(32)
    logits = np.asarray(controller.logits(images, training=False))
    found = expert_set.count_policies(logits >= 0.0, SPACE)
    deployed = graphs.DeployedFront(None, SearchRouter(controller, found.policies))
    running = SPACE.effective((logits >= 0.0).astype(np.float32))
    chosen = np.asarray(deployed(images)["expert"])
    np.testing.assert_array_equal(found.policies[chosen], running)


def front():
    """Images -> features [B, 4, 4, 2]."""
    layers = [keras.layers.Rescaling(1 / 64), keras.layers.Conv2D(2, 3, 2, "same")]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.BatchNormalization()])


def router(shape, experts=3):
    """Features or images -> scores [B, E]."""
    layers = [keras.layers.Flatten(), keras.layers.Dense(experts)]
    return keras.Sequential([keras.Input(shape), keras.layers.Rescaling(1 / 64), *layers])


def deployed(kind, biases=(0.0, 0.001, -0.001)):
    """A front of a kind, of random weights: what it computes, and from which parts."""
    keras.utils.set_random_seed(0)
    parts = {
        "features": lambda: graphs.DeployedFront(front(), None, None),
        "raw router": lambda: graphs.DeployedFront(None, router((8, 8, 3)), np.array(biases)),
        "both": lambda: graphs.DeployedFront(front(), router((4, 4, 2)), np.array(biases)),
    }
    return parts[kind]()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("features", {"features"}),
        ("raw router", {"expert", "scores"}),
        ("both", {"features", "expert", "scores"}),
    ],
)
def test_a_front_becomes_a_file(kind, names, tmp_path):
    model, images = deployed(kind), pixels(32)
    expected = convert.outputs_of(model, images)
    assert set(expected) == names
    if "scores" in names:
        assert expected["expert"].dtype == np.int32
        best = np.argmax(expected["scores"] - np.array([0.0, 0.001, -0.001]), -1)
        np.testing.assert_array_equal(expected["expert"], best)
        assert len(set(best)) > 1
    paths = convert.write_models({"c": model}, tmp_path, {"c": SHAPE})
    assert 0 <= convert.check({"c": model}, paths, images)["c"].largest <= 1e-4
    found = worker.every_output(paths, images)["c"]
    assert set(expected) == set(found)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)


def changed(model, part):
    """The same model with other weights in one part, as if the converter had erred there."""
    variable = getattr(model, part).trainable_variables[-1]
    variable.assign_add(np.ones(variable.shape, np.float32))
    return model


@pytest.mark.parametrize(("kind", "part"), [("features", "front"), ("both", "router")])
def test_every_float_output_is_compared(kind, part, tmp_path):
    model = deployed(kind)
    paths = convert.write_models({"c": model}, tmp_path, {"c": SHAPE})
    with pytest.raises(ModelError, match="c.tflite differs from the Keras model by"):
        convert.check({"c": changed(model, part)}, paths, pixels())


def test_another_choice_is_refused(tmp_path):
    model = deployed("both")
    paths = convert.write_models({"c": model}, tmp_path, {"c": SHAPE})
    model.biases = np.array([100.0, 0.0, 200.0], np.float32)
    with pytest.raises(ModelError, match="in its choice: expert [02], not 1 .only a tie is"):
        convert.check({"c": model}, paths, pixels(32))


@pytest.mark.parametrize(
    ("chosen", "passes"), [([0, 1], True), ([1, 1], True), ([0, 0], False), ([0, -1], False)]
)
def test_a_choice_may_differ_in_a_tie_alone(chosen, passes, tmp_path, monkeypatch):
    # Biased: [0.3, 0.3 + 1e-5] and [-0.2, 0.3]; the file may name either for the first image.
    scores = np.array([[0.3, 1.30001], [-0.2, 1.3]], np.float32)

    class Given(keras.Model):
        biases = np.array([0.0, 1.0], np.float32)

        def call(self, images, training=None):
            return {"expert": np.argmax(scores - self.biases, -1), "scores": scores}

    found = {"scores": scores, "expert": np.array(chosen)}
    monkeypatch.setattr(worker, "every_output", lambda *args: {"c": found})
    if passes:
        assert convert.check({"c": Given()}, {}, pixels(2))["c"].largest == 0.0
    else:
        with pytest.raises(ModelError, match="c.tflite differs .* in its choice"):
            convert.check({"c": Given()}, {}, pixels(2))


def test_a_file_without_an_output_is_refused(tmp_path):
    paths = convert.write_models({"c": deployed("features")}, tmp_path, {"c": SHAPE})
    with pytest.raises(ModelError, match="must have the outputs .*'scores'.*Received: .'features'"):
        convert.check({"c": deployed("both")}, paths, pixels())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, None), "`front` or `router` must be a model"),
        ((front, None, [0.0]), "`biases` must be None without a router"),
        ((None, router, 1.0), "`biases` must be finite"),
        ((None, router, [0.0, np.nan, 0.0]), "`biases` must be finite"),
        ((None, router, [0.0, 1.0]), r"`biases` must be \[3\].*Received: shape \(2,\)"),
    ],
)
def test_fronts_that_make_no_sense(arguments, words):
    given_front, given_router, *biases = arguments
    with pytest.raises(ValueError, match=words):
        graphs.DeployedFront(
            given_front and given_front(), given_router and given_router((8, 8, 3)), *biases
        )(pixels(1))


def test_no_biases_are_no_price():
    model = deployed("raw router")
    free = graphs.DeployedFront(None, model.router)
    found = convert.outputs_of(free, pixels(16))
    np.testing.assert_array_equal(found["expert"], np.argmax(found["scores"], -1))


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
