"""A relay passes bytes unchanged, counts them, and holds the rate."""

from __future__ import annotations

import asyncio
import os
import socket
import time

from edgeferry.transport.relay import Link, open_relay
from polling import poll


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
    link.limit(240_000)
    begun = time.monotonic()
    await fetch_through(link, bytes(30_000))
    assert 0.9 <= time.monotonic() - begun < 3


async def test_a_link_with_a_delay_takes_a_round_trip_for_the_connection_and_one_for_the_answer() -> None:
    link = Link()
    link.limit(0, rtt_s=0.4)
    begun = time.monotonic()
    assert await fetch_through(link, bytes(300_000)) == bytes(300_000)
    assert 0.8 <= time.monotonic() - begun < 2


async def test_a_delay_does_not_add_up_over_the_blocks_that_are_under_way() -> None:
    link = Link()
    link.limit(480_000, rtt_s=0.4)
    begun = time.monotonic()
    await fetch_through(link, bytes(30_000))  # half a second of rate, of 21 blocks each 0.2 s later
    assert 1.25 <= time.monotonic() - begun < 3


async def test_a_cut_lets_nothing_pass_and_loses_nothing() -> None:
    link, body = Link(), os.urandom(100_000)
    link.limit(1_600_000, rtt_s=0.01)
    asyncio.get_running_loop().call_later(0.2, link.cut, 1.0)
    begun = time.monotonic()
    assert await fetch_through(link, body) == body
    assert time.monotonic() - begun >= 1.4


async def has_passed(link: Link, size_bytes: int) -> bool:
    return link.down.passed_bytes > size_bytes


async def test_what_a_sender_is_ahead_of_a_thin_link_is_bounded_and_connections_end_with_the_relay() -> None:
    link, sent, ended = Link(), [0], asyncio.Event()
    link.limit(24_000, rtt_s=0.1)

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
        try:
            while True:
                writer.write(bytes(4096))
                await writer.drain()
                sent[0] += 4096
        except ConnectionError:
            ended.set()

    server = await asyncio.start_server(send, "127.0.0.1", 0)
    async with server:
        async with open_relay(link, server.sockets[0].getsockname()[1]) as port:
            _, client = await asyncio.open_connection("127.0.0.1", port)
            await poll(lambda: has_passed(link, 2_000))
            assert link.down.passed_bytes < 5_000
        async with asyncio.timeout(5):
            await ended.wait()
        client.close()
    assert 0 < sent[0] < 600_000
