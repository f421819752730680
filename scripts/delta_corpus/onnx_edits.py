"""Edits of ONNX files, from bytes to bytes: what exporters, converters and people do to a model between versions.

Rules:
- Every edit gives a file that the ONNX checker accepts, and the same bytes on every run.
- "Weights" are initializers of four or two dimensions that a Conv or Gemm reads; biases belong to them in `to_half`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

Array = NDArray[Any]
LINEAR = ("Conv", "Gemm")


def write(model: onnx.ModelProto) -> bytes:
    """The bytes of a model that the checker accepts."""
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def prune_each(data: bytes) -> bytes:
    """Half of every weight tensor, the smallest ones, multiplied by 0: what was negative becomes -0.0."""
    return _map_weights(data, lambda weight: weight * keep_above(weight, float(np.median(np.abs(weight)))))


def prune_together(data: bytes) -> bytes:
    """Half of all weights, by one threshold for the whole net."""
    model = onnx.load_from_string(data)
    sizes = [np.abs(numpy_helper.to_array(tensor)).ravel() for tensor in _list_weights(model)]
    threshold = float(np.median(np.concatenate(sizes)))
    return _map_weights(data, lambda weight: weight * keep_above(weight, threshold))


def keep_above(weight: Array, threshold: float) -> Array:
    """A mask of 0 and 1 in the weight's own type."""
    return (np.abs(weight) > threshold).astype(weight.dtype)


def to_half(data: bytes) -> bytes:
    """Weights and biases stored as float16, cast to float32 where they are read."""
    model = onnx.load_from_string(data)
    casts = []
    for tensor in _list_weights(model, fewest_dimensions=1):
        half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.half")
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], name=f"{tensor.name}.cast", to=1))
        tensor.CopyFrom(half)
    return write(_put_first(model, casts))


def to_int8(data: bytes) -> bytes:
    """Weights stored as int8, symmetric, a scale per output channel, read through DequantizeLinear."""
    model = onnx.load_from_string(data)
    nodes, added = [], []
    for tensor in _list_weights(model):
        whole, scale = quantise(numpy_helper.to_array(tensor))
        parts = {"int8": whole, "scale": scale, "zero": np.zeros(len(scale), np.int8)}
        stored = [numpy_helper.from_array(part, f"{tensor.name}.{end}") for end, part in parts.items()]
        names = [part.name for part in stored]
        nodes.append(
            helper.make_node("DequantizeLinear", names, [tensor.name], name=f"{tensor.name}.dequantize", axis=0)
        )
        tensor.CopyFrom(stored[0])
        added += stored[1:]
    model.graph.initializer.extend(added)
    return write(_put_first(model, nodes))


def quantise(weight: Array) -> tuple[Array, Array]:
    """int8 in -127..127 and float32 scales, for channels along the first axis."""
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    scale = (np.maximum(largest, np.float32(1e-8)) / np.float32(127)).astype(np.float32)
    spread = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(weight / spread), -127, 127).astype(np.int8), scale


def set_properties(**properties: str) -> Callable[[bytes], bytes]:
    """Sets metadata properties (dots written as two underscores), adding those that are not there."""

    def edit(data: bytes) -> bytes:
        model = onnx.load_from_string(data)
        known = {entry.key: entry.value for entry in model.metadata_props}
        known.update({key.replace("__", "."): value for key, value in properties.items()})
        helper.set_model_props(model, known)
        return write(model)

    return edit


def set_producer(data: bytes) -> bytes:
    """Another exporter, and its version, and a comment."""
    model = onnx.load_from_string(data)
    model.producer_name, model.producer_version = "plant model export", "2.4.1"
    model.doc_string = "Exported after the review of the week. See the record of changes."
    return write(model)


def convert_opset(data: bytes) -> bytes:
    """The model carried over to opset 19 by the converter of ONNX."""
    return write(version_converter.convert_version(onnx.load_from_string(data), 19))


def set_opset(data: bytes) -> bytes:
    """Only the number of the opset raised."""
    model = onnx.load_from_string(data)
    model.opset_import[0].version = 18
    return write(model)


def add_identity(data: bytes) -> bytes:
    """An Identity before the first output."""
    model = onnx.load_from_string(data)
    _append(model, "Identity")
    return write(model)


def add_cast(data: bytes) -> bytes:
    """The last output as int32."""
    model = onnx.load_from_string(data)
    _append(model, "Cast", output=len(model.graph.output) - 1, to=int(TensorProto.INT32))
    model.graph.output[-1].type.tensor_type.elem_type = TensorProto.INT32
    return write(model)


def add_answer(data: bytes) -> bytes:
    """A further output of a classifier: the number of the likeliest class."""
    model = onnx.load_from_string(data)
    source = model.graph.output[0].name
    model.graph.node.append(helper.make_node("ArgMax", [source], ["answer"], name="answer", axis=1, keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("answer", TensorProto.INT64, [1]))
    return write(model)


def reorder(data: bytes) -> bytes:
    """The same initializers in another order."""
    model = onnx.load_from_string(data)
    _shuffle(model)
    return write(model)


def rename_nodes(data: bytes) -> bytes:
    """Every node named by kind and number, as exporters do."""
    model = onnx.load_from_string(data)
    for number, node in enumerate(model.graph.node):
        node.name = f"/{node.op_type}_{number}"
    return write(model)


def reserialise(data: bytes) -> bytes:
    """As another tool writes the same net: nodes and tensors renamed, initializers reordered, floats in float_data."""
    model = onnx.load_from_string(data)
    _shuffle(model)
    _rename_tensors(model)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).ravel()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.tolist())
    return write(model)


def _list_weights(model: onnx.ModelProto, *, fewest_dimensions: int = 2) -> list[onnx.TensorProto]:
    """Float initializers that a Conv or Gemm reads, in the order of the file."""
    read = {name for node in model.graph.node if node.op_type in LINEAR for name in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in read]
    return [t for t in tensors if t.data_type == TensorProto.FLOAT and len(t.dims) >= fewest_dimensions]


def _map_weights(data: bytes, change: Callable[[Array], Array]) -> bytes:
    model = onnx.load_from_string(data)
    for tensor in _list_weights(model):
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    return write(model)


def _put_first(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Puts nodes before all others."""
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return model


def _append(model: onnx.ModelProto, kind: str, *, output: int = 0, **attributes: Any) -> None:
    """Puts a node between an output and what computes it."""
    name = model.graph.output[output].name
    inner = f"{name}.inner"
    for node in model.graph.node:
        node.input[:] = [inner if x == name else x for x in node.input]
        node.output[:] = [inner if x == name else x for x in node.output]
    model.graph.node.append(helper.make_node(kind, [inner], [name], name=f"{name}.{kind.lower()}", **attributes))


def _shuffle(model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend([tensors[i] for i in np.random.default_rng(5).permutation(len(tensors))])


def _rename_tensors(model: onnx.ModelProto) -> None:
    """Numbers every node, constant and inner value; inputs and outputs of the model keep their names."""
    graph = model.graph
    kept = {"", *(value.name for value in graph.input), *(value.name for value in graph.output)}
    names = {tensor.name: f"onnx::{number}" for number, tensor in enumerate(graph.initializer)}
    for number, node in enumerate(graph.node):
        node.name = f"/{node.op_type}_{number}"
        names |= {x: f"{node.name}_output_{i}" for i, x in enumerate(node.output) if x not in kept}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(x, x) for x in node.input]
        node.output[:] = [names.get(x, x) for x in node.output]
