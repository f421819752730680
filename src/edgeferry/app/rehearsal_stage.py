"""The stage of a rehearsal: a hub that serves the repository, a relay that is the link, settings of a device between.

What this file leaves to others: what happens on it (`rehearsal.py`).

Rules:
- Nothing but loopback is listened on; every port is free and chosen by the system.
- The device reaches hub and blobs only through the link; what deploys goes past it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeferry.agent.machine import State
from edgeferry.app.device import RunningDevice
from edgeferry.app.hub import RunningHub, open_hub
from edgeferry.app.hub_settings import HubSettings
from edgeferry.app.operator import DeployTerms, deploy_version
from edgeferry.app.rehearsal_plan import RehearsalPlan, read_root
from edgeferry.config import DeviceConfig, Role
from edgeferry.link.forecast import Forecast, LinkRate
from edgeferry.transport.relay import Link, open_relay
from edgeferry.twin.document import merge
from edgeferry.twin.status import ModelStatus
from edgeferry.wire.service_api import Identity

DEVICE, MODULE = "rehearsal", "ferry"
_PROBATION_S = 1.0
"""Short: what a minute of probation tells, the golden truth has told before."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What is played, and on what. `cuts` are (seconds after the start, for how many seconds) without any link."""

    plan: RehearsalPlan
    link: LinkRate
    role: Role = "both"
    cuts: tuple[tuple[float, float], ...] = ()

    def forecast(self) -> Forecast:
        """The forecast, from now on."""
        return self.plan.forecast(self.link, now=time.time())

    @property
    def cut_s(self) -> float:
        """Seconds without a link."""
        return sum(for_s for _, for_s in self.cuts)


@dataclass(frozen=True, slots=True)
class Stage:
    """Hub and link run; `config` is the device's."""

    rehearsal: Rehearsal
    hub: RunningHub
    link: Link
    repo: str
    config: DeviceConfig

    async def deploy(self, version: str) -> None:
        """Tells the hub, at once, that the device shall run `version`."""
        plan = self.rehearsal.plan
        terms = DeployTerms(
            devices=(f"{DEVICE}/{MODULE}",),
            hub=self.hub.service_connection_string,
            environ={},
            model=plan.model,
            version=version,
            repo=self.repo,
            site=str(plan.folder),
            ca_file=self.hub.ca_pem_path,
        )
        outcome = await deploy_version(terms)
        if outcome.error is not None:
            raise outcome.error

    def get_status(self, device: RunningDevice) -> ModelStatus:
        """The model as the device says it."""
        model = self.rehearsal.plan.model
        return next((one for one in device.get_status().models if one.model == model), ModelStatus(model=model))

    async def has_reported(self, version: str) -> bool:
        """Whether the hub knows that `version` is active."""
        twin = (await self.hub.rooms.twins.read(Identity(DEVICE, MODULE))).twin
        reported: Any = merge({}, twin.reported.body)
        found = reported.get("edgeferry", {}).get("models", {}).get(self.rehearsal.plan.model, {})
        return (found.get("active"), found.get("state")) == (version, State.ACTIVE)


@asynccontextmanager
async def open_stage(folder: Path, rehearsal: Rehearsal) -> AsyncIterator[Stage]:
    plan, link = rehearsal.plan, Link()
    settings = HubSettings(folder / "hub", mqtt_port=0, https_port=0, files=plan.folder)
    async with (
        open_hub(settings) as hub,
        open_relay(link, hub.https_port) as https_port,
        open_relay(link, hub.mqtt_port) as mqtt_port,
    ):
        config = DeviceConfig(
            storage=str(folder / "device"),
            role=rehearsal.role,
            connection_string=await hub.add_module(DEVICE, MODULE),
            ca_file=str(hub.ca_pem_path),
            mqtt_port=mqtt_port,
            port=0,
            root=str(read_root(plan)),
            probation_s=_PROBATION_S,
            probation_requests=1,
        )
        yield Stage(rehearsal, hub, link, f"https://localhost:{https_port}/files", config)
