"""What a `.tflite` file says of itself: the ops that it uses, the lowest runtime that runs it."""

from __future__ import annotations

import collections
import pathlib
import struct
from typing import Any

from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.python.schema_util import get_builtin_code_from_operator_code

from instanas_tf.errors import ModelError

_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if type(code) is int}
_TYPES = {code: name for name, code in vars(schema.TensorType).items() if type(code) is int}
_CUSTOM = schema.BuiltinOperator.CUSTOM
_MIN_RUNTIME = b"min_runtime_version"


def ops_of(path: pathlib.Path) -> dict[str, int]:
    """The ops that a file uses, of all its subgraphs together.

    Args:
        path: the `.tflite` file.

    Returns:
        Name as in TFLite's schema, such as `CONV_2D`, in alphabetical order -> how often.

    Raises:
        ModelError: the file is not TFLite's, or needs ops that no plain runtime has (Flex or
            custom ones); names them.
    """
    model = _read(path)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    numbers = [get_builtin_code_from_operator_code(code) for code in codes]
    foreign = sorted(
        code.CustomCode().decode()
        for code, number in zip(codes, numbers, strict=True)
        if number == _CUSTOM
    )
    if foreign:
        raise ModelError(
            f"{path.name} needs {', '.join(foreign)}, which a TFLite runtime does not have by "
            "itself; build the model of other layers"
        )
    counts = collections.Counter(
        _NAMES[numbers[graph.Operators(position).OpcodeIndex()]]
        for graph in map(model.Subgraphs, range(model.SubgraphsLength()))
        for position in range(graph.OperatorsLength())
    )
    return dict(sorted(counts.items()))


def min_runtime(path: pathlib.Path) -> str:
    """The lowest version of the TFLite runtime that runs a file, such as `1.14.0`.

    The converter writes it into the file, by the versions of its ops.

    Args:
        path: the `.tflite` file.

    Raises:
        ModelError: the file is not TFLite's, or does not say.
    """
    model = _read(path)
    for index in range(model.MetadataLength()):
        item = model.Metadata(index)
        if item.Name() == _MIN_RUNTIME:
            data = model.Buffers(item.Buffer()).DataAsNumpy()
            if version := bytes(data).rstrip(b"\0").decode():
                return version
    raise ModelError(f"{path.name} does not say which runtime it needs; convert it again")


def signatures(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What each signature of a file takes and gives.

    Returns:
        Key of the signature -> `inputs` and `outputs`: name -> `shape` and `dtype`.

    Raises:
        ModelError: the file is not TFLite's.
    """
    model = _read(path)
    found = {}
    for index in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(index)
        graph = model.Subgraphs(signature.SubgraphIndex())
        inputs = map(signature.Inputs, range(signature.InputsLength()))
        outputs = map(signature.Outputs, range(signature.OutputsLength()))
        found[signature.SignatureKey().decode()] = {
            "inputs": {item.Name().decode(): _tensor(graph, item) for item in inputs},
            "outputs": {item.Name().decode(): _tensor(graph, item) for item in outputs},
        }
    return found


def _tensor(graph: schema.SubGraph, item: schema.TensorMap) -> dict[str, Any]:
    tensor = graph.Tensors(item.TensorIndex())
    shape = [int(size) for size in tensor.ShapeAsNumpy()]
    return {"shape": shape, "dtype": _TYPES[tensor.Type()].lower()}


def _read(path: pathlib.Path) -> schema.Model:
    """The file's root table."""
    data = path.read_bytes()
    try:
        if schema.Model.ModelBufferHasIdentifier(data, 0):
            return schema.Model.GetRootAs(data, 0)
    except (struct.error, IndexError) as error:
        raise _damaged(path) from error
    raise _damaged(path)


def _damaged(path: pathlib.Path) -> ModelError:
    return ModelError(f"{path} is not a TFLite file, or is damaged; export it again")
