"""TensorFlow Lite model bytes -> the tensors stored in them, of all subgraphs.

How flatbuffers are read is `model/flatbuffer.py`, what a model is for is `model/inspect_litert.py`.

Rules:
- Buffers count that hold bytes, inside the flatbuffer or (models over 2 GB) behind it.
- Only kinds with whole-byte elements; sparse tensors come out flat, as their data is shorter than their shape.
- Everything costs some of the flatbuffer's budget. Every error is ModelUnreadable.

Source: schema.fbs (version 3) of TensorFlow Lite; slots below are in its order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgeferry.delta.roles import Graph, Key, Quantisation, Stored, Tensor, make_tensor
from edgeferry.errors import ModelUnreadable
from edgeferry.model.flatbuffer import Buffer, Table
from edgeferry.model.litert_names import BUILTIN_OPERATORS

LITERT_IDENTIFIER = b"TFL3"
_BUDGET = 16 << 20
_CHANNELS_MAX = 1 << 18
_OPERANDS_MAX = 10_000
_RANK_MAX = 16

_MODEL_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS = 1, 2, 4
_CODE_OLD, _CODE_CUSTOM, _CODE_NEW = 0, 1, 3
_CUSTOM = 32
_GRAPH_TENSORS, _GRAPH_OPERATORS = 0, 3
_TENSOR_SHAPE, _TENSOR_KIND, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_QUANTISATION = 0, 1, 2, 3, 4
_SCALE, _ZERO, _DIMENSION = 2, 3, 6
_OPERATOR_CODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS, _OPERATOR_OPTIONS = 0, 1, 2, 4
_ADJOINT_Y = 1
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_KINDS = {
    **{0: "f4", 1: "f2", 2: "i4", 3: "u1", 4: "i8", 6: "b1", 7: "i2", 9: "i1"},
    **{10: "f8", 12: "u8", 15: "u4", 16: "u2", 18: "bf2"},
}

_SEEN_THROUGH = frozenset({"CAST", "DENSIFY", "DEQUANTIZE", "QUANTIZE", "TRANSPOSE"})
_AXES = {
    **{("CONV_2D", 1): 0, ("DEPTHWISE_CONV_2D", 1): -1, ("FULLY_CONNECTED", 1): 0, ("TRANSPOSE_CONV", 1): 0},
    **{("CONV_3D", 1): -1, ("CONV_3D_TRANSPOSE", 1): -2, ("BATCH_MATMUL", 0): -2, ("BATCH_MATMUL", 1): -1},
}
"""Operator and input -> axis of output channels."""


@dataclass(slots=True)
class _File:
    view: memoryview
    names: list[str]
    graph: Graph = field(default_factory=lambda: Graph(_SEEN_THROUGH))
    stored: dict[Key, Stored] = field(default_factory=dict)


def walk_litert(view: memoryview) -> Iterator[Tensor]:
    """The stored tensors, subgraph by subgraph.

    Raises:
        ModelUnreadable: not such a model, cut off, or of unreasonable size.
    """
    model = Buffer(view, budget=_BUDGET).get_root(LITERT_IDENTIFIER)
    file = _File(view, [_name_operator(code) for code in model.iter_tables(_MODEL_CODES)])
    spans = [_find_data(each) for each in model.iter_tables(_MODEL_BUFFERS)]
    quantised: dict[Key, Quantisation] = {}
    for scope, subgraph in enumerate(model.iter_tables(_MODEL_SUBGRAPHS)):
        for stored, quantisation in _read_tensors(subgraph, scope, spans):
            file.stored[stored.key] = stored
            quantised[stored.key] = quantisation
        for operator in subgraph.iter_tables(_GRAPH_OPERATORS):
            _read_operator(file, operator, scope)
    for key, stored in file.stored.items():
        yield _describe(file.graph, stored, quantised[key])


def _name_operator(code: Table) -> str:
    # Codes above 127 stand in a second field; older files have only the first.
    builtin = max(code.get_int(_CODE_OLD, "b"), code.get_int(_CODE_NEW, "i"))
    if builtin == _CUSTOM:
        return code.get_text(_CODE_CUSTOM)
    return BUILTIN_OPERATORS[builtin] if 0 <= builtin < len(BUILTIN_OPERATORS) else f"builtin:{builtin}"


def _find_data(buffer: Table) -> tuple[int, int]:
    """Start and size in bytes; the start is 0 when there is no data."""
    start, size_bytes = buffer.get_vector(_BUFFER_DATA, 1)
    if not start:  # weights of models over 2 GB lie behind the flatbuffer
        start, size_bytes = buffer.get_int(_BUFFER_OFFSET, "Q"), buffer.get_int(_BUFFER_SIZE, "Q")
    return (start, size_bytes) if size_bytes else (0, 0)


def _read_tensors(subgraph: Table, scope: int, spans: list[tuple[int, int]]) -> Iterator[tuple[Stored, Quantisation]]:
    for place, tensor in enumerate(subgraph.iter_tables(_GRAPH_TENSORS)):
        kind = _KINDS.get(tensor.get_int(_TENSOR_KIND, "B"), "")
        index = tensor.get_int(_TENSOR_BUFFER, "I")
        start, size_bytes = spans[index] if 0 < index < len(spans) else (0, 0)
        if kind and start:
            shape = tensor.get_ints(_TENSOR_SHAPE, _RANK_MAX)
            stored = Stored((scope, place), tensor.get_text(_TENSOR_NAME), kind, shape, start, size_bytes)
            yield stored, _read_quantisation(tensor.get_table(_TENSOR_QUANTISATION))


def _read_quantisation(table: Table | None) -> Quantisation:
    if table is None or table.get_vector(_SCALE, 4)[1] > _CHANNELS_MAX:
        return Quantisation()
    scales = table.get_scalars(_SCALE, "f", _CHANNELS_MAX)
    zeros = table.get_scalars(_ZERO, "q", _CHANNELS_MAX)
    return Quantisation(scales, tuple(int(zero) for zero in zeros), table.get_int(_DIMENSION, "i"))


def _read_operator(file: _File, operator: Table, scope: int) -> None:
    code = operator.get_int(_OPERATOR_CODE, "I")
    if code >= len(file.names):
        raise ModelUnreadable(f"expected an operator code below {len(file.names)}, found {code}")
    name = file.names[code]
    inputs = operator.get_ints(_OPERATOR_INPUTS, _OPERANDS_MAX)
    outputs = operator.get_ints(_OPERATOR_OUTPUTS, _OPERANDS_MAX)
    numbers = {}
    if name == "BATCH_MATMUL":
        options = operator.get_table(_OPERATOR_OPTIONS)
        numbers["transB"] = options.get_int(_ADJOINT_Y, "B") if options else 0
    file.graph.add(
        name,
        tuple((scope, index) for index in inputs),
        tuple((scope, index) for index in outputs),
        numbers=numbers,
        turn=_read_turn(file, (scope, inputs[1])) if name == "TRANSPOSE" and len(inputs) > 1 else None,
    )


def _read_turn(file: _File, key: Key) -> tuple[int, ...] | None:
    """The order of axes of a TRANSPOSE; None when it is not a small stored tensor."""
    order = file.stored.get(key)
    if order is None or order.kind != "i4" or order.size_bytes % 4 or not 0 < order.size_bytes <= 4 * _RANK_MAX:
        return None
    if order.start + order.size_bytes > len(file.view):
        return None
    return struct.unpack_from(f"<{order.size_bytes // 4}i", file.view, order.start)


def _describe(graph: Graph, stored: Stored, quantisation: Quantisation) -> Tensor:
    uses = graph.follow(stored.key, len(stored.shape))
    if not uses:
        return make_tensor(stored, role="", channel_axis=0, quantisation=quantisation)
    last = uses[-1]
    axis = _AXES.get((last.node.operator, last.place))
    if last.node.numbers.get("transB") and last.place == 1:
        axis = -2
    role = f"{last.node.operator}/{last.place}@{last.node.ordinal}"
    channel_axis = 0 if axis is None else last.map_axis(axis)
    return make_tensor(stored, role=role, channel_axis=channel_axis, quantisation=quantisation)
