"""Controller and experts with a TFLite runtime alone; run in a process without TensorFlow."""

import json
import math
import shutil

import keras
import numpy as np
import pytest

from export import convert, graphs, manifest
from export.routed import Rules
from tests import fixtures_ring as ring

TRY = """
import json, sys
import numpy as np
from export.predictor import Predictor
from instanas_tf.errors import InputError
predictor = Predictor(sys.argv[1])
image = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
answers = {}
for name, images in {
    "one": image,
    "many": np.stack([image, 255 - image]),
    "float": image.astype(np.float64),
    "bytes": image.astype(np.uint8),
    "none": np.zeros((0, 8, 8, 3)),
    "size": np.zeros((9, 9, 3)),
    "gray": np.zeros((8, 8)),
    "bool": np.zeros((8, 8, 3), bool),
    "text": np.full((8, 8, 3), "x"),
    "nan": np.full((8, 8, 3), np.nan),
    "huge": np.full((8, 8, 3), 1e40),
    "ragged": [np.zeros((8, 8, 3)), np.zeros((9, 9, 3))],
}.items():
    try:
        answers[name] = [[p.class_index, p.expert, p.experts] for p in predictor.predict(images)]
    except InputError as error:
        answers[name] = str(error)
answers["shape"] = predictor.image_shape
answers["labels"] = predictor.labels
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(exported):
    done = ring.python("-c", TRY, exported)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_shapes_and_types(answers):
    assert answers["shape"] == [8, 8, 3]
    assert answers["labels"] == [str(digit) for digit in range(10)]
    assert len(answers["one"]) == 1
    assert len(answers["many"]) == 2
    assert answers["many"][:1] == answers["float"] == answers["bytes"] == answers["one"]
    assert answers["none"] == []


@pytest.mark.parametrize("name", ["nan", "huge"])
def test_pixels_that_are_no_numbers(answers, name):
    assert "must be finite" in answers[name]


def test_images_that_differ(answers):
    assert "must be one array" in answers["ragged"]


@pytest.mark.parametrize("name", ["size", "gray", "bool", "text"])
def test_images_that_cannot_be_used(answers, name):
    assert "must be raw pixels of shape [n, 8, 8, 3]. Received: shape" in answers[name]


TELL = """
import dataclasses, json, sys
import numpy as np
from export.predictor import Predictor
from instanas_tf.errors import InstanasError
try:
    predictor = Predictor(sys.argv[1])
    image = np.full((8, 8, 3), 255, np.uint8)
    (found,) = predictor.predict(image)
    json.dump({**dataclasses.asdict(found), "shape": predictor.image_shape}, sys.stdout)
except InstanasError as error:
    json.dump(str(error), sys.stdout)
