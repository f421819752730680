"""What a kill costs: bytes that were sent and are not kept; and that a fast link is not slowed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.transport.raw_server import make_answer

from edgeferry.agent.fetch import Fetcher
from edgeferry.agent.gate import HTTP, Gate
from edgeferry.agent.ledger import Ledger
from edgeferry.link.policy import LinkPolicy
from edgeferry.storage.hub_certificates import ensure_certificates
from edgeferry.storage.journal import open_journal
from edgeferry.storage.partial import open_partial
from edgeferry.transport.http import HttpSettings, open_http
from edgeferry.transport.thin_socket import (
    FAST_BYTES_PER_S,
    SLOW_BYTES_PER_S,
    WINDOW_MAX_BYTES,
    WINDOW_MIN_BYTES,
    choose_window,
)

CHUNK_BYTES = 64 << 10
DATA = bytes(range(256)) * (32 << 10)
_MAX_PACING_RATE = 47
"""SO_MAX_PACING_RATE of asm-generic/socket.h: the kernel sends at most so many bytes a second, in small packets."""
PROFILES = {
    "nb-iot": (60_000 / 8, 1.6),
    "lte-m": (300_000 / 8, 0.1),
    "certus-100": (88_000 / 8, 0.7),
    "vsat-512": (512_000 / 8, 0.6),
}


@dataclass
class CountingServer:
    """Sends DATA; `sent_bytes` is what its kernel has put on the wire, repeats included."""

    url: str = ""
    ends: list[socket.socket] = field(default_factory=list)

    @property
    def sent_bytes(self) -> int:
        """tcpi_bytes_sent of all connections, at offset 200 of `struct tcp_info`."""
        return sum(int(struct.unpack_from("=Q", one.getsockopt(6, socket.TCP_INFO, 256), 200)[0]) for one in self.ends)


@asynccontextmanager
async def serve(tls: ssl.SSLContext | None = None, *, bytes_per_s: int = 0) -> AsyncIterator[CountingServer]:
    """Over segments as Ethernet has them, where a rate is given."""
    served = CountingServer()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.ends.append(writer.get_extra_info("socket")._sock.dup())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(make_answer(200, DATA))
                await writer.drain()
        writer.close()

    listener = socket.create_server(("127.0.0.1", 0))
    if bytes_per_s:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1448)
        listener.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, bytes_per_s)
    server = await asyncio.start_server(answer, sock=listener, ssl=tls)
    served.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.close()
        for one in served.ends:
            one.close()


def make_tls(folder: Path) -> tuple[ssl.SSLContext, HttpSettings]:
    files = ensure_certificates(folder, ["127.0.0.1"], now=time.time())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.chain, files.key)
    return context, HttpSettings(ca_pem=files.authority.read_bytes())


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("rate_bps", [200_000, 2_000_000], ids=["capped", "hardly capped"])
async def test_a_kill_of_a_slow_download_costs_at_most_a_chunk(tmp_path: Path, rate_bps: int, is_tls: bool) -> None:
    """Whenever it comes; the reader is slower than the link, so that all that can lie about does."""
    tls, settings = make_tls(tmp_path / "tls") if is_tls else (None, HttpSettings())
    async with (
        open_journal(tmp_path / "journal.db") as journal,
        serve(tls, bytes_per_s=400_000) as server,
        open_http(settings) as http,
    ):
        ledger = Ledger(journal, {HTTP: lambda: 0})
        fetcher = Fetcher(
            http,
            Gate(ledger, policy=LinkPolicy(), now=time.time, find_interface=lambda: ""),
            rate_bps=rate_bps,
        )
        with open_partial(tmp_path, "ab", max_bytes=len(DATA)) as partial:
            work = fetcher.download(server.url, partial, size_bytes=len(DATA), progress=lambda _: None)
            running, lost = asyncio.create_task(work), list[int]()
            for _ in range(30):
                await asyncio.sleep(0.05)
                lost.append(server.sent_bytes - partial.length_bytes)
            running.cancel()
            await asyncio.wait([running])
            assert partial.length_bytes > 0.5 * rate_bps / 8
    assert 0 < max(lost) <= CHUNK_BYTES, lost


async def test_a_fast_link_is_not_slowed() -> None:
    async with serve() as server, open_http() as http:
        began = time.monotonic()
        for _ in range(3):
            assert len((await http.fetch(server.url, max_bytes=len(DATA))).body) == len(DATA)
        rate = 3 * len(DATA) / (time.monotonic() - began)
    assert rate > 10 * FAST_BYTES_PER_S


@given(rate=st.floats(0, 1e9), rtt_s=st.floats(0, 10), lags=st.booleans())
def test_a_slow_link_never_gets_more_than_a_chunk_and_a_fast_one_all(rate: float, rtt_s: float, lags: bool) -> None:
    window = choose_window(rate, rtt_s, lags=lags)
    if rate <= SLOW_BYTES_PER_S or (lags and rate <= FAST_BYTES_PER_S):
        assert window is not None
    if rate > FAST_BYTES_PER_S:
        assert window is None
    assert window is None or WINDOW_MIN_BYTES <= window <= WINDOW_MAX_BYTES


@pytest.mark.parametrize(("link_rate", "rtt_s"), PROFILES.values(), ids=PROFILES)
def test_the_window_settles_at_what_fills_the_link(link_rate: float, rtt_s: float) -> None:
    window = WINDOW_MIN_BYTES
    for _ in range(10):
        brought = min(link_rate, window / rtt_s)
        window = choose_window(brought, rtt_s) or 0
    assert link_rate * rtt_s <= window <= max(3 * link_rate * rtt_s, WINDOW_MIN_BYTES)


@pytest.mark.parametrize(("link_rate", "rtt_s"), [(1e6, 0.3), (2e6, 0.5), (12.5e6, 0.05)])
def test_a_fast_link_far_away_is_found_to_be_fast(link_rate: float, rtt_s: float) -> None:
    window: int | None = WINDOW_MIN_BYTES
    for _ in range(10):
        window = choose_window(min(link_rate, (window or 1 << 30) / rtt_s), rtt_s)
    assert window is None
