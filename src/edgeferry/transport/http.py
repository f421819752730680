"""HTTP for the device and the operator: bounded answers, ranged downloads, errors in our own words.

What an answer means is `answers.py`'s; retrying, pacing and what to ask for are the caller's.

Rules:
- Nothing is read without a bound, and nobody may be slow for ever: a server that lets drip fewer than
  `MIN_PROGRESS_BYTES_PER_S` counts as silent.
- Bytes come as they are stored: no compression is accepted, none is undone.
- Redirects: at most five, never from https to http, and no header of the caller goes to another host.
- The environment does not count: no proxies, no CA bundles, no netrc, no cookies.
- A URL enters an error without its query; where a library's own error holds the URL, the chain is cut (`from None`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from yarl import URL

from edgeferry import __version__
from edgeferry.errors import ConfigInvalid, LinkBroken, LinkDown, LinkTimeout
from edgeferry.transport.answers import (
    Headers,
    HttpAnswer,
    RangeFacts,
    RangeRequest,
    is_strong_etag,
    judge_range,
    redact_url,
    require_ok,
)
from edgeferry.transport.thin_socket import open_thin_socket
from edgeferry.transport.tls import make_tls_context
from edgeferry.transport.wire_bytes import WireMeter

__all__ = ["HttpAnswer", "HttpClient", "HttpSettings", "RangeReply", "open_http", "redact_url", "require_ok"]

MIN_PROGRESS_BYTES_PER_S = 16
"""Far below the slowest link we know (NB-IoT at its edge: some 100 bytes a second)."""
URL_MAX_CHARS = 8192
_BUFFER_BYTES = 2 << 10
"""aiohttp holds twice as much, and one block of the socket, before it stops reading: what a kill loses counts."""
_ERROR_BODY_MAX_BYTES = 64 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HARMLESS_HEADERS = frozenset({"accept", "if-match", "if-none-match", "if-modified-since", "range"})


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How patient a client is, whom it trusts, and (for the workload API) over which unix socket it speaks.

    `read_timeout_s` is the longest silence inside an answer; `answer_timeout_s` the longest wait for its head.
    """

    ca_pem: bytes | None = field(default=None, repr=False)
    connect_timeout_s: float = 30.0
    read_timeout_s: float = 60.0
    answer_timeout_s: float = 120.0
    max_redirects: int = 5
    unix_socket: Path | None = None


@dataclass(frozen=True, slots=True)
class RangeReply:
    """A download under way. `start` is where `blocks` belong: what was asked for, or 0 when the server starts over."""

    status: int
    start: int
    total_bytes: int | None
    etag: str | None
    blocks: AsyncIterator[bytes]


