"""Experts of one supernet have equal kernels but for a factor: here such kernels become one.

Each expert has normalisation statistics of its own, which the converter folds into its
convolutions, so that the kernels of two experts differ by a positive factor per output channel.
The kernel of the first graph stays as it is. The same convolution of a later graph takes that
kernel, and its factors go where they cost least:

* into the depthwise convolution behind it, where nothing but a ReLU stands between, since
  relu(f x + b) = f relu(x + b / f) for f > 0. The graph keeps its ops.
* else into a 1x1 depthwise convolution that is put behind it, with the bias and the
  activation; only where the kernel has at least as many entries as the output.

Quantised kernels have their factors outside already, and need to be nearly equal only.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from export import flatbuffer

# Each kernel is rounded once, and once more where statistics are folded in: `FLOAT_ERROR` is of
# the largest entry of a channel, `HALF_ERROR` of the entry itself, on top of `HALF_STEP`.
FLOAT_ERROR = 1e-6
HALF_ERROR = 1.1 * 2.0**-10
HALF_STEP = 2.0**-24
# Rounding to 8 bits may go the other way where a factor has shifted an entry by 1e-7 or so.
ODD_ENTRIES = 1e-3  # Share of the entries of an 8-bit kernel that may differ, by 1.

_OPS = schema.BuiltinOperator
_NO_ACTIVATION = schema.ActivationFunctionType.NONE
_RELU = schema.ActivationFunctionType.RELU


def share(model: schema.ModelT) -> None:
    """Changes the graphs of a model so that convolutions of several share their kernels.

    Args:
        model: is changed. Its graphs compute the same but for rounding: see the constants of
            this module.
    """
    floats: dict = collections.defaultdict(list)
    bytes_: dict = collections.defaultdict(list)
    for graph in model.subgraphs:
        view = _Graph(model, graph)
        for operator in list(graph.operators):
            if view.code(operator) == _OPS.CONV_2D:
                _share_float(view, operator, floats)
        for tensor in graph.tensors:
            if tensor.type == schema.TensorType.INT8:
                _share_bytes(model, tensor, bytes_)


@dataclasses.dataclass(frozen=True)
class _Constant:
    """A constant that an op takes, maybe by way of a DEQUANTIZE.

    Attributes:
        tensor: the constant tensor.
        values: its values.
        is_private: whether this op alone takes it.
    """

    tensor: schema.TensorT
    values: np.ndarray
    is_private: bool


class _Graph:
    """A graph of a model, and who makes and takes its tensors."""

    def __init__(self, model: schema.ModelT, graph: schema.SubGraphT):
        self.model, self.graph = model, graph
        self.makers = {int(out): op for op in graph.operators for out in op.outputs}
        self.takers: dict[int, list] = collections.defaultdict(list)
        for operator in graph.operators:
            for index in operator.inputs:
                self.takers[int(index)].append(operator)
        for index in graph.outputs:
            self.takers[int(index)].append(None)

    def code(self, operator: schema.OperatorT | None) -> int | None:
        """The built-in op that an operator is."""
        if operator is None:
            return None
        return flatbuffer.builtin(self.model.operatorCodes[operator.opcodeIndex])

    def constant(self, operator: schema.OperatorT, position: int) -> _Constant | None:
        """A float input of an operator if it is constant."""
        if position >= len(operator.inputs) or operator.inputs[position] < 0:
            return None
        index = int(operator.inputs[position])
        is_private = len(self.takers[index]) == 1
        maker = self.makers.get(index)
        if self.code(maker) == _OPS.DEQUANTIZE:
            index = int(maker.inputs[0])
            is_private &= len(self.takers[index]) == 1
        tensor = self.graph.tensors[index]
        values = flatbuffer.constant(self.model, tensor)
        if values is None or values.dtype.kind != "f":
            return None
        return _Constant(tensor, values, is_private)

    def replace(self, constant: _Constant, values: np.ndarray) -> None:
        """Gives a constant other values of the same shape."""
        values = values.astype(constant.values.dtype)
        constant.tensor.buffer = flatbuffer.add_buffer(self.model, values)


def _share_float(graph: _Graph, conv: schema.OperatorT, pool: dict) -> None:
    """Gives a convolution the kernel of an earlier one, or adds its own to the pool."""
    kernel = graph.constant(conv, 1)
    bias = graph.constant(conv, 2)
    if kernel is None or bias is None or not kernel.is_private:
        return
    known = pool[kernel.values.shape, kernel.tensor.type]
    own = kernel.values.reshape(len(kernel.values), -1)
    for buffer, values in known:
        factors = _factors(values, own)
        if factors is None:
            continue
        if np.array_equal(values, own) or _move_factors(graph, conv, kernel, bias, factors):
            kernel.tensor.buffer = buffer
            return
    known.append((kernel.tensor.buffer, own))


def _move_factors(
    graph: _Graph, conv: schema.OperatorT, kernel: _Constant, bias: _Constant, factors: np.ndarray
) -> bool:
    """Puts the factors [C] of a convolution's channels elsewhere; False if that does not pay."""
    if _into_depthwise(graph, conv, bias, factors):
        return True
    output = graph.graph.tensors[int(conv.outputs[0])]
    if kernel.values.size < np.prod(output.shape):
        return False
    _into_new_op(graph, conv, bias, factors)
    return True


