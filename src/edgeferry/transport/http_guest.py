"""One HTTP connection of the server: uvicorn's protocol, on a connection that the accept loop brings.

What this file leaves to others: accepting, limits of time, the application (`http_server.py`).

Rules:
- Keep-alive begins when the client has taken the answer: uvicorn's own begins when buffers have, which is minutes
  earlier on a thin link.
- Where nobody is upgraded to WebSockets and httptools is installed, its parser is used: h11 needs a third of all CPU
  that serving adds to an inference (measured). Without it h11 does the same more slowly.
- Who would rather speak HTTP/2 (Java's client asks with each request) is answered in HTTP/1.1 (RFC 9110, 7.8);
  httptools would take the body for that protocol's.
- httptools bounds nothing by itself: a header, and all that is no body, is bounded here as h11 bounds it. What a
  callback of its parser raises becomes a 400.
"""

from __future__ import annotations

import asyncio
import fcntl
import re
import sys
import termios
from typing import TYPE_CHECKING, Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeferry.transport.accept_loop import Gate, Guest

if TYPE_CHECKING:
    from collections.abc import Callable

HEADERS_MAX_BYTES = 16 << 10
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_JOINED_MAX_BYTES = 64 << 10
"""Of a larger body a second call costs less than to copy it behind its head."""
_BESIDES_BODY_SHARE = 8
"""Bytes of chunk heads and trailers that one byte of body may bring along: chunks of one byte bring 5."""


class HttpGuest(Guest):
    """What both kinds share; the other base is one of uvicorn's protocols."""

    transport: Any
    cycle: Any
    loop: Any
    timeout_keep_alive: int
    timeout_keep_alive_task: Any

    def __init__(self, server: uvicorn.Server, gate: Gate, address: str) -> None:
        super().__init__(server.config, server.server_state, server.lifespan.state)  # type: ignore[call-arg]
        self.received_bytes = 0
        self._gate, self._address = gate, address

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self.has_begun = True
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.received_bytes += len(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        super().connection_lost(exc)
        self._gate.leave(self._address)

    def timeout_keep_alive_handler(self) -> None:
        """No request came for so long. Who still takes the last answer has not had its time yet."""
        if self._count_unsent():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            return
        super().timeout_keep_alive_handler()  # type: ignore[misc]

    def _count_unsent(self) -> int:
        return cast("int", self.transport.get_write_buffer_size()) + _count_unacknowledged(self.transport)

    def get_progress(self) -> tuple[str, int] | None:
        """What must change while the peer has to read or to send; None when it is not its turn."""
        unsent = self._count_unsent()
        if unsent:
            return "sent", unsent
        cycle = self.cycle
        is_sending_body = cycle is not None and cycle.more_body and not cycle.response_complete
        return ("received", self.received_bytes) if is_sending_body else None


class H11Guest(HttpGuest, H11Protocol):
    """Parsed by h11; may be upgraded to WebSockets."""

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """From now on another protocol, with limits of its own, holds the socket."""
        self._gate.leave(self._address)
        super().handle_websocket_upgrade(event)


class _Blocks:
    """A body as uvicorn gathers it, but unjoined: a block that is taken before the next one comes is never copied."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._size_bytes = 0

    def __iadd__(self, block: bytes) -> _Blocks:
        self._blocks.append(block)
        self._size_bytes += len(block)
        return self

    def __len__(self) -> int:
        return self._size_bytes

    def __bytes__(self) -> bytes:
        return b"".join(self._blocks)  # of one block it is that block


class _HeadWithBody:
    """A transport as one answer writes to it: its head waits for the body, but not beyond the loop's next turn, and
    both leave in one call."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""
        self._has_begun = False

    def write(self, data: bytes) -> None:
        if not self._has_begun:
            self._has_begun, self._head = True, data
            self._loop.call_soon(self._flush)
        elif self._head and len(data) <= _JOINED_MAX_BYTES:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._flush()
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head:
            self._transport.write(head)


def find_fast_guest() -> Callable[[uvicorn.Server, Gate, str], HttpGuest]:
    """The kind that httptools parses; without httptools the other one."""
    try:
        from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ModuleNotFoundError:
        return H11Guest

    class HttpToolsGuest(HttpGuest, HttpToolsProtocol):
        """Parsed by httptools; never upgraded."""

        _header_bytes = 0
        _besides_body = 0
        _block_bytes = 0
        _has_ended = False
        _is_in_message = False

        def data_received(self, data: bytes) -> None:
            self._block_bytes, self._has_ended = len(data), False
            super().data_received(data if self._is_in_message else _refuse_upgrade(data))
            cycle = self.cycle
            if self._is_in_message and cycle is not None and cycle.more_body and len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()  # not when the body is whole: then there is nothing more to keep out
            self._besides_body = max(0, self._besides_body + len(data))  # a large body allows no more than a small one
            if self._besides_body > HEADERS_MAX_BYTES and not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")

        def on_message_begin(self) -> None:
            self._header_bytes, self._is_in_message = 0, True
            self._besides_body = -self._block_bytes if self._has_ended else 0  # this block began with another message
            super().on_message_begin()

        def on_message_complete(self) -> None:
            self._has_ended, self._is_in_message = True, False
            super().on_message_complete()

        def on_url(self, url: bytes) -> None:
            self._count_header(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count_header(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            hosts = sum(name == b"host" for name, _ in self.headers)
            if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
                raise ValueError("expected one Host")  # RFC 9112, 3.2
            super().on_headers_complete()
            if self.scope["method"] != "HEAD":  # of whose answer no body is written
                self.cycle.transport = _HeadWithBody(self.transport, self.loop)

        def on_body(self, body: bytes) -> None:
            self._besides_body -= (1 + _BESIDES_BODY_SHARE) * len(body)
            if not self.cycle.response_complete:
                _gather(self.cycle, body)

        def _count_header(self, size: int) -> None:
            self._header_bytes += size
            if self._header_bytes > HEADERS_MAX_BYTES:
                raise ValueError("expected a smaller header")

    return HttpToolsGuest


def _gather(cycle: Any, block: bytes) -> None:
    """Adds a block to the body that uvicorn gathers for an answer, and wakes who reads it."""
    if not cycle.body and isinstance(cycle.body, bytearray):  # older uvicorns hand on what they gather as it is
        cycle.body = _Blocks()
    cycle.body += block
    cycle.message_event.set()


def _refuse_upgrade(data: bytes) -> bytes:
    """The block that a request begins with, its wish for another protocol out of the parser's sight."""
    end = data.find(b"\r\n\r\n")
    if _UPGRADE.search(data, 0, max(end, 0)) is None:  # as nearly always: nothing is copied
        return data
    return _UPGRADE.sub(b"\r\nx-upgrade:", data[:end]) + data[end:]


def _count_unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes that the kernel holds until the peer has acknowledged them (SIOCOUTQ): on a thin link they go on moving
    for minutes while the buffer above stands still."""
    try:
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):
        return 0
    return int.from_bytes(answer, sys.byteorder)
