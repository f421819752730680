"""ONNX model bytes -> ModelFacts, without the onnx package.

What the facts mean is left to `families.py`; whether the graph is valid, to the engine that loads it.

Rules:
- Reads inputs, outputs, operator counts, opset, producer and metadata_props; weights are measured and skipped.
- Bodies of If, Loop and Scan are not entered: depth is fixed.
- A message field that occurs twice is merged, as protobuf does.
- Weights outside the file (external data) are refused: a version consists of the files of its manifest.

Source: onnx.proto3 of ONNX 1.23 (field numbers have been stable since 1.0).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from edgeferry.errors import ModelUnreadable
from edgeferry.model.facts import ModelFacts, TensorFacts
from edgeferry.model.protobuf import VARINT, Field, WireReader, to_signed

_DTYPES = {
    **dict(enumerate(("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool"), 1)),
    **dict(enumerate(("float16", "float64", "uint32", "uint64", "complex64", "complex128", "bfloat16"), 10)),
}
_SEEN_THROUGH = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Identity", "QuantizeLinear", "DequantizeLinear"}
)
_SEEN_THROUGH_MAX = 32
_NAME_MAX_BYTES = 64 << 10
_VALUE_MAX_BYTES = 4 << 20
_METADATA_MAX = 1_000
_RANK_MAX = 64
_TENSORS_MAX = 10_000
_EXTERNAL = 1


@dataclass(slots=True)
class _Graph:
    """What was gathered while walking; `makers`: tensor -> (operator that writes it, its first input)."""

    inputs: list[TensorFacts] = field(default_factory=list)
    outputs: list[TensorFacts] = field(default_factory=list)
    constants: set[str] = field(default_factory=set)
    operators: Counter[str] = field(default_factory=Counter)
    makers: dict[str, tuple[str, str]] = field(default_factory=dict)
    weight_bytes: int = 0


def inspect_onnx(data: memoryview) -> ModelFacts:
    """Reads an ONNX model.

    Raises:
        ModelUnreadable: not an ONNX model, cut off, of unreasonable size, or with weights outside the file.
    """
    reader = WireReader(data)
    graph = _Graph()
    producer, opset = "", 0
    metadata: dict[str, str] = {}
    for each in reader.walk():
        if each.number == 7 and each.kind != VARINT:
            _read_graph(reader, each, graph)
        elif each.number == 8 and each.kind != VARINT:
            opset = _read_opset(reader, each) or opset
        elif each.number == 14 and each.kind != VARINT:
            _read_property(reader, each, metadata)
        elif each.number == 2 and each.kind != VARINT:
            producer = reader.read_text(each, _NAME_MAX_BYTES)
    inputs = tuple(tensor for tensor in graph.inputs if tensor.name not in graph.constants)
    if not inputs or not graph.outputs or not graph.operators:
        raise ModelUnreadable("expected an ONNX graph with inputs, operators and outputs, found none")
    return ModelFacts(
        format="onnx",
        inputs=inputs,
        outputs=tuple(_name_maker(tensor, graph.makers) for tensor in graph.outputs),
        operators=dict(graph.operators),
        opset=opset,
        producer=producer,
        metadata=metadata,
        weight_bytes=graph.weight_bytes,
    )


def _read_opset(reader: WireReader, message: Field) -> int:
    """Version of the default domain; 0 for another domain."""
    domain, version = "", 0
    for each in reader.walk(message.start, message.end):
        if each.number == 1:
            domain = reader.read_text(each, _NAME_MAX_BYTES)
        elif each.number == 2:
            version = to_signed(each.value)
    return version if domain in ("", "ai.onnx") else 0


def _read_property(reader: WireReader, message: Field, metadata: dict[str, str]) -> None:
    key = value = ""
    for each in reader.walk(message.start, message.end):
        if each.number == 1:
            key = reader.read_text(each, _NAME_MAX_BYTES)
        elif each.number == 2:
            value = reader.read_text(each, _VALUE_MAX_BYTES)
    metadata[key] = value
    if len(metadata) > _METADATA_MAX:
        raise ModelUnreadable(f"expected at most {_METADATA_MAX} metadata properties, found more")


def _read_graph(reader: WireReader, message: Field, graph: _Graph) -> None:
    for each in reader.walk(message.start, message.end):
        if each.kind == VARINT:
            continue
        if each.number == 1:
            _read_node(reader, each, graph)
        elif each.number == 5:
            graph.weight_bytes += each.end - each.start
            graph.constants.add(_read_constant(reader, each))
        elif each.number == 15:
            graph.weight_bytes += each.end - each.start
            graph.constants.update(_read_sparse(reader, each))
        elif each.number == 11:
            graph.inputs.append(_read_tensor(reader, each))
        elif each.number == 12:
            graph.outputs.append(_read_tensor(reader, each))
    if len(graph.outputs) > _TENSORS_MAX:
        raise ModelUnreadable(f"expected at most {_TENSORS_MAX} outputs, found {len(graph.outputs)}")


def _read_node(reader: WireReader, message: Field, graph: _Graph) -> None:
    source = kind = ""
    outputs: list[str] = []
    has_source = False
    for each in reader.walk(message.start, message.end):
        if each.number == 1 and not has_source:
            source, has_source = reader.read_text(each, _NAME_MAX_BYTES), True
        elif each.number == 2:
            outputs.append(reader.read_text(each, _NAME_MAX_BYTES))
        elif each.number == 4:
            kind = reader.read_text(each, _NAME_MAX_BYTES)
    graph.operators[kind] += 1
    graph.makers.update(dict.fromkeys(outputs, (kind, source)))


def _read_constant(reader: WireReader, message: Field) -> str:
    """Name of a TensorProto; refuses one whose data lies in another file."""
    name = ""
    for each in reader.walk(message.start, message.end):
        if each.number == 8:
            name = reader.read_text(each, _NAME_MAX_BYTES)
        elif each.number == 14 and each.value == _EXTERNAL:
            raise ModelUnreadable("expected all weights inside the model file, found external data")
    return name


def _read_sparse(reader: WireReader, message: Field) -> list[str]:
    """Name of a SparseTensorProto: that of its values."""
    return [
        _read_constant(reader, each)
        for each in reader.walk(message.start, message.end)
        if each.number == 1 and not each.value
    ]


def _read_tensor(reader: WireReader, message: Field) -> TensorFacts:
    """A ValueInfoProto; one that is no dense tensor gets dtype "" and no shape."""
    name, dtype = "", ""
    shape: list[int | None] = []
    for each in reader.walk(message.start, message.end):
        if each.number == 1:
            name = reader.read_text(each, _NAME_MAX_BYTES)
        elif each.number == 2 and each.kind != VARINT:
            for kind in reader.walk(each.start, each.end):
                if kind.number == 1 and kind.kind != VARINT:
                    dtype = _read_tensor_type(reader, kind, shape) or dtype
    return TensorFacts(name, dtype, tuple(shape))


def _read_tensor_type(reader: WireReader, message: Field, shape: list[int | None]) -> str:
    """Reads a TypeProto.Tensor: appends its dimensions to `shape`, returns its dtype."""
    dtype = ""
    for each in reader.walk(message.start, message.end):
        if each.number == 1:
            dtype = _DTYPES.get(each.value, f"onnx:{each.value}")
        elif each.number == 2 and each.kind != VARINT:
            shape.extend(_read_dimension(reader, dim) for dim in reader.walk(each.start, each.end) if dim.number == 1)
    if len(shape) > _RANK_MAX:
        raise ModelUnreadable(f"expected tensors of at most {_RANK_MAX} dimensions, found {len(shape)}")
    return dtype


def _read_dimension(reader: WireReader, message: Field) -> int | None:
    size: int | None = None
    for each in reader.walk(message.start, message.end):
        if each.number in (1, 2):  # a oneof: what comes last counts
            size = to_signed(each.value) if each.number == 1 else None
    return size if size is not None and size > 0 else None


def _name_maker(tensor: TensorFacts, makers: dict[str, tuple[str, str]]) -> TensorFacts:
    kind, source = makers.get(tensor.name, ("", ""))
    for _ in range(_SEEN_THROUGH_MAX):
        if kind not in _SEEN_THROUGH or source not in makers:
            break
        kind, source = makers[source]
    return TensorFacts(tensor.name, tensor.dtype, tensor.shape, made_by=kind)
