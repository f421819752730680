"""The onnx package is the oracle: what it reads, ours reads."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeferry.errors import ModelUnreadable
from edgeferry.model.facts import TensorFacts
from edgeferry.model.inspect_onnx import inspect_onnx
from edgeferry.model.protobuf import WireReader, to_signed

OnnxMaker = Callable[..., bytes]
DTYPES = {TensorProto.FLOAT: "float32", TensorProto.INT32: "int32", TensorProto.INT64: "int64"}


def _read_by_oracle(values: list[onnx.ValueInfoProto]) -> Iterator[tuple[str, str, tuple[int | None, ...]]]:
    for value in values:
        kind = value.type.tensor_type
        yield value.name, DTYPES[kind.elem_type], tuple(dim.dim_value or None for dim in kind.shape.dim)


def _plain(tensors: tuple[TensorFacts, ...]) -> list[tuple[str, str, tuple[int | None, ...]]]:
    return [(each.name, each.dtype, each.shape) for each in tensors]


def _compare(path: Path) -> None:
    facts, model = inspect_onnx(memoryview(path.read_bytes())), onnx.load(path)
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    assert _plain(facts.inputs) == list(_read_by_oracle(inputs))
    assert _plain(facts.outputs) == list(_read_by_oracle(list(model.graph.output)))
    assert facts.operators == Counter(node.op_type for node in model.graph.node)
    assert facts.metadata == {each.key: each.value for each in model.metadata_props}
    assert facts.producer == model.producer_name
    assert facts.opset == next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    assert facts.weight_bytes == sum(each.ByteSize() for each in model.graph.initializer)


@pytest.mark.needs_shared
def test_every_third_party_model_reads_as_onnx_reads_it(shared_models: Path) -> None:
    paths = sorted(shared_models.rglob("*.onnx"))
    assert len(paths) >= 10
    for path in paths:
        _compare(path)


def test_every_demo_model_reads_as_onnx_reads_it(demo_models: Path) -> None:
    paths = sorted(demo_models.rglob("*.onnx"))
    assert len(paths) >= 5
    for path in paths:
        _compare(path)


def test_initializers_are_no_inputs_and_open_dimensions_are_none(make_onnx: OnnxMaker) -> None:
    weight = numpy_helper.from_array(np.zeros((2, 3), np.float32), "w")
    data = make_onnx(
        [("image", TensorProto.UINT8, ("batch", 3, None, 8)), ("w", TensorProto.FLOAT, (2, 3))], weights=[weight]
    )
    facts = inspect_onnx(memoryview(data))
    assert _plain(facts.inputs) == [("image", "uint8", (None, 3, None, 8))]


def test_the_maker_of_an_output_is_seen_through_reshapes(make_onnx: OnnxMaker) -> None:
    nodes = [
        helper.make_node("Softmax", ["image"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("Cast", ["b"], ["scores"], to=1),
    ]
    assert inspect_onnx(memoryview(make_onnx(nodes=nodes))).outputs[0].made_by == "Softmax"


def test_reshapes_in_a_circle_end(make_onnx: OnnxMaker) -> None:
    nodes = [helper.make_node("Identity", ["b"], ["scores"]), helper.make_node("Identity", ["scores"], ["b"])]
    assert inspect_onnx(memoryview(make_onnx(nodes=nodes))).outputs[0].made_by == "Identity"


def test_a_graph_in_two_parts_is_merged_as_protobuf_does(make_onnx: OnnxMaker) -> None:
    data = make_onnx()
    merged = onnx.load_from_string(data + data)
    assert len(inspect_onnx(memoryview(data + data)).inputs) == len(merged.graph.input) == 2


def test_weights_in_another_file_are_refused(make_onnx: OnnxMaker) -> None:
    weight = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(ModelUnreadable, match="external"):
        inspect_onnx(memoryview(make_onnx(weights=[weight])))


def test_an_input_that_is_no_tensor_has_no_dtype(make_onnx: OnnxMaker) -> None:
    model = onnx.load_from_string(make_onnx())
    model.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))
    assert inspect_onnx(memoryview(model.SerializeToString())).inputs[1] == TensorFacts("list", "", ())


BAD = {
    "nothing": b"",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "a ZIP": b"PK\x03\x04" + bytes(50),
    "a text": b"not a model at all",
    "an empty graph": b"\x3a\x00",
    "a varint without end": b"\xff" * 30,
    "a length beyond the end": b"\x3a\xff\xff\xff\xff\x0f",
    "a group": b"\x0b\x0c",
    "field number 0": b"\x02\x00",
    "a name that is no text": b"\x12\x02\xff\xff",
}


@pytest.mark.parametrize("name", BAD)
def test_bytes_are_refused_that_are(name: str) -> None:
    with pytest.raises(ModelUnreadable):
        inspect_onnx(memoryview(BAD[name]))


def test_every_cut_of_a_model_is_refused_or_still_a_model(make_onnx: OnnxMaker) -> None:
    data = make_onnx(properties={"edgeferry.task": "detection"})
    for length in range(len(data)):
        try:
            facts = inspect_onnx(memoryview(data)[:length])
        except ModelUnreadable:
            continue
        assert facts.inputs and facts.outputs


def test_millions_of_empty_fields_end_in_an_error_and_soon() -> None:
    data = memoryview(b"\x08\x00" * 8_000_000)
    started = time.process_time()
    with pytest.raises(ModelUnreadable, match="fields"):
        inspect_onnx(data)
    assert time.process_time() - started < 15


def test_a_long_weight_is_skipped_not_copied(make_onnx: OnnxMaker) -> None:
    weight = numpy_helper.from_array(np.zeros(25_000_000, np.float32), "w")
    data = memoryview(make_onnx(weights=[weight]))
    started = time.process_time()
    assert inspect_onnx(data).weight_bytes > 100_000_000
    assert time.process_time() - started < 0.5


@pytest.mark.needs_shared
def test_five_hundred_damaged_models_raise_model_unreadable_or_nothing(shared_models: Path) -> None:
    raw = (shared_models / "classification" / "mnist-8.onnx").read_bytes()
    dice = random.Random(7)
    refused = 0
    started = time.process_time()
    for _ in range(500):
        data = bytearray(raw)
        for _ in range(dice.randint(1, 12)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        try:
            inspect_onnx(memoryview(data))
        except ModelUnreadable:
            refused += 1
    assert refused > 50
    assert time.process_time() - started < 20


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_raise_model_unreadable_or_nothing(data: bytes) -> None:
    with pytest.raises(ModelUnreadable):
        inspect_onnx(memoryview(data))


@settings(max_examples=100)
@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_numbers_come_back_from_their_varints(number: int) -> None:
    data = helper.make_opsetid("", number).SerializeToString()
    fields = list(WireReader(memoryview(data)).walk())
    assert [to_signed(each.value) for each in fields if each.number == 2] == [number]
