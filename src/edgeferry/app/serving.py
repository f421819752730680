"""The API on a socket, inside the loop that runs already: for `edgeferry serve`, the device and tests.

What this file leaves to others: the application (`serve/api.py`), which versions are served (the agent, or
`local_models.py`).

Rules:
- Off loopback nothing is opened that nobody guards (`serve/access.py`); networks that are let in are logged each time.
- uvicorn neither takes over signals nor logs requests: a query string may hold a token.
- Connections are bounded in number, header size and silence. Keep-alive is 75 s: with uvicorn's 5 s a pooled client
  loses a request now and then (measured).
- On the way out the socket closes first, running requests are answered, then the workers end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import structlog
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeferry.errors import ConfigInvalid
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.child import WorkerSettings
from edgeferry.serve.access import Access
from edgeferry.serve.api import ApiSettings, make_app
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.slots import Slots

_log = structlog.get_logger(__name__)
_KEEP_ALIVE_S = 75
_STOP_PATIENCE_S = 10
_HEADERS_MAX_BYTES = 16 << 10
_CONNECTIONS_MAX = 500
_SILENCE_S = 15.0
_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """Where the API really listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """`http://host:port`, as a client writes it."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


@asynccontextmanager
async def open_api(
    app: Starlette, host: str = "127.0.0.1", port: int = 8080, *, silence_s: float = _SILENCE_S
) -> AsyncIterator[ApiAddress]:
    """Serves an application of `serve.api.make_app` for as long as the block runs; port 0 picks a free one.

    `silence_s`: how long a connection may stay without a whole request header.

    Raises:
        ConfigInvalid: `host` is off loopback and nothing guards it, or the address is taken or not ours.
    """
    access: Access = app.state.access
    access.require_guarded(host)
    if access.networks:
        _log.warning("api_open_to_networks", networks=[str(network) for network in access.networks])
    sock = _listen(host, port)
    server = uvicorn.Server(_make_config(app))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment] # signals are the process's
    serving = asyncio.create_task(server.serve(sockets=[sock]), name="api server")
    sweeping = asyncio.create_task(_close_silent(server, silence_s), name="api silence")
    try:
        while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn tells by an attribute, not by an event
            await asyncio.sleep(0.005)
        yield ApiAddress(*sock.getsockname()[:2])
    finally:
        sweeping.cancel()
        server.should_exit = True
        await serving
        sock.close()


@asynccontextmanager
async def open_slots(
    versions: Sequence[StoredVersion], settings: WorkerSettings | None = None, *, default_model: str = ""
) -> AsyncIterator[Slots]:
    """Serves `versions` from worker processes for as long as the block runs; raises as `Slots.switch`."""
    slots = Slots(ChildEngine(settings), default_model=default_model)
    try:
        for version in versions:
            await slots.switch(version)
        yield slots
    finally:
        await slots.close()


@asynccontextmanager
async def serve_models(
    versions: Sequence[StoredVersion],
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    settings: ApiSettings | None = None,
    default_model: str = "",
) -> AsyncIterator[ApiAddress]:
    """Serves `versions` over HTTP without any hub, for as long as the block runs.

    Raises:
        ConfigInvalid: as open_api, before any worker is started.
        ModelError: a version does not load or misses its golden truth.
    """
    settings = settings or ApiSettings()
    settings.access.require_guarded(host)
    async with (
        open_slots(versions, default_model=default_model) as slots,
        open_api(make_app(slots, None, settings), host, port) as address,
    ):
        yield address


def _make_config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_PATIENCE_S,
        h11_max_incomplete_event_size=_HEADERS_MAX_BYTES,
        limit_concurrency=_CONNECTIONS_MAX,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigInvalid(f"cannot listen on {host or 'every address'}:{port}: {reason}") from error
    # asyncio sets it only on sockets that were made with IPPROTO_TCP, and these are not: without it each answer waits
    # 40 ms for the client's delayed ACK. Accepted sockets inherit it (Linux).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def _close_silent(server: uvicorn.Server, silence_s: float) -> None:
    """Closes connections that sent no whole request header for `silence_s`; uvicorn itself waits for ever.

    Between a request's answer and the first byte of the next one uvicorn's own keep-alive timer runs.
    """
    silent_since: dict[tuple[H11Protocol, object], float] = {}
    while True:
        await asyncio.sleep(silence_s / 5)
        now = time.monotonic()
        connections = [cast("H11Protocol", connection) for connection in server.server_state.connections]
        silent = {(connection, connection.cycle) for connection in connections if _waits_for_header(connection)}
        silent_since = {key: silent_since.get(key, now) for key in silent}
        for (connection, _), since in silent_since.items():
            if now - since >= silence_s:
                connection.transport.close()


def _waits_for_header(connection: H11Protocol) -> bool:
    cycle = connection.cycle
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)
