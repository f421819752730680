"""A relay passes bytes unchanged, counts them, and holds the rate."""

from __future__ import annotations

import asyncio
import os
import time

from edgeferry.transport.relay import Link, open_relay


async def fetch_through(link: Link, body: bytes) -> bytes:
    """Lets a loopback server send `body` through a relay on `link`."""

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(3)
        writer.write(body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(send, "127.0.0.1", 0)
    async with server, open_relay(link, server.sockets[0].getsockname()[1]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"get")
        found = await reader.read(-1)
        writer.close()
    return found


async def test_bytes_pass_unchanged_and_are_counted_by_direction() -> None:
    link, body = Link(), os.urandom(300_000)
    assert await fetch_through(link, body) == body
    assert (link.down.passed_bytes, link.up.passed_bytes, link.passed_bytes) == (300_000, 3, 300_003)


async def test_a_limited_link_takes_the_time_that_its_rate_says() -> None:
    link = Link()
    link.limit(160_000)  # 20 kB/s with half a second saved up: 30 kB take a second
    begun = time.monotonic()
    await fetch_through(link, bytes(30_000))
    assert time.monotonic() - begun >= 0.9
