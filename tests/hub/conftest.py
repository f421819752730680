"""A real hub for each test, and the peers that speak to it."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from edgeferry.app.hub import HubSettings, RunningHub, open_hub

SDK = Path(__file__).parent / "sdk"


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


@pytest.fixture
def open_service(run_sdk: Callable[..., Any]) -> Callable[[RunningHub], AbstractAsyncContextManager[ServicePeer]]:
    """`async with open_service(hub) as call`: the unmodified service SDK."""

    @asynccontextmanager
    async def start(hub: RunningHub) -> AsyncIterator[ServicePeer]:
        ca = {"REQUESTS_CA_BUNDLE": str(hub.ca_pem_path)}
        async with run_sdk(SDK / "service_peer.py", hub.get_policy_connection_string(), **ca) as script:
            await script.expect("ready", 60.0)
            yield ServicePeer(script)

    return start


@pytest.fixture
def open_device(run_sdk: Callable[..., Any]) -> Callable[..., Any]:
    """`async with open_device(hub, connection_string) as peer`: the unmodified device SDK, as an SdkScript."""

    def start(hub: RunningHub, connection_string: str, *more: str) -> Any:
        return run_sdk(SDK / "device_peer.py", "string", connection_string, str(hub.ca_pem_path), *more)

    return start
