"""The HTTP client against servers that behave, misbehave, lie and fall silent."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.transport.raw_server import Answer, make_answer, open_raw_server

from edgeferry.errors import (
    AccessDenied,
    CaptivePortal,
    ConfigInvalid,
    EdgeferryError,
    LinkBroken,
    LinkDown,
    LinkTimeout,
    ObjectChanged,
    ObjectMissing,
    ServerBusy,
    ServerFailed,
)
from edgeferry.storage.hub_certificates import CertificateFiles, ensure_certificates
from edgeferry.transport.http import HttpClient, HttpSettings, open_http, require_ok

DATA = bytes(range(256)) * 1024
QUICK = HttpSettings(connect_timeout_s=2.0, read_timeout_s=0.4, answer_timeout_s=0.8)


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    """A client with little patience."""
    async with open_http(QUICK) as client:
        yield client


async def take_all(http: HttpClient, url: str, **wanted: object) -> tuple[int, bytes]:
    """Downloads a range whole; returns where it belongs and its bytes."""
    async with http.open_range(url, **wanted) as reply:  # type: ignore[arg-type]
        return reply.start, b"".join([block async for block in reply.blocks])


# --- fetch ------------------------------------------------------------------------------------------------------------
async def test_a_small_answer_comes_whole_whatever_its_status(http: HttpClient) -> None:
    async with open_raw_server(make_answer(404, b"nothing here", x_reason="gone")) as server:
        answer = await http.fetch(f"{server.url}/a?sig=SECRET", max_bytes=100)
        assert (answer.status, answer.body, answer.headers["x-reason"]) == (404, b"nothing here", "gone")
        with pytest.raises(ObjectMissing) as caught:
            require_ok(answer)
    assert "SECRET" not in caught.value.message
    assert server.header("accept-encoding") == "identity"
    assert server.heads[0].startswith("GET /a?sig=SECRET HTTP/1.1\r\n")


async def test_a_url_is_sent_exactly_as_it_was_signed(http: HttpClient) -> None:
    async with open_raw_server(make_answer(200)) as server:
        await http.fetch(f"{server.url}/a%20b/c?sig=x%2Fy%2B%3D&se=2026-01-01T00%3A00%3A00Z", max_bytes=1)
        await http.fetch(f"{server.url}/two words", max_bytes=1)
    assert server.heads[0].split("\r\n")[0] == "GET /a%20b/c?sig=x%2Fy%2B%3D&se=2026-01-01T00%3A00%3A00Z HTTP/1.1"
    assert server.heads[1].split("\r\n")[0] == "GET /two%20words HTTP/1.1"


async def test_a_body_is_sent_with_its_method_and_headers(http: HttpClient) -> None:
    async with open_raw_server(make_answer(201, b"{}")) as server:
        answer = await http.fetch(server.url, max_bytes=9, method="PUT", headers={"If-Match": "*"}, body=b"{}")
    assert answer.status == 201
    assert server.heads[0].startswith("PUT / ") and server.header("if-match") == "*"
    assert server.header("content-length") == "2"


async def test_a_longer_body_than_allowed_is_refused_and_an_errors_body_cut(http: HttpClient) -> None:
    async with open_raw_server(make_answer(200, b"x" * 101)) as server:
        with pytest.raises(LinkBroken, match="at most 100"):
            await http.fetch(server.url, max_bytes=100)
        server.answer = make_answer(403, b"x" * 200_000)
        answer = await http.fetch(server.url, max_bytes=100)
        assert answer.status == 403 and len(answer.body) == 64 << 10


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "file:///etc/passwd", "host/a", "", "http://", "http://h/" + "x" * 9000]
)
async def test_what_is_no_http_url_is_the_callers_fault(http: HttpClient, url: str) -> None:
    with pytest.raises(ConfigInvalid):
        await http.fetch(url, max_bytes=1)


async def test_a_connection_is_kept_and_used_again(http: HttpClient) -> None:
    async with open_raw_server(make_answer(200, b"1"), keep_alive=True) as server:
        for _ in range(3):
            await http.fetch(server.url, max_bytes=1)
    assert (len(server.heads), server.connections, http.received_bytes) == (3, 1, 3)


async def test_proxies_and_cookies_of_the_environment_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with open_raw_server(make_answer(200, b"1", set_cookie="a=b")) as server, open_http(QUICK) as http:
        await http.fetch(server.url, max_bytes=1)
        await http.fetch(server.url, max_bytes=1)
    assert server.header("cookie") is None


# --- redirects --------------------------------------------------------------------------------------------------------
async def test_a_redirect_on_the_same_host_keeps_the_callers_headers(http: HttpClient) -> None:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        moved = "/old" in head.split("\r\n", maxsplit=1)[0]
        writer.write(make_answer(302, location="/new?x=%2F") if moved else make_answer(200, b"here"))

    async with open_raw_server(answer) as server:
        found = await http.fetch(f"{server.url}/old", max_bytes=9, headers={"Authorization": "SharedKey x"})
    assert found.body == b"here"
    assert server.heads[1].startswith("GET /new?x=%2F ")
    assert server.header("authorization") == "SharedKey x"


async def test_a_redirect_to_another_host_carries_no_credentials(http: HttpClient) -> None:
    async with open_raw_server(make_answer(200, b"here")) as other, open_raw_server(b"") as server:
        server.answer = make_answer(307, location=f"{other.url}/blob")
        wanted = {"Authorization": "Bearer t", "X-Api-Key": "k", "Accept": "a/b"}
        assert (await http.fetch(server.url, max_bytes=9, headers=wanted)).body == b"here"
    assert server.header("authorization") == "Bearer t"
    assert other.header("authorization") is None and other.header("x-api-key") is None
    assert other.header("accept") == "a/b"


@pytest.mark.parametrize("location", ["/again?sig=SECRET", "ftp://h/x?sig=SECRET", "http://[bad?sig=SECRET", "http://"])
async def test_redirects_that_lead_nowhere_end(http: HttpClient, location: str) -> None:
    async with open_raw_server(make_answer(302, location=location)) as server:
        with pytest.raises(LinkBroken) as caught:
            await http.fetch(server.url, max_bytes=1)
        assert len(server.heads) <= 6
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


async def test_a_redirect_of_a_put_is_an_answer_not_an_order(http: HttpClient) -> None:
    async with open_raw_server(make_answer(307, location="/elsewhere")) as server:
        answer = await http.fetch(server.url, max_bytes=1, method="PUT", body=b"1")
    assert answer.status == 307 and len(server.heads) == 1


# --- TLS --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def certificates(tmp_path: Path) -> CertificateFiles:
    """An authority of our own and a leaf for loopback."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    return ensure_certificates(folder, ["127.0.0.1"], now=time.time())