def _into_depthwise(
    graph: _Graph, conv: schema.OperatorT, bias: _Constant, factors: np.ndarray
) -> bool:
    """Puts factors into the depthwise convolution behind a convolution, if there is one."""
    takers = graph.takers[int(conv.outputs[0])]
    is_linear = conv.builtinOptions.fusedActivationFunction in (_NO_ACTIVATION, _RELU)
    if not is_linear or len(takers) != 1 or not (factors > 0).all():
        return False
    depthwise = takers[0]
    if graph.code(depthwise) != _OPS.DEPTHWISE_CONV_2D or depthwise.inputs[0] != conv.outputs[0]:
        return False
    weights = graph.constant(depthwise, 1)
    if weights is None or weights.values.shape[-1] != len(factors):
        return False
    with np.errstate(over="ignore"):
        scaled = (weights.values * factors).astype(weights.values.dtype)
        shifted = (bias.values / factors).astype(bias.values.dtype)
    if not (weights.is_private and bias.is_private):
        return False
    if not (np.isfinite(scaled).all() and np.isfinite(shifted).all()):
        return False
    graph.replace(weights, scaled)
    graph.replace(bias, shifted)
    return True


def _into_new_op(
    graph: _Graph, conv: schema.OperatorT, bias: _Constant, factors: np.ndarray
) -> None:
    """Puts factors, bias and activation into a new 1x1 depthwise convolution."""
    model, operators = graph.model, graph.graph.operators
    output = int(conv.outputs[0])
    shape = graph.graph.tensors[output].shape
    raw = flatbuffer.make(schema.TensorT, shape=shape, type=schema.TensorType.FLOAT32, buffer=0)
    graph.graph.tensors.append(raw)
    raw_index = len(graph.graph.tensors) - 1
    scale, shift, nothing = (
        flatbuffer.add_constant(model, graph.graph, values.astype(np.float32))
        for values in (factors.reshape(1, 1, 1, -1), bias.values, np.zeros(len(factors)))
    )
    options = flatbuffer.make(
        schema.DepthwiseConv2DOptionsT,
        padding=schema.Padding.VALID,
        strideW=1,
        strideH=1,
        depthMultiplier=1,
        fusedActivationFunction=conv.builtinOptions.fusedActivationFunction,
    )
    added = flatbuffer.make(
        schema.OperatorT,
        opcodeIndex=_depthwise_code(model),
        inputs=np.array([raw_index, scale, shift], np.int32),
        outputs=np.array([output], np.int32),
        builtinOptionsType=schema.BuiltinOptions.DepthwiseConv2DOptions,
        builtinOptions=options,
    )
    conv.inputs = np.array([conv.inputs[0], conv.inputs[1], nothing], np.int32)
    conv.outputs = np.array([raw_index], np.int32)
    conv.builtinOptions.fusedActivationFunction = _NO_ACTIVATION
    operators.insert(next(i for i, op in enumerate(operators) if op is conv) + 1, added)


def _depthwise_code(model: schema.ModelT) -> int:
    """Index of the op code of a depthwise convolution, which is added if there is none."""
    for index, code in enumerate(model.operatorCodes):
        if flatbuffer.builtin(code) == _OPS.DEPTHWISE_CONV_2D:
            return index
    number = _OPS.DEPTHWISE_CONV_2D
    code = flatbuffer.make(
        schema.OperatorCodeT, deprecatedBuiltinCode=number, builtinCode=number, version=1
    )
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _factors(first: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """Factors [C] that make one kernel [C, n] the other but for rounding; None if none do."""
    if _row_factors(first[:1], other[:1]) is None:  # Quick, and mostly enough.
        return None
    return _row_factors(first, other)


def _row_factors(first: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    is_half = first.dtype == np.float16
    first, other = first.astype(np.float64), other.astype(np.float64)
    squares = np.sum(first * first, axis=1)
    factors = np.where(squares > 0, np.sum(first * other, axis=1) / np.maximum(squares, 1e-300), 1)
    if is_half:
        allowed = HALF_ERROR * np.abs(other) + HALF_STEP * (1 + np.abs(factors[:, None]))
    else:
        allowed = FLOAT_ERROR * np.max(np.abs(other), axis=1, keepdims=True)
    return factors if (np.abs(other - factors[:, None] * first) <= allowed).all() else None


def _share_bytes(model: schema.ModelT, tensor: schema.TensorT, pool: dict) -> None:
    """Gives an 8-bit tensor the values of an earlier one that are nearly equal."""
    values = flatbuffer.constant(model, tensor)
    if values is None:
        return
    known = pool[values.shape]
    for buffer, earlier in known:
        if _is_nearly(earlier, values):
            tensor.buffer = buffer
            return
    known.append((tensor.buffer, values))


def _is_nearly(first: np.ndarray, other: np.ndarray) -> bool:
    """Whether a share of at most `ODD_ENTRIES` of 8-bit entries differ, none by more than 1."""
    head = first.ravel()[:256].astype(np.int16) - other.ravel()[:256]
    if np.abs(head).max() > 1:  # Quick, and mostly enough.
        return False
    difference = np.abs(first.astype(np.int16) - other)
    return difference.max() <= 1 and np.count_nonzero(difference) <= ODD_ENTRIES * first.size