class HttpClient:
    """One client with its kept connections; made by `open_http`. `received_bytes` counts payload since then."""

    def __init__(self, session: aiohttp.ClientSession, settings: HttpSettings) -> None:
        self._session = session
        self._settings = settings
        self.received_bytes = 0

    async def fetch(
        self,
        url: str,
        *,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        body: bytes | None = None,
    ) -> HttpAnswer:
        """The whole answer, whatever its status; the body of an error is cut at 64 KB, a longer success refused.

        Raises:
            ConfigInvalid: `url` is not an http(s) URL.
            LinkDown, LinkTimeout, LinkBroken: the transfer failed, or the body is longer than `max_bytes`.
        """
        async with self._open(method, url, headers or {}, body=body) as response:
            failed = response.status >= 300
            data = await self._read(response, url, max_bytes=_ERROR_BODY_MAX_BYTES if failed else max_bytes, cut=failed)
            return HttpAnswer(response.status, _lower(response), data, redact_url(url))

    @asynccontextmanager
    async def open_range(
        self,
        url: str,
        *,
        start: int = 0,
        if_match: str | None = None,
        total_bytes: int | None = None,
        stop: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[RangeReply]:
        """Downloads an object from byte `start` on, to its end or to `stop`.

        Args:
            url: http or https.
            start: how many bytes are here already.
            if_match: the etag that the bytes here belong to, where one was seen.
            total_bytes: the object's size, where it is known.
            stop: the first byte that is not wanted.
            headers: further request headers.

        Raises:
            ObjectChanged: begin anew from 0. Others: see `answers.judge_range` and `fetch`; also while reading blocks.
        """
        request = RangeRequest(url, start, if_match, total_bytes, stop)
        async with self._open("GET", url, {**(headers or {}), **_get_range_headers(request)}) as response:
            facts = judge_range(request, response.status, _lower(response))
            blocks = self._iterate(response, url, facts)
            try:
                yield RangeReply(facts.status, facts.start, facts.total_bytes, facts.etag, blocks)
            finally:
                await blocks.aclose()

    @asynccontextmanager
    async def _open(
        self, method: str, url: str, headers: Mapping[str, str], *, body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        target, sent = _make_url(url), dict(headers)
        for _ in range(self._settings.max_redirects + 1):
            response = await self._request(method, target, sent, body)
            try:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or not location or method not in ("GET", "HEAD"):
                    yield response
                    return
            finally:
                response.release()
            target, sent = _follow(target, location, sent)
        raise LinkBroken(f"expected at most {self._settings.max_redirects} redirects from {redact_url(url)}")

    async def _request(
        self, method: str, target: URL, headers: Mapping[str, str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        with _translate_http_errors(str(target)):
            async with asyncio.timeout(self._settings.answer_timeout_s):
                response = await self._session.request(
                    method, target, headers=headers, data=body, allow_redirects=False
                )
        _hold_little(response)
        return response

    async def _read(self, response: aiohttp.ClientResponse, url: str, *, max_bytes: int, cut: bool) -> bytes:
        data = bytearray()
        async for block in self._iterate(response, url, None):
            data += block
            if len(data) > max_bytes and cut:
                break
            if len(data) > max_bytes:
                raise LinkBroken(f"expected at most {max_bytes} bytes from {redact_url(url)}, found more")
        return bytes(data[:max_bytes])

    async def _iterate(
        self, response: aiohttp.ClientResponse, url: str, facts: RangeFacts | None
    ) -> AsyncGenerator[bytes, None]:
        pace = _Pace(self._settings.read_timeout_s, url)
        while facts is None or not facts.is_empty:
            with _translate_http_errors(url):
                began = time.monotonic()
                block = await response.content.readany()
                waited_s = time.monotonic() - began
            if not block:
                return
            self.received_bytes += len(block)
            yield block
            pace.check(waited_s, len(block))


class _Pace:
    """Watches that a server which is waited for makes progress; time the reader spends elsewhere does not count."""

    def __init__(self, window_s: float, url: str) -> None:
        self._window_s = window_s
        self._url = url
        self._waited_s = 0.0
        self._bytes = 0

    def check(self, waited_s: float, size_bytes: int) -> None:
        """Raises LinkTimeout when a window of waiting brought too few bytes."""
        self._waited_s += waited_s
        self._bytes += size_bytes
        if self._waited_s < self._window_s:
            return
        if self._bytes < MIN_PROGRESS_BYTES_PER_S * self._waited_s:
            raise LinkTimeout(f"{redact_url(self._url)} sent {self._bytes} bytes in {self._waited_s:.0f} s")
        self._waited_s, self._bytes = 0.0, 0


@asynccontextmanager
async def open_http(
    settings: HttpSettings | None = None, *, meter: WireMeter | None = None
) -> AsyncIterator[HttpClient]:
    """Opens a client whose connections `meter` counts; raises ConfigInvalid when its CA certificates cannot be read."""
    settings = settings or HttpSettings()
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=settings.connect_timeout_s, sock_read=settings.read_timeout_s
    )
    async with aiohttp.ClientSession(
        connector=_make_connector(settings, meter),
        timeout=timeout,
        headers={"User-Agent": f"edgeferry/{__version__}", "Accept-Encoding": "identity"},
        skip_auto_headers=("Accept",),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=_BUFFER_BYTES,
    ) as session:
        yield HttpClient(session, settings)


def _make_connector(settings: HttpSettings, meter: WireMeter | None) -> aiohttp.BaseConnector:
    if settings.unix_socket is not None:
        return aiohttp.UnixConnector(str(settings.unix_socket), limit=4)
    return aiohttp.TCPConnector(
        ssl=make_tls_context(settings.ca_pem, system_too=True),
        limit=8,
        keepalive_timeout=60,
        socket_factory=lambda place: open_thin_socket(*place[:3], meter=meter),
    )


def _hold_little(response: aiohttp.ClientResponse) -> None:
    """asyncio's TLS would hold 512 KB more for a reader that takes its time; without TLS nothing is held there."""
    transport = response.connection.transport if response.connection is not None else None
    set_limits = getattr(transport, "set_read_buffer_limits", None)
    if set_limits is not None:
        set_limits(high=1)


def _get_range_headers(request: RangeRequest) -> dict[str, str]:
    if request.start == 0 and request.stop is None:
        return {}
    condition = {"If-Match": str(request.etag)} if is_strong_etag(request.etag) else {}
    last = "" if request.stop is None else request.stop - 1
    return {"Range": f"bytes={request.start}-{last}", **condition}


def _make_url(text: str) -> URL:
    """The URL exactly as given where it is plain ASCII: a signature's escapes must not be changed."""
    plain = len(text) <= URL_MAX_CHARS and all("!" <= sign <= "~" for sign in text)
    try:
        url = URL(text, encoded=plain)
        good = (
            len(text) <= URL_MAX_CHARS and url.scheme in ("http", "https") and bool(url.host) and url.port is not None
        )
    except ValueError:
        good = False
    if not good:
        raise ConfigInvalid(f"expected an http or https URL, found {redact_url(text)!r:.120}")
    return url


def _follow(target: URL, location: str, headers: Mapping[str, str]) -> tuple[URL, dict[str, str]]:
    try:
        new = _make_url(str(target.join(URL(location, encoded=location.isascii() and location.isprintable()))))
    except (ValueError, ConfigInvalid) as error:
        raise LinkBroken(f"{redact_url(str(target))} redirects to what is not an http URL") from error
    if target.scheme == "https" and new.scheme != "https":
        raise LinkBroken(f"{redact_url(str(target))} redirects away from https")
    if new.origin() == target.origin():
        return new, dict(headers)
    return new, {name: value for name, value in headers.items() if name.lower() in _HARMLESS_HEADERS}


def _lower(response: aiohttp.ClientResponse) -> Headers:
    return {name.lower(): value for name, value in response.headers.items()}


@contextmanager
def _translate_http_errors(url: str) -> Iterator[None]:
    place = redact_url(url)
    try:
        yield
    except (TimeoutError, aiohttp.ServerTimeoutError) as error:
        raise LinkTimeout(f"{place} did not answer in time") from error
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        raise LinkBroken(
            f"the server at {place} does not prove its name: its certificate is not trusted here"
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise LinkDown(f"cannot reach {place}: {error.strerror or 'no connection'}") from error
    except (aiohttp.InvalidURL, aiohttp.ClientResponseError) as error:
        raise LinkBroken(
            f"{place} did not answer in HTTP ({type(error).__name__})"
        ) from None  # its text holds the query
    except (aiohttp.ClientError, OSError) as error:
        raise LinkBroken(f"the transfer from {place} broke off ({type(error).__name__})") from error
