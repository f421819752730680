"""Hubs as real processes over one PostgreSQL, what a service calls them by, and a fleet's two hubs side by side."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from edgeferry.app.hub import HubSettings, RunningHub, open_hub
from edgeferry.hub.policies import OWNER_POLICY, ensure_policy_keys
from edgeferry.storage.hub_store import open_tables
from edgeferry.wire import service_api as api
from edgeferry.wire.iothub_auth import make_sas_token
from edgeferry.wire.service_api import Identity

ROUTES = (
    'FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint("/modules/b/inputs/in")',
    "FROM /messages/* INTO $upstream",
)
START_TIMEOUT_S = 60.0


class Hub(Protocol):
    """A hub that listens, here or in a process of its own."""

    @property
    def mqtt_port(self) -> int: ...
    @property
    def https_port(self) -> int: ...
    @property
    def ca_pem_path(self) -> Path: ...


@dataclass
class HubProcess:
    """`edgeferry hub run` in a process of its own."""

    folder: Path
    url: str
    words: Sequence[str] = ()
    process: asyncio.subprocess.Process | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def mqtt_port(self) -> int:
        return int(self.facts["mqtt_port"])

    @property
    def https_port(self) -> int:
        return int(self.facts["https_port"])

    @property
    def ca_pem_path(self) -> Path:
        return Path(self.facts["ca_path"])

    async def start(self) -> None:
        """Starts it and waits until it listens; its log lies in `hub.log` beside its folder."""
        ready = self.folder.with_suffix(".ready")
        ready.unlink(missing_ok=True)
        words = ["--data", str(self.folder), "--mqtt-port", "0", "--https-port", "0", "--ready-file", str(ready)]
        words += [word for route in ROUTES for word in ("--route", route)]
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "edgeferry.cli.main", "hub", "run", *words, *self.words),
                stdout=log,
                stderr=log,
                env={**os.environ, "EDGEFERRY_HUB_DATABASE": self.url},
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            while not ready.exists():
                assert self.process.returncode is None, self.folder.with_suffix(".log").read_text()[-2000:]
                await asyncio.sleep(0.05)
        self.facts = json.loads(ready.read_bytes())

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal: SIGSTOP, SIGCONT."""
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """kill -9."""
        self.send(signal.SIGKILL)
        assert self.process is not None
        await self.process.wait()

    async def stop(self) -> None:
        """Ends it in order, if it still runs."""
        if self.process is not None and self.process.returncode is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            await asyncio.wait_for(self.process.wait(), 30)


class Service:
    """The REST of one hub: `await service("PATCH", path, body)` gives status and body."""

    def __init__(self, session: aiohttp.ClientSession, hub: Hub, key: str) -> None:
        self._session, self.hub, self._key = session, hub, key

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        host = f"localhost:{self.hub.https_port}"
        token = make_sas_token(host, self._key, int(time.time()) + 300, OWNER_POLICY)
        url = f"https://{host}{api.add_api_version(path)}"
        sent = {"Authorization": token, **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with self._session.request(method, url, json=body, headers=sent) as answer:
            text = await answer.read()
            return answer.status, json.loads(text) if text else None

    async def write_desired(self, identity: Identity, desired: dict[str, Any]) -> int:
        """Patches desired properties; returns their `$version`."""
        status, twin = await self("PATCH", api.get_twin_path(identity), {"properties": {"desired": desired}})
        assert status == 200, twin
        return int(twin["properties"]["desired"]["$version"])

    async def read_twin(self, identity: Identity) -> dict[str, Any]:
        status, twin = await self("GET", api.get_twin_path(identity))
        assert status == 200, twin
        return twin

    async def is_connected(self, identity: Identity) -> bool:
        return (await self.read_twin(identity))["connectionState"] == "Connected"

    async def call_method(self, identity: Identity, name: str, **more: Any) -> tuple[int, Any]:
        body = {"methodName": name, "payload": None, "responseTimeoutInSeconds": 5, **more}
        return await self("POST", api.get_method_path(identity), body)

    async def query(self, text: str) -> list[dict[str, Any]]:
        status, rows = await self("POST", "/devices/query", {"query": text})
        assert status == 200, rows
        return rows


@asynccontextmanager
async def open_process(folder: Path, url: str, *words: str) -> AsyncIterator[HubProcess]:
    """A hub in a process of its own while the block runs."""
    hub = HubProcess(folder, url, words)
    try:
        await hub.start()
        yield hub
    finally:
        await hub.stop()


@asynccontextmanager
async def open_service(hub: Hub, folder: Path, url: str) -> AsyncIterator[Service]:
    """What calls the REST of a hub as the owner."""
    with open_tables(folder, url) as tables, tables.transaction():
        key = ensure_policy_keys(tables).keys[OWNER_POLICY]
    context = ssl.create_default_context(cafile=str(hub.ca_pem_path))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield Service(session, hub, key)


@dataclass
class TwoHubs:
    """Two hubs of one fleet: `here` in this process, `there` in one of its own; by `hubs` and `services` in turn."""

    here: RunningHub
    there: HubProcess
    services: tuple[Service, Service]

    @property
    def hubs(self) -> tuple[Hub, Hub]:
        return self.here, self.there


@asynccontextmanager
async def open_two_hubs(folder: Path, url: str) -> AsyncIterator[TwoHubs]:
    """Two hubs on one database."""
    one, other = folder / "here", folder / "there"
    settings = HubSettings(one, database_url=url, mqtt_port=0, https_port=0, routes=ROUTES)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(open_hub(settings))
        there = await stack.enter_async_context(open_process(other, url))
        first = await stack.enter_async_context(open_service(here, one, url))
        second = await stack.enter_async_context(open_service(there, other, url))
        yield TwoHubs(here, there, (first, second))
