"""frame_socket: frames over a socket pair inside the event loop, without streams and without a task per frame.

What this file leaves to others: what frames mean (`line.py`), how they are made and read (`wire/worker_frames.py`).

Rules:
- A frame is handed to the kernel at once, its parts in one call and unjoined; what the kernel does not take is kept and
  sent when it does.
- Replies are told as they come, from the loop's own callback: a request costs one wake-up each way.
- The end, for whatever reason, is told once: a broken protocol with its error, else None.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from edgeferry.errors import ProtocolError
from edgeferry.runtime.blocks import Part
from edgeferry.wire.worker_frames import PREFIX_BYTES, Reply, read_prefix, read_reply

_BLOCK_BYTES = 64 << 10
_PARTS_MAX = 64
"""Of one call; the kernel takes at most 1,024."""
TakeReply = Callable[[Reply, bytes], None]


class FrameSocket:
    """Our end of the pair; speaks from `open` until it ends or is closed."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._block = memoryview(bytearray(_BLOCK_BYTES))
        self._seen = bytearray()
        self._unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0

    def open(self, take: TakeReply, end: Callable[[ProtocolError | None], None]) -> None:
        """Begins to listen; `take` may raise ProtocolViolated, which ends the line."""
        self._take, self._tell_end = take, end
        self._loop.add_reader(self._sock, self._receive)

    def send(self, *parts: Part) -> None:
        """Sends a frame in parts; nothing happens once the other end is gone: who listens is told of that."""
        views = [memoryview(part) for part in parts if part]
        if not self._unsent:
            self._drop_sent(views, self._try_send(views[:_PARTS_MAX]))
            if views:
                self._loop.add_writer(self._sock, self._send_more)
        self._unsent.extend(views)
        self.unsent_bytes += sum(len(view) for view in views)

    def close(self) -> None:
        """Hears and sends nothing more. Safe to call twice."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def _try_send(self, views: list[memoryview]) -> int:
        try:
            return self._sock.sendmsg(views) if self._sock.fileno() >= 0 else sum(len(view) for view in views)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:  # the end is heard when reading
            return sum(len(view) for view in views)

    def _send_more(self) -> None:
        views = list(self._unsent)[:_PARTS_MAX]
        sent = self._try_send(views)
        self.unsent_bytes -= sent
        for _ in views:
            self._unsent.popleft()
        self._drop_sent(views, sent)
        self._unsent.extendleft(reversed(views))
        if not self._unsent:
            self._loop.remove_writer(self._sock)

    @staticmethod
    def _drop_sent(views: list[memoryview], sent: int) -> None:
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = views[0][sent:]

    def _receive(self) -> None:
        try:
            got = self._sock.recv_into(self._block)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            got = 0
        if not got:
            self._end(None)
            return
        self._seen += self._block[:got]
        try:
            self._take_frames()
        except ProtocolError as error:
            self._end(error)

    def _take_frames(self) -> None:
        while len(self._seen) >= PREFIX_BYTES:
            size = read_prefix(self._seen[:PREFIX_BYTES])
            body_at = PREFIX_BYTES + size.header_bytes
            end_at = body_at + size.body_bytes
            if len(self._seen) < end_at:
                return
            header, body = self._seen[PREFIX_BYTES:body_at], bytes(self._seen[body_at:end_at])
            del self._seen[:end_at]
            self._take(read_reply(header), body)

    def _end(self, error: ProtocolError | None) -> None:
        self._loop.remove_reader(self._sock)
        self._tell_end(error)
