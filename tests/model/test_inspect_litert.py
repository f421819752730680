"""flatbuffers with the schema of ai-edge-litert is the oracle: what they read, ours reads."""

from __future__ import annotations

import io
import math
import random
import struct
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import ModelUnreadable
from edgeferry.model.facts import PackedFile, PictureFacts, PostProcessFacts, TensorFacts
from edgeferry.model.flatbuffer import read_flex_numbers
from edgeferry.model.inspect_litert import inspect_litert, read_packed
from edgeferry.model.litert_names import BUILTIN_OPERATORS, DTYPES

LitertMaker = Callable[..., bytes]
OPERATORS = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
TYPES = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
UINT8 = schema.TensorType.UINT8


def _read_tensor(graph: Any, index: int) -> tuple[str, str, tuple[int | None, ...], float, int]:
    tensor = graph.Tensors(index)
    signed = tensor.ShapeSignatureLength() > 0
    shape = tensor.ShapeSignatureAsNumpy() if signed else tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
    quant = tensor.Quantization()
    whole = quant is not None and quant.ScaleLength() == 1
    return (
        tensor.Name().decode(),
        TYPES[tensor.Type()].lower(),
        tuple(None if size < 0 else int(size) for size in shape),
        float(quant.Scale(0)) if whole else 0.0,
        int(quant.ZeroPoint(0)) if whole and quant.ZeroPointLength() else 0,
    )


def _plain(tensors: tuple[TensorFacts, ...]) -> list[tuple[str, str, tuple[int | None, ...], float, int]]:
    return [(each.name, each.dtype, each.shape, each.quant_scale, each.quant_zero) for each in tensors]


def _get_operator_names(model: Any) -> list[str]:
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    numbers = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes]
    return [
        code.CustomCode().decode() if number == schema.BuiltinOperator.CUSTOM else OPERATORS[number]
        for code, number in zip(codes, numbers, strict=True)
    ]


def _compare(path: Path) -> None:
    data = path.read_bytes()
    facts, model = inspect_litert(memoryview(data)), schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    assert _plain(facts.inputs) == [_read_tensor(graph, index) for index in graph.InputsAsNumpy()]
    assert _plain(facts.outputs) == [_read_tensor(graph, index) for index in graph.OutputsAsNumpy()]
    names = _get_operator_names(model)
    counted = Counter(names[graph.Operators(index).OpcodeIndex()] for index in range(graph.OperatorsLength()))
    assert facts.operators == counted
    assert facts.weight_bytes == sum(model.Buffers(index).DataLength() for index in range(model.BuffersLength()))
    assert set(facts.signatures) == {
        model.SignatureDefs(index).SignatureKey().decode() for index in range(model.SignatureDefsLength())
    }
    assert facts.opset == model.Version() == 3


@pytest.mark.needs_shared
def test_every_third_party_model_reads_as_flatbuffers_reads_it(shared_models: Path) -> None:
    paths = sorted(shared_models.rglob("*.tflite"))
    assert len(paths) >= 15
    for path in paths:
        _compare(path)


def test_every_demo_model_reads_as_flatbuffers_reads_it(demo_models: Path) -> None:
    paths = sorted(demo_models.rglob("*.tflite"))
    assert len(paths) >= 14
    for path in paths:
        _compare(path)


def test_names_of_operators_and_types_are_those_of_the_schema() -> None:
    assert dict(enumerate(BUILTIN_OPERATORS)) == OPERATORS
    assert {number: name.upper() for number, name in DTYPES.items()} == TYPES


@pytest.mark.needs_shared
def test_the_guides_detector_tells_its_metadata_its_operator_and_its_labels(shared_models: Path) -> None:
    data = memoryview((shared_models / "detection" / "ssd_mobilenet_v1_1_metadata_1.tflite").read_bytes())
    facts = inspect_litert(data)
    op = "TFLite_Detection_PostProcess"
    assert facts.post_process == PostProcessFacts((op, f"{op}:1", f"{op}:2", f"{op}:3"), 90, 10, pytest.approx(1e-8))
    assert facts.picture == PictureFacts((127.5,), (127.5,), "rgb")
    assert facts.packed == (PackedFile("labelmap.txt", 665, holds_labels=True),)
    assert [each.described_as for each in facts.outputs] == ["locations", "classes", "scores", "number of detections"]
    assert facts.metadata["name"] == "SSD MobileNetV1"
    assert read_packed(data, "labelmap.txt") == (shared_models / "detection" / "labelmap.txt").read_bytes()


