"""Relay: a TCP relay on loopback that lets bytes pass at a given rate and counts them. A thin link to try things on.

What this file leaves to others: delay, loss and cuts (a link between network namespaces, in the tests).

Rules:
- It sees bytes, never what they mean: TLS passes through as it is.
- All connections share one bucket per direction, as they would share one link.
- The receiver is never more than one block ahead of the rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from edgeferry.link.rate import TokenBucket, make_bucket

_BLOCK_BYTES = 1400
"""About one TCP segment: what a thin link passes at a time."""


@dataclass(slots=True)
class Lane:
    """One direction of the link: a rate and what has passed so far. `rate_bps` 0 means no limit."""

    rate_bps: int = 0
    passed_bytes: int = 0
    _bucket: TokenBucket | None = None

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes bytes on until the sender ends, then ends the receiver's side."""
        while block := await reader.read(_BLOCK_BYTES):
            await self._wait_turn(len(block))
            self.passed_bytes += len(block)
            writer.write(block)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    def limit(self, rate_bps: int) -> None:
        """Changes the rate from now on."""
        self.rate_bps = rate_bps
        self._bucket = make_bucket(rate_bps / 8, now_s=time.monotonic()) if rate_bps else None

    async def _wait_turn(self, size_bytes: int) -> None:
        if self._bucket is None:
            return
        self._bucket, wait_s = self._bucket.take(size_bytes, time.monotonic())
        if wait_s:
            await asyncio.sleep(wait_s)


@dataclass(slots=True)
class Link:
    """Both directions of one link; several relays may share it."""

    down: Lane = field(default_factory=Lane)
    up: Lane = field(default_factory=Lane)

    def limit(self, rate_bps: int) -> None:
        """Limits both directions to `rate_bps` bits per second."""
        self.down.limit(rate_bps)
        self.up.limit(rate_bps)

    @property
    def passed_bytes(self) -> int:
        """What both directions carried, above TCP."""
        return self.down.passed_bytes + self.up.passed_bytes


@asynccontextmanager
async def open_relay(link: Link, target_port: int, *, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Relays connections on a free port of loopback to `host:target_port` over `link`; yields the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _join(link, (reader, writer), await asyncio.open_connection(host, target_port))
        except OSError:
            pass  # either end went away: a link carries that as it carries everything
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2 * _BLOCK_BYTES)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def _join(
    link: Link,
    near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    try:
        await asyncio.gather(link.up.carry(near[0], far[1]), link.down.carry(far[0], near[1]))
    finally:
        far[1].close()
