"""line: the main process's end of the socket to a worker: frames out, replies in, each to the request that waits.

What this file leaves to others: the process at the other end (`spawn.py`), what its replies mean (`child.py`).

Rules:
- A request is written at once and in whole, so frames keep the order of the calls.
- A `Failed` reply becomes the leaf of `errors.py` that its code names.
- A worker that reads nothing is owed at most UNSENT_MAX_BYTES (and one request more): callers who come and leave must
  not fill our memory.
- A large picture does not go over the socket but into shared memory; its place is free once the worker has replied.
- When the line ends, for whatever reason, all that wait get WorkerLost. Replies that break the protocol end it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from edgeferry.errors import (
    EdgeferryError,
    InvariantBroken,
    LimitExceeded,
    ProtocolError,
    ProtocolViolated,
    QueueFull,
    WorkerLost,
    find_leaves,
)
from edgeferry.runtime.blocks import Body, Part, get_parts
from edgeferry.runtime.frame_socket import FrameSocket
from edgeferry.runtime.shared_bodies import Place
from edgeferry.runtime.spawn import Spawned
from edgeferry.wire.worker_frames import (
    Ask,
    AskTensors,
    Begin,
    Cancel,
    Failed,
    Prove,
    Reply,
    Started,
    Stop,
    make_frame,
)

UNSENT_MAX_BYTES = 256 << 20
_LEAVES = {leaf.code: leaf for leaf in find_leaves()}

Answer = tuple[Reply, bytes]


class Line:
    """Speaks to one worker."""

    def __init__(self, spawned: Spawned) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = FrameSocket(spawned.sock)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._bodies = spawned.bodies
        self._places: dict[int, Place] = {}
        self._asked_at: dict[int, float] = {}  # oldest first; proofs take as long as they take
        self._last_id = 0
        self._lost: WorkerLost | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.started: asyncio.Future[None] = self._loop.create_future()
        self._socket.open(self._take, self._end)

    @property
    def is_open(self) -> bool:
        """False once the other end is gone."""
        return self._lost is None

    def get_owed_s(self) -> float:
        """Seconds for which the worker has owed the oldest answer; 0 when it owes none."""
        now = self._loop.time()
        return now - next(iter(self._asked_at.values()), now)

    def make_id(self) -> int:
        """The next request id; 0 is that of `Begin`."""
        self._last_id += 1
        return self._last_id

    def ask(self, request: Begin | Prove | Ask | AskTensors, body: Body = b"") -> asyncio.Future[Answer]:
        """Sends a request now; the future holds its reply and the reply's body.

        Raises:
            WorkerLost: the line has ended.
            QueueFull: the worker reads too slowly.
            LimitExceeded: the frame would be too large; nothing was sent.
        """
        if self._lost is not None:
            raise WorkerLost(self._lost.message)
        if body and self._socket.unsent_bytes > UNSENT_MAX_BYTES:
            raise QueueFull("expected the worker to take requests, found it busy")
        if isinstance(request, Ask):
            frame, parts = self._share(request, body)
        else:
            frame, parts = make_frame(request, len(body)), get_parts(body)
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[0 if isinstance(request, Begin) else request.id] = future
        if isinstance(request, Ask | AskTensors):
            self._asked_at[request.id] = self._loop.time()
        self._socket.send(frame, *parts)
        return future

    def _share(self, request: Ask, body: Body) -> tuple[bytes, Sequence[Part]]:
        """The frame and what is sent after it: nothing, where the picture has room in shared memory."""
        parts = get_parts(body)
        place = self._bodies.put(parts)
        if place is None:
            return make_frame(request, len(body)), parts
        try:
            frame = make_frame(msgspec.structs.replace(request, place=place))
        except LimitExceeded:  # what cannot be sent takes no place
            self._bodies.give_back(place)
            raise
        self._places[request.id] = place
        return frame, ()

    def tell(self, message: Cancel | Stop) -> None:
        """Sends what has no reply; nothing happens when the line has ended."""
        if self._lost is None:
            self._socket.send(make_frame(message))

    async def listen(self) -> None:
        """Returns when the line has ended and all who waited were let go of."""
        await asyncio.shield(self._ended)

    def close(self) -> None:
        """Gives the socket and the shared memory back."""
        self._socket.close()
        self._bodies.close()

    def _take(self, reply: Reply, body: bytes) -> None:
        if isinstance(reply, Started):
            if not self.started.done():
                self.started.set_result(None)
            return
        place = self._places.pop(reply.id, None)
        if place is not None:
            self._bodies.give_back(place)
        future = self._waiting.pop(reply.id, None)
        self._asked_at.pop(reply.id, None)
        if future is None:
            raise ProtocolViolated(f"expected a reply to a request, found one with id {reply.id}")
        if future.done():  # nobody waits any more
            return
        if isinstance(reply, Failed):
            future.set_exception(_make_error(reply))
        else:
            future.set_result((reply, body))

    def _end(self, broken: ProtocolError | None) -> None:
        reason = f"the worker broke the protocol: {broken.message}" if broken else "the worker process ended"
        self._lost = WorkerLost(reason)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerLost(reason))
        self._waiting.clear()
        self._asked_at.clear()
        self._ended.set_result(None)


def _make_error(reply: Failed) -> EdgeferryError:
    leaf = _LEAVES.get(reply.code)
    if leaf is None:
        return InvariantBroken(f"a worker replied with the unknown code {reply.code!r:.60}: {reply.message:.300}")
    error = leaf(reply.message)
    error.values.update(reply.values)  # not as arguments: their names are the worker's
    return error
