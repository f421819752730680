"""ONNX model bytes -> the tensors stored in them: initializers and attributes of nodes, also of graphs inside nodes.

How protobuf is read is `model/protobuf.py`, what a model is for is `model/inspect_onnx.py`.

Rules:
- Data counts that lies in one piece: raw_data, packed float_data and double_data. Varints, sparse and external tensors
  are left out.
- An operator and its quantised forms (Conv, QLinearConv, ConvInteger) count as one operator.
- Everything is bounded: fields, nodes, tensors, depth of graphs, scales. Every error is ModelUnreadable.

Sources: onnx.proto3 (field numbers); Operators.md of ONNX and ContribOperators.md of ONNX Runtime (places of inputs).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from edgeferry.delta.roles import WIDTHS, Graph, Key, Node, Quantisation, Stored, Tensor, Use, make_tensor
from edgeferry.errors import ModelUnreadable
from edgeferry.model.protobuf import LENGTH, VARINT, Field, WireReader, to_signed

_FIELDS_MAX = 1_000_000
_NODES_MAX = _TENSORS_MAX = 1 << 17
_DEPTH_MAX = 8
_RANK_MAX = 16
_NAME_MAX_BYTES = 64 << 10
_CHANNELS_MAX = 1 << 16

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 3, 8
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
_TENSOR_DIMS, _TENSOR_KIND, _TENSOR_NAME, _TENSOR_LOCATION = 1, 2, 8, 14
_TENSOR_FLOATS, _TENSOR_INT32S, _TENSOR_RAW, _TENSOR_DOUBLES = 4, 5, 9, 10
_EXTERNAL = 1
_KINDS = {
    **{1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "b1"},
    **{10: "f2", 11: "f8", 12: "u4", 13: "u8", 16: "bf2"},
}
_CODES = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "i8": "q"}
_DATA = frozenset({_TENSOR_FLOATS, _TENSOR_INT32S, _TENSOR_RAW, _TENSOR_DOUBLES})
_NUMBERS = frozenset({"axis", "transB"})
_PIECES = {_TENSOR_FLOATS: "f4", _TENSOR_DOUBLES: "f8"}

_SEEN_THROUGH = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose"})
_SAME_AS = {
    **dict.fromkeys(("QLinearConv", "ConvInteger", "FusedConv"), "Conv"),
    **dict.fromkeys(("QLinearMatMul", "MatMulInteger", "FusedMatMul"), "MatMul"),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), "MatMul"),
    **dict.fromkeys(("QGemm", "FusedGemm"), "Gemm"),
}
_SAME_PLACES = {
    **{("QLinearConv", 3): 1, ("QLinearConv", 8): 2, ("QLinearMatMul", 3): 1, ("QGemm", 3): 1, ("QGemm", 6): 2},
    **{(name, place): place for name in _SAME_AS if name[0] != "Q" for place in (0, 1)},
    **{("FusedConv", 2): 2, ("FusedGemm", 2): 2},
}
"""Operator and input -> the input of the operator that it counts as."""
_AXES = {("Conv", 1): 0, ("ConvTranspose", 1): 1, ("Gemm", 1): -1, ("MatMul", 0): -2, ("MatMul", 1): -1}
"""Operator and input -> axis of output channels; another one when `transB` is set."""
_QUANTISERS = {
    **{("QLinearConv", 3): (4, 5), ("QLinearMatMul", 0): (1, 2), ("QLinearMatMul", 3): (4, 5)},
    **{("QGemm", 0): (1, 2), ("QGemm", 3): (4, 5), ("DequantizeLinear", 0): (1, 2)},
    **{("DynamicQuantizeMatMul", 1): (2, 3), ("MatMulIntegerToFloat", 1): (3, 5)},
}
"""Operator and input -> the inputs that hold its scale and its zero point."""
_INTEGER_ZEROS = {("ConvInteger", 1): 3, ("MatMulInteger", 1): 3}
"""Operator and input -> the input that holds its zero point, where the scale is applied to the result."""
_QUANTISED = frozenset({"i1", "u1", "i2", "u2", "i4"})


class _Entry(NamedTuple):
    """A TensorProto: its data where it lies in one piece, or small integers as varints."""

    stored: Stored
    varints: Field | None


@dataclass(slots=True)
class _Model:
    view: memoryview
    reader: WireReader
    graph: Graph = field(default_factory=lambda: Graph(_SEEN_THROUGH, _SAME_AS))
    entries: dict[Key, _Entry] = field(default_factory=dict)
    values: dict[Key, tuple[float, ...]] = field(default_factory=dict)
    scopes: int = 0
    nodes: int = 0


def walk_onnx(view: memoryview) -> Iterator[Tensor]:
    """The stored tensors in the order of the file.

    Raises:
        ModelUnreadable: no protobuf, or more of anything than a model has.
    """
    model = _Model(view, WireReader(view, fields_max=_FIELDS_MAX))
    for each in model.reader.walk():
        if each.number == _MODEL_GRAPH and each.kind == LENGTH:
            _read_graph(model, each, 0, 0)
    for entry in model.entries.values():
        if entry.stored.start:
            yield _describe(model, entry.stored)


# --- reading ----------------------------------------------------------------------------------------------------------
def _read_graph(model: _Model, message: Field, scope: int, depth: int) -> None:
    if depth > _DEPTH_MAX:
        return
    for each in model.reader.walk(message.start, message.end):
        if each.kind != LENGTH:
            continue
        if each.number == _GRAPH_INITIALIZER:
            _read_tensor(model, each, scope, "")
        elif each.number == _GRAPH_NODE:
            _read_node(model, each, scope, depth)


def _read_node(model: _Model, message: Field, scope: int, depth: int) -> None:
    model.nodes += 1
    if model.nodes > _NODES_MAX:
        raise ModelUnreadable(f"expected at most {_NODES_MAX} nodes, found more")
    operator, inputs, outputs, attributes = "", [], [], []
    for each in model.reader.walk(message.start, message.end):
        if each.number == _NODE_INPUT:
            inputs.append(model.reader.read_text(each, _NAME_MAX_BYTES))
        elif each.number == _NODE_OUTPUT:
            outputs.append(model.reader.read_text(each, _NAME_MAX_BYTES))
        elif each.number == _NODE_OPERATOR:
            operator = model.reader.read_text(each, _NAME_MAX_BYTES)
        elif each.number == _NODE_ATTRIBUTE and each.kind == LENGTH:
            attributes.append(each)
    constant = outputs[0] if outputs and operator == "Constant" else ""
    numbers: dict[str, int] = {}
    turn: tuple[int, ...] | None = () if operator == "Transpose" else None
    for attribute in attributes:
        turn = _read_attribute(model, attribute, _Place(scope, depth, constant), numbers) or turn
    model.graph.add(
        operator,
        tuple((scope, name) for name in inputs),
        tuple((scope, name) for name in outputs),
        numbers=numbers,
        turn=turn if operator == "Transpose" else None,
    )


class _Place(NamedTuple):
    """Where an attribute stands; `constant` is what its tensor is called when its node is a Constant."""

    scope: int
    depth: int
    constant: str


def _read_attribute(model: _Model, message: Field, place: _Place, numbers: dict[str, int]) -> tuple[int, ...] | None:
    """Reads an attribute's tensors and graphs; puts a number into `numbers`; gives a list of numbers named perm."""
    name = ""
    number: int | None = None
    several: list[int] = []
    for each in model.reader.walk(message.start, message.end):
        if each.number == _ATTRIBUTE_NAME:
            name = model.reader.read_text(each, _NAME_MAX_BYTES)
        elif each.number == _ATTRIBUTE_INT and each.kind == VARINT:
            number = to_signed(each.value)
        elif each.number == _ATTRIBUTE_INTS and len(several) < _RANK_MAX:
            several += _read_varints(model, each, _RANK_MAX)
        elif each.number in _ATTRIBUTE_TENSORS and each.kind == LENGTH:
            _read_tensor(model, each, place.scope, place.constant)
        elif each.number in _ATTRIBUTE_GRAPHS and each.kind == LENGTH:
            model.scopes += 1
            _read_graph(model, each, model.scopes, place.depth + 1)
    if number is not None and name in _NUMBERS:
        numbers[name] = number
    return tuple(several) if name == "perm" else None


