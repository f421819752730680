"""Finding tensors: exact where the file parses, silent where it does not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeferry.delta.tensors import (
    MAX_RANGES,
    MIN_ELEMENTS,
    WIDTHS,
    FloatRange,
    Tensor,
    find_float_ranges,
    find_tensors,
)

REAL = ("detector/1.2.0/detector.onnx", "detector/1.2.0/detector-fp16.tflite", "detector/1.2.0/detector-int8.tflite")
MODELS = Path(__file__).resolve().parents[2] / "models"


def make_onnx(*arrays: np.ndarray) -> bytes:
    tensors = [numpy_helper.from_array(array, f"w{place}") for place, array in enumerate(arrays)]
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.full(99, 7, np.float32)))
    graph = helper.make_graph(
        [constant], "g", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [99])], tensors
    )
    return bytes(helper.make_model(graph).SerializeToString())


def read_range(data: bytes, one: FloatRange) -> np.ndarray:
    return np.frombuffer(data[one.start : one.end], f"<f{one.width}")


def check_sound(tensors: tuple[Tensor, ...], size_bytes: int) -> None:
    """What holds for any file: inside it, in order, apart, and of a size that shape and kind agree on."""
    end = 0
    assert len(tensors) <= MAX_RANGES
    for one in tensors:
        assert end <= one.start < one.end <= size_bytes
        assert one.elements == int(np.prod(one.shape, dtype=object)) >= MIN_ELEMENTS
        assert one.size_bytes == one.elements * WIDTHS[one.kind]
        assert 0 <= one.channel_axis < len(one.shape)
        assert len(one.scales) in {0, 1, one.shape[one.scale_axis]}
        assert len(one.zeros) in ({1, len(one.scales)} if one.scales else {0})
        end = one.end


@cache
def read_real(name: str) -> tuple[bytes, tuple[int, ...]]:
    """A real file, and the places of its bytes that no tensor holds: there damage changes what is found."""
    data = (MODELS / name).read_bytes()
    inside = np.zeros(len(data), bool)
    for one in find_tensors(data):
        inside[one.start : one.end] = True
    return data, tuple(np.flatnonzero(~inside).tolist())


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
    assert find_float_ranges(data) == find_tensors(data) == ()


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_it_fail_or_overlap(data: bytes, litert: bool) -> None:
    data = data[:4] + b"TFL3" + data[4:] if litert else data
    check_sound(find_tensors(data), len(data))


@pytest.mark.parametrize("name", REAL)
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_model_file_is_opaque_or_in_bounds(name: str, draw: st.DataObject) -> None:
    whole, outside = read_real(name)
    data = bytearray(whole)
    for _ in range(draw.draw(st.integers(1, 8))):
        value = draw.draw(st.integers(0, 255) | st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        data[draw.draw(st.sampled_from(outside))] = value
    cut = draw.draw(st.integers(0, len(data)) | st.just(len(data)))
    check_sound(find_tensors(bytes(data[:cut])), cut)


@pytest.mark.parametrize("name", REAL)
def test_damage_of_the_structure_is_noticed_so_that_the_property_above_can_fail(name: str) -> None:
    whole, outside = read_real(name)
    wanted, changed = find_tensors(whole), 0
    for place in outside[:: max(1, len(outside) // 200)]:
        data = bytearray(whole)
        data[place] ^= 0xFF
        changed += find_tensors(bytes(data)) != wanted
    assert len(wanted) > 30
    assert changed > 10


@pytest.mark.parametrize("name", REAL)
def test_a_smaller_minimum_finds_all_that_a_larger_one_finds(name: str) -> None:
    data = read_real(name)[0]
    every = find_tensors(data, min_elements=1)
    assert set(find_tensors(data)) == {one for one in every if one.elements >= MIN_ELEMENTS} < set(every)


@pytest.mark.parametrize("name", REAL)
def test_any_kind_of_buffer_gives_the_same(name: str) -> None:
    data = read_real(name)[0]
    assert find_tensors(data) == find_tensors(bytearray(data)) == find_tensors(memoryview(data))


def test_float_ranges_are_the_float_tensors(demo_models: Path) -> None:
    data = (demo_models / "detector/1.2.0/detector-int8.tflite").read_bytes()
    floats = [one for one in find_tensors(data) if one.kind in {"f2", "f4", "f8", "bf2"}]
    assert [(one.start, one.end) for one in find_float_ranges(data)] == [(one.start, one.end) for one in floats]
    assert 0 < len(floats) < len(find_tensors(data))