def test_the_operators_own_order_is_told_whatever_the_graphs(make_litert: LitertMaker) -> None:
    outputs = [(name, 0, (1, 10)) for name in "bcsn"]
    options = {"num_classes": 6, "max_detections": 25, "nms_score_threshold": 0.25, "use_regular_nms": True}
    data = make_litert(
        outputs=outputs, custom="TFLite_Detection_PostProcess", options=options, graph_outputs=(3, 1, 0, 2)
    )
    facts = inspect_litert(memoryview(data))
    assert facts.post_process == PostProcessFacts(("b", "c", "s", "n"), 6, 25, 0.25)
    assert [each.name for each in facts.outputs] == ["n", "c", "b", "s"]


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", exclude_characters="\x00"), min_size=1, max_size=12),
        st.one_of(st.booleans(), st.integers(-(1 << 62), 1 << 62), st.floats(-1e9, 1e9, width=32)),
        min_size=1,
        max_size=8,
    )
)
def test_numbers_of_operator_options_come_back(make_litert: LitertMaker, options: dict[str, float]) -> None:
    data = make_litert(custom="x", options=options)
    model = schema.Model.GetRootAs(data, 0)
    raw = model.Subgraphs(0).Operators(0).CustomOptionsAsNumpy().tobytes()
    assert read_flex_numbers(memoryview(raw)) == options


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_operator_options_that_are_no_numbers_are_none(make_litert: LitertMaker, number: float) -> None:
    options = {"num_classes": number, "max_detections": number, "nms_score_threshold": number}
    outputs = [(name, 0, (1, 10)) for name in "bcsn"]
    data = make_litert(outputs=outputs, custom="TFLite_Detection_PostProcess", options=options)
    assert inspect_litert(memoryview(data)).post_process == PostProcessFacts(tuple("bcsn"))


def test_an_open_dimension_is_none_and_quantisation_is_told(make_litert: LitertMaker) -> None:
    data = make_litert([("image", UINT8, (None, 8, 8, 3))], quant=(0.5, 128))
    assert inspect_litert(memoryview(data)).inputs == (TensorFacts("image", "uint8", (None, 8, 8, 3), 0.5, 128),)


def test_a_model_without_packed_files_has_none(make_litert: LitertMaker) -> None:
    data = memoryview(make_litert())
    assert inspect_litert(data).packed == ()
    with pytest.raises(ModelUnreadable, match="found none"):
        read_packed(data, "labels.txt")


def test_packed_files_are_read_without_copying_the_model(make_litert: LitertMaker) -> None:
    data = memoryview(make_litert(files={"labels.txt": b"cat\ndog\n", "vocab.txt": b"x"}))
    assert [each.name for each in inspect_litert(data).packed] == ["labels.txt", "vocab.txt"]
    assert read_packed(data, "labels.txt") == b"cat\ndog\n"


@pytest.mark.parametrize("name", ["../labels.txt", "/etc/passwd", "a\\b", "folder/labels.txt"])
def test_packed_files_with_harmful_names_are_refused(make_litert: LitertMaker, name: str) -> None:
    with pytest.raises(ModelUnreadable, match="harmless"):
        inspect_litert(memoryview(make_litert(files={name: b"x"})))


def test_a_packed_bomb_is_refused(make_litert: LitertMaker) -> None:
    buffer = io.BytesIO(make_litert())
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", bytes(70 << 20))
    with pytest.raises(ModelUnreadable):
        inspect_litert(memoryview(buffer.getvalue()))


def test_a_packed_file_whose_bytes_are_damaged_is_refused_when_read(make_litert: LitertMaker) -> None:
    data = bytearray(make_litert(files={"labels.txt": b"cat\ndog\n"}))
    data[data.index(b"cat\n")] ^= 1
    with pytest.raises(ModelUnreadable, match="damaged"):
        read_packed(memoryview(data), "labels.txt")


