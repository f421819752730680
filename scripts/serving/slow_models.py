"""Models that take seconds of CPU to load and no longer to answer: a real one, with work that is done once put before.

What this file leaves to others: the models that are made slow, and how long the work takes on this machine (the bench).

Rules:
- The answers stay what they were: what was computed is multiplied by nothing and added to the picture, or goes nowhere.
- ONNX: a chain over constants, which the engine folds when it loads. LiteRT: a subgraph that is called once, which runs
  before the first answer, hence in the proof and the warm-up. In both the engine does the work, on its own thread.
"""

from __future__ import annotations

import io
import zipfile
from itertools import pairwise
from typing import Any

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import helper, numpy_helper

_ROWS = 2944
_SIDE, _CHANNELS = 64, 128
_OP, _OPTIONS, _TYPE = schema.BuiltinOperator, schema.BuiltinOptions, schema.TensorType


def make_slow_onnx(model: bytes, links: int) -> bytes:
    """`model` behind a chain of `links` products of constant matrices."""
    net = onnx.load_from_string(model)
    graph, picture = net.graph, net.graph.input[0].name
    rename_input(net, f"{picture}.moved")
    ballast = np.full((_ROWS, _ROWS), 1 / _ROWS, np.float32)
    constants = {"ballast": ballast, "nothing": np.array(0, np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    names = ["ballast", *(f"link{number}" for number in range(links))]
    chain = [helper.make_node("MatMul", [one, "ballast"], [following]) for one, following in pairwise(names)]
    graph.node.extend(
        [
            *chain,
            helper.make_node("ReduceMean", [names[-1]], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["shift"]),
            helper.make_node("Add", [picture, "shift"], [f"{picture}.moved"]),
        ]
    )
    return bytes(net.SerializeToString())


def rename_input(net: onnx.ModelProto, name: str) -> None:
    """Lets all operators read `name` instead of the picture; what makes it is to be added."""
    picture = net.graph.input[0].name
    for node in net.graph.node:
        for at, one in enumerate(node.input):
            node.input[at] = name if one == picture else one


def make_slow_litert(model: bytes, links: int) -> bytes:
    """`model` with a subgraph of `links` convolutions that is called once."""
    net = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    once = _add_code(net, _OP.CALL_ONCE)
    net.subgraphs.append(_make_chain(net, links))
    options = schema.CallOnceOptionsT()
    options.initSubgraphIndex = len(net.subgraphs) - 1
    call = _make_operator(once, [], [], (options, _OPTIONS.CallOnceOptions))
    main = net.subgraphs[0]
    main.operators = [call, *main.operators]
    builder = flatbuffers.Builder(1024)
    builder.Finish(net.Pack(builder), b"TFL3")
    return _append_files(bytes(builder.Output()), model)


def _append_files(net: bytes, model: bytes) -> bytes:
    """`net` with the files (labels) that hang at the end of `model` as a ZIP."""
    out = io.BytesIO(net)
    with zipfile.ZipFile(io.BytesIO(model)) as files, zipfile.ZipFile(out, "a") as ours:
        for name in files.namelist():
            ours.writestr(name, files.read(name))
    return out.getvalue()


def _make_chain(net: Any, links: int) -> Any:
    conv, cumsum = _add_code(net, _OP.CONV_2D), _add_code(net, _OP.CUMSUM)
    graph = schema.SubGraphT()
    graph.name, graph.tensors, graph.operators = b"once", [], []
    graph.inputs = graph.outputs = np.array([], np.int32)
    shape = (1, _SIDE, _SIDE, _CHANNELS)
    before = _add_tensor(net, graph, "begin", shape, np.zeros(shape, np.float32))
    weight = _add_tensor(net, graph, "weight", (_CHANNELS, 3, 3, _CHANNELS), np.zeros((_CHANNELS, 3, 3, _CHANNELS)))
    bias = _add_tensor(net, graph, "bias", (_CHANNELS,), np.zeros(_CHANNELS))
    for number in range(links):
        after = _add_tensor(net, graph, f"link{number}", shape)
        options = schema.Conv2DOptionsT()
        options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
        graph.operators.append(_make_operator(conv, [before, weight, bias], [after], (options, _OPTIONS.Conv2DOptions)))
        before = after
    # its result must go somewhere, or XNNPACK leaves the whole chain out: to an operator that XNNPACK does not have
    axis = _add_tensor(net, graph, "axis", (), np.array(3, np.int32))
    options = (schema.CumsumOptionsT(), _OPTIONS.CumsumOptions)
    graph.operators.append(_make_operator(cumsum, [before, axis], [_add_tensor(net, graph, "end", shape)], options))
    return graph


def _add_code(net: Any, builtin: int) -> int:
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
    net.operatorCodes.append(code)
    return len(net.operatorCodes) - 1


def _add_tensor(net: Any, graph: Any, name: str, shape: tuple[int, ...], values: Any = None) -> int:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, np.array(shape, np.int32), _TYPE.FLOAT32, 0
    if values is not None:
        buffer = schema.BufferT()
        kept = values if values.dtype == np.int32 else values.astype(np.float32)
        tensor.type = _TYPE.INT32 if kept.dtype == np.int32 else _TYPE.FLOAT32
        buffer.data = np.frombuffer(kept.tobytes(), np.uint8)
        net.buffers.append(buffer)
        tensor.buffer = len(net.buffers) - 1
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _make_operator(code: int, inputs: list[int], outputs: list[int], options: tuple[Any, int]) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = code
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    operator.builtinOptions, operator.builtinOptionsType = options
    return operator
