"""Finding float tensors: exact where the file parses, silent where it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeferry.delta.tensors import MIN_ELEMENTS, FloatRange, find_float_ranges


def make_onnx(*arrays: np.ndarray) -> bytes:
    tensors = [numpy_helper.from_array(array, f"w{place}") for place, array in enumerate(arrays)]
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.full(99, 7, np.float32)))
    graph = helper.make_graph(
        [constant], "g", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [99])], tensors
    )
    return bytes(helper.make_model(graph).SerializeToString())


def read_range(data: bytes, one: FloatRange) -> np.ndarray:
    return np.frombuffer(data[one.start : one.end], f"<f{one.width}")


def test_initializers_and_constants_of_an_onnx_file_are_found_exactly() -> None:
    arrays = [
        np.random.default_rng(place).normal(size=100 + place).astype(kind)
        for place, kind in enumerate(("f4", "f2", "f8"))
    ]
    data = make_onnx(*arrays, np.arange(500, dtype=np.int64), np.ones(MIN_ELEMENTS - 1, np.float32))
    found = {read_range(data, one).tobytes() for one in find_float_ranges(data)}
    assert found == {array.tobytes() for array in arrays} | {np.full(99, 7, np.float32).tobytes()}


def test_every_float_weight_of_a_litert_file_is_found(shared_models: Path) -> None:
    path = shared_models / "pairs/teachable_fp32_head_retrain/v1.tflite"
    data = path.read_bytes()
    interpreter = Interpreter(model_path=str(path))
    sizes = sorted(one.elements for one in find_float_ranges(data))
    weights = [detail for detail in interpreter.get_tensor_details() if detail["dtype"] is np.float32]
    assert set(sizes) <= {int(np.prod(detail["shape"])) for detail in weights}
    assert sum(sizes) * 4 > 0.98 * len(data)


def test_an_onnx_file_of_a_real_model_gives_its_initializers(shared_models: Path) -> None:
    path = shared_models / "pairs/yolox_fp32_finetune/v1.onnx"
    wanted = [
        numpy_helper.to_array(tensor).tobytes()
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= MIN_ELEMENTS
    ]
    data = path.read_bytes()
    found = {read_range(data, one).tobytes() for one in find_float_ranges(data)}
    assert set(wanted) <= found


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0\0\0\0TFL3", b"\x08\x07", b"not a model", bytes(1000)])
def test_other_bytes_have_no_tensors(data: bytes) -> None:
    assert find_float_ranges(data) == ()


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_it_fail_or_overlap(data: bytes, litert: bool) -> None:
    data = data[:4] + b"TFL3" + data[4:] if litert else data
    end = 0
    for one in find_float_ranges(data):
        assert end <= one.start < one.end <= len(data)
        end = one.end


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_model_file_is_opaque_or_in_bounds(draw: st.DataObject) -> None:
    data = bytearray(make_onnx(np.ones(200, np.float32)))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    assert all(one.end <= len(data) for one in find_float_ranges(bytes(data)))