@pytest.fixture
def server_tls(certificates: CertificateFiles) -> ssl.SSLContext:
    """The server's side."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.chain, certificates.key)
    return context


async def test_an_extra_authority_is_trusted_and_nothing_of_the_environment(
    certificates: CertificateFiles, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates.authority))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(certificates.authority))
    async with open_raw_server(make_answer(200, b"1"), tls=server_tls) as server:
        async with open_http(HttpSettings(ca_pem=certificates.authority.read_bytes())) as http:
            assert (await http.fetch(server.url, max_bytes=1)).body == b"1"
        async with open_http(QUICK) as http:
            with pytest.raises(LinkBroken, match="certificate"):
                await http.fetch(server.url, max_bytes=1)
            with pytest.raises(LinkBroken):
                await http.fetch(server.url.replace("https", "http"), max_bytes=1)


async def test_a_redirect_away_from_https_is_refused(
    certificates: CertificateFiles, server_tls: ssl.SSLContext
) -> None:
    settings = HttpSettings(ca_pem=certificates.authority.read_bytes())
    async with open_raw_server(make_answer(200, b"1")) as plain, open_raw_server(b"", tls=server_tls) as server:
        server.answer = make_answer(302, location=plain.url)
        async with open_http(settings) as http:
            with pytest.raises(LinkBroken, match="away from https"):
                await http.fetch(server.url, max_bytes=1)
    assert plain.heads == []


async def test_certificates_that_are_none_are_a_setting_that_is_wrong() -> None:
    for pem in (b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff\xfe"):
        with pytest.raises(ConfigInvalid):
            async with open_http(HttpSettings(ca_pem=pem)):
                raise AssertionError("opened")


# --- ranges -----------------------------------------------------------------------------------------------------------
def make_part(start: int, end: int, total: int | str = len(DATA), **headers: str) -> bytes:
    """A well-formed 206."""
    return make_answer(206, DATA[start:end], content_range=f"bytes {start}-{end - 1}/{total}", **headers)


async def test_a_download_starts_without_a_range_and_goes_on_with_one(http: HttpClient) -> None:
    async with open_raw_server(make_answer(200, DATA, etag='"a"')) as server:
        async with http.open_range(server.url) as reply:
            found = b"".join([block async for block in reply.blocks])
            assert (reply.status, reply.start, reply.total_bytes, reply.etag) == (200, 0, len(DATA), '"a"')
        assert found == DATA
        assert server.header("range") is None
        server.answer = make_part(1000, len(DATA), etag='"a"')
        assert await take_all(http, server.url, start=1000, if_match='"a"') == (1000, DATA[1000:])
        assert (server.header("range"), server.header("if-match")) == ("bytes=1000-", '"a"')
        await take_all(http, server.url, start=1000, if_match='W/"a"')
        assert server.header("if-match") is None
    assert http.received_bytes == len(DATA) + 2 * len(DATA[1000:])


async def test_after_every_cut_the_download_goes_on_until_it_is_whole(http: HttpClient) -> None:
    """Each connection brings at most 30 000 bytes of the rest, then breaks."""

    async def cut(head: str, writer: asyncio.StreamWriter) -> None:
        start = int(head.partition("bytes=")[2].partition("-")[0] or 0)
        whole = make_part(start, len(DATA)) if start else make_answer(200, DATA)
        headers, _, body = whole.partition(b"\r\n\r\n")
        writer.write(headers + b"\r\n\r\n" + body[:30_000])
        await writer.drain()

    found = bytearray()
    async with open_raw_server(cut) as server:
        while len(found) < len(DATA):
            before = len(found)
            try:
                async with http.open_range(server.url, start=before, total_bytes=len(DATA)) as reply:
                    async for block in reply.blocks:
                        found += block
            except LinkBroken:
                assert len(found) == before + 30_000
    assert bytes(found) == DATA
    assert http.received_bytes == len(DATA)


async def test_a_server_without_ranges_starts_over(http: HttpClient) -> None:
    async with open_raw_server(make_answer(200, DATA)) as server:
        assert await take_all(http, server.url, start=1000, total_bytes=len(DATA)) == (0, DATA)


async def test_a_download_that_is_complete_already_brings_nothing(http: HttpClient) -> None:
    async with open_raw_server(make_answer(416, b"sorry", content_range=f"bytes */{len(DATA)}")) as server:
        assert await take_all(http, server.url, start=len(DATA)) == (len(DATA), b"")


FAULTS: dict[str, tuple[Answer, type[EdgeferryError]]] = {
    "a wrong start": (make_part(999, len(DATA)), LinkBroken),
    "another size": (make_part(1000, 2000, 5000), ObjectChanged),
    "another tag": (make_part(1000, len(DATA), etag='"b"'), ObjectChanged),
    "a failed condition": (make_answer(412), ObjectChanged),
    "a range beyond the end": (make_answer(416, content_range="bytes */10"), ObjectChanged),
    "an expired signature": (make_answer(403, b"AuthenticationFailed"), AccessDenied),
    "no login": (make_answer(401), AccessDenied),
    "nothing there": (make_answer(404), ObjectMissing),
    "too many requests": (make_answer(429, retry_after="7"), ServerBusy),
    "a server that fails": (make_answer(500), ServerFailed),
    "a portal's page": (make_answer(200, b"<html>log in</html>", content_type="text/html"), CaptivePortal),
    "a portal's status": (make_answer(511, b"log in"), CaptivePortal),
    "compressed bytes": (make_answer(200, DATA, content_encoding="gzip"), LinkBroken),
    "a cut body": (make_part(1000, len(DATA))[:-1], LinkBroken),
    "a cut head": (b"HTTP/1.1 206 Partial\r\nContent-Ra", LinkBroken),
    "another protocol": (b"220 ftp.example ready\r\n", LinkBroken),
    "a bad length": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", LinkBroken),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345", LinkBroken),
    "bad chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxx\r\n", LinkBroken),
    "an endless head": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", LinkBroken),
    "no answer at all": (b"", LinkBroken),
}


@pytest.mark.parametrize(("answer", "expected"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_of_the_server_has_its_leaf_and_no_secret(
    http: HttpClient, answer: Answer, expected: type[EdgeferryError]
) -> None:
    async with open_raw_server(answer) as server:
        url = f"{server.url}/blob?sv=1&sig=SECRET"
        with pytest.raises(EdgeferryError) as caught:
            await take_all(http, url, start=1000, if_match='"a"', total_bytes=len(DATA))
    assert type(caught.value) is expected
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    if isinstance(caught.value, ServerBusy):
        assert caught.value.retry_after_s == 7.0


async def test_where_nobody_listens_the_link_is_down(http: HttpClient) -> None:
    async with open_raw_server(b"") as server:
        pass
    with pytest.raises(LinkDown):
        await http.fetch(server.url, max_bytes=1)
    with pytest.raises(LinkDown):
        await http.fetch("http://no-such-host.invalid/", max_bytes=1)


# --- slow servers -----------------------------------------------------------------------------------------------------
async def never(head: str, writer: asyncio.StreamWriter) -> None:
    """Says nothing."""
    await asyncio.Event().wait()


async def stop_halfway(head: str, writer: asyncio.StreamWriter) -> None:
    """Sends half of what it announced, then nothing."""
    writer.write(make_answer(200, DATA)[: len(DATA) // 2])
    await asyncio.Event().wait()


async def drip_body(head: str, writer: asyncio.StreamWriter) -> None:
    """A byte every 0.2 s: never silent for long, never done."""
    writer.write(make_answer(200, content_length=str(len(DATA))))
    for _ in range(300):
        writer.write(b"x")
        await asyncio.sleep(0.2)


async def drip_head(head: str, writer: asyncio.StreamWriter) -> None:
    """A header byte every 0.2 s."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(300):
        writer.write(b"x")
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("answer", [never, stop_halfway, drip_body, drip_head])
async def test_a_server_that_makes_no_progress_is_left(http: HttpClient, answer: Answer) -> None:
    async with open_raw_server(answer) as server:
        async with asyncio.timeout(5):
            with pytest.raises(LinkTimeout):
                await take_all(http, server.url)


