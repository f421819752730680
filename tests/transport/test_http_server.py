"""The server against callers of whom nothing is known yet."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from edgeferry.storage.hub_certificates import ensure_certificates
from edgeferry.transport.accept_loop import CountingGate
from edgeferry.transport.http_server import ServerLimits, listen_on_address, open_http_server
from polling import poll

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
Connect = Callable[[], "asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]"]


LARGE = b"x" * (8 << 20)


async def say_much(_: Request) -> Response:
    return Response(LARGE)


async def take_body(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def say_in_parts(_: Request) -> Response:
    async def make_parts() -> AsyncIterator[bytes]:
        await asyncio.sleep(1)
        yield b"late"

    return StreamingResponse(make_parts(), headers={"Content-Length": "4"})


async def leave_body(request: Request) -> PlainTextResponse:
    await asyncio.sleep(1)
    return PlainTextResponse(str(len(await request.body())))


async def say_hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def make_app() -> Starlette:
    routes = [
        Route("/", say_hello),
        Route("/much", say_much),
        Route("/parts", say_in_parts),
        Route("/body", take_body, methods=["POST"]),
        Route("/later", leave_body, methods=["POST"]),
    ]
    return Starlette(routes=routes)


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
    async with open_http_server(make_app(), sock, tls=server_tls, limits=limits):
        yield lambda: asyncio.ensure_future(_connect(port, client_tls))


async def _connect(port: int, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A caller whose kernel takes little that nobody reads: else it would take a whole answer for one who is slow."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 << 10)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=sock, ssl=tls, server_hostname="localhost" if tls else None)


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


async def test_trailers_and_chunk_heads_without_end_are_refused() -> None:
    post = b"POST /body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    for endless in (b"0\r\nX: " + b"x" * (64 << 10), b"1;" + b"x" * (64 << 10)):
        async with open_server(ServerLimits()) as connect:
            reader, writer = await connect()
            writer.write(post + endless)
            assert await is_cut(reader)
            writer.close()


async def test_chunks_of_a_byte_are_a_body_like_any_other() -> None:
    async with open_server(ServerLimits()) as connect:
        reader, writer = await connect()
        writer.write(b"POST /body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"20000"), 10)
        writer.close()


async def test_a_request_right_behind_a_large_body_is_answered() -> None:
    async with open_server(ServerLimits()) as connect:
        reader, writer = await connect()
        writer.write(b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000) + GET)
        assert await asyncio.wait_for(reader.readuntil(b"100000"), 10)
        assert await asyncio.wait_for(reader.readuntil(b"hello"), 10)
        writer.close()


async def test_head_and_body_of_an_answer_leave_together() -> None:
    async with open_server(ServerLimits()) as connect:
        reader, writer = await connect()
        for number in range(1, 6):
            writer.write(GET)
            assert await asyncio.wait_for(reader.readuntil(b"hello"), 10)
            assert _count_data_segments(writer) == number
        writer.close()


def _count_data_segments(writer: asyncio.StreamWriter) -> int:
    """Segments with data that came: tcpi_data_segs_in of linux/tcp.h (Linux 4.6)."""
    info = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("=I", info, 152)[0])


async def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
    async with open_server(ServerLimits()) as connect:
        reader, writer = await connect()
        writer.write(b"GET /parts HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 0.8)
        assert await asyncio.wait_for(reader.readexactly(4), 10) == b"late"
        writer.close()


async def test_the_answer_to_a_head_request_leaves_without_a_body() -> None:
    async with open_server(ServerLimits()) as connect:
        reader, writer = await connect()
        for ending in (b"", b"Connection: close\r\n"):
            writer.write(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n" + ending + b"\r\n")
            assert b"content-length: 5" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_body_that_nobody_takes_yet_is_not_taken_in() -> None:
    size = 64 << 20
    async with open_server(ServerLimits()) as connect:
        reader, writer = await connect()
        writer.write(b"POST /later HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(bytes(size))
        await asyncio.sleep(0.7)
        assert writer.transport.get_write_buffer_size() > size // 2, "the sender has to wait"
        assert await asyncio.wait_for(reader.readuntil(b"%d" % size), 10)
        writer.close()


async def test_who_asks_for_another_protocol_is_answered_in_this_one() -> None:
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUPGRADE: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    async with open_server(ServerLimits()) as connect:
        reader, writer = await connect()
        for size in (b"7", b"8"):
            writer.write(
                b"POST /body HTTP/1.1\r\nHost: localhost\r\n" + wish + b"Content-Length: " + size + b"\r\n\r\n"
            )
            await asyncio.sleep(0.05)
            writer.write(b"\r\nupgrade:"[: int(size)].ljust(int(size)))
            assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n" + size), 10)
        writer.close()


async def test_a_large_body_allows_no_larger_trailers() -> None:
    async with open_server(ServerLimits()) as connect:
        reader, writer = await connect()
        writer.write(b"POST /body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"200000\r\n" + bytes(2 << 20) + b"\r\n0\r\nX: " + b"x" * (2 << 20))
        assert await is_cut(reader)
        writer.close()


async def test_beyond_the_bound_callers_are_told_to_come_later() -> None:
    async with open_server(ServerLimits(connections=3)) as connect:
        held = [await connect() for _ in range(4)]
        reader, writer = held[-1]
        writer.write(GET)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b" 503 " in head
        assert b"\r\nretry-after: 1\r\n" in head.lower()
        for _, open_writer in held:
            open_writer.close()


async def is_cut(reader: asyncio.StreamReader) -> bool:
    """Whether the server ends the connection, after whatever it still says."""
    try:
        while await asyncio.wait_for(reader.read(65536), 10):
            pass
    except ConnectionError:
        pass
    return True


async def has_place(connect: Connect) -> bool:
    """Whether the server has room for a caller beside nobody: it holds no other connection any more."""
    reader, writer = await connect()
    writer.write(GET)
    answer = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    return b" 200 " in answer


async def test_a_caller_who_does_not_read_its_answer_is_let_go() -> None:
    async with open_server(ServerLimits(stall_s=0.5, connections=2)) as connect:
        reader, writer = await connect()
        writer.write(b"GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readexactly(1)
        await poll(lambda: has_place(connect))
        received = 0
        with suppress(ConnectionError):
            while piece := await asyncio.wait_for(reader.read(1 << 20), 10):
                received += len(piece)
        assert received < len(LARGE)
        writer.close()


async def test_a_caller_who_reads_slowly_but_reads_gets_all_of_it() -> None:
    async with open_server(ServerLimits(stall_s=0.6)) as connect:
        reader, writer = await connect()
        writer.write(b"GET /much HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = 0
        while piece := await asyncio.wait_for(reader.read(128 << 10), 10):
            received += len(piece)
            await asyncio.sleep(0.02)
        assert received > len(LARGE)
        writer.close()


@pytest.mark.parametrize("over_tls", [False, True])
async def test_keep_alive_begins_when_the_caller_has_taken_its_answer(tmp_path: Path, over_tls: bool) -> None:
    async with open_server(ServerLimits(keep_alive_s=1), tmp_path if over_tls else None) as connect:
        reader, writer = await connect()
        writer.write(b"GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(16):
            await reader.readexactly(len(LARGE) // 16)
            await asyncio.sleep(0.1)
        writer.write(GET)
        assert await asyncio.wait_for(reader.readuntil(b"hello"), 10)
        assert await is_cut(reader)
        writer.close()


async def test_a_body_that_never_comes_is_no_way_to_stay() -> None:
    async with open_server(ServerLimits(stall_s=0.5)) as connect:
        reader, writer = await connect()
        writer.write(b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
        assert await is_cut(reader)
        writer.close()


async def test_an_answer_that_takes_its_time_is_waited_for() -> None:
    async def wait(_: Request) -> PlainTextResponse:
        await asyncio.sleep(1.5)
        return PlainTextResponse("late")

    sock = listen_on_address("127.0.0.1", 0)
    app = Starlette(routes=[Route("/", wait)])
    async with open_http_server(app, sock, limits=ServerLimits(silence_s=0.3, stall_s=0.3)):
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        writer.write(GET)
        assert await asyncio.wait_for(reader.readuntil(b"late"), 10)
        writer.close()


def test_a_gate_counts_in_all_and_by_address() -> None:
    gate = CountingGate(4)
    assert [gate.enter("a") for _ in range(3)] == [True, True, False]
    assert [gate.enter(name) for name in ("b", "b", "c")] == [True, True, False]
    gate.leave("a")
    assert gate.enter("c") and not gate.enter("a")
    for name in ("a", "b", "b", "c"):
        gate.leave(name)
    assert [gate.enter("a") for _ in range(3)] == [True, True, False]
