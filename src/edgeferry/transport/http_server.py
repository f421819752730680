"""An HTTP server inside the running event loop: over TLS, plain on loopback, or on a unix socket; for device and hub.

What this file leaves to others: applications (`serve/api.py`, `hub/`), who may call, where to listen (`app/`), what is
spoken on one connection (`http_guest.py`).

Rules:
- uvicorn neither takes over signals nor logs requests: signals are the process's, and a query string may hold a token.
- uvicorn does not listen itself: accept_loop.py brings it connections whose TLS handshake is done.
- Connections are bounded in number, header size and silence, before anything is known of who opened them.
- Keep-alive is 75 s: with uvicorn's 5 s a pooled client loses a request now and then (measured).
- Who is upgraded to WebSockets leaves the server: no limit of it holds for them, nor does its stop wait for them.
- The server stops when its block ends: the socket closes first, requests that run get `stop_patience_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeferry.errors import ConfigInvalid
from edgeferry.transport.accept_loop import (
    AcceptLoop,
    CountingGate,
    HandshakeLimits,
    get_http_connections_max,
    raise_file_limit,
)
from edgeferry.transport.http_guest import HEADERS_MAX_BYTES, H11Guest, HttpGuest, find_fast_guest

_BACKLOG = 2048
_RETRY_AFTER_S = "1"
MakeUpgraded = Callable[[], asyncio.Protocol]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Connections at once (more are answered 503), how long one may stay without a whole request header, how long no
    byte of a body may come or of an answer be taken, how long running requests have when the server stops, and how long
    a connection waits for its next request (seconds)."""

    connections: int = 500
    silence_s: float = 15.0
    stall_s: float = 120.0
    stop_patience_s: int = 10
    keep_alive_s: int = 75


def listen_on_address(host: str, port: int, *, backlog: int = _BACKLOG) -> socket.socket:
    """A bound, listening TCP socket; port 0 picks a free one, an empty host is every address.

    Raises:
        ConfigInvalid: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=backlog)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigInvalid(f"cannot listen on {host or 'every address'}:{port}: {reason}") from error
    # asyncio sets it only on sockets that were made with IPPROTO_TCP, and these are not: without it each answer waits
    # 40 ms for the client's delayed ACK. Accepted sockets inherit it (Linux).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def listen_on_path(path: Path) -> socket.socket:
    """A listening unix socket that only its owner may use; one left behind by a dead process is replaced.

    Raises:
        ConfigInvalid: something else lies at `path`, or it cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            path.unlink()
        sock.bind(str(path))
        os.chmod(path, 0o600)  # noqa: PTH101 - the same call, on the path that bind took
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigInvalid(f"cannot listen on {path}: {error.strerror or error}") from error
    return sock


@asynccontextmanager
async def open_http_server(
    app: ASGIApp,
    sock: socket.socket,
    *,
    tls: ssl.SSLContext | None = None,
    limits: ServerLimits | None = None,
    make_upgraded: MakeUpgraded | None = None,
) -> AsyncIterator[None]:
    """Serves `app` on a listening socket for as long as the block runs, then closes the socket.

    Connections that ask for WebSockets go to what `make_upgraded` makes, request included; they count as its own from
    then on. Without it the request is answered like any other.
    """
    limits = limits or ServerLimits()
    bounded = _Bounded(app, limits.connections)
    server = uvicorn.Server(_make_config(bounded, limits, make_upgraded))
    bounded.held = server.server_state.connections
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment] # signals are the process's
    serving = asyncio.create_task(server.serve(sockets=[]), name="http server")
    gate = CountingGate(get_http_connections_max(raise_file_limit()))

    make = H11Guest if make_upgraded else find_fast_guest()

    def make_guest(address: str, _: float) -> HttpGuest:
        return make(server, gate, address)

    accepting = AcceptLoop(sock, make_guest, tls, HandshakeLimits(silence_s=limits.silence_s), gate)
    sweeping = asyncio.create_task(_close_silent(server, limits), name="http silence")
    try:
        while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn tells by an attribute, not by an event
            await asyncio.sleep(0.005)
        accepting.start()
        yield
    finally:
        sweeping.cancel()
        await accepting.close()
        server.should_exit = True
        await serving


def _make_config(app: ASGIApp, limits: ServerLimits, make_upgraded: MakeUpgraded | None) -> uvicorn.Config:
    def upgrade(**_: object) -> asyncio.Protocol:
        return cast("MakeUpgraded", make_upgraded)()

    return uvicorn.Config(
        app,
        http="h11",
        ws=cast("type[asyncio.Protocol]", upgrade) if make_upgraded else "none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=limits.stop_patience_s,
        h11_max_incomplete_event_size=HEADERS_MAX_BYTES,
    )


class _Bounded:
    """`app` while at most `connections_max` of `held` are open; who comes then is told to come later.

    uvicorn's own `limit_concurrency` does not say when.
    """

    held: Collection[object] = ()

    def __init__(self, app: ASGIApp, connections_max: int) -> None:
        self._app, self._connections_max = app, connections_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        app = self._app if len(self.held) < self._connections_max else _make_busy()
        await app(scope, receive, send)


def _make_busy() -> ASGIApp:
    headers = {"Retry-After": _RETRY_AFTER_S, "Connection": "close"}
    return PlainTextResponse("too many connections\n", 503, headers)


async def _close_silent(server: uvicorn.Server, limits: ServerLimits) -> None:
    """Closes connections that sent no whole request header for `silence_s`, and those of which for `stall_s` no byte
    of a body came or of an answer was taken; uvicorn itself waits for ever.

    Between a request's answer and the first byte of the next one uvicorn's own keep-alive timer runs.
    """
    silent_since: dict[tuple[HttpGuest, object], float] = {}
    while True:
        await asyncio.sleep(min(limits.silence_s, limits.stall_s) / 5)
        now = time.monotonic()
        connections = [cast("HttpGuest", connection) for connection in server.server_state.connections]
        silent: set[tuple[HttpGuest, object]] = {(one, one.cycle) for one in connections if _waits_for_header(one)}
        stalled = {(one, progress) for one in connections if (progress := one.get_progress()) is not None}
        silent_since = {key: silent_since.get(key, now) for key in silent | stalled}
        for (connection, waits_for), since in silent_since.items():
            if isinstance(waits_for, tuple):
                if now - since >= limits.stall_s:
                    connection.transport.abort()
            elif now - since >= limits.silence_s:
                connection.transport.close()


def _waits_for_header(connection: HttpGuest) -> bool:
    cycle = connection.cycle
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)
