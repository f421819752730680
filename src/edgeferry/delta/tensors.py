"""Where the float tensors of an .onnx or .tflite file lie, as byte ranges of the file.

This file knows just enough of protobuf and flatbuffers to find weights; what a model means is `model/inspect*`. A file
that does not parse is opaque bytes: the answer is then an empty tuple, never an error.

Rules:
- Ranges are sorted, never overlap, lie inside the file and hold at least MIN_ELEMENTS elements.
- Used where files are coded (the operator's side); decoding reads its ranges from the coded file.

Sources: onnx.proto3 (field numbers), the TensorFlow Lite schema (schema.fbs, vtable slots and type numbers).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview
MIN_ELEMENTS = 64
MAX_RANGES = 16_384
_MAX_DEPTH = 8


class FloatRange(NamedTuple):
    """`elements` floats of `width` bytes each, little-endian, from byte `start` of the file."""

    start: int
    elements: int
    width: int

    @property
    def end(self) -> int:
        """First byte after the range."""
        return self.start + self.elements * self.width


def find_float_ranges(data: Buffer) -> tuple[FloatRange, ...]:
    """The float tensors of a model file; empty when it is neither ONNX nor TensorFlow Lite."""
    view = memoryview(data)
    walk = _walk_litert if bytes(view[4:8]) == b"TFL3" else _walk_onnx
    try:
        return _keep_disjoint(walk(view), len(view))
    except (ValueError, IndexError, struct.error, RecursionError):
        return ()


def _keep_disjoint(found: Iterable[FloatRange], size_bytes: int) -> tuple[FloatRange, ...]:
    kept: list[FloatRange] = []
    for one in sorted(found):
        after_last = not kept or one.start >= kept[-1].end
        if after_last and one.elements >= MIN_ELEMENTS and one.end <= size_bytes and len(kept) < MAX_RANGES:
            kept.append(one)
    return tuple(kept)


# --- ONNX: ModelProto.graph -> initializer and Constant nodes ---------------------------------------------------------
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _NODE_ATTRIBUTE = 7, 1, 5, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_RAW = 5, 6, 2, 4, 9
_ONNX_WIDTHS = {1: 4, 10: 2, 11: 8, 16: 2}  # float, float16, double, bfloat16


class _Field(NamedTuple):
    number: int
    start: int
    end: int
    value: int


def _walk_onnx(view: memoryview) -> Iterator[FloatRange]:
    for field in _read_fields(view, 0, len(view)):
        if field.number == _MODEL_GRAPH:
            yield from _walk_graph(view, field, 0)


def _walk_graph(view: memoryview, graph: _Field, depth: int) -> Iterator[FloatRange]:
    if depth > _MAX_DEPTH:
        return
    for field in _read_fields(view, graph.start, graph.end):
        if field.number == _GRAPH_INITIALIZER:
            yield from _walk_tensor(view, field)
        elif field.number == _GRAPH_NODE:
            yield from _walk_node(view, field, depth)


def _walk_node(view: memoryview, node: _Field, depth: int) -> Iterator[FloatRange]:
    for attribute in _read_fields(view, node.start, node.end):
        if attribute.number != _NODE_ATTRIBUTE:
            continue
        for field in _read_fields(view, attribute.start, attribute.end):
            if field.number == _ATTRIBUTE_TENSOR:
                yield from _walk_tensor(view, field)
            elif field.number == _ATTRIBUTE_GRAPH:
                yield from _walk_graph(view, field, depth + 1)


def _walk_tensor(view: memoryview, tensor: _Field) -> Iterator[FloatRange]:
    width, spans = 0, []
    for field in _read_fields(view, tensor.start, tensor.end):
        if field.number == _TENSOR_TYPE:
            width = _ONNX_WIDTHS.get(field.value, 0)
        elif field.number in (_TENSOR_RAW, _TENSOR_FLOATS):
            spans.append(field)
    for span in spans if width else ():
        step = 4 if span.number == _TENSOR_FLOATS else width
        yield FloatRange(span.start, (span.end - span.start) // step, step)


def _read_fields(view: memoryview, start: int, end: int) -> Iterator[_Field]:
    """Yields the fields of one protobuf message; raises ValueError when it is none."""
    while start < end:
        key, start = _read_varint(view, start, end)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        value = 0
        if kind == 0:
            value, stop = _read_varint(view, start, end)
        elif kind == 2:
            length, start = _read_varint(view, start, end)
            stop = start + length
        elif kind in (1, 5):
            stop = start + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"wire type {kind}")
        if stop > end:
            raise ValueError("field runs past its message")
        yield _Field(number, start, stop, value)
        start = stop


def _read_varint(view: memoryview, start: int, end: int) -> tuple[int, int]:
    value = 0
    for place in range(start, min(start + 10, end)):
        byte = view[place]
        value |= (byte & 0x7F) << (7 * (place - start))
        if byte < 0x80:
            return value, place + 1
    raise ValueError("varint without an end")


# --- TensorFlow Lite: Model.subgraphs -> tensors -> buffers -----------------------------------------------------------
_MODEL_SUBGRAPHS, _MODEL_BUFFERS, _SUBGRAPH_TENSORS = 2, 4, 0
_TENSOR_KIND, _TENSOR_BUFFER, _BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 1, 2, 0, 1, 2
_LITERT_WIDTHS = {0: 4, 1: 2, 10: 8, 18: 2}  # FLOAT32, FLOAT16, FLOAT64, BFLOAT16


def _walk_litert(view: memoryview) -> Iterator[FloatRange]:
    model = _read_offset(view, 0)
    buffers = _read_tables(view, _find_slot(view, model, _MODEL_BUFFERS))
    for subgraph in _read_tables(view, _find_slot(view, model, _MODEL_SUBGRAPHS)):
        for tensor in _read_tables(view, _find_slot(view, subgraph, _SUBGRAPH_TENSORS)):
            kind_at = _find_slot(view, tensor, _TENSOR_KIND)
            buffer_at = _find_slot(view, tensor, _TENSOR_BUFFER)
            width = _LITERT_WIDTHS.get(view[kind_at] if kind_at else 0, 0)
            index = _unpack(view, "<I", buffer_at) if buffer_at else 0
            if width and 0 < index < len(buffers):
                yield from _walk_buffer(view, buffers[index], width)


def _walk_buffer(view: memoryview, buffer: int, width: int) -> Iterator[FloatRange]:
    data_at = _find_slot(view, buffer, _BUFFER_DATA)
    if data_at:
        vector = _read_offset(view, data_at)
        yield FloatRange(vector + 4, _unpack(view, "<I", vector) // width, width)
        return
    offset_at, size_at = _find_slot(view, buffer, _BUFFER_OFFSET), _find_slot(view, buffer, _BUFFER_SIZE)
    if offset_at and size_at:  # weights of models over 2 GB lie behind the flatbuffer
        yield FloatRange(_unpack(view, "<Q", offset_at), _unpack(view, "<Q", size_at) // width, width)


def _unpack(view: memoryview, form: str, at: int) -> int:
    if at < 0:
        raise ValueError("offset before the file")
    return int(struct.unpack_from(form, view, at)[0])


def _read_offset(view: memoryview, at: int) -> int:
    return at + _unpack(view, "<I", at)


def _find_slot(view: memoryview, table: int, slot: int) -> int:
    """Position of a table's field, or 0 when the table leaves it out."""
    vtable = table - _unpack(view, "<i", table)
    place = 4 + 2 * slot
    if place + 2 > _unpack(view, "<H", vtable):
        return 0
    offset = _unpack(view, "<H", vtable + place)
    return table + offset if offset else 0


def _read_tables(view: memoryview, at: int) -> list[int]:
    """Positions of the tables in the vector that the field at `at` points to."""
    if not at:
        return []
    vector = _read_offset(view, at)
    count = _unpack(view, "<I", vector)
    if count > MAX_RANGES or vector + 4 + 4 * count > len(view):
        raise ValueError("vector runs past the file")
    return [_read_offset(view, vector + 4 + 4 * place) for place in range(count)]
