"""The API on a socket, inside the loop that runs already: for `edgeferry serve`, the device and tests.

What this file leaves to others: the application (`serve/api.py`), the server (`transport/http_server.py`), which
versions are served (the agent, or `local_models.py`).

Rules:
- Off loopback nothing is opened that nobody guards (`serve/access.py`); networks that are let in are logged each time.
- The API and its server are imported while the first worker loads: on two cores a cold start pays for one of them.
- On the way out the socket closes first, running requests are answered, then the workers end.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from edgeferry.app.picture_fetch import open_picture_fetch
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.child import WorkerSettings
from edgeferry.serve.access import Access
from edgeferry.serve.api_settings import ApiSettings
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.slots import Slots, SlotsSettings

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from edgeferry.transport.http_server import ServerLimits

_log = structlog.get_logger(__name__)


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
    app: Starlette, host: str = "127.0.0.1", port: int = 8080, *, limits: ServerLimits | None = None
) -> AsyncIterator[ApiAddress]:
    """Serves an application of `serve.api.make_app` for as long as the block runs; port 0 picks a free one.

    What is in memory when it begins stays there: no collection walks through it (25 ms) between two requests.

    Raises:
        ConfigInvalid: `host` is off loopback and nothing guards it, or the address is taken or not ours.
    """
    from edgeferry.transport.http_server import listen_on_address, open_http_server

    access: Access = app.state.access
    access.require_guarded(host)
    if access.networks:
        _log.warning("api_open_to_networks", networks=[str(network) for network in access.networks])
    sock = listen_on_address(host, port)
    address = ApiAddress(*sock.getsockname()[:2])
    async with open_http_server(app, sock, limits=limits):
        gc.freeze()
        try:
            yield address
        finally:
            gc.unfreeze()


def make_slots_settings(queue: int | None) -> SlotsSettings:
    """Settings with `queue` requests that may wait for a core; None: 32, and in overload none."""
    if queue is not None:
        return SlotsSettings(waiting=queue)
    return SlotsSettings(standing=0)


@asynccontextmanager
async def open_slots(
    versions: Sequence[StoredVersion],
    settings: WorkerSettings | None = None,
    *,
    default_model: str = "",
    queue: int | None = None,
) -> AsyncIterator[Slots]:
    """Serves `versions` from worker processes for as long as the block runs; raises as `Slots.switch`."""
    slots = Slots(ChildEngine(settings), make_slots_settings(queue), default_model=default_model)
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
    picture_hosts: Sequence[str] = (),
    queue: int | None = None,
) -> AsyncIterator[ApiAddress]:
    """Serves `versions` over HTTP without any hub, for as long as the block runs.

    `picture_hosts`: where pictures may be fetched from that callers name by URL; `queue`: see make_slots_settings.

    Raises:
        ConfigInvalid: as open_api and open_picture_fetch, before any worker is started.
        ModelError: a version does not load or misses its golden truth.
    """
    settings = settings or ApiSettings()
    settings.access.require_guarded(host)
    importing = asyncio.get_running_loop().run_in_executor(None, _import_door)
    async with (
        open_picture_fetch(picture_hosts, max_bytes=settings.body_max_bytes) as fetch,
        open_slots(versions, default_model=default_model, queue=queue) as slots,
    ):
        await importing
        from edgeferry.serve.api import make_app

        async with open_api(make_app(slots, None, settings, fetch=fetch), host, port) as address:
            yield address


def _import_door() -> None:
    for name in ("edgeferry.serve.api", "edgeferry.transport.http_server", "uvicorn.protocols.http.auto"):
        importlib.import_module(name)
