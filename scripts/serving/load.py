"""A load client for HTTP/1.1: closed loop (each client asks again when answered) and open loop (by the clock).

What this file leaves to others: what the server costs meanwhile (`machine.py`), what is asked of it (the benches).

Rules:
- Plain and pooled: keep-alive connections, no retry. A request that gets no answer is a failure, whoever closed.
- A connection that the server closed while it lay idle, and was seen to be closed before the next request, is no
  failure: any client would open another.
- Open loop counts from the moment a request was due, so waiting behind a slow answer is in its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TIMEOUT_S = 60.0
POOL = 8
"""Connections that an open loop keeps; it opens more when all wait."""


@dataclass(frozen=True, slots=True)
class Target:
    """One request, as it is sent each time."""

    url: str
    body: bytes
    media_type: str = "image/jpeg"
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def make_request(self) -> bytes:
        """The whole request."""
        parts = urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Type: {self.media_type}"]
        lines += [f"Content-Length: {len(self.body)}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass(frozen=True, slots=True)
class Shot:
    """One request: when it was due (seconds since the run began), how long it took, and what came back: the status,
    or the name of what went wrong (status 0)."""

    due_s: float
    took_s: float
    status: int
    fault: str = ""
    body: bytes = b""


@dataclass(slots=True)
class Run:
    """All shots of one run, when it began (`time.perf_counter`), and how long it lasted."""

    shots: list[Shot] = field(default_factory=list)
    began_s: float = 0.0
    lasted_s: float = 0.0

    @property
    def answered(self) -> list[Shot]:
        """Those that were answered with a success."""
        return [shot for shot in self.shots if 200 <= shot.status < 300]

    @property
    def refused(self) -> list[Shot]:
        """Those that were told to come again: 429 or 503."""
        return [shot for shot in self.shots if shot.status in (429, 503)]

    @property
    def failed(self) -> list[Shot]:
        """Everything else."""
        return [shot for shot in self.shots if not 200 <= shot.status < 300 and shot.status not in (429, 503)]


def get_quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed (nearest rank); 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


async def run_closed(target: Target, *, clients: int, requests: int) -> Run:
    """`requests` in all, by `clients` that each wait for their answer before they ask again."""
    run, left = Run(), iter(range(requests))
    request = target.make_request()

    async def ask(connection: Connection) -> None:
        for _ in left:
            run.shots.append(await connection.shoot(request, began, time.perf_counter()))
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(ask(Connection(target.address)) for _ in range(clients)))
    run.lasted_s = time.perf_counter() - began
    return run


async def run_open(
    target: Target, *, rate: float, seconds: float, run: Run | None = None, until: asyncio.Event | None = None
) -> Run:
    """`rate` requests a second for `seconds`, or `until` something, whatever the server does meanwhile.

    Fills `run` as it goes.
    """
    run, request = run or Run(), target.make_request()
    pool = [Connection(target.address) for _ in range(POOL)]
    began = run.began_s = time.perf_counter()

    async def ask(due: float) -> None:
        connection = pool.pop() if pool else Connection(target.address)
        run.shots.append(await connection.shoot(request, began, due))
        pool.append(connection)

    asking = []
    for number in range(int(rate * seconds)):
        if until is not None and until.is_set():
            break
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asking.append(asyncio.create_task(ask(due)))
    await asyncio.gather(*asking)
    run.lasted_s = time.perf_counter() - began
    for connection in pool:
        connection.close()
    return run


class Connection:
    """One keep-alive connection; opened when needed."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._wire: _Wire | None = None

    async def shoot(self, request: bytes, began: float, due: float) -> Shot:
        """Sends one request and waits for its answer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._wire is None or self._wire.is_closed:
                    loop = asyncio.get_running_loop()
                    _, self._wire = await loop.create_connection(_Wire, *self._address)
                status, body = await self._wire.ask(request)
        except (OSError, TimeoutError, ValueError) as error:
            self.close()
            return Shot(due - began, time.perf_counter() - due, 0, type(error).__name__)
        return Shot(due - began, time.perf_counter() - due, status, body=body)

    def close(self) -> None:
        """Closes it."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None


class _Wire(asyncio.Protocol):
    """Reads one answer at a time."""

    def __init__(self) -> None:
        self.is_closed = False
        self._seen = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        self._seen.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)  # type: ignore[attr-defined]
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._seen += data
        try:
            answer = _read_answer(bytes(self._seen), ended=False)
        except ValueError as error:
            self._end(error)
            return
        if answer is not None:
            self._tell(*answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        try:
            answer = _read_answer(bytes(self._seen), ended=True) if exc is None else None
        except ValueError:
            answer = None
        if answer is not None:
            self._tell(*answer)
        else:
            self._end(exc or ConnectionResetError("closed before an answer"))

    def close(self) -> None:
        self.is_closed = True
        self._transport.close()

    def _tell(self, status: int, body: bytes, keeps: bool) -> None:
        if not keeps:
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))

    def _end(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


def _read_answer(seen: bytes, *, ended: bool) -> tuple[int, bytes, bool] | None:
    """(status, body, whether the connection stays) when the answer is whole, else None; raises ValueError."""
    head, found, rest = seen.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.split(b"\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    status = int(first.split()[1])
    keeps = headers.get(b"connection", b"").lower() != b"close" and first.startswith(b"HTTP/1.1")
    if status == 204 or b"content-length" in headers:
        size = int(headers.get(b"content-length", b"0"))
        return (status, rest[:size], keeps) if len(rest) >= size else None
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = _join_chunks(rest)
        return None if body is None else (status, body, keeps)
    return (status, rest, False) if ended else None


def _join_chunks(rest: bytes) -> bytes | None:
    body = b""
    while True:
        line, found, rest = rest.partition(b"\r\n")
        if not found:
            return None
        size = int(line.partition(b";")[0], 16)
        if len(rest) < size + 2:
            return None
        if size == 0:
            return body
        body, rest = body + rest[:size], rest[size + 2 :]
