"""Files are run in a process of their own, and its errors come back."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest

from export import convert, graphs, runtime, worker
from export.routed import Rules
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


PATH = pathlib.Path("a.tflite")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((PATH, PATH),), "`rules` must be given for a system of several files"),
        (((PATH, PATH), PATH, Rules.named(3)), "all 2 experts. Received: rules for 3"),
        (((PATH, PATH), None, Rules.named(2)), "a front must be there"),
        (((PATH,), PATH, Rules(0, (-1,), (0.0,))), "a front must be absent"),
    ],
)
def test_systems_that_make_no_sense(arguments, words):
    with pytest.raises(ValueError, match=words):
        worker.System("s", *arguments)
    assert worker.System("s", (PATH, PATH), PATH).rules == Rules.named(2)


def small():
    """Pixels from -1 to 1, so that random networks are in doubt."""
    return keras.layers.Rescaling(1 / 128, offset=-1.0)


def experts(shape, *first):
    """Two experts of 3 classes with random weights."""
    return [
        keras.Sequential(
            [
                keras.Input(shape),
                *first,
                keras.layers.Flatten(),
                keras.layers.Dense(3, activation="softmax"),
            ]
        )
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def networks():
    """Fronts and experts of images and of features, by the names of their files."""
    keras.utils.set_random_seed(1)
    stem = [keras.Input((8, 8, 3)), small(), keras.layers.Conv2D(2, 3, 2, "same")]
    stem = keras.Sequential(stem)
    router = [keras.layers.Flatten(), keras.layers.Dense(2)]
    router = keras.Sequential([keras.Input((4, 4, 2)), *router])
    found = {
        "front": graphs.DeployedFront(stem, router),
        "stem": graphs.DeployedFront(stem, None),
    }
    found |= {f"image_{index}": model for index, model in enumerate(experts((8, 8, 3), small()))}
    return found | {f"feature_{index}": model for index, model in enumerate(experts((4, 4, 2)))}


@pytest.fixture(scope="module")
def written(networks, tmp_path_factory):
    shapes = {name: (1, 4, 4, 2) if "feature" in name else (1, 8, 8, 3) for name in networks}
    return convert.write_models(networks, tmp_path_factory.mktemp("written"), shapes)


PIXELS = np.random.default_rng(2).uniform(0, 255, (40, 8, 8, 3)).astype(np.float32)


def expected(networks, kind, rules):
    """Classes and experts of Keras, by the rules for two experts."""
    front = convert.outputs_of(networks["front"], PIXELS)
    inputs = front["features"] if kind == "feature" else PIXELS
    small, large = (np.asarray(networks[f"{kind}_{index}"](inputs)) for index in range(2))
    ordered = np.sort(small, axis=-1)
    unsure = ordered[:, -1] - ordered[:, -2] < rules.thresholds[0]
    first = front["expert"] if rules.first is None else np.full(len(PIXELS), rules.first)
    ran = np.stack([first == 0, (first == 1) | unsure & (rules.following[0] == 1)], axis=1)
    votes = small * ran[:, :1] + large * ran[:, 1:]
    return np.argmax(votes, axis=-1), ran


RULES = [
    Rules(None, (-1, -1), (0.0, 0.0)),
    Rules(None, (1, -1), (0.3, 0.0)),
    Rules(0, (1, -1), (0.3, 0.0)),
    Rules(1, (1, -1), (0.3, 0.0)),
    Rules(None, (1, -1), (0.3, 0.0), True),
    Rules(0, (1, -1), (0.3, 0.0), True),
]


def test_answers_are_those_of_keras(networks, written):
    systems = []
    for index, rules in enumerate(RULES):
        kind = "feature" if rules.features else "image"
        front = written["front" if rules.first is None else "stem"] if rules.needs_front else None
        models = (written[f"{kind}_0"], written[f"{kind}_1"])
        systems.append(worker.System(f"{kind}/{index}", models, front, rules))
    systems.append(worker.System("alone", (written["image_1"],)))
    found = worker.answers(systems, PIXELS)
    for system, rules in zip(systems, RULES, strict=False):
        classes, ran = expected(networks, system.name.partition("/")[0], rules)
        np.testing.assert_array_equal(found[system.name][0], classes, err_msg=system.name)
        np.testing.assert_array_equal(found[system.name][1], ran, err_msg=system.name)
        if rules.thresholds[0] and rules.first != 1:  # The test has something to see.
            assert 0 < np.mean(ran.all(axis=1)) < 1
    np.testing.assert_array_equal(found["alone"][0], found["image/3"][0])
    assert found["alone"][1].shape == (40, 1)
    assert found["alone"][1].all()
    timed = worker.timings(systems, PIXELS[:3], rounds=2, seed=0)
    assert {values.shape for values in timed.values()} == {(2, 3)}
    assert all((values > 0).all() for values in timed.values())


def test_outputs_of_files_that_take_features(networks, written):
    features = convert.outputs_of(networks["front"], PIXELS)["features"]
    models = {name: networks[name] for name in ("feature_0", "feature_1")}
    paths = {name: written[name] for name in models}
    found = worker.outputs(paths, features)
    for name, model in models.items():
        np.testing.assert_allclose(found[name], model(features), rtol=1e-4, atol=1e-5)
    assert set(convert.check(models, paths, features)) == set(models)
    assert list(worker.every_output(paths, features)["feature_0"]) == ["probabilities"]


def test_files_that_do_not_fit_the_rules(written):
    rules = Rules(0, (1, -1), (0.3, 0.0), True)
    models = (written["image_0"], written["image_1"])
    for call in (
        lambda system: worker.answers([system], PIXELS[:1]),
        lambda system: worker.timings([system], PIXELS[:1], rounds=1, seed=0),
    ):
        with pytest.raises(CommandError, match="odd: expert 0 must take inputs") as caught:
            call(worker.System("odd", models, written["front"], rules))
        assert caught.value.exit_code == 2


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