def test_a_huge_directory_and_zip64_are_refused_before_they_are_read(make_litert: LitertMaker) -> None:
    many = make_litert(files={f"{index}.txt": b"" for index in range(65)})
    with pytest.raises(ModelUnreadable, match="at most 64"):
        inspect_litert(memoryview(many))
    packed = bytearray(make_litert(files={"labels.txt": b"cat"}))
    end = packed.rindex(b"PK\x05\x06")
    struct.pack_into("<I", packed, end + 12, 1 << 30)
    with pytest.raises(ModelUnreadable):
        inspect_litert(memoryview(packed))
    locator = b"PK\x06\x07" + bytes(16)
    with pytest.raises(ModelUnreadable):
        inspect_litert(memoryview(bytes(packed[:end]) + locator + bytes(packed[end:])))


BAD = {
    "nothing": b"",
    "four bytes": b"TFL3",
    "another identifier": b"\x08\x00\x00\x00TFL9" + bytes(40),
    "an onnx model": b"\x08\x09:\x00" + bytes(40),
    "a root outside": b"\xff\xff\xff\xffTFL3" + bytes(40),
    "a table of nothing": b"\x08\x00\x00\x00TFL3" + bytes(40),
    "a vtable before the start": b"\x08\x00\x00\x00TFL3" + b"\xff\xff\xff\x7f" + bytes(40),
}


@pytest.mark.parametrize("name", BAD)
def test_bytes_are_refused_that_are(name: str) -> None:
    with pytest.raises(ModelUnreadable):
        inspect_litert(memoryview(BAD[name]))


def test_every_cut_of_a_model_is_refused_or_still_a_model(make_litert: LitertMaker) -> None:
    data = make_litert()
    for length in range(len(data)):
        try:
            facts = inspect_litert(memoryview(data)[:length])
        except ModelUnreadable:
            continue
        assert facts.inputs and facts.outputs


def test_many_offsets_to_one_long_text_end_in_an_error_and_soon() -> None:
    """A million operator codes, all of them the same table with the same 60 KB name: 60 GB of text in 4 MB."""
    count, name = 1_000_000, b"x" * 60_000
    code_vtable = 68 + 4 * count
    code = code_vtable + 8
    data = bytearray(code + 16 + len(name))
    struct.pack_into("<I4s", data, 0, 32, b"TFL3")
    struct.pack_into("<HHHHH", data, 8, 10, 16, 4, 8, 12)  # model: version, operator_codes, subgraphs
    struct.pack_into("<iIII", data, 32, 24, 3, 64 - 40, 48 - 44)
    struct.pack_into("<II", data, 48, 1, 60 - 52)  # one subgraph
    struct.pack_into("<HHi", data, 56, 4, 4, 4)  # with no fields
    struct.pack_into(f"<I{count}I", data, 64, count, *(code - (68 + 4 * index) for index in range(count)))
    struct.pack_into("<HHHH", data, code_vtable, 8, 12, 8, 4)  # operator code: builtin, custom name
    struct.pack_into("<iII", data, code, 8, 8, 32)
    struct.pack_into("<I", data, code + 12, len(name))
    data[code + 16 :] = name
    started = time.process_time()
    with pytest.raises(ModelUnreadable, match="more tables and texts"):
        inspect_litert(memoryview(data))
    assert time.process_time() - started < 15


@pytest.mark.needs_shared
def test_five_hundred_damaged_models_raise_model_unreadable_or_nothing(shared_models: Path) -> None:
    raw = (shared_models / "classification" / "mobilenet_v1_0.25_128_quant.tflite").read_bytes()
    dice = random.Random(7)
    tail = len(raw) - 40_000  # tables lie at both ends; in between are weights
    refused = 0
    started = time.process_time()
    for _ in range(500):
        data = bytearray(raw)
        for _ in range(dice.randint(1, 30)):
            place = dice.choice([dice.randrange(4_000), dice.randrange(tail, len(data))])
            data[place] = dice.randrange(256)
        if dice.random() < 0.2:
            del data[dice.randrange(len(data)) :]
        try:
            facts = inspect_litert(memoryview(data))
            for each in facts.packed:
                read_packed(memoryview(data), each.name)
        except ModelUnreadable:
            refused += 1
    assert refused > 50
    assert time.process_time() - started < 30


@settings(max_examples=150)
@given(st.data())
def test_a_small_damaged_model_raises_model_unreadable_or_nothing(
    make_litert: LitertMaker, data: st.DataObject
) -> None:
    raw = bytearray(make_litert(custom="TFLite_Detection_PostProcess", options={"num_classes": 3}))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        inspect_litert(memoryview(raw))
    except ModelUnreadable as error:
        assert error.message  # nothing else may come out
