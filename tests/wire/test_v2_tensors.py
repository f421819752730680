"""Bodies of the v2 protocol: what goes in as JSON or as raw bytes is the same, and nothing hostile comes through."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import RequestInvalid
from edgeferry.wire import v2_tensors
from edgeferry.wire.v2_ranking import rank_classes
from edgeferry.wire.v2_tensors import (
    BYTES_ELEMENTS_MAX,
    BYTES_JSON_MAX_BYTES,
    ITEM_BYTES,
    JSON_INPUTS_MAX,
    JSON_MAX_BYTES,
    OutTensor,
    TensorEntry,
    make_answer,
    pack_bytes,
    read_infer,
    unpack,
)

DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def make_body(*inputs: dict[str, Any], raw: bytes = b"", **rest: Any) -> tuple[bytes, str]:
    head = json.dumps({"inputs": inputs, **rest}).encode()
    return head + raw, str(len(head))


def make_input(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2.5], **changes}


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, np.ndarray[Any, Any]]:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(st.lists(st.integers(1, 4), max_size=3))
    size = math.prod(shape) * ITEM_BYTES[datatype]
    data = draw(st.binary(min_size=size, max_size=size))
    values = np.frombuffer(data, np.uint8) & 1 if datatype == "BOOL" else np.frombuffer(data, DTYPES[datatype])
    finite = np.nan_to_num(values) if datatype.startswith("FP") else values
    return datatype, finite.astype(DTYPES[datatype]).reshape(shape)


@given(arrays())
def test_json_flat_json_nested_and_raw_bytes_say_the_same(made: tuple[str, np.ndarray[Any, Any]]) -> None:
    datatype, values = made
    one = {"name": "x", "shape": list(values.shape), "datatype": datatype}
    nested, _ = make_body({**one, "data": values.tolist() if values.shape else [values.item()]})
    flat, _ = make_body({**one, "data": values.ravel().tolist()})
    raw = values.tobytes()
    binary, length = make_body({**one, "parameters": {"binary_data_size": len(raw)}}, raw=raw)
    read = [read_infer(nested), read_infer(flat), read_infer(binary, length)]
    assert [bytes(one.body) for one in read] == [raw] * 3
    assert {one.inputs for one in read} == {(TensorEntry("x", datatype, values.shape, len(raw)),)}


@given(arrays())
def test_an_answer_says_in_json_what_its_bytes_say(made: tuple[str, np.ndarray[Any, Any]]) -> None:
    datatype, values = made
    entry, raw = TensorEntry("y", datatype, values.shape, values.nbytes), values.tobytes()
    body, length = make_answer("7", "m", "1", [OutTensor(entry, raw, False)])
    (output,) = json.loads(body)["outputs"]
    assert length is None
    assert np.array_equal(np.array(output["data"], values.dtype), values.ravel())
    body, length = make_answer("7", "m", "1", [OutTensor(entry, raw, True)])
    assert length is not None
    assert body[length:] == raw
    said = json.loads(body[:length])
    assert (said["id"], said["model_name"], said["model_version"]) == ("7", "m", "1")
    assert said["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=1, max_size=5))
def test_texts_travel_with_their_lengths(texts: list[str]) -> None:
    one = {"name": "t", "shape": [len(texts)], "datatype": "BYTES"}
    packed = pack_bytes([text.encode() for text in texts])
    assert packed == b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    as_json = read_infer(make_body({**one, "data": texts})[0])
    body, length = make_body({**one, "parameters": {"binary_data_size": len(packed)}}, raw=packed)
    assert bytes(as_json.body) == bytes(read_infer(body, length).body) == packed
    entry = TensorEntry("t", "BYTES", (len(texts),), len(packed))
    assert json.loads(make_answer("", "m", "1", [OutTensor(entry, packed, False)])[0])["outputs"][0]["data"] == texts


def test_raw_and_json_inputs_go_together_in_their_order() -> None:
    raw = struct.pack("<2i", 7, 8)
    body, length = make_body(
        make_input(name="a"),
        {"name": "b", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
        make_input(name="c", datatype="UINT8", data=[1, 2]),
        raw=raw,
    )
    read = read_infer(body, length)
    assert bytes(read.body) == struct.pack("<2f", 1, 2.5) + raw + b"\x01\x02"
    assert [(one.name, one.size_bytes) for one in read.inputs] == [("a", 8), ("b", 8), ("c", 2)]


def test_raw_inputs_are_not_copied() -> None:
    raw = bytes(1000)
    body, length = make_body(
        {"name": "x", "shape": [1000], "datatype": "UINT8", "parameters": {"binary_data_size": 1000}}, raw=raw
    )
    view = read_infer(body, length).body
    assert isinstance(view, memoryview)
    assert view.obj is body


BAD_INPUTS: dict[str, dict[str, Any]] = {
    "too few elements": {"data": [1]},
    "too many elements": {"data": [1, 2, 3]},
    "a text for a number": {"data": ["1", "2"]},
    "null for a number": {"data": [None, 1]},
    "an object for an array": {"data": {"a": 1, "b": 2}},
    "no array": {"data": 5, "shape": [1]},
    "a fraction for a whole number": {"datatype": "INT32"},
    "a number beyond its type": {"datatype": "UINT8", "data": [256, 0]},
    "a negative number without sign": {"datatype": "UINT16", "data": [-1, 0]},
    "a number beyond 64 bits": {"datatype": "INT64", "data": [2**64, 0]},
    "a half beyond its range": {"datatype": "FP16", "data": [1e6, 0]},
    "a number for a truth": {"datatype": "BOOL", "data": [1, 0]},
    "a number for a text": {"datatype": "BYTES", "data": [1, 2]},
    "too few texts": {"datatype": "BYTES", "data": ["a"]},
    "a long text as JSON": {"datatype": "BYTES", "shape": [1], "data": ["a" * BYTES_JSON_MAX_BYTES]},
    "no such datatype": {"datatype": "FP8"},
    "a datatype of another protocol": {"datatype": "TYPE_FP32"},
    "a side of zero": {"shape": [0]},
    "a negative side": {"shape": [-2]},
    "a side that is none": {"shape": [2.5]},
    "sides of more than memory": {"shape": [2**30, 2**30, 2**30]},
    "a side beyond bounds": {"shape": [2**70]},
    "too many sides": {"shape": [1] * 8 + [2]},
    "more numbers than JSON may have": {"shape": [JSON_INPUTS_MAX + 1]},
    "more texts than there may be": {"shape": [BYTES_ELEMENTS_MAX + 1], "datatype": "BYTES"},
    "data and bytes": {"parameters": {"binary_data_size": 0}},
    "neither data nor bytes": {"data": ""},
    "an empty part": {"data": [[1, 2], []]},
    "a negative size": {"data": [1, 2], "parameters": {"binary_data_size": -1}},
    "a size that is none": {"parameters": {"binary_data_size": "8"}},
}


@pytest.mark.parametrize("changes", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_an_input_that_does_not_fit_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid, match="expected") as caught:
        read_infer(make_body(make_input(**changes))[0])
    assert len(caught.value.message) < 700


BAD_BODIES: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", None),
    "no JSON": (b"picture", None),
    "an array": (b"[]", None),
    "no inputs": (b'{"inputs": []}', None),
    "deep": (b'{"inputs": [{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 100_000, None),
    "no UTF-8": (b'{"inputs": "\xff"}', None),
    "a length beyond the body": (make_body(make_input())[0], "100000"),
    "a length of no digits": (make_body(make_input())[0], "-1"),
    "a length of too many": (make_body(make_input())[0], "9" * 5000),
    "a length within the JSON": (make_body(make_input())[0], "10"),
    "more bytes than are named": (make_body(make_input(), raw=b"123")[0], make_body(make_input())[1]),
    "the same input twice": (make_body(make_input(), make_input())[0], None),
    "too many inputs": (make_body(*(make_input(name=str(i)) for i in range(65)))[0], None),
    "the same output twice": (make_body(make_input(), outputs=[{"name": "y"}, {"name": "y"}])[0], None),
}


@pytest.mark.parametrize("case", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_body_that_is_no_request_is_refused(case: tuple[bytes, str | None]) -> None:
    with pytest.raises(RequestInvalid, match="expected"):
        read_infer(*case)


def test_numbers_as_json_are_bounded_over_all_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v2_tensors, "JSON_INPUTS_MAX", 4)
    monkeypatch.setattr(v2_tensors, "JSON_OUTPUTS_MAX", 4)
    names = ("a", "b", "c")
    pair = {"shape": [2], "datatype": "UINT8", "data": [1, 2]}
    assert len(read_infer(make_body(*({**pair, "name": name} for name in names[:2]))[0]).inputs) == 2
    with pytest.raises(RequestInvalid, match="binary"):
        read_infer(make_body(*({**pair, "name": name} for name in names))[0])
    outputs = [OutTensor(TensorEntry(name, "UINT8", (2,), 2), b"ab", is_binary=False) for name in names]
    make_answer("", "m", "1", outputs[:2])
    with pytest.raises(RequestInvalid, match="binary"):
        make_answer("", "m", "1", outputs)


def test_numbers_of_many_pieces_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(7).standard_normal((50, 3)).astype("<f4")
    body, _ = make_body(make_input(shape=[50, 3], data=values.tolist()))
    bad, _ = make_body(make_input(shape=[50, 3], data=[*values.ravel().tolist()[:-1], "1"]))
    for piece_bytes in (1, 7, 100, 64 << 10):
        monkeypatch.setattr(v2_tensors, "_PIECE_BYTES", piece_bytes)
        assert bytes(read_infer(body).body) == values.tobytes()
        with pytest.raises(RequestInvalid, match="expected numbers"):
            read_infer(bad)
        for data in ("[1,,2]", "[,1]", "[1,]"):
            with pytest.raises(RequestInvalid, match="expected"):
                read_infer(
                    make_body(make_input(shape=[data.count(",") + 1], data=0))[0].replace(
                        b": 0}", b": %b}" % data.encode()
                    )
                )


def test_a_request_with_more_json_than_is_read_says_how_to_send_it() -> None:
    head = make_body(make_input())[0]
    read_infer(head.ljust(JSON_MAX_BYTES))
    with pytest.raises(RequestInvalid, match="send binary data"):
        read_infer(head.ljust(JSON_MAX_BYTES + 1))


RAW = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)


@pytest.mark.parametrize("raw", [RAW[:-1], RAW[:5], RAW + b"\0", RAW * 2, b"", struct.pack("<I", 2**32 - 1) + bytes(8)])
def test_raw_texts_whose_lengths_do_not_fit_are_refused(raw: bytes) -> None:
    one = {"name": "t", "shape": [2], "datatype": "BYTES"}
    body, length = make_body({**one, "parameters": {"binary_data_size": len(RAW)}}, raw=RAW)
    read_infer(body, length)
    body, length = make_body({**one, "parameters": {"binary_data_size": len(raw)}}, raw=raw)
    with pytest.raises(RequestInvalid):
        read_infer(body, length)


@given(st.data())
def test_no_damage_to_a_request_raises_anything_else(data: st.DataObject) -> None:
    good, length = make_body(
        make_input(),
        {"name": "t", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(RAW)}},
        raw=RAW,
    )
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(bad)))
    for body in (bytes(bad), bytes(bad[:cut])):
        try:
            read_infer(body, length)
        except RequestInvalid as error:
            assert len(error.message) < 1000


def test_an_output_that_is_no_text_leaves_as_bytes_only() -> None:
    packed = pack_bytes([b"\xff\xfe"])
    entry = TensorEntry("y", "BYTES", (1,), len(packed))
    with pytest.raises(RequestInvalid, match="binary_data"):
        make_answer("", "m", "1", [OutTensor(entry, packed, False)])
    assert make_answer("", "m", "1", [OutTensor(entry, packed, True)])[0].endswith(packed)


def test_the_best_of_each_row_have_score_index_and_label() -> None:
    rows = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]], "<f4")
    entry = TensorEntry("y", "FP32", (2, 3), rows.nbytes)
    ranked, packed = rank_classes(entry, rows.tobytes(), 2, ("cat", "dog"))
    assert ranked == TensorEntry("y", "BYTES", (2, 2), len(packed))
    assert packed == pack_bytes([b"0.700000:1:dog", b"0.200000:2", b"0.500000:0:cat", b"0.500000:1:dog"])
    ranked, _ = rank_classes(TensorEntry("y", "UINT8", (3,), 3), b"\x01\x09\x03", 100, ())
    assert ranked.shape == (3,)
    for shape, datatype in (((0, 4), "FP32"), ((2,), "BYTES")):
        with pytest.raises(RequestInvalid):
            rank_classes(TensorEntry("y", datatype, shape, 0), b"", 1, ())


def test_numbers_are_read_as_numpy_reads_them() -> None:
    values = np.array([-1.5, 0.0, 65504.0], "<f2")
    assert list(unpack("FP16", values.tobytes())) == values.tolist()
