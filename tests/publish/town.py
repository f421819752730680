"""A real hub that serves a published folder, with device d and module m, for deployments and forecasts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.publish.desk import make_desk, make_request, say_nothing

from edgeferry.app.hub import HubSettings, RunningHub, open_hub
from edgeferry.app.operator import DeployTerms
from edgeferry.publish.deploy import deploy, parse_device
from edgeferry.publish.hub_service import HubService
from edgeferry.publish.publisher import publish
from edgeferry.publish.report import PublishReport
from edgeferry.transport.http import HttpSettings, open_http
from edgeferry.trust.signer import Desk
from edgeferry.wire.iothub_auth import parse_connection_string
from edgeferry.wire.service_api import Identity


@dataclass
class Town:
    """`report` is of gauge 1.0.0, which is published."""

    hub: RunningHub
    folder: Path
    desk: Desk
    report: PublishReport

    @property
    def repo(self) -> str:
        return f"{self.hub.service_url}/files"

    def make_terms(self, **changes: Any) -> DeployTerms:
        terms: dict[str, Any] = {
            "devices": ("d/m",),
            "hub": self.hub.service_connection_string,
            "environ": {},
            "model": "gauge",
            "version": "1.0.0",
            "repo": self.repo,
            "ca_file": self.hub.ca_pem_path,
        }
        return DeployTerms(**(terms | changes))

    async def read_desired(self, identity: str = "d/m") -> dict[str, Any]:
        async with self.open_service() as service:
            twin = await service.fetch_twin(parse_device(identity))
        desired: dict[str, Any] = twin["properties"]["desired"]
        return desired

    async def set_desired(self, patch: Mapping[str, Any], identity: str = "d/m") -> None:
        async with self.open_service() as service:
            outcome = await deploy(service, [identity], make_patch=lambda _: patch)
        assert outcome.error is None

    async def tell(self, identity: Identity, section: Mapping[str, Any]) -> None:
        """As a device does, in our section."""
        await self.hub.rooms.twins.report(identity, {"edgeferry": dict(section)})

    async def report_active(self, identity: Identity, models: Mapping[str, str]) -> None:
        await self.tell(identity, {"models": {name: {"active": version} for name, version in models.items()}})

    @asynccontextmanager
    async def open_service(self) -> AsyncIterator[HubService]:
        async with open_http(HttpSettings(ca_pem=self.hub.ca_pem_path.read_bytes())) as http:
            yield HubService(http, parse_connection_string(self.hub.service_connection_string), time.time)

    async def fetch(self, url: str) -> tuple[int, bytes]:
        async with open_http(HttpSettings(ca_pem=self.hub.ca_pem_path.read_bytes())) as http:
            answer = await http.fetch(url, max_bytes=10 << 20)
        return answer.status, answer.body


@asynccontextmanager
async def open_town(folder: Path) -> AsyncIterator[Town]:
    desk = make_desk(folder)
    report = publish(make_request(), desk, say=say_nothing)
    settings = HubSettings(folder / "hub", mqtt_port=0, https_port=0, files=folder / "repo")
    async with open_hub(settings) as hub:
        await hub.add_module("d", "m")
        yield Town(hub, folder, desk, report)
