"""Tensors of TensorFlow Lite files: bytes, shapes, scales as the interpreter reads them; roles as the schema says."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeferry.delta.tensors import MIN_ELEMENTS, Tensor, find_tensors

DEMO = sorted((Path(__file__).resolve().parents[2] / "models").glob("**/*.tflite"))
THIRD_PARTY = (
    "classification/mobilenet_v1_0.25_128_quant.tflite",
    "classification/mobilenet_v2_1.0_224_quant.tflite",
    "detection/ssd_mobilenet_v1_1_metadata_1.tflite",
    "face/face_detection_short_range.tflite",
    "hand/hand_landmark_lite.tflite",
    "hand/keypoint_classifier.tflite",
    "hand/palm_detection_lite.tflite",
    "pairs/facelandmark_fp16_reserialised/v1.tflite",
    "pairs/facelandmark_fp16_reserialised/v2.tflite",
    "pairs/mobilenetv2_quant_reserialised/v1.tflite",
    "pairs/ssdv1_metadata_only/v1.tflite",
    "pairs/teachable_fp32_head_retrain/v1.tflite",
    "pose/movenet_single_pose_lightning_ptq.tflite",
    "segmentation/deeplabv3_mnv2_dm05_pascal_quant.tflite",
    "segmentation/selfie_segmentation.tflite",
)
OPERATORS = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
AXES = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}


def read_constants(path: Path) -> dict[int, tuple[dict[str, Any], bytes]]:
    """Index -> what the interpreter says of a stored tensor, and its bytes; before it makes room for any other."""
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=resolver)
    constants = {}
    for detail in interpreter.get_tensor_details():
        try:
            constants[detail["index"]] = (detail, interpreter.get_tensor(detail["index"]).tobytes())
        except ValueError:
            continue  # not stored: computed while the model runs
    return constants


def describe(detail: dict[str, Any], data: bytes) -> tuple[Any, ...]:
    quantisation = detail["quantization_parameters"]
    scales = tuple(quantisation["scales"].tolist())
    zeros = tuple(quantisation["zero_points"].tolist())
    axis = quantisation["quantized_dimension"] if len(scales) > 1 else 0
    kind = np.dtype(detail["dtype"]).str[1:]
    return (detail["name"], kind, tuple(detail["shape"].tolist()), data, scales, zeros, axis)


def check_against_interpreter(path: Path) -> None:
    data = path.read_bytes()
    wanted = [describe(*each) for each in read_constants(path).values()]
    wanted = [each for each in wanted if np.prod(each[2]) >= MIN_ELEMENTS]
    found = [
        (one.name, one.kind, one.shape, data[one.start : one.end], one.scales, one.zeros, one.scale_axis)
        for one in find_tensors(data)
    ]
    assert set(found) <= set(wanted)
    assert {each[3] for each in wanted} <= {each[3] for each in found}
    assert found


def list_roles(data: bytes) -> dict[str, str]:
    """Name of a tensor -> its role, through the schema's own classes."""
    model = schema.ModelT.InitFromPackedBuf(data)
    (graph,) = model.subgraphs
    counts: Counter[str] = Counter()
    readers: dict[int, tuple[Any, str, str]] = {}
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        name = OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        name = code.customCode.decode() if name == "CUSTOM" else name
        for place, index in enumerate(operator.inputs):
            readers.setdefault(int(index), (operator, name, f"{name}/{place}@{counts[name]}"))
        counts[name] += 1
    roles = {}
    for index, tensor in enumerate(graph.tensors):
        operator, name, role = readers.get(index, (None, "", ""))
        if name in {"DEQUANTIZE", "DENSIFY"}:
            role = readers.get(int(operator.outputs[0]), (None, "", role))[2]
        roles[tensor.name.decode()] = role
    return roles


def check_against_schema(path: Path) -> None:
    data = path.read_bytes()
    roles, tensors = list_roles(data), find_tensors(data)
    for one in tensors:
        assert one.role == roles[one.name]
        operator, place = one.role.split("@")[0].split("/")
        assert one.channel_axis == (AXES.get(operator, 0) if place == "1" else 0)
    assert sum(bool(one.role) for one in tensors) > 0.9 * len(tensors)


