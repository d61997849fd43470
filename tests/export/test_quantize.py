"""Every mode of quantisation gives a file of its kind, the same one each time."""

import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from export import convert, graphs, quantize, tolerances, worker
from export.inspect_file import min_runtime, ops_of
from instanas_tf.errors import InputError
from instanas_tf.pipeline import pools
from instanas_tf.pipeline.splits import Split
from tests import fixtures_ring as ring

SHAPE = (1, 8, 8, 3)
FLOAT, INT8, UINT8, INT32 = 0, 9, 3, 2  # As the schema numbers types.

TWICE = """
import hashlib, sys
import numpy as np
from tests.export import test_quantize as this
print(*(this.digest(mode) for mode in this.quantize.MODES))
"""


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))


def pixels(count=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


class Softened(keras.Model):
    """Images, or features -> probabilities [B, 4] of a small depthwise network.

    Its layers have names, since Keras would count them up, and they get into the file.
    """

    def __init__(self, channels=3):
        super().__init__(name="softened")
        keras.utils.set_random_seed(1)
        self.network = keras.Sequential(
            [
                keras.Input((8, 8, channels)),
                keras.layers.Rescaling(1 / 64, name="rescaling"),
                keras.layers.Conv2D(8, 3, 2, "same", activation="relu", name="conv"),
                keras.layers.DepthwiseConv2D(
                    3, padding="same", activation="relu", name="depthwise"
                ),
                keras.layers.GlobalAveragePooling2D(name="pool"),
                keras.layers.Dense(4, name="classifier"),
            ],
            name="network",
        )
        self.built = True

    def call(self, images, training=None):
        return tf.nn.softmax(self.network(images, training=training))


def quantization(mode, io="float"):
    return quantize.Quantization(mode, io, pixels() if mode == "int8" else None)


def digest(mode):
    return hashlib.sha256(convert.to_tflite(Softened(), SHAPE, quantization(mode))).hexdigest()


def tensors(path):
    """(type, number of scales, first scale, first zero point) of all tensors, and the ends."""
    graph = schema.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)
    found = []
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        scale = tensor.Quantization()
        count = scale.ScaleLength() if scale else 0
        first = (scale.Scale(0), scale.ZeroPoint(0)) if count else (None, None)
        found.append((tensor.Type(), count, *first))
    ends = [
        found[graph.Inputs(0)],
        *(found[graph.Outputs(i)] for i in range(graph.OutputsLength())),
    ]
    return found, ends


def written(tmp_path, model, given, shape=SHAPE, takes="images"):
    path = tmp_path / "m.tflite"
    inputs = {takes: tf.TensorSpec(shape, tf.float32)}
    path.write_bytes(convert.to_tflite(model, inputs, given))
    return path


@pytest.mark.parametrize("mode", ["none", "fp16", "dynamic", "int8"])
def test_a_quantised_file_is_near_its_model(mode, tmp_path):
    model, images = Softened(), pixels(64, seed=1)
    path = written(tmp_path, model, quantization(mode))
    expected = convert.outputs_of(model, images)["probabilities"]
    found = worker.outputs({"m": path}, images)["m"]
    agreed = tolerances.compare(mode, expected, found, "m")
    # Weights of fewer than 1024 numbers stay float in the mode `dynamic`.
    assert (agreed.largest > 1e-6) == (mode in ("fp16", "int8"))
    assert min_runtime(path) < "2.15"  # Compared as text: 1.6.0 to 2.14.0, not 2.17.0.


def test_int8_has_float_ends_alone(tmp_path):
    path = written(tmp_path, Softened(), quantization("int8"))
    found, ends = tensors(path)
    assert [item[0] for item in ends] == [FLOAT, FLOAT]
    assert sorted(item[0] for item in found).count(FLOAT) == 2
    ops = ops_of(path)
    assert (ops["QUANTIZE"], ops["DEQUANTIZE"]) == (1, 1)
    # Scales per channel in both convolutions, one in the dense layer: of [1, 3, 3, 8] and [4, 8].
    assert {count for kind, count, *_ in found if kind == INT8} == {1, 8}


