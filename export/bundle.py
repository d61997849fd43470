"""One `.tflite` file with a signature for each of several files; what they share is in it once."""

from __future__ import annotations

import pathlib

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from export import flatbuffer, sharing
from instanas_tf import files
from instanas_tf.errors import InputError

_MIN_VERSION = b"min_runtime_version"


def merge(paths: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Writes one file out of several; nothing is converted again.

    The order of `paths` does not matter: the same files under the same names give the same bytes.

    Args:
        paths: name of a signature -> a file with one graph and one signature, whose names of
            inputs and outputs are kept.
        out: the file that is written, in one piece.

    Raises:
        InputError: a file is missing, or is not of that kind.
        ValueError: no file is given.
        DiskError: `out` cannot be written.
    """
    if not paths:
        raise ValueError("`paths` must name a file. Received: none")
    merged = flatbuffer.make(schema.ModelT, version=3, description=b"instanas_tf")
    merged.operatorCodes, merged.subgraphs, merged.signatureDefs = [], [], []
    merged.buffers = [schema.BufferT()]
    versions = []
    for name, path in sorted(paths.items()):
        model = flatbuffer.read(path)
        _require_one_signature(model, path)
        versions += _min_version(model)
        _append(merged, model, name)
    sharing.share(merged)
    if versions:
        newest = max(versions, key=_as_numbers)
        _set_min_version(merged, newest)
    _deduplicate_buffers(merged)
    files.write_bytes(out, flatbuffer.to_bytes(merged))


def _require_one_signature(model: schema.ModelT, path: pathlib.Path) -> None:
    graphs, signatures = len(model.subgraphs or ()), len(model.signatureDefs or ())
    if graphs != 1 or signatures != 1:
        raise InputError(
            f"{path} must have one graph with one signature. "
            f"Received: {graphs} and {signatures}; export it again"
        )


def _append(merged: schema.ModelT, model: schema.ModelT, name: str) -> None:
    """Adds the graph of a model, its signature, op codes and buffers."""
    codes = [_code(merged, code) for code in model.operatorCodes]
    first = len(merged.buffers)
    merged.buffers += model.buffers
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for operator in graph.operators:
        operator.opcodeIndex = codes[operator.opcodeIndex]
    for tensor in graph.tensors:
        tensor.buffer += first
    graph.name = name.encode()
    signature.signatureKey = name.encode()
    signature.subgraphIndex = len(merged.subgraphs)
    merged.subgraphs.append(graph)
    merged.signatureDefs.append(signature)


def _code(merged: schema.ModelT, code: schema.OperatorCodeT) -> int:
    """Index of an op code, which is added if it is new."""
    key = (flatbuffer.builtin(code), code.customCode, code.version)
    for index, known in enumerate(merged.operatorCodes):
        if key == (flatbuffer.builtin(known), known.customCode, known.version):
            return index
    merged.operatorCodes.append(code)
    return len(merged.operatorCodes) - 1


def _deduplicate_buffers(model: schema.ModelT) -> None:
    """Keeps one buffer of each content, and those alone that are in use; number 0 is empty."""
    kept = [schema.BufferT()]
    known = {b"": 0}
    metadata = model.metadata or []
    for user in [tensor for graph in model.subgraphs for tensor in graph.tensors] + metadata:
        data = model.buffers[user.buffer].data
        content = b"" if data is None else np.asarray(data).tobytes()
        if content not in known:
            known[content] = len(kept)
            kept.append(model.buffers[user.buffer])
        user.buffer = known[content]
    model.buffers = kept


def _min_version(model: schema.ModelT) -> list[bytes]:
    """The oldest runtime that runs a model, such as b"1.14.0", as far as the file says."""
    return [
        bytes(model.buffers[entry.buffer].data).rstrip(b"\0")
        for entry in model.metadata or ()
        if entry.name == _MIN_VERSION
    ]


def _as_numbers(version: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(b"."))


def _set_min_version(model: schema.ModelT, version: bytes) -> None:
    index = flatbuffer.add_buffer(model, np.frombuffer(version.ljust(16, b"\0"), np.uint8))
    model.metadata = [flatbuffer.make(schema.MetadataT, name=_MIN_VERSION, buffer=index)]