def _read_varints(model: _Model, each: Field, count_max: int) -> list[int]:
    """Numbers of a repeated field, packed or not; at most `count_max` and one of them."""
    if each.kind == VARINT:
        return [to_signed(each.value)]
    if each.kind != LENGTH:
        return []
    return [to_signed(value) for value in islice(model.reader.read_varints(each), count_max + 1)]


def _read_tensor(model: _Model, message: Field, scope: int, constant: str) -> None:
    if len(model.entries) >= _TENSORS_MAX:
        raise ModelUnreadable(f"expected at most {_TENSORS_MAX} stored tensors, found more")
    name, code, location = constant, 0, 0
    dims: list[int] = []
    pieces: dict[int, Field] = {}
    for each in model.reader.walk(message.start, message.end):
        if each.number == _TENSOR_DIMS and len(dims) <= _RANK_MAX:
            dims += _read_varints(model, each, _RANK_MAX)
        elif each.number == _TENSOR_KIND:
            code = each.value
        elif each.number == _TENSOR_NAME:
            name = constant or model.reader.read_text(each, _NAME_MAX_BYTES)
        elif each.number == _TENSOR_LOCATION:
            location = each.value
        elif each.number in _DATA and each.kind == LENGTH:
            # A list in more than one piece does not lie in one place; it is left out.
            pieces[each.number] = each._replace(end=each.start) if each.number in pieces else each
    kind = _KINDS.get(code, "")
    if not kind or location == _EXTERNAL:
        return
    piece = _choose_piece(pieces, kind)
    shape = tuple(dims) if len(dims) <= _RANK_MAX else (-1,)
    start, size_bytes = (piece.start, piece.end - piece.start) if piece else (0, 0)
    key: Key = (scope, name) if name else (scope, message.start)
    model.entries.setdefault(key, _Entry(Stored(key, name, kind, shape, start, size_bytes), pieces.get(_TENSOR_INT32S)))


