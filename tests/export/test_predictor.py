"""Controller and experts with a TFLite runtime alone; run in a process without TensorFlow."""

import json

import pytest

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
        answers[name] = [[p.class_index, p.expert] for p in predictor.predict(images)]
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
