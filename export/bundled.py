"""One signature of a file of several, loaded without the others; NumPy and a runtime are enough.

A runtime that is given the whole file prepares the weights of every signature as soon as one of
them runs. So the runtime is given a file of one signature, which is cut out of the bundle when it
is loaded: all but the weights, which `export.bundle` puts last, and the weights that it uses.
"""

from __future__ import annotations

import mmap
import pathlib
import struct
from typing import Any

from export.runtime import TfliteModel

# Numbers of fields in TFLite's schema.
_MODEL_GRAPHS, _MODEL_BUFFERS, _MODEL_SIGNATURES = 2, 4, 7
_GRAPH_TENSORS, _TENSOR_BUFFER, _BUFFER_DATA = 0, 2, 0
_SIGNATURE_KEY, _SIGNATURE_GRAPH = 2, 4
_ALIGNMENT = 16  # Of weights, in bytes.


class SignatureModel(TfliteModel):
    """One signature of a bundle; as `TfliteModel`, and costs what a file of its own would.

    Args:
        path: the bundle.
        name: of the signature.
        threads: of the runtime.
        runtime: see `export.runtime.find_runtime`.

    Raises:
        ModelError: the file cannot be loaded, or has no such signature.
    """

    def __init__(self, path: pathlib.Path, name: str, threads: int = 1, runtime: str = "auto"):
        self._name = name
        super().__init__(path, threads, runtime)

    def _source(self, path: pathlib.Path) -> dict[str, Any]:
        """The part of the bundle that the signature needs."""
        return {"model_content": cut_out(path, self._name)}


def signatures(path: pathlib.Path) -> tuple[str, ...]:
    """Names of the signatures of a file.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content:
        return tuple(_read(content, _signatures))


def cut_out(path: pathlib.Path, name: str) -> bytes:
    """A `.tflite` file of one signature of a bundle; weights of others are not read.

    Args:
        path: the bundle.
        name: of the signature, which is kept.

    Raises:
        ValueError: the file is damaged, was not written by `export.bundle`, or has no such
            signature.
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content:
        return _read(content, lambda found: _cut_out(found, name))


def _read(content: mmap.mmap, function):
    if content[4:8] != b"TFL3":
        raise ValueError("it is no .tflite file")
    try:
        return function(content)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError("it is damaged") from error


def _cut_out(content: mmap.mmap, name: str) -> bytes:
    names = _signatures(content)
    if name not in names:
        raise ValueError(f"it has the signatures {sorted(names)}")
    root = _follow(content, 0)
    signature = names[name]
    number_at = _field(content, signature, _SIGNATURE_GRAPH)
    number = _number(content, number_at) if number_at else 0
    graph = _tables(content, root, _MODEL_GRAPHS)[number]
    used = {
        _number(content, at) if (at := _field(content, tensor, _TENSOR_BUFFER)) else 0
        for tensor in _tables(content, graph, _GRAPH_TENSORS)
    }
    buffers = _tables(content, root, _MODEL_BUFFERS)
    fields = {i: _field(content, table, _BUFFER_DATA) for i, table in enumerate(buffers)}
    places = {i: _follow(content, at) for i, at in fields.items() if at}
    end = min(places.values(), default=len(content))
    if max(root, signature, graph, *buffers) >= end:
        raise ValueError("its weights do not stand last")
    head = bytearray(content[:end])
    _keep_one(head, root, _MODEL_GRAPHS, graph)
    _keep_one(head, root, _MODEL_SIGNATURES, signature)
    if number_at:
        struct.pack_into("<I", head, number_at, 0)
    weights = []
    nothing = _aligned(end)
    size = nothing + 4  # There the empty vector ends that stands for all other weights.
    weights.append(bytes(size - end))
    for index, place in places.items():
        target = nothing
        if index in used:
            target = _aligned(size)
            length = 4 + _number(content, place)
            weights += [bytes(target - size), content[place : place + length]]
            size = target + length
        struct.pack_into("<I", head, fields[index], target - fields[index])
    return b"".join([head, *weights])


def _aligned(size: int) -> int:
    """The next place for a vector, whose length takes 4 bytes, so that its data is aligned."""
    return -(-(size + 4) // _ALIGNMENT) * _ALIGNMENT - 4


def _keep_one(head: bytearray, root: int, field: int, table: int) -> None:
    """Makes a vector of tables one of a single table."""
    vector = _follow(head, _field(head, root, field))
    struct.pack_into("<II", head, vector, 1, table - (vector + 4))


def _signatures(content: mmap.mmap) -> dict[str, int]:
    """Name -> where its table is."""
    found = {}
    for table in _tables(content, _follow(content, 0), _MODEL_SIGNATURES):
        text = _follow(content, _field(content, table, _SIGNATURE_KEY))
        found[bytes(content[text + 4 : text + 4 + _number(content, text)]).decode()] = table
    return found


# FlatBuffers: a table starts with the distance back to a list of where its fields are.


def _number(content, at: int) -> int:
    return struct.unpack_from("<I", content, at)[0]


def _follow(content, at: int) -> int:
    return at + _number(content, at)


def _field(content, table: int, number: int) -> int:
    """Where a field of a table is; 0 if it has its default value."""
    layout = table - struct.unpack_from("<i", content, table)[0]
    size = struct.unpack_from("<H", content, layout)[0]
    if 4 + 2 * number >= size:
        return 0
    offset = struct.unpack_from("<H", content, layout + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _tables(content, table: int, number: int) -> list[int]:
    """Where the tables of a vector are, which is a field of a table."""
    at = _field(content, table, number)
    if not at:
        return []
    vector = _follow(content, at)
    places = range(vector + 4, vector + 4 + 4 * _number(content, vector), 4)
    return [_follow(content, place) for place in places]
