"""Models on raw tensors: their own names, shapes and dtypes, and nothing that is not theirs reaches an engine."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeferry.errors import RequestInvalid
from edgeferry.model.inspect import make_tensors_stage
from edgeferry.model.spec import ModelSpec
from edgeferry.runtime.open import open_session
from edgeferry.runtime.served import PictureSettings, load_served
from edgeferry.runtime.session import EngineSettings, Session
from edgeferry.runtime.tensors import describe_tensors, run_tensors
from edgeferry.vision.image import PictureLimits
from edgeferry.wire.v2_tensors import TensorEntry, pack_bytes
from edgeferry.wire.worker_frames import AskTensors, ModelTensors, TensorDescription

ONE = EngineSettings(threads=1, concurrency=1)


def write_model(folder: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Path:
    model = helper.make_model(
        helper.make_graph(list(nodes), "g", list(inputs), list(outputs)), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def describe(name: str, kind: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


@pytest.fixture
def sums(tmp_path: Path) -> Session:
    """`c` = a + b, where b is open in its first side; `d` says where a > b."""
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Greater", ["a", "b"], ["d"])]
    inputs = [describe("a", TensorProto.FLOAT, 2, 2), describe("b", TensorProto.FLOAT, "n", 2)]
    outputs = [describe("c", TensorProto.FLOAT, "m", 2), describe("d", TensorProto.BOOL, "m", 2)]
    return open_session(write_model(tmp_path, nodes, inputs, outputs), ONE)


def ask(*arrays: tuple[str, str, np.ndarray[Any, Any]], outputs: tuple[str, ...] = ()) -> tuple[bytes, AskTensors]:
    entries = tuple(TensorEntry(name, kind, array.shape, array.nbytes) for name, kind, array in arrays)
    return b"".join(array.tobytes() for *_, array in arrays), AskTensors(id=1, inputs=entries, outputs=outputs)


A = np.array([[1, 2], [3, 4]], np.float32)
B = np.array([[10, 0]], np.float32)


def test_a_model_says_what_it_takes_and_gives(sums: Session) -> None:
    assert describe_tensors("m.onnx", sums) == ModelTensors(
        "onnxruntime_onnx",
        (TensorDescription("a", "FP32", (2, 2)), TensorDescription("b", "FP32", (-1, 2))),
        (TensorDescription("c", "FP32", (2, 2)), TensorDescription("d", "BOOL", (2, 2))),
    )


def test_outputs_come_in_the_models_dtypes_and_order(sums: Session) -> None:
    data, wanted = ask(("b", "FP32", B), ("a", "FP32", A))
    found = run_tensors(sums, data, wanted)
    assert found.outputs == (TensorEntry("c", "FP32", (2, 2), 16), TensorEntry("d", "BOOL", (2, 2), 4))
    assert found.body == (A + B).tobytes() + (A > B).tobytes()
    only = run_tensors(sums, data, AskTensors(id=1, inputs=wanted.inputs, outputs=("d",)))
    assert only.body == (A > B).tobytes()


def test_what_is_not_the_models_is_refused_with_both_named(sums: Session) -> None:
    rows = [
        (ask(("a", "FP32", A)), "expected the inputs a, b, found a"),
        (ask(("a", "FP32", A), ("b", "FP32", B), ("e", "FP32", B)), "found a, b, e"),
        (ask(("a", "FP64", A.astype("f8")), ("b", "FP32", B)), r"expected input 'a' FP32\[2, 2\], found FP64\[2, 2\]"),
        (ask(("a", "FP32", A[:1]), ("b", "FP32", B)), r"found FP32\[1, 2\]"),
        (ask(("a", "FP32", A), ("b", "FP32", B.T)), r"expected input 'b' FP32\[-1, 2\], found FP32\[2, 1\]"),
        (ask(("a", "FP32", A), ("b", "FP32", B), outputs=("z",)), "expected outputs among c, d, found z"),
        (ask(("a", "FP32", A), ("b", "FP32", np.zeros((3, 2), "f4"))), "the engine cannot run"),
    ]
    for (data, wanted), message in rows:
        with pytest.raises(RequestInvalid, match=message):
            run_tensors(sums, data, wanted)
    data, wanted = ask(("a", "FP32", A), ("b", "FP32", B))
    with pytest.raises(RequestInvalid, match="found 4 bytes"):
        run_tensors(sums, data[:-4], wanted)


def test_texts_go_in_and_out_and_must_be_texts(tmp_path: Path) -> None:
    text = describe("t", TensorProto.STRING, "n"), describe("u", TensorProto.STRING, "n")
    path = write_model(tmp_path, [helper.make_node("Identity", ["t"], ["u"])], text[:1], text[1:])
    session = open_session(path, ONE)
    assert describe_tensors("m.onnx", session).inputs == (TensorDescription("t", "BYTES", (-1,)),)
    packed = pack_bytes(["ä".encode(), b"", b"abc"])
    entry = TensorEntry("t", "BYTES", (3,), len(packed))
    found = run_tensors(session, packed, AskTensors(id=1, inputs=(entry,)))
    assert (found.body, found.outputs[0].shape) == (packed, (3,))
    for bad in (pack_bytes([b"\xff"] * 3), pack_bytes([b"a"] * 2), packed[:-1]):
        with pytest.raises(RequestInvalid):
            run_tensors(session, bad, AskTensors(id=1, inputs=(TensorEntry("t", "BYTES", (3,), len(bad)),)))


def test_bytes_that_are_no_truth_values_become_some(tmp_path: Path) -> None:
    kinds = describe("p", TensorProto.BOOL, 2), describe("q", TensorProto.BOOL, 2)
    session = open_session(write_model(tmp_path, [helper.make_node("Not", ["p"], ["q"])], kinds[:1], kinds[1:]), ONE)
    entry = TensorEntry("p", "BOOL", (2,), 2)
    assert run_tensors(session, b"\x07\x00", AskTensors(id=1, inputs=(entry,))).body == b"\x00\x01"


@pytest.mark.parametrize("kind", ["DOUBLE", "FLOAT16", "INT8", "UINT8", "INT16", "UINT16", "INT32", "INT64", "UINT64"])
def test_every_number_comes_back_as_it_went_in(tmp_path: Path, kind: str) -> None:
    number = getattr(TensorProto, kind)
    ends = describe("x", number, "n"), describe("y", number, "n")
    session = open_session(write_model(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], ends[:1], ends[1:]), ONE)
    values = np.array([0, 1, 100], helper.tensor_dtype_to_np_dtype(number))
    datatype = describe_tensors("m.onnx", session).inputs[0].datatype
    data, wanted = ask(("x", datatype, values))
    shifted = b"\0" + data  # an odd address: engines may want an even one
    assert run_tensors(session, bytes(memoryview(shifted)[1:]), wanted).body == values.tobytes()


@pytest.mark.needs_shared
def test_quantised_outputs_stay_quantised(shared_models: Path) -> None:
    session = open_session(shared_models / "classification/mobilenet_v1_0.25_128_quant.tflite", ONE)
    picture = np.full((1, 128, 128, 3), 90, np.uint8)
    (output,) = describe_tensors("m.tflite", session).outputs
    assert (output.datatype, output.shape) == ("UINT8", (1, 1001))
    found = run_tensors(session, *ask(("input", "UINT8", picture)))
    raw = np.frombuffer(found.body, np.uint8)
    (scores,) = session.run({"input": picture}).values()
    assert np.allclose(raw / 256, scores.ravel())
    assert raw.max() > 1


@pytest.mark.needs_shared
def test_an_open_side_of_litert_takes_every_size_and_goes_back(shared_models: Path) -> None:
    files = sorted(shared_models.rglob("*.tflite"))
    sessions = [open_session(path, ONE) for path in files]
    open_ones = [one for one in sessions if any(None in info.shape for info in one.inputs)]
    assert open_ones, "no model with an open side any more: take another"
    for session in open_ones:
        (info,) = session.inputs
        for rows in (1, 3, 1):
            values = np.zeros([rows if side is None else side for side in info.shape], info.dtype)
            found = run_tensors(session, *ask((info.name, describe_tensors("", session).inputs[0].datatype, values)))
            assert struct.unpack_from("<f", found.body)


def test_more_than_a_frame_holds_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Expand", ["x", "s"], ["y"])]
    inputs = [describe("x", TensorProto.FLOAT, 1), describe("s", TensorProto.INT64, 1)]
    session = open_session(write_model(tmp_path, nodes, inputs, [describe("y", TensorProto.FLOAT, "n")]), ONE)
    data, wanted = ask(("x", "FP32", np.zeros(1, "f4")), ("s", "INT64", np.array([(256 << 18) + 1], "i8")))
    with pytest.raises(RequestInvalid, match="found more"):
        run_tensors(session, data, wanted)


def test_a_model_that_cannot_run_on_zeros_of_one_side_is_served_all_the_same(tmp_path: Path) -> None:
    nodes = [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[4, 4])]
    inputs = [describe("x", TensorProto.FLOAT, 1, 1, "h", "w"), describe("t", TensorProto.STRING, "n")]
    write_model(tmp_path, nodes, inputs, [describe("y", TensorProto.FLOAT, 1, 1, "k", "l")])
    spec = ModelSpec(stages=(make_tensors_stage("m.onnx"),))
    model = load_served(tmp_path, spec, ONE, PictureSettings(PictureLimits()))
    model.warm_up()
    text = pack_bytes([b""])
    data, wanted = ask(("x", "FP32", np.ones((1, 1, 5, 4), "f4")))
    wanted = AskTensors(id=1, inputs=(*wanted.inputs, TensorEntry("t", "BYTES", (1,), len(text))))
    assert model.answer_tensors(data + text, wanted).outputs[0].shape == (1, 1, 2, 1)
    with pytest.raises(RequestInvalid, match="the engine cannot run"):
        data, _ = ask(("x", "FP32", np.ones((1, 1, 1, 1), "f4")))
        small = TensorEntry("x", "FP32", (1, 1, 1, 1), 4)
        model.answer_tensors(data + text, AskTensors(id=1, inputs=(small, wanted.inputs[1])))
