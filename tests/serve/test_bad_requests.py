"""The API against callers who are broken, hostile or gone: a clear answer, nothing leaked, no place kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import aiohttp
import pytest

from edgeferry.serve.api import ApiSettings
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.slots import Slots
from edgeferry.transport.http_server import ServerLimits

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, MakeVersion, OpenClient, Until

SMALL = ApiSettings(body_max_bytes=100_000, body_timeout_s=0.3, request_timeout_s=0.5)


@pytest.fixture
async def small(slots: Slots, open_client: OpenClient, make_version: MakeVersion) -> AsyncIterator[ApiClient]:
    """A server with small limits that serves one model."""
    await slots.switch(make_version())
    async with open_client(slots, SMALL, limits=ServerLimits(silence_s=0.5)) as client:
        yield client


async def _require_serving(client: ApiClient, slots: Slots) -> None:
    assert (await client.post("/score")).status == 200
    assert slots.gate.taken == 0


async def test_an_empty_body_is_an_unreadable_picture(small: ApiClient, slots: Slots) -> None:
    for answered in (await small.post("/score", b""), await small.post("/v1/models/detector/predict", b"")):
        assert (answered.status, answered.code) == (400, "picture_unreadable")
    await _require_serving(small, slots)


async def test_a_picture_that_cannot_be_read_is_400(small: ApiClient, slots: Slots) -> None:
    answered = await small.post("/score", b"bad")
    assert (answered.status, answered.code) == (400, "picture_unreadable")
    await _require_serving(small, slots)


async def test_a_declared_excess_is_refused_before_it_is_sent(small: ApiClient, slots: Slots) -> None:
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
    answer = await small.send_raw(head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer
    assert b"body_too_large" in answer
    await _require_serving(small, slots)


async def test_a_huge_body_is_refused_and_its_sender_reads_why(small: ApiClient, slots: Slots) -> None:
    answered = await small.post("/score", bytes(5_000_000))
    assert (answered.status, answered.code) == (413, "body_too_large")
    assert answered.headers["Connection"] == "close"
    await _require_serving(small, slots)


async def test_a_huge_chunked_body_is_cut_at_the_limit(small: ApiClient, slots: Slots) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield bytes(10_000)

    answered = await small.post("/score", blocks())
    assert (answered.status, answered.code) == (413, "body_too_large")
    await _require_serving(small, slots)


async def test_an_endless_chunked_body_ends(small: ApiClient, slots: Slots) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        while True:
            yield bytes(10_000)
            await asyncio.sleep(0.001)

    started = time.monotonic()
    with contextlib.suppress(aiohttp.ClientError):  # closed on it while it was still sending: as good
        assert (await small.post("/score", blocks())).status == 413
    assert time.monotonic() - started < 5
    await _require_serving(small, slots)


async def test_a_body_of_exactly_the_limit_is_taken(small: ApiClient) -> None:
    assert (await small.post("/score", bytes(100_000))).status == 200
    assert (await small.post("/score", bytes(100_001))).status == 413


async def test_a_slow_body_times_out(small: ApiClient, slots: Slots) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0.9)
        yield b"b"

    answered = await small.post("/score", blocks())
    assert (answered.status, answered.code) == (408, "body_timeout")
    await _require_serving(small, slots)


async def test_a_body_that_never_comes_times_out(small: ApiClient, slots: Slots) -> None:
    answer = await small.send_raw(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408 ")
    await _require_serving(small, slots)


async def test_an_answer_that_takes_too_long_is_504(small: ApiClient, slots: Slots, engine: FakeEngine) -> None:
    engine.infer_s = 30
    answered = await small.post("/score")
    assert (answered.status, answered.code) == (504, "request_timeout")
    engine.infer_s = 0
    await _require_serving(small, slots)


async def test_time_in_the_queue_counts_too(small: ApiClient, slots: Slots, engine: FakeEngine) -> None:
    engine.infer_s = 30
    answers = await asyncio.gather(*(small.post("/score") for _ in range(4)))
    assert {answered.status for answered in answers} == {504}
    engine.infer_s = 0
    await _require_serving(small, slots)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "image/x-anything"}, 200),
        ({"Content-Type": "Application/Octet-Stream; charset=x"}, 200),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "nonsense"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}, 415),
    ],
)
async def test_only_bare_pictures_are_taken(small: ApiClient, headers: dict[str, str], status: int) -> None:
    answered = await small.ask("POST", "/score", data=b"cat", headers=headers, compress=None)
    assert answered.status == status
    if status == 415:
        assert answered.code == "media_type_refused"


async def test_a_form_is_refused_with_advice(small: ApiClient) -> None:
    form = aiohttp.FormData()
    form.add_field("image", b"cat", filename="cat.jpg")
    answered = await small.post("/score", form)
    assert (answered.status, answered.code) == (415, "media_type_refused")
    assert "octet-stream" in answered.json["error"]["advice"]


async def test_an_unknown_format_is_400(small: ApiClient) -> None:
    for query in ("format=xml", "format=", "format=CLASSIC"):
        answered = await small.post(f"/score?{query}")
        assert (answered.status, answered.code) == (400, "request_invalid")


@pytest.mark.parametrize("path", ["/", "/score/", "/nothing", "/v1/models//predict", "/v1/models/a/b/predict", "/%00"])
async def test_unknown_routes_are_404(small: ApiClient, path: str) -> None:
    for answered in (await small.get(path), await small.post(path)):
        assert (answered.status, answered.code) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/score", {"POST"}),
        ("OPTIONS", "/score", {"POST"}),
        ("PUT", "/score", {"POST"}),
        ("DELETE", "/v1/models/detector/predict", {"POST"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("OPTIONS", "/metrics", {"GET", "HEAD"}),
        ("PATCH", "/score", {"POST"}),
    ],
)
async def test_other_methods_are_405_and_allow_says_which(
    small: ApiClient, method: str, path: str, allow: set[str]
) -> None:
    answered = await small.ask(method, path)
    assert (answered.status, answered.code) == (405, "method_refused")
    assert set(answered.headers["Allow"].replace(" ", "").split(",")) == allow


async def test_a_method_that_nobody_knows_is_refused(small: ApiClient) -> None:
    answered = await small.ask("BREW", "/score")
    assert answered.status in (400, 405)  # by the parser, where it knows the methods, else by the router


async def test_head_is_answered_without_a_body(small: ApiClient) -> None:
    assert (await small.ask("HEAD", "/healthz")).status == 200
    refused = await small.ask("HEAD", "/score")
    assert (refused.status, refused.body) == (405, b"")


async def test_a_caller_who_leaves_gives_his_place_back(
    small: ApiClient, slots: Slots, engine: FakeEngine, until: Until
) -> None:
    engine.infer_s = 30
    _, writer = await asyncio.open_connection("127.0.0.1", small.port)
    writer.write(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\ncat")
    await until(lambda: slots.gate.taken == 1)
    started = time.monotonic()
    writer.close()
    await until(lambda: slots.gate.taken == 0)
    assert time.monotonic() - started < 0.3, "noticed at once, not by the time-out"
    engine.infer_s = 0
    await _require_serving(small, slots)


async def test_callers_who_leave_in_the_middle_of_a_body_leave_nothing_behind(
    small: ApiClient, slots: Slots, until: Until
) -> None:
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", small.port)
        writer.write(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n" + bytes(1000))
        await writer.drain()
        writer.transport.abort()
    await _require_serving(small, slots)


async def test_a_half_closed_socket_harms_nobody(small: ApiClient, slots: Slots) -> None:
    whole = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\ncat"
    for request in (whole, whole[:-1], whole[:30], b""):
        answer = await small.send_raw(request, half_close=True)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    await _require_serving(small, slots)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /score HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    ],
    ids=["tls", "no-host", "nonsense", "negative-length", "two-lengths", "bad-chunk", "long-header"],
)
async def test_what_is_not_http_is_refused_and_closed(small: ApiClient, slots: Slots, request_bytes: bytes) -> None:
    answer = await small.send_raw(request_bytes)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    await _require_serving(small, slots)


@pytest.mark.parametrize("sent", [b"", b"POST /sco", b"POST /score HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_without_a_whole_header_is_closed(small: ApiClient, sent: bytes) -> None:
    started = time.monotonic()
    assert await small.send_raw(sent) == b""
    assert time.monotonic() - started < 3


async def test_a_kept_connection_is_not_closed_as_silent(small: ApiClient) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
    try:
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"ok\n"), 5)).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.9)
    finally:
        writer.close()


async def test_bodies_together_hold_bounded_memory(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    async with open_client(slots, ApiSettings(body_max_bytes=100_000, bodies_max_bytes=150_000)) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(99_999))
        deadline = time.monotonic() + 5
        while (refused := await client.post("/score", bytes(90_000))).status == 200:
            assert time.monotonic() < deadline, "the first body never counted"
        assert (refused.status, refused.code) == (503, "queue_full")
        assert (await client.post("/score", bytes(10_000))).status == 200
        writer.write(b"x")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
        writer.close()
        assert (await client.post("/score", bytes(90_000))).status == 200
