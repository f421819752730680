"""Writes TFLite flatbuffers with the schema classes that ship in ai-edge-litert: no converter, no TensorFlow.

Leaves which operators a model needs to `tflite_models.py` and the metadata table to `tflite_metadata.py`.

Rules:
- Modes: fp32; fp16 (weights stored in half precision, computed in single); int8 (weights per channel, activations
  asymmetric from calibrated ranges).
- The same layers give the same bytes (packed files carry a fixed date).
"""

import io
import zipfile
from typing import Any, Literal

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from numpy.typing import NDArray

from models.train.layers import Add, Conv, Layer, Mean, Ranges, Upsample

Mode = Literal["fp32", "fp16", "int8"]
Array = NDArray[Any]
OP, TYPE, OPTIONS = schema.BuiltinOperator, schema.TensorType, schema.BuiltinOptions
DTYPES = {"float32": TYPE.FLOAT32, "float16": TYPE.FLOAT16, "int32": TYPE.INT32, "int8": TYPE.INT8}
POSTPROCESS = "TFLite_Detection_PostProcess"
PROBABILITY = (1 / 256, -128)  # the only int8 scale that LOGISTIC and SOFTMAX may answer in
FIXED_DATE = (1980, 1, 1, 0, 0, 0)


class TfliteGraph:
    """Collects tensors and operators of one subgraph; tensors are known by their index."""

    def __init__(self, mode: Mode, ranges: Ranges) -> None:
        self.mode, self.ranges = mode, ranges
        self.tensors: list[Any] = []
        self.buffers: list[bytes] = [b""]
        self.operators: list[Any] = []
        self.codes: list[tuple[int, str | None]] = []
        self.index: dict[str, int] = {}

    # Tensors

    def tensor(
        self, name: str, shape: list[int], kind: int, *, data: Array | None = None, scale: Any = None, axis: int = 0
    ) -> int:
        """Adds a tensor; `scale` is (scale, zero point), each a number or one per channel of `axis`."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, np.array(shape, np.int32), kind, 0
        if data is not None:
            self.buffers.append(data.tobytes())
            tensor.buffer = len(self.buffers) - 1
        if scale is not None:
            quantization = schema.QuantizationParametersT()
            quantization.scale = np.atleast_1d(scale[0]).astype(np.float32)
            quantization.zeroPoint = np.atleast_1d(scale[1]).astype(np.int64)
            quantization.quantizedDimension = axis
            tensor.quantization = quantization
        self.tensors.append(tensor)
        self.index[name] = len(self.tensors) - 1
        return len(self.tensors) - 1

    def constant(self, name: str, value: Array) -> int:
        return self.tensor(name, list(value.shape), DTYPES[str(value.dtype)], data=value)

    def shape(self, tensor: int) -> list[int]:
        return [int(n) for n in self.tensors[tensor].shape]

    def scale(self, tensor: int) -> tuple[float, int]:
        quantization = self.tensors[tensor].quantization
        return float(quantization.scale[0]), int(quantization.zeroPoint[0])

    def activation(self, name: str, shape: list[int], *, like: int | None = None) -> int:
        """Adds a computed tensor; in int8 its scale comes from its calibrated range, or from the tensor `like`."""
        if self.mode != "int8":
            return self.tensor(name, shape, TYPE.FLOAT32)
        if like is not None:
            return self.tensor(name, shape, TYPE.INT8, scale=self.scale(like))
        low, high = min(self.ranges[name][0], 0.0), max(self.ranges[name][1], 1e-6)
        step = (high - low) / 255
        return self.tensor(name, shape, TYPE.INT8, scale=(step, round(-128 - low / step)))

    # Operators

    def operator(self, code: int, inputs: list[int], outputs: list[int], options: Any = None) -> None:
        """Adds a builtin operator; `options` is (object, its type) or None."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(code, None)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            operator.builtinOptions, operator.builtinOptionsType = options
        self.operators.append(operator)

    def _code(self, code: int, custom: str | None) -> int:
        if (code, custom) not in self.codes:
            self.codes.append((code, custom))
        return self.codes.index((code, custom))

    def layer(self, layer: Layer) -> None:
        match layer:
            case Conv():
                self.conv(layer)
            case Add(name, left, right):
                shape = self.shape(self.index[left])
                options = (schema.AddOptionsT(), OPTIONS.AddOptions)
                inputs = [self.index[left], self.index[right]]
                self.operator(OP.ADD, inputs, [self.activation(name, shape)], options)
            case Upsample(name, source):
                self._upsample(name, self.index[source])
            case Mean(name, source):
                self._mean(name, self.index[source])

    def conv(self, conv: Conv) -> None:
        """Adds a convolution with torch's padding: k // 2 on every side."""
        source, padding = self.index[conv.source], schema.Padding.SAME
        count, height, width, _ = self.shape(source)
        if conv.stride == 2 and conv.weight.shape[2] > 1:
            # SAME pads on the right where torch pads on the left: pad openly, then VALID.
            source, padding = self._pad(conv.name, source), schema.Padding.VALID
        axis = 3 if conv.depthwise else 0
        ordered = conv.weight.transpose(1, 2, 3, 0) if conv.depthwise else conv.weight.transpose(0, 2, 3, 1)
        weight, bias = self._weights(conv, np.ascontiguousarray(ordered), axis, source)
        output = self.activation(conv.name, [count, height // conv.stride, width // conv.stride, len(conv.weight)])
        options = schema.DepthwiseConv2DOptionsT() if conv.depthwise else schema.Conv2DOptionsT()
        options.strideH = options.strideW = conv.stride
        options.dilationHFactor = options.dilationWFactor = 1
        options.padding = padding
        kinds = schema.ActivationFunctionType
        options.fusedActivationFunction = kinds.RELU6 if conv.relu6 else kinds.NONE
        if conv.depthwise:
            options.depthMultiplier = 1
            chosen = (options, OPTIONS.DepthwiseConv2DOptions)
            self.operator(OP.DEPTHWISE_CONV_2D, [source, weight, bias], [output], chosen)
        else:
            self.operator(OP.CONV_2D, [source, weight, bias], [output], (options, OPTIONS.Conv2DOptions))

    def _weights(self, conv: Conv, weight: Array, axis: int, source: int) -> tuple[int, int]:
        """Adds weight and bias in the mode's precision; returns their tensors."""
        name, shape = f"{conv.name}.weight", list(weight.shape)
        if self.mode == "int8":
            steps = np.maximum(np.abs(weight).max(axis=tuple(i for i in range(4) if i != axis)), 1e-8) / 127
            spread = [-1 if i == axis else 1 for i in range(4)]
            whole = np.clip(np.round(weight / steps.reshape(spread)), -127, 127).astype(np.int8)
            none = np.zeros(len(steps))
            stored = self.tensor(name, shape, TYPE.INT8, data=whole, scale=(steps, none), axis=axis)
            bias_steps = steps * self.scale(source)[0]
            bias = np.round(conv.bias / bias_steps).astype(np.int32)
            return stored, self.tensor(
                f"{conv.name}.bias", [len(bias)], TYPE.INT32, data=bias, scale=(bias_steps, none)
            )
        if self.mode == "fp16":
            half = self.constant(f"{name}.half", weight.astype(np.float16))
            stored = self.tensor(name, shape, TYPE.FLOAT32)
            options = (schema.DequantizeOptionsT(), OPTIONS.DequantizeOptions)
            self.operator(OP.DEQUANTIZE, [half], [stored], options)
        else:
            stored = self.constant(name, weight)
        return stored, self.constant(f"{conv.name}.bias", conv.bias)

    def _pad(self, name: str, source: int) -> int:
        count, height, width, channels = self.shape(source)
        output = self.activation(f"{name}.pad", [count, height + 2, width + 2, channels], like=source)
        edges = self.constant(f"{name}.edges", np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
        self.operator(OP.PAD, [source, edges], [output], (schema.PadOptionsT(), OPTIONS.PadOptions))
        return output

    def _upsample(self, name: str, source: int) -> None:
        count, height, width, channels = self.shape(source)
        output = self.activation(name, [count, height * 2, width * 2, channels], like=source)
        size = self.constant(f"{name}.size", np.array([height * 2, width * 2], np.int32))
        options = (schema.ResizeNearestNeighborOptionsT(), OPTIONS.ResizeNearestNeighborOptions)
        self.operator(OP.RESIZE_NEAREST_NEIGHBOR, [source, size], [output], options)

    def _mean(self, name: str, source: int) -> None:
        count, _, _, channels = self.shape(source)
        axes, options = self.constant(f"{name}.axes", np.array([1, 2], np.int32)), schema.ReducerOptionsT()
        options.keepDims = True
        output = self.activation(name, [count, 1, 1, channels])
        self.operator(OP.MEAN, [source, axes], [output], (options, OPTIONS.ReducerOptions))

    def reshape(self, name: str, source: int, shape: list[int]) -> int:
        output = self.activation(name, shape, like=source)
        size, options = self.constant(f"{name}.shape", np.array(shape, np.int32)), schema.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        self.operator(OP.RESHAPE, [source, size], [output], (options, OPTIONS.ReshapeOptions))
        return output

    def logistic(self, name: str, source: int) -> int:
        output = self._probability(name, source)
        self.operator(OP.LOGISTIC, [source], [output])
        return output

    def softmax(self, name: str, source: int) -> int:
        output, options = self._probability(name, source), schema.SoftmaxOptionsT()
        options.beta = 1.0
        self.operator(OP.SOFTMAX, [source], [output], (options, OPTIONS.SoftmaxOptions))
        return output

    def _probability(self, name: str, source: int) -> int:
        if self.mode == "int8":
            return self.tensor(name, self.shape(source), TYPE.INT8, scale=PROBABILITY)
        return self.tensor(name, self.shape(source), TYPE.FLOAT32)

    def dequantize(self, name: str, source: int) -> int:
        """Returns the tensor as float32 (itself, where it is one)."""
        if self.tensors[source].type != TYPE.INT8:
            return source
        output, options = self.tensor(name, self.shape(source), TYPE.FLOAT32), schema.DequantizeOptionsT()
        self.operator(OP.DEQUANTIZE, [source], [output], (options, OPTIONS.DequantizeOptions))
        return output

    def postprocess(self, inputs: list[int], settings: dict[str, int | float | bool]) -> list[int]:
        """Adds TFLite_Detection_PostProcess on (encodings, scores, anchors); returns boxes, classes, scores, count."""
        builder = flexbuffers.Builder()
        with builder.Map():
            for key, value in settings.items():
                add = {bool: builder.Bool, int: builder.Int, float: builder.Float}[type(value)]
                add(key, value)
        most, names = int(settings["max_detections"]), [POSTPROCESS] + [f"{POSTPROCESS}:{i}" for i in (1, 2, 3)]
        shapes = [[1, most, 4], [1, most], [1, most], [1]]
        outputs = [self.tensor(name, shape, TYPE.FLOAT32) for name, shape in zip(names, shapes, strict=True)]
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(OP.CUSTOM, POSTPROCESS)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        operator.customOptions = np.frombuffer(bytes(builder.Finish()), np.uint8)
        self.operators.append(operator)
        return outputs

    # The file

    def finish(self, inputs: dict[str, int], outputs: dict[str, int], *, metadata: bytes, description: str) -> bytes:
        """Returns the flatbuffer; the keys of `inputs` and `outputs` are the names in its signature."""
        model = schema.ModelT()
        model.version, model.description = 3, description
        model.operatorCodes = [self._operator_code(code, custom) for code, custom in self.codes]
        subgraph = schema.SubGraphT()
        subgraph.name, subgraph.tensors, subgraph.operators = "main", self.tensors, self.operators
        subgraph.inputs = np.array(list(inputs.values()), np.int32)
        subgraph.outputs = np.array(list(outputs.values()), np.int32)
        model.subgraphs = [subgraph]
        entry = schema.MetadataT()
        entry.name, entry.buffer = "TFLITE_METADATA", len(self.buffers)
        model.metadata = [entry]
        model.buffers = [_make_buffer(data) for data in [*self.buffers, metadata]]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = _make_tensor_map(inputs), _make_tensor_map(outputs)
        model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _operator_code(self, code: int, custom: str | None) -> Any:
        entry = schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.customCode = code, min(code, 127), custom
        entry.version = self._operator_version(code)
        return entry

    def _operator_version(self, code: int) -> int:
        if code in (OP.CONV_2D, OP.DEPTHWISE_CONV_2D):
            return 3
        if code == OP.DEQUANTIZE:
            return 3 if self.mode == "fp16" else 2
        # RESHAPE has no version 2, in int8 neither: LiteRT refuses one.
        return 2 if self.mode == "int8" and code not in (OP.CUSTOM, OP.RESHAPE) else 1


def pack_files(model: bytes, files: dict[str, bytes]) -> bytes:
    """Appends associated files as TFLite metadata wants them: a plain stored zip behind the flatbuffer."""
    stream = io.BytesIO(model)
    stream.seek(0, io.SEEK_END)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, FIXED_DATE), data)
    return stream.getvalue()


def _make_buffer(data: bytes) -> Any:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8) if data else None
    return buffer


def _make_tensor_map(tensors: dict[str, int]) -> list[Any]:
    entries = []
    for name, index in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        entries.append(entry)
    return entries