@pytest.mark.parametrize("path", DEMO, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tensors_of_our_models_are_what_the_interpreter_reads(path: Path) -> None:
    check_against_interpreter(path)
    check_against_schema(path)


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", THIRD_PARTY)
def test_tensors_of_third_party_models_are_what_the_interpreter_reads(shared_models: Path, name: str) -> None:
    check_against_interpreter(shared_models / name)
    check_against_schema(shared_models / name)


def test_roles_are_the_same_in_float32_float16_and_int8(demo_models: Path) -> None:
    versions = [
        {one.role: one for one in find_tensors((demo_models / f"detector/1.2.0/detector-{kind}.tflite").read_bytes())}
        for kind in ("fp32", "fp16", "int8")
    ]
    plain, half, quantised = versions
    assert plain.keys() == half.keys() == quantised.keys()
    weights = [role for role in plain if role.startswith(("CONV_2D/1", "DEPTHWISE_CONV_2D/1"))]
    for role in weights:
        assert [each[role].kind for each in versions] == ["f4", "f2", "i1"]
        assert len({(each[role].shape, each[role].channel_axis) for each in versions}) == 1
        one = quantised[role]
        assert (len(one.scales), one.scale_axis) == (one.shape[one.channel_axis], one.channel_axis)
    assert len(weights) > 15


# --- files made by hand -----------------------------------------------------------------------------------------------
def make_tensor(name: str, shape: tuple[int, ...], buffer: int, kind: int = schema.TensorType.FLOAT32) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer, tensor.type = name, list(shape), buffer, kind
    return tensor


def make_operator(code: int, inputs: list[int], outputs: list[int]) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
    return operator


def make_model(tensors: list[Any], operators: list[Any], codes: list[int], buffers: list[Any]) -> bytes:
    """Buffers are bytes, or (offset, size) of bytes behind the flatbuffer."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, operators, [], []
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [], [schema.BufferT()]
    for code in codes:
        entry = schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode = code, min(code, 127)
        model.operatorCodes.append(entry)
    for content in buffers:
        entry = schema.BufferT()
        if isinstance(content, bytes):
            entry.data = np.frombuffer(content, np.uint8)
        else:
            entry.offset, entry.size = content
        model.buffers.append(entry)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def find_named(data: bytes) -> dict[str, Tensor]:
    return {one.name: one for one in find_tensors(data)}


def test_data_behind_the_flatbuffer_is_found() -> None:
    values = np.arange(100, dtype="<f4").tobytes()
    size_bytes = len(make_model([make_tensor("w", (4, 25), 1)], [], [], [(1 << 20, len(values))]))
    head = make_model([make_tensor("w", (4, 25), 1)], [], [], [(size_bytes, len(values))])
    assert len(head) == size_bytes
    (one,) = find_tensors(head + values)
    assert ((head + values)[one.start : one.end], one.shape, one.name) == (values, (4, 25), "w")
    assert find_tensors(head + values[:-1]) == ()


def test_a_buffer_that_two_tensors_share_counts_once_for_the_one_that_is_read() -> None:
    tensors = [make_tensor("unread", (72,), 1), make_tensor("read", (8, 9), 1), make_tensor("y", (1, 8), 0)]
    operators = [make_operator(0, [2, 1], [2])]
    data = make_model(tensors, operators, [schema.BuiltinOperator.FULLY_CONNECTED], [bytes(288)])
    (one,) = find_tensors(data)
    assert (one.name, one.role) == ("read", "FULLY_CONNECTED/1@0")


def test_axes_are_followed_through_a_transpose() -> None:
    order = np.array([3, 0, 1, 2], "<i4").tobytes()
    tensors = [
        make_tensor("w", (2, 3, 4, 5), 1),
        make_tensor("order", (4,), 2, schema.TensorType.INT32),
        make_tensor("turned", (5, 2, 3, 4), 0),
        make_tensor("x", (1, 9, 9, 4), 0),
    ]
    operators = [make_operator(0, [0, 1], [2]), make_operator(1, [3, 2], [3])]
    codes = [schema.BuiltinOperator.TRANSPOSE, schema.BuiltinOperator.CONV_2D]
    one = find_named(make_model(tensors, operators, codes, [bytes(480), order]))["w"]
    assert (one.role, one.channel_axis) == ("CONV_2D/1@0", 3)


def test_an_adjoint_matrix_product_has_its_channels_on_the_other_axis() -> None:
    operator = make_operator(0, [1, 0], [1])
    operator.builtinOptionsType, operator.builtinOptions = (
        schema.BuiltinOptions.BatchMatMulOptions,
        schema.BatchMatMulOptionsT(),
    )
    codes, tensors = [schema.BuiltinOperator.BATCH_MATMUL], [make_tensor("w", (8, 9), 1), make_tensor("x", (1, 8), 0)]
    axes = []
    for adjoint in (False, True):
        operator.builtinOptions.adjY = adjoint
        axes.append(find_named(make_model(tensors, [operator], codes, [bytes(288)]))["w"].channel_axis)
    assert axes == [1, 0]


def test_data_of_another_size_than_its_shape_comes_flat() -> None:
    (one,) = find_tensors(make_model([make_tensor("sparse", (90, 90), 1)], [], [], [bytes(403)]))
    assert (one.shape, one.size_bytes) == ((100,), 400)


def test_kinds_with_several_elements_in_a_byte_are_left_out() -> None:
    assert find_tensors(make_model([make_tensor("w", (400,), 1, schema.TensorType.INT4)], [], [], [bytes(200)])) == ()


def claim_tensors(count: int) -> bytes:
    """A file whose list of tensors names one table `count` times."""
    data = bytearray(make_model([make_tensor("w", (100,), 1)], [], [], [bytes(400)]))
    graph = schema.Model.GetRootAs(bytes(data)).Subgraphs(0)
    slot = graph._tab.Offset(4) + graph._tab.Pos
    # Offsets only point forward: the table that all of them name is copied behind them, with what it points at.
    table = data[graph.Tensors(0)._tab.Pos - 64 :]
    data += bytes(-len(data) % 4)
    start = len(data)
    items = start + 4
    data += count.to_bytes(4, "little")
    data += b"".join((4 * count + 64 - 4 * place).to_bytes(4, "little") for place in range(count))
    data += table
    data[slot : slot + 4] = (start - slot).to_bytes(4, "little")
    assert len(data) == items + 4 * count + len(table)
    return bytes(data)


def test_a_million_claimed_tensors_make_a_file_opaque_in_bounded_time() -> None:
    assert [one.name for one in find_tensors(claim_tensors(1_000))] == ["w"]
    data = claim_tensors(1_000_000)
    started = time.process_time()
    assert find_tensors(data) == ()
    assert time.process_time() - started < 15
