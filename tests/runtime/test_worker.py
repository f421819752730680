"""The worker's side of a request, within this process; as a process it is tested in `test_child.py`."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from edgeferry.runtime.served import ServedAnswer, ServedModel
from edgeferry.runtime.worker import WorkerProcess, _Job
from edgeferry.runtime.worker_line import WorkerLine
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.wire import worker_frames
from edgeferry.wire.worker_frames import PREFIX_BYTES, Answered, Ask, Begin, Failed, Terms, read_prefix, read_reply


class Draws:
    """A model that draws what it was given."""

    def answer(self, data: bytearray, *_: object) -> ServedAnswer:
        return ServedAnswer(DetectionAnswer(objects=()), 1, 1, {}, bytes(data))


def receive(other: socket.socket) -> tuple[Any, bytes]:
    size = read_prefix(other.recv(PREFIX_BYTES, socket.MSG_WAITALL))
    header = other.recv(size.header_bytes, socket.MSG_WAITALL)
    return read_reply(header), other.recv(size.body_bytes, socket.MSG_WAITALL) if size.body_bytes else b""


def test_an_answer_that_no_frame_holds_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_frames, "BODY_MAX_BYTES", 1000)
    ours, other = socket.socketpair()
    with ours, other:
        worker = WorkerProcess(WorkerLine(ours), cast("Begin", type("Few", (), {"concurrency": 1})), memoryview(b""))
        worker._model = cast("ServedModel", Draws())
        replies = []
        for id_, picture in ((1, bytes(1001)), (2, b"small")):
            worker._pictures[id_] = bytearray(picture)
            worker._serve_one(_Job(Ask(id=id_, draw="png"), Terms((), ())))
            replies.append(receive(other))
    (failed, _), (answered, drawn) = replies
    assert isinstance(failed, Failed)
    assert (failed.id, failed.code) == (1, "limit_exceeded")
    assert isinstance(answered, Answered)
    assert (answered.id, drawn) == (2, b"small")