def test_uint8_ends_are_pixels_and_steps_of_a_probability(tmp_path):
    path = written(tmp_path, Softened(), quantization("int8", "uint8"))
    found, ends = tensors(path)
    assert ends == [(UINT8, 1, 1.0, 0), (UINT8, 1, 1 / 256, 0)]
    assert FLOAT not in {item[0] for item in found}


def test_grey_images_do_not_change_what_a_pixel_is(tmp_path):
    grey = quantize.Quantization("int8", "uint8", np.full((2, 8, 8, 3), 100, np.uint8))
    _, ends = tensors(written(tmp_path, Softened(), grey))
    assert ends[0] == (UINT8, 1, 1.0, 0)


def test_features_stay_float_where_images_do_not(tmp_path):
    given = quantization("int8", "uint8")
    front = graphs.DeployedFront(
        keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="c")]),
        keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Flatten(), keras.layers.Dense(3)]),
        np.array([0.0, 0.5, -0.5]),
    )
    found, ends = tensors(written(tmp_path, front, given))
    assert ends[0] == (UINT8, 1, 1.0, 0)
    assert sorted(item[0] for item in ends[1:]) == [FLOAT, FLOAT, INT32]
    assert [item[0] for item in found].count(FLOAT) == 2
    features = np.random.default_rng(0).normal(size=(60, 8, 8, 2)).astype(np.float32)
    tail = written(tmp_path, Softened(2), given.shown(features), (1, 8, 8, 2), "features")
    _, ends = tensors(tail)
    assert ends == [(FLOAT, 0, None, None), (UINT8, 1, 1 / 256, 0)]


def test_names_say_what_becomes_uint8():
    given = quantization("int8", "uint8")
    kinds = {name: given.dtype(name) for name in ("images", "probabilities", "features", "votes")}
    assert kinds == {
        "images": tf.uint8,
        "probabilities": tf.uint8,
        "features": tf.float32,
        "votes": tf.float32,
    }
    assert quantization("int8").dtype("images") == tf.float32


def test_files_are_the_same_each_time_and_in_every_process():
    here = [digest(mode) for mode in quantize.MODES]
    assert here == [digest(mode) for mode in quantize.MODES]
    assert len(set(here)) == 4
    done = ring.python("-c", TWICE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == here


def test_other_modes_are_shown_nothing():
    given = quantization("fp16")
    assert given.shown(pixels()) is given


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("int4",), "`mode` must be one of .*Received: 'int4'"),
        (("fp16", "uint8"), "`io` must be 'float', or 'uint8' with mode 'int8'"),
        (("int8", "int8", pixels()), "`io` must be"),
        (("int8",), "`representative` must be given for mode 'int8'.*Received: NoneType"),
        (("none", "float", pixels()), "`representative` must be given .* no other"),
        (("int8", "float", pixels()[0]), r"finite numbers \[n, h, w, c\]. Received: shape \(8,"),
        (("int8", "float", pixels()[:0]), "finite numbers"),
        (("int8", "float", np.full((1, 2, 2, 3), np.nan)), "finite numbers"),
    ],
)
def test_settings_that_make_no_sense(arguments, words):
    with pytest.raises(ValueError, match=words):
        quantize.Quantization(*arguments)


def split(count):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return Split(pools.array_pool(images, np.zeros(count, np.int64)), np.arange(count))


def streamed(count):
    read = split(count).pool.read

    def stream(indices, batch_size, seed=None, skip=0):
        yield read(indices)

    return Split(pools.Pool(count, stream=stream), np.arange(count))


def test_representative_images_are_spread_over_the_split():
    found = quantize.representative_images(split(200), 50)
    assert found.shape == (50, 2, 2, 3)
    assert found[:, 0, 0, 0].tolist() == list(range(0, 200, 4))


def test_of_a_stream_pieces_are_read():
    found = quantize.representative_images(streamed(200), 50)[:, 0, 0, 0].tolist()
    assert found == [first + i for first in range(0, 200, 20) for i in range(5)]


@pytest.mark.parametrize(
    ("count", "images", "words"),
    [
        (49, 200, "must have at least 50 images. Received: 49"),
        (200, 199, "int8 needs 200 training images .*Received: 199 .*or --quantize=fp16"),
    ],
)
def test_too_few_images(count, images, words):
    with pytest.raises(InputError, match=words) as caught:
        quantize.representative_images(split(images), count)
    assert "\n" not in str(caught.value)