def _choose_piece(pieces: dict[int, Field], kind: str) -> Field | None:
    """The bytes that are the tensor's data as they lie; None for varints."""
    for number in (_TENSOR_RAW, _TENSOR_FLOATS, _TENSOR_DOUBLES):
        if number in pieces and _PIECES.get(number, kind) == kind:
            return pieces[number]
    return None


# --- meaning ----------------------------------------------------------------------------------------------------------
def _describe(model: _Model, stored: Stored) -> Tensor:
    uses = model.graph.follow(stored.key, len(stored.shape))
    if not uses:
        return make_tensor(stored, role="", channel_axis=0, quantisation=Quantisation())
    last = uses[-1]
    name, place = _name_input(last)
    axis = _AXES.get((name, place))
    if axis is not None and last.node.numbers.get("transB") and place == 1:
        axis = 0 if name == "Gemm" else -2
    return make_tensor(
        stored,
        role=f"{name}/{place}@{last.node.ordinal}",
        channel_axis=0 if axis is None else last.map_axis(axis),
        quantisation=_find_quantisation(model, uses) if stored.kind in _QUANTISED else Quantisation(),
    )


def _name_input(use: Use) -> tuple[str, int]:
    """Operator and input, as of the operator that it counts as when that has such an input."""
    operator, place = use.node.operator, use.place
    same = _SAME_PLACES.get((operator, place))
    return (operator, place) if same is None else (_SAME_AS[operator], same)


def _find_quantisation(model: _Model, uses: list[Use]) -> Quantisation:
    """Scales and zero points from the first operator that knows them."""
    for use in uses:
        scale, zero = _find_quantisers(model, use)
        if scale is None:
            continue
        scales = _read_values(model, scale)
        zeros = tuple(int(value) for value in _read_values(model, zero)) if zero else ()
        return Quantisation(scales, zeros, use.map_axis(_get_scale_axis(use)))
    return Quantisation()


def _find_quantisers(model: _Model, use: Use) -> tuple[Key | None, Key | None]:
    """What the scale and the zero point of an operator's input are called."""
    inputs = use.node.inputs
    if (use.node.operator, use.place) in _INTEGER_ZEROS:
        at = _INTEGER_ZEROS[use.node.operator, use.place]
        return _find_integer_scale(model, use.node), inputs[at] if at < len(inputs) else None
    places = _QUANTISERS.get((use.node.operator, use.place), ())
    scale, zero = (inputs[at] if at < len(inputs) else None for at in places) if places else (None, None)
    return scale, zero


def _get_scale_axis(use: Use) -> int:
    """Axis of the operator's input that a list of scales runs along."""
    if use.node.operator == "QGemm" and use.node.numbers.get("transB"):
        return 0
    return _AXES.get(_name_input(use), use.node.numbers.get("axis", 1))


def _find_integer_scale(model: _Model, node: Node) -> Key | None:
    """The weight's scale behind an operator that gives int32: its result is cast, then multiplied by both scales."""
    cast = model.graph.get_first_use(node.outputs[0]) if node.outputs else None
    if cast is None or cast[0].operator != "Cast" or not cast[0].outputs:
        return None
    product = model.graph.get_first_use(cast[0].outputs[0])
    if product is None or product[0].operator != "Mul" or len(product[0].inputs) != 2:
        return None
    other = product[0].inputs[1 - product[1]]
    scales = model.graph.get_maker(other)
    names = scales.inputs if scales and scales.operator == "Mul" else (other,)
    return next((key for key in reversed(names) if key in model.entries), None)


def _read_values(model: _Model, key: Key) -> tuple[float, ...]:
    """A small stored tensor of at most one dimension, as numbers; () when it is something else."""
    if key not in model.values:
        entry = model.entries.get(key) or model.entries.get((0, key[1]))
        model.values[key] = _unpack(model, entry) if entry else ()
    return model.values[key]


def _unpack(model: _Model, entry: _Entry) -> tuple[float, ...]:
    stored = entry.stored
    count = stored.size_bytes // WIDTHS[stored.kind]
    if len(stored.shape) > 1 or count > _CHANNELS_MAX:
        return ()
    if stored.start and stored.is_whole and stored.kind in _CODES:
        return struct.unpack_from(f"<{count}{_CODES[stored.kind]}", model.view, stored.start)
    if entry.varints and stored.kind[0] in "iu":
        return tuple(_read_varints(model, entry.varints, _CHANNELS_MAX))
    return ()
