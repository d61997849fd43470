"""`.tflite` files as objects: read, signed with names, and written with aligned weights."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Sequence

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from instanas_tf.errors import InputError

_IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"  # Key of the signature of a file with one graph.
ALIGNMENT = 16  # Bytes; the schema asks it of buffers, flatbuffers' Python code gives 4.
DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT32: np.int32,
}
TYPES = {np.dtype(dtype): number for number, dtype in DTYPES.items()}


class _PlacedBuffer(schema.BufferT):
    """A buffer whose data is in the file already, at `place`; None if it has none."""

    def __init__(self, place: int | None):
        super().__init__()
        self.place = place

    def Pack(self, builder):  # noqa: N802, the name is the library's.
        schema.BufferStart(builder)
        if self.place is not None:
            schema.BufferAddData(builder, self.place)
        return schema.BufferEnd(builder)


class _SharedQuantization(schema.QuantizationParametersT):
    """Quantization whose numbers are in the file once: zero points are mostly 0, 8 bytes each."""

    def __init__(self, found: schema.QuantizationParametersT, known: dict[bytes, int]):
        super().__init__()
        vars(self).update(vars(found))
        self._known = known

    def Pack(self, builder):  # noqa: N802, the name is the library's.
        scale = self._vector(builder, self.scale, np.float32)
        zero_point = self._vector(builder, self.zeroPoint, np.int64)
        schema.QuantizationParametersStart(builder)
        if scale is not None:
            schema.QuantizationParametersAddScale(builder, scale)
        if zero_point is not None:
            schema.QuantizationParametersAddZeroPoint(builder, zero_point)
        schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
        return schema.QuantizationParametersEnd(builder)

    def _vector(self, builder, values, dtype) -> int | None:
        if values is None or not len(values):
            return None
        values = np.asarray(values, dtype)
        key = values.dtype.char.encode() + values.tobytes()
        if key not in self._known:
            self._known[key] = builder.CreateNumpyVector(values)
        return self._known[key]


def make(kind: type, **fields):
    """An object of the schema with some fields set; old versions do not take them themselves."""
    made = kind()
    for name, value in fields.items():
        if not hasattr(made, name):
            raise ValueError(f"`fields` must be those of {kind.__name__}. Received: {name}")
        setattr(made, name, value)
    return made


def read(path: pathlib.Path) -> schema.ModelT:
    """The model in a file.

    Raises:
        InputError: there is no such file, or it is no `.tflite` file.
    """
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); export it again") from error
    if content[4:8] != _IDENTIFIER:
        raise InputError(f"{path} is no .tflite file; export it again")
    return parse(content)


def parse(content: bytes) -> schema.ModelT:
    """The model in the bytes of a file."""
    return flatbuffer_utils.convert_bytearray_to_object(bytearray(content))


def to_bytes(model: schema.ModelT) -> bytes:
    """The bytes of a file; the same for the same model. Ranges that are for people only go.

    All weights stand behind all else, so that a part of them can be left out or stay on disk:
    `export.bundled` counts on it.
    """
    total = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    builder = flatbuffers.Builder(total + 2**20)  # Which is written from its end to its start.
    places = [_place(builder, buffer.data) for buffer in reversed(model.buffers)]
    known: dict[bytes, int] = {}
    packed = copy.copy(model)
    packed.buffers = [_PlacedBuffer(place) for place in reversed(places)]
    packed.subgraphs = [_with_shared_quantization(graph, known) for graph in model.subgraphs]
    builder.Finish(packed.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _with_shared_quantization(graph: schema.SubGraphT, known: dict) -> schema.SubGraphT:
    graph = copy.copy(graph)
    graph.tensors = [copy.copy(tensor) for tensor in graph.tensors]
    for tensor in graph.tensors:
        if tensor.quantization is not None and tensor.quantization.details is None:
            tensor.quantization = _SharedQuantization(tensor.quantization, known)
    return graph


def _place(builder: flatbuffers.Builder, data: np.ndarray | None) -> int | None:
    if data is None or not len(data):
        return None
    builder.Prep(ALIGNMENT, len(data))
    return builder.CreateNumpyVector(np.asarray(data, np.uint8))


def sign(content: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Gives a file of one graph a signature, so that inputs and outputs have names.

    Args:
        content: of a file; its input tensors have the names `inputs`.
        inputs: their names, in any order.
        outputs: names of the outputs, in the order that they have in the graph.

    Returns:
        The bytes of the file with one signature, `SIGNATURE`.

    Raises:
        ValueError: the graph has other inputs, or another number of outputs.
    """
    model = parse(content)
    graph = model.subgraphs[0]
    found = {graph.tensors[index].name.decode(): index for index in graph.inputs}
    if set(found) != set(inputs) or len(graph.outputs) != len(outputs):
        raise ValueError(
            f"`inputs` and `outputs` must be those of the graph, {sorted(found)} and "
            f"{len(graph.outputs)}. Received: {list(inputs)} and {list(outputs)}"
        )
    signature = make(schema.SignatureDefT, signatureKey=SIGNATURE, subgraphIndex=0)
    signature.inputs = [_named(name, found[name]) for name in inputs]
    pairs = zip(outputs, graph.outputs, strict=True)
    signature.outputs = [_named(name, index) for name, index in pairs]
    model.signatureDefs = [signature]
    strip_names(graph)
    return to_bytes(model)


def strip_names(graph: schema.SubGraphT) -> None:
    """Takes the names of inner tensors away, which no runtime reads and Keras counts up."""
    outer = {*map(int, graph.inputs), *map(int, graph.outputs)}
    for index, tensor in enumerate(graph.tensors):
        if index not in outer:
            tensor.name = None


def _named(name: str, index: int) -> schema.TensorMapT:
    return make(schema.TensorMapT, name=name, tensorIndex=int(index))


def builtin(code: schema.OperatorCodeT) -> int:
    """Number of a built-in op; files of old converters have it in an older field."""
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def constant(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray | None:
    """Values of a constant tensor, read only; None if it is computed, or not of `DTYPES`."""
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.type not in DTYPES:
        return None
    return np.frombuffer(data.tobytes(), DTYPES[tensor.type]).reshape(tensor.shape)


def add_buffer(model: schema.ModelT, values: np.ndarray) -> int:
    """Index of a new buffer with the bytes of an array."""
    data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers.append(make(schema.BufferT, data=data))
    return len(model.buffers) - 1


def add_constant(model: schema.ModelT, graph: schema.SubGraphT, values: np.ndarray) -> int:
    """Index of a new constant tensor in a graph."""
    tensor = make(
        schema.TensorT,
        shape=np.array(values.shape, np.int32),
        type=TYPES[values.dtype],
        buffer=add_buffer(model, values),
    )
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
