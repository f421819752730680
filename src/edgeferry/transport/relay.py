"""Relay: a TCP relay on loopback with a link's rate, delay and cuts, that counts bytes. A thin link to try things on.

What this file leaves to others: packets and their loss (a link between network namespaces, in the tests).

Rules:
- It sees bytes, never what they mean: TLS passes through as it is.
- All connections share one bucket per direction, as they would share one link. A rate counts headers of IP and TCP.
- The receiver is never more than one block ahead of the rate; what is under way is what the rate brings in the delay,
  and what queues before the link is bounded.
- A connection takes a round trip to come about. A cut loses nothing: what TCP would repeat waits.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from edgeferry.link.forecast import HEADER_BYTES
from edgeferry.link.rate import TokenBucket, make_bucket

_BLOCK_BYTES = 1448
"""One full TCP segment with time stamps: what a thin link passes at a time."""
_BURST_S = 0.05
"""A link saves nothing up; this much makes good for a sleep that was too long."""
_QUEUE_BYTES = 64 << 10
"""What a kernel takes of a sender before the link does: about a modem's queue."""
_UNDER_WAY_BLOCKS = 4096
"""Bounds a lane that has a delay and no rate; with a rate, delay times rate is less."""


@dataclass(slots=True)
class Lane:
    """One direction of the link: rate, one-way delay, what has passed so far. `rate_bps` 0 means no limit."""

    rate_bps: int = 0
    delay_s: float = 0.0
    passed_bytes: int = 0
    _bucket: TokenBucket | None = None
    _cut_until_s: float = 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes bytes on until the sender ends, then ends the receiver's side."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY_BLOCKS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deliver(under_way, writer))
            while block := await reader.read(_BLOCK_BYTES):
                await self._wait_turn(len(block))
                await under_way.put((time.monotonic() + self.delay_s, block))
            await under_way.put((time.monotonic() + self.delay_s, b""))

    def limit(self, rate_bps: int, delay_s: float = 0.0) -> None:
        """Changes rate and delay from now on."""
        self.rate_bps, self.delay_s = rate_bps, delay_s
        now_s = time.monotonic()
        self._bucket = make_bucket(rate_bps / 8, now_s=now_s, burst_s=_BURST_S) if rate_bps else None

    def cut(self, for_s: float) -> None:
        """Nothing passes for so long."""
        self._cut_until_s = time.monotonic() + for_s

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            arrives_s, block = await under_way.get()
            await asyncio.sleep(arrives_s - time.monotonic())
            await self._wait_whole()
            if not block:
                break
            self.passed_bytes += len(block)
            writer.write(block)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def _wait_turn(self, size_bytes: int) -> None:
        await self._wait_whole()
        if self._bucket is None:
            return
        self._bucket, wait_s = self._bucket.take(size_bytes + HEADER_BYTES, time.monotonic())
        if wait_s:
            await asyncio.sleep(wait_s)

    async def _wait_whole(self) -> None:
        if (left_s := self._cut_until_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)


@dataclass(slots=True)
class Link:
    """Both directions of one link; several relays may share it."""

    down: Lane = field(default_factory=Lane)
    up: Lane = field(default_factory=Lane)

    def limit(self, rate_bps: int, rtt_s: float = 0.0) -> None:
        """Limits both directions to `rate_bps` bits per second; each takes half of the round trip `rtt_s`."""
        self.down.limit(rate_bps, rtt_s / 2)
        self.up.limit(rate_bps, rtt_s / 2)

    def cut(self, for_s: float) -> None:
        """Nothing passes in either direction for so long."""
        self.down.cut(for_s)
        self.up.cut(for_s)

    @property
    def passed_bytes(self) -> int:
        """What both directions carried, above TCP."""
        return self.down.passed_bytes + self.up.passed_bytes


@asynccontextmanager
async def open_relay(link: Link, target_port: int, *, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Relays connections on a free port of loopback to `host:target_port` over `link`; yields the port.

    Connections end with the block.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(link.up.delay_s + link.down.delay_s)
            await _join(link, (reader, writer), await _connect(host, target_port))
        except* OSError:
            pass  # either end went away: a link carries that as it carries everything
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(task := asyncio.create_task(serve(reader, writer)))
        task.add_done_callback(connections.discard)

    connections: set[asyncio.Task[None]] = set()
    server = await asyncio.start_server(accept, sock=_listen(), limit=2 * _BLOCK_BYTES)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def _listen() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)  # accepted sockets inherit it (Linux)
    return sock


async def _connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
        return await asyncio.open_connection(sock=sock, limit=2 * _BLOCK_BYTES)
    except BaseException:
        sock.close()
        raise


async def _join(
    link: Link,
    near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(link.up.carry(near[0], far[1]))
            tasks.create_task(link.down.carry(far[0], near[1]))
    finally:
        far[1].close()
