"""Request bodies: which kinds are taken, and reading one without trusting its sender.

Rules:
- The limit is enforced while reading, whatever Content-Length says or not; a declared excess is refused unread.
- One body has `timeout_s` in all; all bodies together hold at most `held_max_bytes` of memory.
- An answer that leaves part of a body unread closes the connection, but lingers a moment first: closing at once would
  reset it, and the sender would never read the answer (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgeferry.errors import BodyTimeout, BodyTooLarge, MediaTypeRefused, PictureUnreadable, QueueFull
from edgeferry.runtime.blocks import Blocks

_LINGER_S = 2.0
_LINGER_MAX_BYTES = 64 << 20
RAW_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded")
"""Media types beside `image/*` whose body is the picture; curl --data-binary says the second unless told otherwise."""


@dataclass
class BodyLimits:
    """Limits of bodies; `held_bytes` is what all of them hold now."""

    max_bytes: int = 32 << 20
    timeout_s: float = 60.0
    held_max_bytes: int = 256 << 20
    held_bytes: int = field(default=0, init=False)

    @contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Counts what did not come as a body, but is held like one, until the block ends; raises QueueFull."""
        self.take(size_bytes)
        try:
            yield
        finally:
            self.held_bytes -= size_bytes

    def take(self, size_bytes: int) -> None:
        """Counts so much more as held; raises QueueFull where others fill the memory."""
        if self.held_bytes + size_bytes > self.held_max_bytes:
            raise QueueFull("expected memory for this body, found it in use by other requests")
        self.held_bytes += size_bytes


def get_media_type(request: Request) -> str:
    """The media type that the request declares, without its parameters."""
    return request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()


def require_raw_picture(request: Request) -> None:
    """Refuses what is not the bare bytes of a picture, by its headers; raises MediaTypeRefused."""
    media_type = get_media_type(request)
    if media_type.startswith("multipart/"):
        raise MediaTypeRefused(f"expected the picture's bytes as the whole body, found a form ({media_type:.60})")
    if not media_type.startswith("image/") and media_type not in RAW_TYPES:
        raise MediaTypeRefused(f"expected a picture, found {media_type:.60}")
    require_plain_body(request)


def require_plain_body(request: Request) -> None:
    """Refuses a compressed body: nobody knows its size; raises MediaTypeRefused."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise MediaTypeRefused(f"expected a body without Content-Encoding, found {coding:.60}")


@asynccontextmanager
async def open_body(request: Request, limits: BodyLimits, *, may_be_empty: bool = False) -> AsyncIterator[bytes]:
    """Reads the whole body; it counts as held until the block ends.

    Raises:
        BodyTooLarge: more than `max_bytes`, declared or sent.
        BodyTimeout: it did not arrive within `timeout_s`.
        QueueFull: other bodies fill the memory that bodies may use.
        PictureUnreadable: it is empty.
        starlette.requests.ClientDisconnect: the sender went away.
    """
    async with HeldBody(request, limits, may_be_empty=may_be_empty) as held:
        yield bytes(held.take())


class HeldBody:
    """`async with` it: a body that has been read whole, in the blocks that it came in; raises as `open_body`."""

    def __init__(self, request: Request, limits: BodyLimits, *, may_be_empty: bool = False) -> None:
        self._request = request
        self._taken = _Taken(limits)
        self._may_be_empty = may_be_empty

    async def __aenter__(self) -> HeldBody:
        _require_small(self._request.headers.get("content-length", "0"), self._taken.limits)
        try:
            await _read_all(self._request, self._taken)
            self._request.state.body_read = True
            if not self._taken.size_bytes and not self._may_be_empty:
                raise PictureUnreadable("expected a picture as the body, found 0 bytes")
        except BaseException:
            self._taken.let_go()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._taken.let_go()

    def take(self) -> Blocks:
        """The body, once: this holds it no longer, it only counts it."""
        return self._taken.take()


def _require_small(declared: str, limits: BodyLimits) -> None:
    small = declared.isascii() and declared.isdigit() and len(declared) < 16 and int(declared) <= limits.max_bytes
    if not small:
        raise BodyTooLarge(f"expected at most {limits.max_bytes} bytes, found Content-Length {declared:.20}")


async def _read_all(request: Request, taken: _Taken) -> None:
    timeout_s = taken.limits.timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                taken.add(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError as error:
        found = f"found {taken.size_bytes} bytes"
        raise BodyTimeout(f"expected the whole body within {timeout_s:g} s, {found}") from error


class _Taken:
    """The blocks of one body so far, counted against the limits."""

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self.size_bytes = 0
        self._blocks: list[bytes] = []

    def add(self, block: bytes) -> None:
        if self.size_bytes + len(block) > self.limits.max_bytes:
            raise BodyTooLarge(f"expected at most {self.limits.max_bytes} bytes, found more")
        self.limits.take(len(block))
        if block:
            self._blocks.append(block)
        self.size_bytes += len(block)

    def take(self) -> Blocks:
        blocks, self._blocks = self._blocks, []
        return Blocks(blocks)

    def let_go(self) -> None:
        self.limits.held_bytes -= self.size_bytes
        self.size_bytes = 0


def is_body_left(request: Request) -> bool:
    """True when the request has a body that was not read to its end."""
    if getattr(request.state, "body_read", False):
        return False
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


class LingeringResponse:
    """Sends `response` whole, drops what the sender still sends for a moment, and then closes the connection."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._response.headers["Connection"] = "close"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of this one answer."""
        start = {"type": "http.response.start", "status": self._response.status_code}
        await send({**start, "headers": self._response.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self._response.body), "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await _drop_rest(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop_rest(receive: Receive) -> None:
    dropped_bytes = 0
    while dropped_bytes < _LINGER_MAX_BYTES:
        message = await receive()
        dropped_bytes += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
