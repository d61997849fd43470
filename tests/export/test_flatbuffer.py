"""Files get the right names, keep their weights aligned, and are the same each time."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from export import convert, flatbuffer
from instanas_tf.errors import InputError


class Sums(tf.keras.Model):
    """Outputs whose order of definition is not that of their names."""

    def call(self, values, training=None):
        total = values["images"] + values["votes"]
        return {"total": total, "next": tf.cast(total[:, 0], tf.int32), "mean": total * 0.5}


@pytest.fixture(scope="module")
def content():
    specs = {name: tf.TensorSpec((1, 3), tf.float32) for name in ("votes", "images")}
    return convert.to_tflite(Sums(), specs)


def names(model):
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    kinds = {
        item.name.decode(): (graph.tensors[item.tensorIndex].type, item.tensorIndex)
        for item in (*signature.inputs, *signature.outputs)
    }
    return signature.signatureKey.decode(), kinds


def test_inputs_and_outputs_keep_their_names(content):
    key, found = names(flatbuffer.parse(content))
    assert key == "serving_default"
    assert set(found) == {"images", "votes", "total", "next", "mean"}
    float32, int32 = schema.TensorType.FLOAT32, schema.TensorType.INT32
    assert {name: kind for name, (kind, _) in found.items()} == {
        **dict.fromkeys(("images", "votes", "total", "mean"), float32),
        "next": int32,
    }


def test_outputs_of_one_kind_are_not_mixed_up(content):
    model = flatbuffer.parse(content)
    _, found = names(model)
    makers = {
        int(operator.outputs[0]): flatbuffer.builtin(model.operatorCodes[operator.opcodeIndex])
        for operator in model.subgraphs[0].operators
    }
    assert makers[found["total"][1]] == schema.BuiltinOperator.ADD
    assert makers[found["mean"][1]] == schema.BuiltinOperator.MUL


def test_writing_again_changes_nothing(content):
    assert flatbuffer.to_bytes(flatbuffer.parse(content)) == content


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(["images"], ["a", "b", "c"]), (["images", "votes"], ["a", "b"])],
)
def test_other_names_are_refused(content, inputs, outputs):
    with pytest.raises(ValueError, match="must be those of the graph.*'images', 'votes'.*and 3"):
        flatbuffer.sign(content, inputs, outputs)


def test_weights_are_aligned_and_stand_last():
    model = flatbuffer.make(schema.ModelT, version=3, subgraphs=[], operatorCodes=[])
    arrays = [np.arange(1, 1 + size, dtype=np.uint8) for size in (5, 16, 33)]
    buffers = [flatbuffer.make(schema.BufferT, data=values) for values in arrays]
    model.buffers = [schema.BufferT(), *buffers]
    content = flatbuffer.to_bytes(model)
    places = [content.index(values.tobytes()) for values in reversed(arrays)]
    assert [place % 16 for place in places] == [0, 0, 0]
    found = flatbuffer.parse(content).buffers
    assert found[0].data is None
    for buffer, values in zip(found[1:], arrays, strict=True):
        np.testing.assert_array_equal(buffer.data, values)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="cannot be read .*export it again"):
        flatbuffer.read(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_bytes(b"hello, world")
    with pytest.raises(InputError, match="text.tflite is no .tflite file"):
        flatbuffer.read(tmp_path / "text.tflite")


def test_a_misspelt_field():
    with pytest.raises(ValueError, match="must be those of BufferT. Received: dta"):
        flatbuffer.make(schema.BufferT, dta=None)
