"""Files name their ops, and those with ops of another library are refused."""

import keras
import pytest
import tensorflow as tf

from export import convert
from export.inspect_file import min_runtime, ops_of
from instanas_tf.errors import ModelError


@pytest.fixture
def path(tmp_path):
    layers = [keras.layers.Conv2D(2, 3), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    found = tmp_path / "m.tflite"
    found.write_bytes(convert.to_tflite(model, (1, 8, 8, 3)))
    return found


def test_ops_are_counted(path):
    assert ops_of(path) == {"CONV_2D": 2, "RESHAPE": 1}
    assert list(ops_of(path)) == ["CONV_2D", "RESHAPE"]


def test_the_lowest_runtime(path):
    assert min_runtime(path) == "1.5.0"


def test_ops_of_another_library_are_named(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec((1, 3, 3), tf.float32)])
    def invert(matrix):
        return tf.linalg.inv(matrix)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([invert.get_concrete_function()])
    ops = tf.lite.OpsSet
    converter.target_spec.supported_ops = [ops.TFLITE_BUILTINS, ops.SELECT_TF_OPS]
    path = tmp_path / "odd.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(
        ModelError, match="odd.tflite needs FlexMatrixInverse, which a TFLite runtime"
    ):
        ops_of(path)


def test_files_of_another_kind(tmp_path, path):
    other = tmp_path / "other.tflite"
    for data in (b"", b"abc", b"no flatbuffer at all"):
        other.write_bytes(data)
        for read in (ops_of, min_runtime):
            with pytest.raises(ModelError, match="other.tflite is not a TFLite file, or is damag"):
                read(other)


def test_a_file_that_does_not_say(tmp_path, path):
    silent = tmp_path / "silent.tflite"
    silent.write_bytes(path.read_bytes().replace(b"min_runtime_version", b"min_runtime_verslon"))
    with pytest.raises(ModelError, match="silent.tflite does not say which runtime"):
        min_runtime(silent)
