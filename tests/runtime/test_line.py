"""Our end of the socket to a worker, with a worker that does as it likes at the other end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

import pytest

from edgeferry.errors import GoldenMismatch, LimitExceeded, QueueFull, WorkerLost
from edgeferry.runtime import line as line_file
from edgeferry.runtime import shared_bodies
from edgeferry.runtime.blocks import Blocks
from edgeferry.runtime.line import Line
from edgeferry.runtime.shared_bodies import SharedBodies, open_shared_bodies
from edgeferry.runtime.spawn import Spawned
from edgeferry.vision.answer import DetectionAnswer
from edgeferry.wire.worker_frames import HEADER_MAX_BYTES, Answered, Ask, Failed, Terms, make_frame


@dataclass
class Ends:
    """A line, the socket at its other end, and the memory that both share."""

    line: Line
    other: socket.socket
    bodies: SharedBodies


@pytest.fixture
async def ends(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ends]:
    @dataclass
    class Process:
        sock: socket.socket
        bodies: SharedBodies

    ours, theirs = socket.socketpair()
    monkeypatch.setattr(shared_bodies, "LEAST_BYTES", 1 << 30)  # as when the shared memory is full
    bodies = SharedBodies()
    line = Line(cast("Spawned", Process(ours, bodies)))
    with theirs:
        yield Ends(line, theirs, bodies)
    line.close()


@pytest.mark.parametrize("name", ["message", "self", "code", "advice", "found"])
async def test_values_of_any_name_do_not_break_the_line(ends: Ends, name: str) -> None:
    answer = ends.line.ask(Ask(id=1), b"picture")
    failed = Failed(id=1, code="golden_mismatch", message="no cat", values={name: "surprise"})
    ends.other.send(make_frame(failed))
    listening = asyncio.create_task(ends.line.listen())
    with pytest.raises(GoldenMismatch, match="no cat") as caught:
        await asyncio.wait_for(answer, 5)
    assert caught.value.values == {name: "surprise"}
    ends.other.close()
    await asyncio.wait_for(listening, 5)


async def test_a_worker_that_reads_nothing_does_not_fill_our_memory(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file, "UNSENT_MAX_BYTES", 1 << 20)
    with pytest.raises(QueueFull):
        for id_ in range(1, 10):
            ends.line.ask(Ask(id=id_), bytes(1 << 20)).cancel()


async def test_a_picture_larger_than_all_buffers_arrives_whole_and_in_order(ends: Ends) -> None:
    picture = bytes(range(256)) * (40 << 10)
    for id_ in (1, 2):
        ends.line.ask(Ask(id=id_), picture).cancel()
    wanted = b"".join(make_frame(Ask(id=id_), len(picture)) + picture for id_ in (1, 2))
    found = bytearray()
    while len(found) < len(wanted):
        found += await asyncio.to_thread(ends.other.recv, 1 << 20)
    assert found == wanted


async def test_a_picture_in_blocks_leaves_as_one_body(ends: Ends) -> None:
    ends.line.ask(Ask(id=1), Blocks([b"the ", b"whole ", b"picture"])).cancel()
    wanted = make_frame(Ask(id=1), 17) + b"the whole picture"
    assert await asyncio.to_thread(ends.other.recv, 1 << 20) == wanted


def test_a_picture_in_crumbs_is_held_as_one_block() -> None:
    crumbs = Blocks([b"x"] * 5000)
    assert (len(crumbs), len(crumbs.parts), bytes(crumbs)) == (5000, 1, b"x" * 5000)


async def test_a_picture_in_blocks_lies_in_shared_memory_as_one(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_bodies, "LEAST_BYTES", 1)
    seen = open_shared_bodies(os.dup(ends.bodies.fd))
    ends.line.ask(Ask(id=1), Blocks([b"the ", b"whole ", b"picture"])).cancel()
    assert await asyncio.to_thread(ends.other.recv, 1 << 20) == make_frame(Ask(id=1, place=(0, 17)))
    assert bytes(seen[:17]) == b"the whole picture"


async def test_what_no_frame_holds_takes_no_place_in_shared_memory(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_bodies, "LEAST_BYTES", 1)
    with pytest.raises(LimitExceeded):
        ends.line.ask(Ask(id=1, terms=Terms((("x" * HEADER_MAX_BYTES,),), ())), b"picture")
    assert ends.bodies.put([b"the next one"]) == (0, 12)


async def test_replies_that_come_in_pieces_are_put_together(ends: Ends) -> None:
    answers = [ends.line.ask(Ask(id=id_), b"picture") for id_ in (1, 2)]
    drawn = b"drawn" * 50_000
    empty = {"answer": DetectionAnswer(objects=()), "width": 4, "height": 3, "timings_ms": {}}
    sent = b"".join(make_frame(Answered(id=id_, **empty), len(drawn)) + drawn for id_ in (2, 1))
    pieces = [sent[:3], sent[3:20], sent[20:100_000], sent[100_000:-1], sent[-1:]]
    for piece in pieces:
        await asyncio.get_running_loop().run_in_executor(None, ends.other.sendall, piece)
    replies = [await asyncio.wait_for(answer, 5) for answer in answers]
    assert [(reply.id, body == drawn) for reply, body in replies] == [(1, True), (2, True)]  # type: ignore[union-attr]


async def test_who_waits_is_told_when_the_other_end_is_gone(ends: Ends) -> None:
    answer = ends.line.ask(Ask(id=1), b"picture")
    ends.other.close()
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(answer, 5)
    await asyncio.wait_for(ends.line.listen(), 5)
    with pytest.raises(WorkerLost):
        ends.line.ask(Ask(id=2), b"picture")
