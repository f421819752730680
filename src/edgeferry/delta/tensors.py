"""Where the float tensors of an .onnx or .tflite file lie, as byte ranges of the file.

This file knows where weights lie; how protobuf and flatbuffers are read is `model/protobuf.py` and
`model/flatbuffer.py`, what a model means is `model/inspect*`. A file that does not parse is opaque bytes: the answer is
then an empty tuple, never an error.

Rules:
- Ranges are sorted, never overlap, lie inside the file and hold at least MIN_ELEMENTS elements.
- Used where files are coded (the operator's side); decoding reads its ranges from the coded file.

Sources: onnx.proto3 (field numbers), the TensorFlow Lite schema (schema.fbs, vtable slots and type numbers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from edgeferry.errors import ModelUnreadable
from edgeferry.model import flatbuffer
from edgeferry.model.protobuf import Field, WireReader

Buffer = bytes | bytearray | memoryview
MIN_ELEMENTS = 64
MAX_RANGES = 16_384
_MAX_DEPTH = 8
_LITERT_IDENTIFIER = b"TFL3"


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
    walk = _walk_litert if bytes(view[4:8]) == _LITERT_IDENTIFIER else _walk_onnx
    try:
        return _keep_disjoint(walk(view), len(view))
    except ModelUnreadable:
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


def _walk_onnx(view: memoryview) -> Iterator[FloatRange]:
    reader = WireReader(view)
    for field in reader.walk():
        if field.number == _MODEL_GRAPH:
            yield from _walk_graph(reader, field, 0)


def _walk_graph(reader: WireReader, graph: Field, depth: int) -> Iterator[FloatRange]:
    if depth > _MAX_DEPTH:
        return
    for field in reader.walk(graph.start, graph.end):
        if field.number == _GRAPH_INITIALIZER:
            yield from _walk_tensor(reader, field)
        elif field.number == _GRAPH_NODE:
            yield from _walk_node(reader, field, depth)


def _walk_node(reader: WireReader, node: Field, depth: int) -> Iterator[FloatRange]:
    for attribute in reader.walk(node.start, node.end):
        if attribute.number != _NODE_ATTRIBUTE:
            continue
        for field in reader.walk(attribute.start, attribute.end):
            if field.number == _ATTRIBUTE_TENSOR:
                yield from _walk_tensor(reader, field)
            elif field.number == _ATTRIBUTE_GRAPH:
                yield from _walk_graph(reader, field, depth + 1)


def _walk_tensor(reader: WireReader, tensor: Field) -> Iterator[FloatRange]:
    width, spans = 0, []
    for field in reader.walk(tensor.start, tensor.end):
        if field.number == _TENSOR_TYPE:
            width = _ONNX_WIDTHS.get(field.value, 0)
        elif field.number in (_TENSOR_RAW, _TENSOR_FLOATS):
            spans.append(field)
    for span in spans if width else ():
        step = 4 if span.number == _TENSOR_FLOATS else width
        yield FloatRange(span.start, (span.end - span.start) // step, step)


# --- TensorFlow Lite: Model.subgraphs -> tensors -> buffers -----------------------------------------------------------
_MODEL_SUBGRAPHS, _MODEL_BUFFERS, _SUBGRAPH_TENSORS = 2, 4, 0
_TENSOR_KIND, _TENSOR_BUFFER, _BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 1, 2, 0, 1, 2
_LITERT_WIDTHS = {0: 4, 1: 2, 10: 8, 18: 2}  # FLOAT32, FLOAT16, FLOAT64, BFLOAT16


def _walk_litert(view: memoryview) -> Iterator[FloatRange]:
    model = flatbuffer.Buffer(view).get_root(_LITERT_IDENTIFIER)
    buffers = list(model.iter_tables(_MODEL_BUFFERS))
    for subgraph in model.iter_tables(_MODEL_SUBGRAPHS):
        for tensor in subgraph.iter_tables(_SUBGRAPH_TENSORS):
            width = _LITERT_WIDTHS.get(tensor.get_int(_TENSOR_KIND, "B"), 0)
            index = tensor.get_int(_TENSOR_BUFFER, "I")
            if width and 0 < index < len(buffers):
                yield from _walk_buffer(buffers[index], width)


def _walk_buffer(buffer: flatbuffer.Table, width: int) -> Iterator[FloatRange]:
    start, size_bytes = buffer.get_vector(_BUFFER_DATA, 1)
    if not start:  # weights of models over 2 GB lie behind the flatbuffer
        start, size_bytes = buffer.get_int(_BUFFER_OFFSET, "Q"), buffer.get_int(_BUFFER_SIZE, "Q")
    if start:
        yield FloatRange(start, size_bytes // width, width)
