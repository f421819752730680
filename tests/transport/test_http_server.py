"""The server against callers of whom nothing is known yet."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from edgeferry.storage.hub_certificates import ensure_certificates
from edgeferry.transport.http_server import ServerLimits, listen_on_address, open_http_server

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
Connect = Callable[[], "asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]"]


async def say_hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@asynccontextmanager
async def open_server(limits: ServerLimits, tls_folder: Path | None = None) -> AsyncIterator[Connect]:
    """A running server; yields what opens a connection to it."""
    server_tls = client_tls = None
    if tls_folder is not None:
        files = ensure_certificates(tls_folder, ["localhost"], now=1_700_000_000)
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_tls.load_cert_chain(files.chain, files.key)
        client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client_tls.check_hostname, client_tls.verify_mode = False, ssl.CERT_NONE
    sock = listen_on_address("127.0.0.1", 0)
    port = sock.getsockname()[1]
    async with open_http_server(Starlette(routes=[Route("/", say_hello)]), sock, tls=server_tls, limits=limits):
        yield lambda: asyncio.ensure_future(asyncio.open_connection("127.0.0.1", port, ssl=client_tls))


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost:"])
async def test_a_caller_who_never_ends_a_header_is_let_go(tmp_path: Path, sent: bytes, over_tls: bool) -> None:
    async with open_server(ServerLimits(silence_s=0.3), tmp_path if over_tls else None) as connect:
        reader, writer = await connect()
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_second_header_that_never_ends_is_no_way_to_stay() -> None:
    async with open_server(ServerLimits(silence_s=0.3)) as connect:
        reader, writer = await connect()
        writer.write(GET)
        await reader.readuntil(b"hello")
        writer.write(b"GET /")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_header_without_end_is_refused() -> None:
    async with open_server(ServerLimits()) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (64 << 10))
        assert b" 400 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()


async def test_beyond_the_bound_callers_are_told_to_come_later() -> None:
    async with open_server(ServerLimits(connections=3)) as connect:
        held = [await connect() for _ in range(4)]
        reader, writer = held[-1]
        writer.write(GET)
        assert b" 503 " in await asyncio.wait_for(reader.readline(), 10)
        for _, open_writer in held:
            open_writer.close()