async def test_time_that_the_reader_takes_does_not_count_against_the_server(http: HttpClient) -> None:
    async def send_two_bytes(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(make_answer(200, b"1", content_length="2"))
        await asyncio.sleep(0.1)
        writer.write(b"2")

    async with open_raw_server(send_two_bytes) as server, http.open_range(server.url) as reply:
        found = [await anext(reply.blocks)]
        await asyncio.sleep(0.9)
        found += [block async for block in reply.blocks]
    assert b"".join(found) == b"12"


async def test_a_download_that_is_left_halfway_does_not_spoil_the_next(http: HttpClient) -> None:
    async with open_raw_server(make_answer(200, DATA * 20), keep_alive=True) as server:
        async with http.open_range(server.url) as reply:
            assert await anext(reply.blocks)
        assert await take_all(http, server.url) == (0, DATA * 20)


# --- real servers and sockets -----------------------------------------------------------------------------------------
@asynccontextmanager
async def open_python_server(folder: Path) -> AsyncIterator[str]:
    """`python -m http.server`: no ranges, no entity tags."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        yield f"http://127.0.0.1:{line.split(' port ')[1].split()[0]}"
    finally:
        process.kill()
        await process.wait()


async def test_pythons_own_server_serves_a_download_and_a_resume(tmp_path: Path, http: HttpClient) -> None:
    (tmp_path / "model.zip").write_bytes(DATA)
    async with open_python_server(tmp_path) as url:
        assert await take_all(http, f"{url}/model.zip") == (0, DATA)
        assert await take_all(http, f"{url}/model.zip", start=1000, total_bytes=len(DATA)) == (0, DATA)
        with pytest.raises(ObjectMissing):
            await take_all(http, f"{url}/other.zip")
        with pytest.raises(CaptivePortal):
            await take_all(http, f"{url}/")


async def test_a_unix_socket_is_spoken_to_like_a_host(tmp_path: Path) -> None:
    heads: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(make_answer(200, b"ok"))
        await writer.drain()
        writer.close()

    path = tmp_path / "s"
    server = await asyncio.start_unix_server(handle, path)
    async with server, open_http(HttpSettings(unix_socket=path)) as http:
        assert (await http.fetch("http://workload/trust-bundle", max_bytes=9)).body == b"ok"
    async with open_http(HttpSettings(unix_socket=tmp_path / "none")) as http:
        with pytest.raises(LinkDown):
            await http.fetch("http://workload/", max_bytes=9)
    assert heads[0].startswith(b"GET /trust-bundle HTTP/1.1\r\nHost: workload\r\n")


async def test_nothing_of_a_url_s_query_is_ever_logged(http: HttpClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_raw_server(b"garbage\r\n\r\n") as server:
        with pytest.raises(LinkBroken):
            await http.fetch(f"{server.url}/a?sig=SECRET", max_bytes=1)
    assert "SECRET" not in caplog.text
