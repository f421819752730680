"""Small models made on the spot: ONNX through the onnx package, LiteRT through the schema classes of ai-edge-litert."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from onnx import TensorProto, helper

OnnxMaker = Callable[..., bytes]
LitertMaker = Callable[..., bytes]
Tensor = tuple[str, int, Sequence[int | str | None]]


def _make_onnx(
    inputs: Sequence[Tensor] = (("image", TensorProto.FLOAT, (1, 3, 8, 8)),),
    outputs: Sequence[Tensor] = (("scores", TensorProto.FLOAT, (1, 4)),),
    *,
    nodes: Sequence[onnx.NodeProto] | None = None,
    properties: Mapping[str, str] | None = None,
    weights: Sequence[onnx.TensorProto] = (),
) -> bytes:
    made = nodes or [helper.make_node("Softmax", [inputs[0][0]], [name for name, _, _ in outputs])]
    graph = helper.make_graph(
        list(made),
        "graph",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="test")
    helper.set_model_props(model, dict(properties or {}))
    return model.SerializeToString()


@pytest.fixture(scope="session")
def make_onnx() -> OnnxMaker:
    """make_onnx(inputs, outputs, nodes=, properties=, weights=) -> bytes; not a valid graph, but a readable file."""
    return _make_onnx


def _make_tensor(name: str, kind: int, shape: Sequence[int | None], quant: tuple[float, int] | None) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.buffer = name, kind, 0
    tensor.shape = np.array([1 if size is None else size for size in shape], np.int32)
    if None in shape:
        tensor.shapeSignature = np.array([-1 if size is None else size for size in shape], np.int32)
    if quant:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.array([quant[0]], np.float32)
        tensor.quantization.zeroPoint = np.array([quant[1]], np.int64)
    return tensor


def _make_options(options: Mapping[str, float | bool]) -> bytes:
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in options.items():
            {bool: builder.Bool, int: builder.Int, float: builder.Float}[type(value)](key, value)
    return bytes(builder.Finish())


def _make_litert(
    inputs: Sequence[tuple[str, int, Sequence[int | None]]] = (("image", schema.TensorType.FLOAT32, (1, 8, 8, 3)),),
    outputs: Sequence[tuple[str, int, Sequence[int | None]]] = (("scores", schema.TensorType.FLOAT32, (1, 4)),),
    *,
    quant: tuple[float, int] | None = None,
    custom: str = "",
    options: Mapping[str, float | bool] | None = None,
    graph_outputs: Sequence[int] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = 32 if custom else schema.BuiltinOperator.SOFTMAX
    code.customCode = custom or None
    graph.tensors = [_make_tensor(*each, quant) for each in inputs] + [_make_tensor(*each, None) for each in outputs]
    operator.opcodeIndex = 0
    operator.inputs = np.arange(len(inputs), dtype=np.int32)
    operator.outputs = np.arange(len(inputs), len(inputs) + len(outputs), dtype=np.int32)
    if options is not None:
        operator.customOptions = np.frombuffer(_make_options(options), np.uint8)
    graph.operators, graph.inputs = [operator], operator.inputs
    graph.outputs = operator.outputs if graph_outputs is None else operator.outputs[list(graph_outputs)]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return pack(bytes(builder.Output()), files or {})


def pack(model: bytes, files: Mapping[str, bytes]) -> bytes:
    """Appends files as a ZIP, as TFLite metadata writers do."""
    if not files:
        return model
    buffer = io.BytesIO(model)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_litert() -> LitertMaker:
    """make_litert(inputs, outputs, quant=, custom=, options=, graph_outputs=, files=) -> bytes of a readable file."""
    return _make_litert
