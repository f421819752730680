"""Tiny models of every input there is: they answer the mean of each column of each channel, as they saw it.

A picture that came in the wrong order, size, colour or scale gives other numbers, so their answers prove all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from edgeferry.model.spec import AnswerSpec, Colour, Dtype, InputSpec, LabelSpec, Layout, Stage, Thresholds

WIDTH, HEIGHT = 6, 4
_ONNX = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
}
_LITERT = {
    "uint8": schema.TensorType.UINT8,
    "int8": schema.TensorType.INT8,
    "float32": schema.TensorType.FLOAT32,
}
_QUANT = {"uint8": (1 / 250, 3), "int8": (1 / 250, -120)}


@dataclass(frozen=True)
class Kind:
    """One way to take a picture. `leaves_open`: letters of the axes that the graph does not fix."""

    layout: Layout
    colour: Colour
    dtype: Dtype
    leaves_open: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.layout, self.colour, self.dtype, self.leaves_open)))

    @property
    def channels(self) -> int:
        return 1 if self.colour == "grey" else 3

    @property
    def quant(self) -> tuple[float, int]:
        return _QUANT.get(self.dtype, (0.0, 0))

    def get_shape(self) -> list[int | None]:
        sides = {"n": 1, "c": self.channels, "h": HEIGHT, "w": WIDTH}
        return [None if axis in self.leaves_open else sides[axis] for axis in self.layout]

    def make_stage(self, file: str) -> Stage:
        """Numbers of each channel stay in 0..1 for all pixels, and differ from those of the others."""
        scale, zero = self.quant
        return Stage(
            file=file,
            task="classification",
            input=InputSpec(
                width=WIDTH,
                height=HEIGHT,
                layout=self.layout,
                colour=self.colour,
                dtype=self.dtype,
                mean=(-10.0, -20.0, -30.0)[: self.channels],
                std=(300.0, 320.0, 340.0)[: self.channels],
                quant_scale=scale,
                quant_zero=zero,
            ),
            answer=AnswerSpec(family="classification", parameters={"activation": "none"}),
            labels=LabelSpec(),
            thresholds=Thresholds(score=0.0),
        )


def expect(kind: Kind, pixels: np.ndarray) -> np.ndarray:
    """RGB [h, w, 3] -> what a model of this kind answers, by the arithmetic of docs/formats/spec.md."""
    seen = {"rgb": pixels, "bgr": pixels[:, :, ::-1], "grey": pixels @ np.array([[0.299], [0.587], [0.114]])}
    values = (seen[kind.colour] + np.array([10, 20, 30])[: kind.channels]) / np.array([300, 320, 340])[: kind.channels]
    means = values.mean(axis=0)
    return (means if kind.layout == "nhwc" else means.T).reshape(-1)


def make_onnx(kind: Kind) -> bytes:
    scale, zero = kind.quant
    axis = kind.layout.index("h")
    weights = [
        numpy_helper.from_array(np.array([1, -1], np.int64), "row"),
        numpy_helper.from_array(np.array(zero, np.float32), "zero"),
        numpy_helper.from_array(np.array(scale or 1.0, np.float32), "scale"),
    ]
    nodes = [
        helper.make_node("Cast", ["picture"], ["stored"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["stored", "zero"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["values"]),
        helper.make_node("ReduceMean", ["values"], ["means"], axes=[axis], keepdims=0),
        helper.make_node("Reshape", ["means", "row"], ["scores"]),
    ]
    shape = [f"open_{at}" if side is None else side for at, side in enumerate(kind.get_shape())]
    graph = helper.make_graph(
        nodes,
        "columns",
        [helper.make_tensor_value_info("picture", _ONNX[kind.dtype], shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, None])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def make_litert(kind: Kind) -> bytes:
    """[DEQUANTIZE,] MEAN over rows, RESHAPE into one row; `nhwc` only."""
    buffers = [b"", np.array([1], np.int32).tobytes(), np.array([1, -1], np.int32).tobytes()]
    flat = (1, WIDTH * kind.channels)
    tensors = [
        _make_tensor("picture", _LITERT[kind.dtype], kind.get_shape(), quant=kind.quant),
        _make_tensor("rows", schema.TensorType.INT32, [1], buffer=1),
        _make_tensor("row", schema.TensorType.INT32, [2], buffer=2),
        _make_tensor("values", schema.TensorType.FLOAT32, kind.get_shape()),
        _make_tensor("means", schema.TensorType.FLOAT32, [side for at, side in enumerate(kind.get_shape()) if at != 1]),
        _make_tensor("scores", schema.TensorType.FLOAT32, [1, None] if kind.leaves_open else flat),
    ]
    codes = [schema.BuiltinOperator.DEQUANTIZE, schema.BuiltinOperator.MEAN, schema.BuiltinOperator.RESHAPE]
    first = 3 if kind.quant[0] else 0
    operators = [_make_operator(1, [first, 1], 4), _make_operator(2, [4, 2], 5)]
    if first:
        operators.insert(0, _make_operator(0, [0], 3))
    operators[-2].builtinOptionsType = schema.BuiltinOptions.ReducerOptions
    operators[-2].builtinOptions = schema.ReducerOptionsT()
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.operators = tensors, operators
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([5], np.int32)
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = [_make_code(code) for code in codes]
    model.buffers = [_make_buffer(data) for data in buffers]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _make_tensor(
    name: str, kind: int, shape: Sequence[int | None], *, buffer: int = 0, quant: tuple[float, int] = (0.0, 0)
) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.buffer = name, kind, buffer
    tensor.shape = np.array([side or 1 for side in shape], np.int32)
    if None in shape:
        tensor.shapeSignature = np.array([-1 if side is None else side for side in shape], np.int32)
    if quant[0]:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.array([quant[0]], np.float32)
        tensor.quantization.zeroPoint = np.array([quant[1]], np.int64)
    return tensor


def _make_operator(code: int, inputs: Sequence[int], output: int) -> schema.OperatorT:
    operator = schema.OperatorT()
    operator.opcodeIndex = code
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
    return operator


def _make_code(builtin: int) -> schema.OperatorCodeT:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 2 if builtin == schema.BuiltinOperator.DEQUANTIZE else 1
    return code


def _make_buffer(data: bytes) -> schema.BufferT:
    buffer = schema.BufferT()
    if data:
        buffer.data = np.frombuffer(data, np.uint8)
    return buffer
