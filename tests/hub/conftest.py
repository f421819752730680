"""A real hub for each test, and the peers that speak to it."""

from __future__ import annotations

import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from device_ways import WAYS, Start
from edgeferry.app.hub import HubSettings, RunningHub, open_hub
from edgeferry.hub.door_guard import DoorLimits
from edgeferry.storage.hub_store import HubStore
from edgeferry.wire.service_api import Identity
from hub.hub_rooms import Clock
from hub.service_caller import Caller
from service_view import open_service_view

SDK, NODE = Path(__file__).parent / "sdk", Path(__file__).parent / "node"
SDK_ROUTES = (
    'FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint("/modules/b/inputs/in")',
    "FROM /messages/* INTO $upstream",
)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[RunningHub]:
    """A hub on free ports with a published folder and one route to another module."""
    published = tmp_path / "published"
    published.mkdir()
    routes = (
        'FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint("/modules/b/inputs/in")',
        "FROM /messages/* INTO $upstream",
    )
    settings = HubSettings(
        tmp_path / "hub", mqtt_port=0, https_port=0, files=published, http_files_port=0, routes=routes
    )
    async with open_hub(settings) as running:
        yield running


@pytest.fixture
def open_limited(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[RunningHub]]:
    """`async with open_limited(connections=2) as hub`: a hub on free ports whose MQTT doors have these limits."""

    def start(**limits: Any) -> AbstractAsyncContextManager[RunningHub]:
        return open_hub(HubSettings(tmp_path / "hub", mqtt_port=0, https_port=0, doors=DoorLimits(**limits)))

    return start


@pytest.fixture
async def call(hub: RunningHub) -> AsyncIterator[Caller]:
    """The service REST of that hub, called by hand."""
    context = ssl.create_default_context(cafile=str(hub.ca_pem_path))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield Caller(session, hub)


@pytest.fixture
def clock() -> Clock:
    """Stands still until a test moves it."""
    return Clock()


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> HubStore:
    """Each store in turn, empty."""
    url = request.getfixturevalue("database_url") if request.param == "postgres" else None
    return HubStore(tmp_path, url)


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails when the hub logs an error or a traceback meanwhile."""
    with structlog.testing.capture_logs() as entries:
        yield
    assert not [entry for entry in entries if entry["log_level"] in ("error", "critical") or "exc_info" in entry]
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


class ServicePeer:
    """azure-iot-hub behind `await peer(name, *arguments)`."""

    def __init__(self, script: Any) -> None:
        self.script = script

    async def __call__(self, name: str, *arguments: Any) -> Any:
        await self.script.send(json.dumps([name, *arguments]))
        return await self.script.expect("result")


def get_owner_connection_string(hub: RunningHub) -> str:
    """The one that may call everything."""
    return hub.get_policy_connection_string()


@pytest.fixture
def open_service(run_sdk: Callable[..., Any]) -> Callable[[RunningHub], AbstractAsyncContextManager[ServicePeer]]:
    """`async with open_service(hub) as call`: the unmodified service SDK with the owner's connection string."""

    @asynccontextmanager
    async def start(hub: RunningHub) -> AsyncIterator[ServicePeer]:
        ca = {"REQUESTS_CA_BUNDLE": str(hub.ca_pem_path)}
        async with run_sdk(SDK / "service_peer.py", get_owner_connection_string(hub), **ca) as script:
            await script.expect("ready", 60.0)
            yield ServicePeer(script)

    return start


@pytest.fixture
def sdk_settings(tmp_path: Path, loopback_address: str) -> HubSettings:
    """A hub on port 8883 of an address of its own, with all ways in."""
    return HubSettings(
        tmp_path / "hub",
        loopback_address,
        https_port=0,
        host_names=(loopback_address,),
        routes=SDK_ROUTES,
        workload_socket=tmp_path / "w.sock",
        workload_device="d",
    )


@pytest.fixture
def open_sdk_hub(sdk_settings: HubSettings) -> Callable[[], AbstractAsyncContextManager[RunningHub]]:
    """Opens the hub of these settings; opened again it goes on with the same folder."""
    return lambda: open_hub(sdk_settings)


@pytest.fixture
async def hub_on_443(sdk_settings: HubSettings) -> AsyncIterator[RunningHub]:
    """A hub on the ports that SDKs for Node.js insist on; skips, saying so, where 443 may not be used."""
    try:
        socket.create_server((sdk_settings.listen, 443)).close()
    except PermissionError:
        pytest.skip("port 443 may not be used here: be root, or set net.ipv4.ip_unprivileged_port_start=443")
    async with open_hub(replace(sdk_settings, https_port=443)) as running:
        yield running


@pytest.fixture
def open_device(run_device_sdk: Callable[..., Any]) -> Callable[..., Any]:
    """`async with open_device(hub, connection_string) as peer`: the unmodified device SDK, as an SdkScript."""

    def start(hub: RunningHub, connection_string: str, *more: str) -> Any:
        return run_device_sdk(SDK / "device_peer.py", "string", connection_string, str(hub.ca_pem_path), *more)

    return start


async def start_module(hub: RunningHub, module: str, way: str) -> Start:
    """Makes module `module` of device `d`; returns how a peer starts that comes in by `way`."""
    connection_string = await hub.add_module("d", module)
    async with open_service_view(hub) as view:
        generation = (await view.fetch_identity(Identity("d", module)))["generationId"]
    return WAYS[way](hub, connection_string, generation)


@pytest.fixture
def open_by_way(run_device_sdk: Callable[..., Any], device_sdk_version: str) -> Callable[..., Any]:
    """`async with open_by_way(way, hub, "a") as peer`: module `a` of device `d`, made and come in by `way`."""

    @asynccontextmanager
    async def start(way: str, hub: RunningHub, module: str, *more: str) -> AsyncIterator[Any]:
        how = await start_module(hub, module, way)
        async with run_device_sdk(SDK / "device_peer.py", *how.words, *more, **how.environment) as peer:
            await peer.expect("ready")
            assert peer.seen[-1]["version"] == device_sdk_version
            yield peer

    return start


@pytest.fixture(params=list(WAYS))
def open_module(request: pytest.FixtureRequest, open_by_way: Callable[..., Any]) -> Callable[..., Any]:
    """`async with open_module(hub, "a") as peer`, by each of the four ways in."""
    return partial(open_by_way, request.param)


@pytest.fixture
def open_node_service(run_node: Callable[..., Any]) -> Callable[[RunningHub], AbstractAsyncContextManager[ServicePeer]]:
    """`async with open_node_service(hub) as call`: the unmodified service SDK for Node.js, as the owner."""

    @asynccontextmanager
    async def start(hub: RunningHub) -> AsyncIterator[ServicePeer]:
        ca = {"NODE_EXTRA_CA_CERTS": str(hub.ca_pem_path)}
        async with run_node(NODE / "service_peer.js", get_owner_connection_string(hub), **ca) as script:
            await script.expect("ready", 60.0)
            yield ServicePeer(script)

    return start


@pytest.fixture
def open_node_module(run_node: Callable[..., Any]) -> Callable[..., Any]:
    """`async with open_node_module("mqtt", hub, "a") as peer`: module `a` of device `d`, made and come in."""

    @asynccontextmanager
    async def start(transport: str, hub: RunningHub, module: str, way: str = "connection_string") -> AsyncIterator[Any]:
        how = await start_module(hub, module, way)
        async with run_node(NODE / "device_peer.js", transport, *how.words, **how.environment) as peer:
            await peer.expect("ready")
            yield peer

    return start
