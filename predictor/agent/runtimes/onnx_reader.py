"""Reads ONNX files without the onnx package, which agents do not install.

Only the fields that a graph of one input with its weights inside needs; what is not known is
skipped, as protocol buffers intend. Numbers are those of onnx.proto.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.errors import RuntimeFailedError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types

_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}
_TYPED_DATA = {1: 4, 7: 7, 11: 10}  # the field that holds a type's numbers; 5 for the others

Field = tuple[int, int, Any]


@dataclass(frozen=True)
class Node:
    """One operator; an input left out has the empty name."""

    operator: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class OnnxGraph:
    """The graph of a file.

    Attributes:
        nodes: in an order in which they can run.
        initializers: weights and other constants by name.
        inputs: shapes of what has to be fed, by name; 0 for a dimension without a number.
        outputs: names.
    """

    nodes: list[Node]
    initializers: dict[str, NDArray[Any]]
    inputs: dict[str, tuple[int, ...]]
    outputs: list[str]


def read_onnx(model: bytes) -> OnnxGraph:
    """The graph in `model`.

    Raises:
        RuntimeFailedError: the bytes are no ONNX file, or keep data outside of it.
    """
    try:
        graphs = [value for number, _, value in _fields(memoryview(model)) if number == 7]
        if len(graphs) != 1:
            raise RuntimeFailedError("this is no ONNX file: it holds no graph")
        return _graph(graphs[0])
    except (ValueError, IndexError, TypeError, KeyError, struct.error) as error:
        raise RuntimeFailedError(f"this is no ONNX file: {error}") from error


def _graph(content: memoryview) -> OnnxGraph:
    graph = OnnxGraph([], {}, {}, [])
    declared: dict[str, tuple[int, ...]] = {}
    for number, _, value in _fields(content):
        match number:
            case 1:
                graph.nodes.append(_node(value))
            case 5:
                name, array = _tensor(value)
                graph.initializers[name] = array
            case 11:
                name, shape = _value_info(value)
                declared[name] = shape
            case 12:
                graph.outputs.append(_value_info(value)[0])
    graph.inputs.update((n, s) for n, s in declared.items() if n not in graph.initializers)
    return graph


def _node(content: memoryview) -> Node:
    node = Node("", "", [], [], {})
    texts = {3: "", 4: ""}
    for number, _, value in _fields(content):
        match number:
            case 1:
                node.inputs.append(_text(value))
            case 2:
                node.outputs.append(_text(value))
            case 3 | 4:
                texts[number] = _text(value)
            case 5:
                name, attribute = _attribute(value)
                node.attributes[name] = attribute
    return Node(texts[4], texts[3], node.inputs, node.outputs, node.attributes)


def _attribute(content: memoryview) -> tuple[str, Any]:
    name, kind = "", 0
    single: dict[int, Any] = {1: 0.0, 2: 0, 3: ""}
    floats: list[float] = []
    ints: list[int] = []
    for number, wire, value in _fields(content):
        match number:
            case 1:
                name = _text(value)
            case 2:
                (single[1],) = struct.unpack("<f", value)
            case 3:
                single[2] = _signed(value)
            case 4:
                single[3] = _text(value)
            case 5:
                single[4] = _tensor(value)[1]
            case 7:
                floats += np.frombuffer(value, "<f4").tolist()
            case 8:
                ints += _integers(wire, value)
            case 20:
                kind = value
    many = {6: floats, 7: ints}
    return name, many[kind] if kind in many else single[kind]


def _tensor(content: memoryview) -> tuple[str, NDArray[Any]]:
    name, dtype, raw = "", 0, None
    shape: list[int] = []
    typed: dict[int, list[Any]] = {}
    for number, wire, value in _fields(content):
        match number:
            case 1:
                shape += _integers(wire, value)
            case 2:
                dtype = value
            case 4:
                typed.setdefault(4, []).extend(np.frombuffer(value, "<f4"))
            case 5 | 7:
                typed.setdefault(number, []).extend(_integers(wire, value))
            case 8:
                name = _text(value)
            case 9:
                raw = value
            case 10:
                typed.setdefault(10, []).extend(np.frombuffer(value, "<f8"))
            case 13:
                raise RuntimeFailedError(f"tensor {name!r} keeps its data outside of the file")
    if dtype not in _DTYPES:
        raise RuntimeFailedError(f"tensor {name!r} has the unknown type {dtype}")
    if raw is not None:
        array = np.frombuffer(raw, _DTYPES[dtype])
    else:
        array = np.array(typed.get(_TYPED_DATA.get(dtype, 5), []), _DTYPES[dtype])
    return name, array.reshape(shape)


def _value_info(content: memoryview) -> tuple[str, tuple[int, ...]]:
    name = ""
    shape: tuple[int, ...] = ()
    for number, _, value in _fields(content):
        if number == 1:
            name = _text(value)
        elif number == 2:
            shape = tuple(
                next((size for field, _, size in _fields(dimension) if field == 1), 0)
                for tensor in _inner(value, 1)
                for dimensions in _inner(tensor, 2)
                for dimension in _inner(dimensions, 1)
            )
    return name, shape


def _inner(content: memoryview, wanted: int) -> list[memoryview]:
    return [value for number, _, value in _fields(content) if number == wanted]


def _fields(content: memoryview) -> Iterator[Field]:
    """Number, wire type and value of each field of a message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(content, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(content, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(content):
            raise ValueError("it ends too early")
        yield number, wire, content[at : at + size]
        at += size


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, unsigned, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _integers(wire: int, value: Any) -> list[int]:
    """A repeated field's numbers, packed into one field or not."""
    if wire == _VARINT:
        return [_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _text(value: memoryview) -> str:
    return bytes(value).decode()
