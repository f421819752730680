"""worker_line: the worker's end of the socket to the main process: requests in, replies out.

What this file leaves to others: what requests mean (`worker.py`), the other end (`line.py`).

Rules:
- One thread at a time receives, any thread sends.
- All that has come is taken in one call: each has to win the interpreter's lock back.
- A parent that is gone ends this process.
"""

from __future__ import annotations

import os
import socket
import threading

from edgeferry.wire.worker_frames import PREFIX_BYTES, Reply, Request, make_frame, read_prefix, read_request

_BLOCK_BYTES = 64 << 10

Frame = tuple[Request, bytearray]


class WorkerLine:
    """Speaks to the main process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._seen = bytearray()

    def receive(self, *, wait: bool) -> list[Frame]:
        """The frames that have come; `wait`: waits for one where there is none."""
        frames: list[Frame] = []
        self._receive_block(wait=wait)
        while (frame := self._take_frame()) is not None or (wait and not frames):
            if frame is not None:
                frames.append(frame)
            else:
                self._receive_block(wait=True)
        return frames

    def _take_frame(self) -> Frame | None:
        """The next one whose header is here, with its whole body."""
        if len(self._seen) < PREFIX_BYTES:
            return None
        size = read_prefix(self._seen[:PREFIX_BYTES])
        body_at = PREFIX_BYTES + size.header_bytes
        if len(self._seen) < body_at:
            return None
        request = read_request(self._seen[PREFIX_BYTES:body_at])
        body = self._seen[body_at : body_at + size.body_bytes]
        del self._seen[: body_at + len(body)]
        self._fill(body, size.body_bytes)
        return request, body

    def _receive_block(self, *, wait: bool) -> None:
        try:
            block = self._sock.recv(_BLOCK_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not block:
            os._exit(0)
        self._seen += block

    def _fill(self, body: bytearray, size_bytes: int) -> None:
        """Receives what is missing of a body."""
        have = len(body)
        body.extend(bytes(size_bytes - have))
        view = memoryview(body)
        while have < size_bytes:
            got = self._sock.recv_into(view[have:])
            if got == 0:
                os._exit(0)
            have += got

    def send(self, reply: Reply, body: bytes = b"") -> None:
        """Sends a frame whole."""
        frame = make_frame(reply, len(body))
        try:
            with self._sending:
                self._sock.sendall(frame)
                if body:
                    self._sock.sendall(body)
        except OSError:
            os._exit(0)
