"""Our end of the socket to a worker, with a worker that does as it likes at the other end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

import pytest

from edgeferry.errors import GoldenMismatch, QueueFull
from edgeferry.runtime import line as line_file
from edgeferry.runtime.line import Line
from edgeferry.runtime.spawn import Spawned
from edgeferry.wire.worker_frames import Ask, Failed, make_frame


@dataclass
class Ends:
    """A line, and the socket at its other end."""

    line: Line
    other: socket.socket


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    @dataclass
    class Process:
        sock: socket.socket

    ours, theirs = socket.socketpair()
    line = Line(cast("Spawned", Process(ours)))
    with theirs:
        yield Ends(line, theirs)
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
