from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import LimitExceeded, ProtocolViolated
from edgeferry.model.manifest import Golden, TruthObject
from edgeferry.model.spec import AnswerSpec, InputSpec, ModelSpec, Stage, Thresholds
from edgeferry.vision.answer import (
    Answer,
    ClassificationAnswer,
    ClassScore,
    DetectionAnswer,
    FoundObject,
    PictureAnswer,
)
from edgeferry.wire.v2_tensors import TensorEntry
from edgeferry.wire.worker_frames import (
    BODY_MAX_BYTES,
    HEADER_MAX_BYTES,
    PREFIX_BYTES,
    Answered,
    AnsweredTensors,
    Ask,
    AskTensors,
    Begin,
    Cancel,
    Failed,
    FrameSize,
    GoldenInput,
    ModelTensors,
    ProofReport,
    Prove,
    Proved,
    Reply,
    Request,
    Started,
    Stop,
    TensorDescription,
    Terms,
    join_picture,
    make_frame,
    part_picture,
    read_prefix,
    read_reply,
    read_request,
)

SPEC = ModelSpec(
    stages=(
        Stage(
            file="m.onnx",
            task="detection",
            input=InputSpec(width=4, height=4, layout="nchw", dtype="float32"),
            answer=AnswerSpec(family="ssd", parameters={"a": (1.0, 2.0), "b": "c"}),
        ),
    )
)
GOLDEN = GoldenInput(
    Golden(input="sha256:" + "0" * 64, size=3, truth=(TruthObject(label="cat", box=(0.0, 0.1, 0.5, 1.0)),)), "/a/b"
)
TERMS = Terms(labels=(("cat", "dög", ""),), thresholds=(Thresholds(score=0.25),))

REQUESTS: list[Request] = [
    Begin(
        folder="/f",
        spec=SPEC,
        golden=(GOLDEN,),
        threads=1,
        concurrency=2,
        memory_headroom_bytes=1 << 40,
        memory_factor=8,
        cpu_limit_s=120,
        picture_max_bytes=1,
        picture_max_pixels=2,
        scale_jpeg=False,
    ),
    Prove(id=7, folder="/f", spec=SPEC, golden=(GOLDEN,)),
    Ask(id=1),
    Ask(id=2**40, terms=TERMS, draw="png"),
    AskTensors(id=3, inputs=(TensorEntry("x", "FP32", (1, 2), 8),), outputs=("y",)),
    Cancel(9),
    Stop(),
]
FOUND = FoundObject(class_index=3, label="cat", score=0.5, box=(0.0, 0.1, 0.5, 1.0))
REPLIES: list[Reply] = [
    Started(),
    Proved(id=0, report=ProofReport(found=3, total=4, needed=2.5), terms=TERMS),
    Answered(id=1, answer=DetectionAnswer(objects=(FOUND,)), width=4, height=3, timings_ms={"infer": 1.5}),
    Answered(
        id=2,
        answer=ClassificationAnswer(classes=(ClassScore(class_index=0, label="x", score=1.0),)),
        width=4,
        height=3,
        timings_ms={},
    ),
    Proved(
        id=5,
        report=ProofReport(),
        terms=TERMS,
        tensors=ModelTensors("p", (TensorDescription("x", "FP32", (-1, 2)),), (TensorDescription("y", "BOOL", ()),)),
    ),
    AnsweredTensors(id=4, outputs=(TensorEntry("y", "BYTES", (0,), 0),), timings_ms={"infer": 1.0}),
    Failed(id=3, code="picture_unreadable", message="no", values={"width": 3, "why": None, "ok": True, "x": 1.5}),
]


def take_apart(frame: bytes) -> tuple[FrameSize, bytes]:
    size = read_prefix(frame[:PREFIX_BYTES])
    return size, frame[PREFIX_BYTES:]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda m: type(m).__name__)
def test_every_request_comes_out_as_it_went_in(message: Request) -> None:
    size, header = take_apart(make_frame(message, 5))
    assert (size.header_bytes, size.body_bytes) == (len(header), 5)
    assert read_request(header) == message


@pytest.mark.parametrize("message", REPLIES, ids=lambda m: type(m).__name__)
def test_every_reply_comes_out_as_it_went_in(message: Reply) -> None:
    size, header = take_apart(make_frame(message))
    assert (size.header_bytes, size.body_bytes) == (len(header), 0)
    assert read_reply(bytearray(header)) == message


def test_a_request_is_no_reply_and_a_reply_no_request() -> None:
    with pytest.raises(ProtocolViolated):
        read_reply(take_apart(make_frame(Stop()))[1])
    with pytest.raises(ProtocolViolated):
        read_request(take_apart(make_frame(Started()))[1])


@pytest.mark.parametrize(
    ("header", "body"), [(HEADER_MAX_BYTES + 1, 0), (0, BODY_MAX_BYTES + 1), (2**32 - 1, 2**32 - 1)]
)
def test_a_prefix_that_announces_too_much_is_refused_before_anything_is_read(header: int, body: int) -> None:
    with pytest.raises(LimitExceeded):
        read_prefix(struct.pack("!II", header, body))


def test_a_frame_that_would_be_too_large_is_not_made() -> None:
    with pytest.raises(LimitExceeded):
        make_frame(Ask(id=1), BODY_MAX_BYTES + 1)
    with pytest.raises(LimitExceeded):
        make_frame(Failed(id=1, code="x", message="m" * (HEADER_MAX_BYTES + 1)))


@given(st.binary(max_size=200))
def test_random_headers_are_refused_and_nothing_else_happens(header: bytes) -> None:
    for read in (read_request, read_reply):
        try:
            read(header)
        except ProtocolViolated as error:
            assert error.code == "protocol_violated"


@given(st.data())
def test_damaged_headers_are_read_or_refused(data: st.DataObject) -> None:
    header = bytearray(take_apart(make_frame(data.draw(st.sampled_from(REPLIES))))[1])
    at = data.draw(st.integers(0, len(header) - 1))
    header[at] = data.draw(st.integers(0, 255))
    try:
        reply = read_reply(header)
    except ProtocolViolated:
        return
    assert isinstance(reply, msgspec.Struct)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolViolated):
        read_reply(b"\x91" * 100_000)


# --- made pictures ----------------------------------------------------------------------------------------------------
def make_answered(answer: Answer) -> Answered:
    return Answered(id=1, answer=answer, width=1, height=1, timings_ms={})


def test_a_made_picture_larger_than_any_header_goes_as_the_body() -> None:
    made = PictureAnswer(width=1, height=1, png=b"\x89PNG" + bytes(HEADER_MAX_BYTES))
    with pytest.raises(LimitExceeded):
        make_frame(make_answered(made))
    answer, body = part_picture(made, b"")
    make_frame(make_answered(answer), len(body))
    assert join_picture(answer, body) == made


def test_a_picture_that_is_drawn_is_sent_once() -> None:
    made = PictureAnswer(width=1, height=1, png=b"\x89PNG made")
    answer, body = part_picture(made, made.png)
    assert (join_picture(answer, body), body) == (made, made.png)
    answer, body = part_picture(made, b"\xff\xd8\xff drawn as JPEG")
    assert body == b"\xff\xd8\xff drawn as JPEG"
    assert join_picture(answer, body) == PictureAnswer(width=1, height=1, png=b"")


def test_other_answers_and_their_drawings_stay_as_they_are() -> None:
    seen = DetectionAnswer(objects=())
    assert part_picture(seen, b"\x89PNG drawn") == (seen, b"\x89PNG drawn")
    assert join_picture(seen, b"\x89PNG drawn") == seen
