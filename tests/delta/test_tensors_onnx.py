"""Tensors of ONNX files: bytes, shapes and names as the onnx package reads them; roles and scales as the graph says."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from edgeferry.delta.tensors import MIN_ELEMENTS, Tensor, find_tensors

KINDS = {
    **{TensorProto.FLOAT: "f4", TensorProto.FLOAT16: "f2", TensorProto.DOUBLE: "f8", TensorProto.BFLOAT16: "bf2"},
    **{TensorProto.INT8: "i1", TensorProto.UINT8: "u1", TensorProto.INT32: "i4", TensorProto.INT64: "i8"},
}
DEMO = sorted((Path(__file__).resolve().parents[2] / "models").glob("**/*.onnx"))
THIRD_PARTY = (
    "classification/mnist-8.onnx",
    "classification/mobilenet_v2_int8.onnx",
    "detection/tiny_yolov3_interface_standin.onnx",
    "detection/yolox_nano.onnx",
    "face/version-RFB-320.onnx",
    "image2image/super_resolution.onnx",
    "pairs/fastestdet_fp32_retrain/v1.onnx",
    "pairs/fastestdet_fp32_retrain/v2.onnx",
    "pairs/yolox_fp32_finetune/v1.onnx",
    "pairs/yolox_fp32_finetune/v2.onnx",
)


def make_model(nodes: list[onnx.NodeProto], tensors: list[TensorProto]) -> bytes:
    return bytes(helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString())


def make_weight(name: str, shape: tuple[int, ...], kind: str = "f4") -> TensorProto:
    values = np.random.default_rng(len(name)).integers(-90, 90, shape) if "u" not in kind else np.ones(shape)
    return numpy_helper.from_array(values.astype(kind), name)


def find_one(data: bytes, name: str) -> Tensor:
    (one,) = [one for one in find_tensors(data) if one.name == name]
    return one


def list_stored(graph: onnx.GraphProto) -> list[TensorProto]:
    """Initializers, and values of Constant nodes under the name of their output; also of graphs inside nodes."""
    stored = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR and node.op_type == "Constant":
                named = TensorProto()
                named.CopyFrom(attribute.t)
                named.name = node.output[0]
                stored.append(named)
            elif attribute.type == AttributeProto.GRAPH:
                stored += list_stored(attribute.g)
    return stored


def check_against_onnx(path: Path) -> None:
    data = path.read_bytes()
    wanted = {
        (tensor.name, KINDS[tensor.data_type], tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        for tensor in list_stored(onnx.load(path).graph)
        if np.prod(tensor.dims) >= MIN_ELEMENTS and (tensor.raw_data or tensor.float_data)
    }
    found = {(one.name, one.kind, one.shape, data[one.start : one.end]) for one in find_tensors(data)}
    assert found == wanted
    assert found


def check_roles_of_convolutions(path: Path) -> None:
    tensors = {one.name: one for one in find_tensors(path.read_bytes())}
    convolutions = [node for node in onnx.load(path).graph.node if node.op_type in {"Conv", "ConvInteger"}]
    checked = 0
    for ordinal, node in enumerate(convolutions):
        if node.input[1] in tensors:
            one = tensors[node.input[1]]
            assert (one.role, one.channel_axis) == (f"Conv/1@{ordinal}", 0)
            checked += 1
    assert checked > 0.9 * len(convolutions) > 0


@pytest.mark.parametrize("path", DEMO, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tensors_of_our_models_are_what_onnx_reads(path: Path) -> None:
    check_against_onnx(path)
    check_roles_of_convolutions(path)


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", THIRD_PARTY)
def test_tensors_of_third_party_models_are_what_onnx_reads(shared_models: Path, name: str) -> None:
    check_against_onnx(shared_models / name)
    check_roles_of_convolutions(shared_models / name)


@pytest.mark.needs_shared
def test_weights_of_integer_convolutions_have_the_scale_that_multiplies_their_result(shared_models: Path) -> None:
    path = shared_models / "classification/mobilenet_v2_int8.onnx"
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    quantised = [one for one in find_tensors(path.read_bytes()) if one.kind == "i1"]
    for one in quantised:
        assert one.scales == (float(scales[one.name.replace("_quantized", "_scale")]),)
    assert len(quantised) == 53


# --- how data is stored -----------------------------------------------------------------------------------------------
def test_kinds_stored_in_one_piece_are_found_with_their_shapes() -> None:
    kinds = ("f4", "f2", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
    data = make_model([], [make_weight(f"w{kind}", (8, 9), kind) for kind in kinds])
    assert {(one.name, one.kind, one.shape) for one in find_tensors(data)} == {(f"w{k}", k, (8, 9)) for k in kinds}


def test_packed_floats_and_doubles_count_and_varints_do_not() -> None:
    values = np.arange(100) / 3
    tensors = [
        helper.make_tensor("floats", TensorProto.FLOAT, [4, 25], values.astype("f4")),
        helper.make_tensor("doubles", TensorProto.DOUBLE, [100], values),
        helper.make_tensor("halves", TensorProto.FLOAT16, [100], values.astype("f2")),
        helper.make_tensor("ints", TensorProto.INT32, [100], range(100)),
        helper.make_tensor("longs", TensorProto.INT64, [100], range(100)),
    ]
    data = make_model([], tensors)
    found = {one.name: data[one.start : one.end] for one in find_tensors(data)}
    assert found == {"floats": values.astype("<f4").tobytes(), "doubles": values.astype("<f8").tobytes()}


def test_sparse_and_external_data_are_left_out() -> None:
    outside = make_weight("outside", (9, 9))
    outside.data_location = TensorProto.EXTERNAL
    sparse = helper.make_sparse_tensor(
        make_weight("sparse", (100,)), numpy_helper.from_array(np.arange(100), "at"), [10_000]
    )
    graph = helper.make_graph([], "g", [], [], [outside, make_weight("inside", (9, 9))], sparse_initializer=[sparse])
    data = helper.make_model(graph).SerializeToString()
    assert [one.name for one in find_tensors(data)] == ["inside"]


def test_kinds_with_several_elements_in_a_byte_are_left_out() -> None:
    packed = TensorProto(name="int4", data_type=TensorProto.INT4, dims=[200], raw_data=bytes(100))
    assert find_tensors(make_model([], [packed])) == ()


def test_data_of_another_size_than_its_shape_comes_flat() -> None:
    odd = TensorProto(name="odd", data_type=TensorProto.FLOAT, dims=[9, 9], raw_data=bytes(403))
    one = find_one(make_model([helper.make_node("Conv", ["x", "odd"], ["y"])], [odd]), "odd")
    assert (one.shape, one.size_bytes, one.role, one.channel_axis) == ((100,), 400, "Conv/1@0", 0)


def test_tensors_of_graphs_inside_nodes_are_found_and_read_from_inside() -> None:
    then = helper.make_graph(
        [helper.make_node("Conv", ["x", "outer"], ["t"])], "then", [], [], [make_weight("hidden", (70,))]
    )
    otherwise = helper.make_graph([helper.make_node("MatMul", ["x", "own"], ["e"])], "else", [], [])
    otherwise.initializer.append(make_weight("own", (9, 8)))
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise)
    data = make_model([node], [make_weight("outer", (8, 9, 1, 1))])
    assert {one.name: (one.role, one.channel_axis) for one in find_tensors(data)} == {
        "outer": ("Conv/1@0", 0),
        "own": ("MatMul/1@0", 1),
        "hidden": ("", 0),
    }


# --- roles and axes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("operator", "place", "numbers", "axis"),
    [
        ("Conv", 1, {}, 0),
        ("ConvTranspose", 1, {}, 1),
        ("Gemm", 1, {}, 1),
        ("Gemm", 1, {"transB": 1}, 0),
        ("MatMul", 1, {}, 1),
        ("MatMul", 0, {}, 0),
        ("Mul", 1, {}, 0),
    ],
)
def test_the_axis_of_output_channels_follows_the_operator(
    operator: str, place: int, numbers: dict[str, int], axis: int
) -> None:
    inputs = ["w", "x"] if place == 0 else ["x", "w"]
    nodes = [helper.make_node(operator, ["x", "x"], ["y"]), helper.make_node(operator, inputs, ["z"], **numbers)]
    one = find_one(make_model(nodes, [make_weight("w", (8, 9))]), "w")
    assert (one.role, one.channel_axis) == (f"{operator}/{place}@1", axis)


def test_roles_are_the_same_in_float32_float16_and_int8() -> None:
    convolve = helper.make_node("Conv", ["x", "w"], ["y"])
    behind = helper.make_node("Conv", ["x", "v"], ["y"])
    plain = make_model([convolve], [make_weight("w", (8, 9, 3, 3))])
    half = make_model([helper.make_node("Cast", ["w"], ["v"], to=1), behind], [make_weight("w", (8, 9, 3, 3), "f2")])
    scales, zeros = np.linspace(0.01, 0.02, 8, dtype="f4"), np.arange(8, dtype="i1")
    quantisers = [numpy_helper.from_array(scales, "s"), helper.make_tensor("z", TensorProto.INT8, [8], zeros - 4)]
    tensors = [make_weight("w", (8, 9, 3, 3), "i1"), *quantisers]
    restored = make_model([helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], axis=0), behind], tensors)
    whole = helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "s", "z", "ys", "yz"], ["y"])
    found = [find_one(each, "w") for each in (plain, half, restored, make_model([whole], tensors))]
    assert {(one.role, one.channel_axis, one.shape) for one in found} == {("Conv/1@0", 0, (8, 9, 3, 3))}
    assert [one.kind for one in found] == ["f4", "f2", "i1", "i1"]
    for one in found[2:]:
        assert (one.scales, one.zeros, one.scale_axis) == (tuple(scales.tolist()), tuple(range(-4, 4)), 0)


def test_an_operator_and_its_quantised_form_are_counted_together() -> None:
    nodes = [
        helper.make_node("QLinearConv", ["x", "xs", "xz", "a", "s", "z", "ys", "yz", "bias"], ["y"]),
        helper.make_node("Conv", ["y", "b"], ["t"]),
        helper.make_node("MatMulInteger", ["t", "c"], ["u"]),
        helper.make_node("MatMul", ["u", "d"], ["v"]),
    ]
    tensors = [make_weight(name, (8, 9)) for name in "abcd"] + [make_weight("bias", (70,), "i4")]
    roles = {one.name: one.role for one in find_tensors(make_model(nodes, tensors))}
    wanted = {"a": "Conv/1@0", "bias": "Conv/2@0", "b": "Conv/1@1", "c": "MatMul/1@0", "d": "MatMul/1@1"}
    assert roles == wanted


def test_axes_are_followed_through_transposes() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"], axis=1),
        helper.make_node("Transpose", ["v"], ["t"], perm=[2, 0, 1, 3]),
        helper.make_node("Identity", ["t"], ["u"]),
        helper.make_node("Conv", ["x", "u"], ["y"]),
        helper.make_node("Transpose", ["m"], ["n"]),
        helper.make_node("MatMul", ["x", "n"], ["z"]),
    ]
    scales = numpy_helper.from_array(np.linspace(1, 2, 5, dtype="f4"), "s")
    data = make_model(nodes, [make_weight("w", (4, 5, 6, 7), "i1"), scales, make_weight("m", (8, 9))])
    weight, turned = find_one(data, "w"), find_one(data, "m")
    assert (weight.role, weight.channel_axis, weight.scale_axis, weight.zeros) == ("Conv/1@0", 2, 1, (0,))
    assert weight.scales == tuple(np.linspace(1, 2, 5, dtype="f4").tolist())
    assert (turned.role, turned.channel_axis) == ("MatMul/1@0", 0)


def test_a_scale_for_the_whole_tensor_and_one_from_a_constant_are_read() -> None:
    scale = numpy_helper.from_array(np.float32(0.1), "any")
    nodes = [
        helper.make_node("Constant", [], ["s"], value=scale),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    zero = numpy_helper.from_array(np.uint8(7), "z")
    one = find_one(make_model(nodes, [make_weight("w", (8, 9), "u1"), zero]), "w")
    assert (one.scales, one.zeros, one.scale_axis, one.channel_axis) == ((float(np.float32(0.1)),), (7,), 0, 1)


def test_scales_that_fit_no_axis_are_not_given() -> None:
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["v"], axis=0)]
    tensors = [make_weight("w", (8, 9), "i1"), numpy_helper.from_array(np.ones(5, "f4"), "s")]
    one = find_one(make_model(nodes, tensors), "w")
    assert (one.scales, one.zeros, one.role) == ((), (), "DequantizeLinear/0@0")


# --- bounds -----------------------------------------------------------------------------------------------------------
def test_a_circle_of_operators_ends() -> None:
    nodes = [helper.make_node("Cast", ["w"], ["v"], to=1), helper.make_node("Identity", ["v"], ["w"])]
    assert find_one(make_model(nodes, [make_weight("w", (8, 9))]), "w").kind == "f4"


def test_graphs_nested_without_end_are_left_alone_below_a_depth() -> None:
    graph = helper.make_graph([], "g", [], [], [make_weight("w", (8, 9))])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [])
    graph.initializer.append(make_weight("top", (8, 9)))
    assert [one.name for one in find_tensors(helper.make_model(graph).SerializeToString())] == ["top"]


def test_more_nodes_than_any_model_has_make_a_file_opaque_in_bounded_time() -> None:
    nodes = b"\x0a\x00" * 2_000_000
    length = len(nodes)
    varint = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21])
    started = time.process_time()
    assert find_tensors(b"\x3a" + varint + nodes) == ()
    assert time.process_time() - started < 10


def test_a_model_of_many_tensors_parses_in_linear_time() -> None:
    def measure(count: int) -> float:
        names = [f"layer.{place}.weight" for place in range(count)]
        nodes = [helper.make_node("MatMul", [f"x{name}", name], [f"y{name}"]) for name in names]
        data = make_model(nodes, [make_weight(name, (8, 9)) for name in names])
        took_s = []
        for _ in range(3):
            started = time.process_time()
            assert len(find_tensors(data)) == count
            took_s.append(time.process_time() - started)
        return min(took_s)

    assert measure(8_000) < 6 * measure(2_000) + 0.2
