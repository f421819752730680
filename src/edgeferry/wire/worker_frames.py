"""worker_frames: what the device's main process and a worker say to each other, and how it lies on the socket pair.

A frame is 8 bytes (header length, body length; big-endian uint32), the header (msgpack of one message), the body (bytes
of a picture or of tensors, or none). Sans-IO: this file makes and reads frames; `runtime/child.py` and
`runtime/worker.py` move them.

Rules:
- Both lengths are bounded before anything is read: a worker that runs a hostile model is itself not trusted.
- Requests carry an id, and each is replied to exactly once, in any order; `Stop` and `Cancel` are not replied to.
- `Ask.terms` is None when they are those of the last `Ask` that had some: frames keep their order.
- The first frame is `Begin`, the worker's first is `Started` or a `Failed` with id 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgeferry.errors import LimitExceeded, ProtocolViolated
from edgeferry.model.manifest import Golden
from edgeferry.model.spec import ModelSpec, Thresholds
from edgeferry.vision.answer import Answer, PictureAnswer
from edgeferry.wire.v2_tensors import TensorEntry

PREFIX_BYTES = 8
PNG_MAGIC = b"\x89PNG"
HEADER_MAX_BYTES = 16 << 20
BODY_MAX_BYTES = 256 << 20

_PREFIX = struct.Struct("!II")

Draw = Literal["", "png", "jpeg"]


class Terms(msgspec.Struct, frozen=True):
    """What may differ between versions that share a worker, per stage: label lines and thresholds."""

    labels: tuple[tuple[str, ...], ...]
    thresholds: tuple[Thresholds, ...]


class ProofReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the proof went: truths found of all, how many were needed, and what it took (milliseconds)."""

    found: int = 0
    total: int = 0
    needed: float = 0.0
    load_ms: float = 0.0
    prove_ms: float = 0.0
    warm_ms: float = 0.0


class GoldenInput(msgspec.Struct, frozen=True):
    """A golden sample and the path of its picture."""

    golden: Golden
    path: str


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first frame: the limits of this worker, and the version to load and prove (replied to as request 0)."""

    folder: str
    spec: ModelSpec
    golden: tuple[GoldenInput, ...]
    threads: int
    concurrency: int
    memory_headroom_bytes: int
    memory_factor: int
    cpu_limit_s: int
    nice: int = 10
    idle: bool = False
    picture_max_bytes: int
    picture_max_pixels: int
    scale_jpeg: bool


class Prove(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer the golden truth again, with the labels and thresholds of this version."""

    id: int
    folder: str
    spec: ModelSpec
    golden: tuple[GoldenInput, ...]


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer the picture in the body, or at `place` (offset, size) of shared memory (`runtime/shared_bodies.py`)."""

    id: int
    place: tuple[int, int] | None = None
    terms: Terms | None = None
    draw: Draw = ""


class AskTensors(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run the model on the tensors in the body; `outputs` empty: all are answered."""

    id: int
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[str, ...] = ()


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Nobody waits for request `id` any more; if it has not begun, it need not."""

    id: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Answer what was asked, then exit."""


class Started(msgspec.Struct, frozen=True, tag=True):
    """The engine is there; from now on it is the model's fault."""


class TensorDescription(msgspec.Struct, frozen=True):
    """An input or output of a model in the v2 protocol's words; a side that the model leaves open is -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelTensors(msgspec.Struct, frozen=True):
    """What goes into a model and comes out, and which engine runs it. Empty where several stages make one answer."""

    platform: str = ""
    inputs: tuple[TensorDescription, ...] = ()
    outputs: tuple[TensorDescription, ...] = ()


class Proved(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The version holds (request `id`); `terms` are those it is to be served with."""

    id: int
    report: ProofReport
    terms: Terms
    tensors: ModelTensors = ModelTensors()


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer to request `id`; the body is the drawn picture, if one was asked for, or the one that was made."""

    id: int
    answer: Answer
    width: int
    height: int
    timings_ms: dict[str, float]


class AnsweredTensors(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The outputs for request `id`; their bytes stand in the body, one after the other."""

    id: int
    outputs: tuple[TensorEntry, ...]
    timings_ms: dict[str, float]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Request `id` failed: the code of a leaf of `errors.py`, its message and values."""

    id: int
    code: str
    message: str
    values: dict[str, str | int | float | bool | None] = {}


Request = Begin | Prove | Ask | AskTensors | Cancel | Stop
Reply = Started | Proved | Answered | AnsweredTensors | Failed

_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


@dataclass(frozen=True, slots=True)
class FrameSize:
    """How many bytes of header and of body follow a prefix."""

    header_bytes: int
    body_bytes: int


def make_frame(message: Request | Reply, body_bytes: int = 0) -> bytes:
    """Prefix and header of a frame whose body of `body_bytes` is sent right after; raises LimitExceeded."""
    header = msgspec.msgpack.encode(message)
    _check_size(len(header), body_bytes)
    return _PREFIX.pack(len(header), body_bytes) + header


def part_picture(answer: Answer, drawn: bytes) -> tuple[Answer, bytes]:
    """Answer and body to send: a made picture may be larger than any header, so it goes as the body."""
    if not isinstance(answer, PictureAnswer):
        return answer, drawn
    return msgspec.structs.replace(answer, png=b""), drawn or answer.png


def join_picture(answer: Answer, body: bytes) -> Answer:
    """The answer as it was before `part_picture`; of a picture drawn as JPEG only the drawing is left."""
    if not isinstance(answer, PictureAnswer) or not body.startswith(PNG_MAGIC):
        return answer
    return msgspec.structs.replace(answer, png=body)


def read_prefix(prefix: bytes | bytearray) -> FrameSize:
    """The sizes that a frame announces; raises LimitExceeded."""
    header_bytes, body_bytes = _PREFIX.unpack(prefix)
    _check_size(header_bytes, body_bytes)
    return FrameSize(header_bytes, body_bytes)


def read_request(header: bytes | bytearray | memoryview) -> Request:
    """What the main process says; raises ProtocolViolated."""
    try:
        return _REQUESTS.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolated(f"expected a request to a worker: {error}") from error


def read_reply(header: bytes | bytearray | memoryview) -> Reply:
    """What a worker says; raises ProtocolViolated."""
    try:
        return _REPLIES.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolated(f"expected a reply of a worker: {error}") from error


def _check_size(header_bytes: int, body_bytes: int) -> None:
    if header_bytes > HEADER_MAX_BYTES or body_bytes > BODY_MAX_BYTES:
        raise LimitExceeded(
            f"expected a header of at most {HEADER_MAX_BYTES} and a body of at most {BODY_MAX_BYTES} bytes,"
            f" found {header_bytes} and {body_bytes}"
        )