"""


def said(folder):
    """The prediction for a white image, or the error."""
    done = ring.python("-c", TELL, folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expert(shape, bias):
    """It says the softmax of the bias, whatever the input."""
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(len(bias))]
    model = keras.Sequential([keras.Input(shape), *layers])
    model.layers[-1].set_weights([np.zeros((shape[-1], len(bias))), np.array(bias)])
    return graphs.Classifier(model)


def write(folder, models, shapes, rules, **content):
    paths = convert.write_models(models, folder, shapes)
    entries = [
        manifest.entry(name, "expert" if "expert" in name else "controller", path)
        for name, path in paths.items()
    ]
    variant = {
        "name": "A",
        "controller": "controller" if "controller" in models else None,
        "decide": None,
        "experts": [name for name in models if "expert" in name],
        "routing": content.pop("routing", rules.to_json("test")),
    }
    content = {"labels": ["no", "yes"], "variants": [variant], "selected": "A", **content}
    manifest.write(folder, entries, **content)
    return folder


IMAGE, FEATURES = (1, 8, 8, 3), (1, 4, 4, 2)
UNSURE, SURE = [0.0, math.log(1.5)], [math.log(4.0), 0.0]  # Softmax 0.4, 0.6; and 0.8, 0.2.


def test_a_static_export(tmp_path):
    models = {"expert_00": expert(IMAGE[1:], SURE)}
    found = said(write(tmp_path, models, {"expert_00": IMAGE}, Rules(0, (-1,), (0.0,))))
    assert (found["label"], found["class_index"], found["expert"]) == ("no", 0, "expert_00")
    assert found["experts"] == ["expert_00"]
    assert found["probability"] == pytest.approx(0.8, abs=1e-6)
    assert found["shape"] == [8, 8, 3]
    assert found["latency_ms"] > 0


def test_a_cascade_on_features(tmp_path):
    stem = keras.Sequential([keras.Input(IMAGE[1:]), keras.layers.Conv2D(2, 3, 2, "same")])
    models = {
        "controller": graphs.DeployedFront(stem, None),
        "expert_00": expert(FEATURES[1:], UNSURE),
        "expert_01": expert(FEATURES[1:], SURE),
    }
    shapes = {"controller": IMAGE, "expert_00": FEATURES, "expert_01": FEATURES}
    rules = Rules(0, (1, -1), (0.3, 0.0), True)
    found = said(write(tmp_path, models, shapes, rules))
    assert found["experts"] == ["expert_00", "expert_01"]
    assert (found["expert"], found["label"]) == ("expert_01", "no")
    assert found["probability"] == pytest.approx(0.6, abs=1e-6)
    assert found["shape"] == [8, 8, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ["only"]}, "`labels` must name the 2 classes of the experts. Received: 1"),
        ({"routing": Rules.named(1).to_json("x")}, "`first` must be an index where the front"),
    ],
)
def test_an_export_whose_files_do_not_fit(tmp_path, change, words):
    stem = keras.Sequential([keras.Input(IMAGE[1:]), keras.layers.Conv2D(2, 3, 2, "same")])
    models = {
        "controller": graphs.DeployedFront(stem, None),
        "expert_00": expert(FEATURES[1:], SURE),
    }
    shapes = {"controller": IMAGE, "expert_00": FEATURES}
    line = said(write(tmp_path, models, shapes, Rules(0, (-1,), (0.0,), True), **change))
    assert line.startswith(f"{tmp_path}/manifest.json: {words}")
    assert line.endswith("; export again: export_tflite --expert=all")
    assert "\n" not in line


def test_a_variant_that_runs_what_is_no_expert(tmp_path):
    models = {"expert_00": expert(IMAGE[1:], SURE)}
    write(tmp_path, models, {"expert_00": IMAGE}, Rules(0, (-1,), (0.0,)))
    ring.change_json(
        tmp_path / "manifest.json", lambda content: content["models"][0].update(kind="controller")
    )
    assert "expert_00 must be an expert, as variant A runs it" in said(tmp_path)


THREADS = """
import concurrent.futures, json, sys
import numpy as np
from export.predictor import Predictor
predictor = Predictor(sys.argv[1])
images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
tell = lambda part: [[item.class_index, item.probability] for item in predictor.predict(part)]
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = sum(pool.map(tell, np.array_split(images, 20)), [])
assert found == tell(images)
"""


def test_threads_share_a_predictor(exported):
    done = ring.python("-c", THREADS, exported)
    assert done.returncode == 0, done.stderr


def test_every_image_gets_its_experts(answers):
    for item in answers["many"]:
        assert item[2][-1] == item[1]
        assert item[2] == sorted(set(item[2]))


def test_the_one_file_is_enough(exported, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("instanas.tflite", "manifest.json"):
        shutil.copy(exported / name, alone)
    answers = []
    for folder in (exported, alone):
        done = ring.python("-c", ALL, folder, tmp_path / "images.npy")
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert [item[:2] for item in answers[0]] == [item[:2] for item in answers[1]]
    probabilities = [[item[2] for item in found] for found in answers]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
    content = bytearray((alone / "instanas.tflite").read_bytes())
    content[-1] ^= 1
    (alone / "instanas.tflite").write_bytes(content)
    assert "instanas.tflite is not the file that was exported; export again" in said(alone)
    (alone / "instanas.tflite").unlink()
    assert "instanas.tflite is missing; export again" in said(alone)


ALL = """
import json, sys
import numpy as np
from export.predictor import Predictor
found = Predictor(sys.argv[1]).predict(np.load(sys.argv[2]))
json.dump([[item.class_index, list(item.experts), item.probability] for item in found], sys.stdout)
"""
