"""The device, put together: storage, network, trust, serving, agent, API, and the door for commands.

What this file leaves to others: reading settings (`cli/`), every part's work.

Rules:
- One process per storage folder, by lock. Two modules may share a storage root: an inferencer keeps its own below
  `edgeferry-inferencer/`.
- Order at start: lock, journal, what was active, the API, then the network.
- Secrets stay in the identity; nothing here logs them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from edgeferry.agent.agent import Agent, Parts
from edgeferry.agent.control import open_control
from edgeferry.agent.fetch import Fetcher
from edgeferry.agent.gate import HTTP, HUB, Gate
from edgeferry.agent.hub_link import OpenHub
from edgeferry.agent.ledger import Ledger
from edgeferry.agent.tools import AgentSettings
from edgeferry.app.manifests import TrustedManifests
from edgeferry.app.picture_fetch import open_picture_fetch
from edgeferry.app.serving import make_slots_settings, open_api
from edgeferry.config import DeviceConfig, WorkloadConfig
from edgeferry.errors import ConfigInvalid, StorageFailed
from edgeferry.link.policy import LinkPolicy, read_link_policy
from edgeferry.model.bundle import BundleLimits
from edgeferry.model.digest import Digest
from edgeferry.runtime.child import WorkerSettings
from edgeferry.serve.access import make_access
from edgeferry.serve.api import make_app
from edgeferry.serve.api_settings import ApiSettings
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.slots import Slots
from edgeferry.storage.files import open_folder_lock, read_bounded
from edgeferry.storage.journal import Journal, open_journal
from edgeferry.storage.mending import require_sound
from edgeferry.storage.repository import Repository
from edgeferry.transport.http import HttpClient, HttpSettings, open_http
from edgeferry.transport.interface import find_interface
from edgeferry.transport.mqtt import HubConnection, HubIdentity, HubSettings, make_key_sign, open_hub_connection
from edgeferry.transport.wire_bytes import WireMeter
from edgeferry.transport.workload import Workload
from edgeferry.twin.shadow import ShadowPolicy, read_shadow_policy
from edgeferry.twin.status import DeviceStatus
from edgeferry.wire.iothub_auth import parse_connection_string

INFERENCER_FOLDER = "edgeferry-inferencer"
ROOT_FILE = "root.json"
CONFIG_FILE = "device.toml"
_PEM_MAX_BYTES = 1 << 20
_ROOT_MAX_BYTES = 1 << 20
_log = structlog.get_logger(__name__)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class RunningDevice:
    """A device that serves and follows its twin. `url` is its API's base."""

    url: str
    agent: Agent
    slots: Slots
    repository: Repository

    def get_status(self) -> DeviceStatus:
        """The device as the API shows it; no I/O."""
        return self.agent.get_status()


def get_repository(config: DeviceConfig) -> Repository:
    """The repository of this role below the storage root."""
    storage = Path(config.storage)
    return Repository(
        storage / INFERENCER_FOLDER if config.role == "inferencer" else storage,
        quota_bytes=config.quota_bytes,
        low_water_bytes=config.low_water_bytes,
    )


@asynccontextmanager
async def open_device(config: DeviceConfig) -> AsyncIterator[RunningDevice]:
    """Runs a device for as long as the block does; it serves what was active when the block begins.

    Raises:
        ConfigInvalid: a setting cannot be used. StorageBusy: another process has this storage folder.
        StorageError leaves: the disk does not do as asked.
    """
    repository = get_repository(config)
    root, ca_pem = _read_root(config, repository), await _read_ca(config)
    api_settings = ApiSettings(access=make_access(config.token, config.allow_networks))
    api_settings.access.require_guarded(config.host)
    await asyncio.to_thread(repository.prepare)
    with open_folder_lock(repository.root):
        meters = Meters(WireMeter(), WireMeter())
        async with (
            open_journal(repository.journal_path) as journal,
            open_http(HttpSettings(ca_pem=ca_pem), meter=meters.http) as http,
            open_picture_fetch(config.picture_hosts, max_bytes=api_settings.body_max_bytes) as fetch,
        ):
            engine = ChildEngine(WorkerSettings(), require_sound=partial(require_sound, repository))
            slots = Slots(engine, make_slots_settings(config.queue), default_model=config.default_model)
            try:
                gate = _make_gate(config, journal, meters)
                open_hub = make_open_hub(
                    config, ca_pem, meter=meters.hub, get_keepalive_s=lambda: gate.policy.keepalive_s
                )
                means = _Means(repository, journal, http, gate, slots)
                parts = _make_parts(config, means, root=root, open_hub=open_hub)
                agent = Agent(parts, _make_agent_settings(config, is_pinned=root is not None))
                app = make_app(slots, agent, api_settings, fetch=fetch, store=repository)
                async with (
                    _open_door(repository, agent),
                    _running(agent),
                    open_api(app, config.host, config.port) as address,
                ):
                    yield RunningDevice(address.url, agent, slots, repository)
            finally:
                await slots.close()


@asynccontextmanager
async def _open_door(repository: Repository, agent: Agent) -> AsyncIterator[None]:
    """agent.sock, where the disk lets it be made: without it a device serves all the same."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(open_control(repository.socket_path, agent.run_command))
        except StorageFailed as error:
            _log.warning("no_agent_socket", code=error.code, message=error.message)
        yield


@asynccontextmanager
async def _running(agent: Agent) -> AsyncIterator[None]:
    """The agent as a task; the block begins once what was active serves. What ends the agent at its start is raised."""
    running = asyncio.create_task(agent.run(), name="agent")
    started = asyncio.create_task(agent.started.wait())
    try:
        await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield
    finally:
        started.cancel()
        running.cancel()
        await asyncio.wait({running})


@dataclass(frozen=True, slots=True)
class _Means:
    """What is open while a device runs."""

    repository: Repository
    journal: Journal
    http: HttpClient
    gate: Gate
    slots: Slots


@dataclass(frozen=True, slots=True)
class Meters:
    """What crosses the wire: for updates, and for the hub's connection."""

    http: WireMeter
    hub: WireMeter


def _make_gate(config: DeviceConfig, journal: Journal, meters: Meters) -> Gate:
    policy, problems = read_link_policy(config.link, LinkPolicy(rate_bps=config.rate_bps))
    for problem in problems:
        raise ConfigInvalid(f"link.{problem.key}: {problem.message}")
    ledger = Ledger(journal, {HTTP: meters.http.get_bytes, HUB: meters.hub.get_bytes})
    return Gate(ledger, policy=policy, now=time.time, find_interface=find_interface)


def _make_parts(config: DeviceConfig, means: _Means, *, root: bytes | Digest | None, open_hub: OpenHub | None) -> Parts:
    repository, gate, slots = means.repository, means.gate, means.slots
    fetcher = Fetcher(means.http, gate, rate_bps=gate.policy.rate_bps)

    def take_default_model(name: str | None) -> None:
        slots.default_model = config.default_model if name is None else name

    return Parts(
        repository=repository,
        journal=means.journal,
        gate=gate,
        fetcher=fetcher,
        manifests=TrustedManifests(fetcher, repository.trust_folder, root, now=time.time),
        activator=slots,
        open_hub=open_hub,
        now=time.time,
        random=random.random,
        boot=_BOOT_ID.read_text("ascii").strip() if _BOOT_ID.is_file() else "",
        take_default_model=take_default_model,
    )


def _make_agent_settings(config: DeviceConfig, *, is_pinned: bool) -> AgentSettings:
    return AgentSettings(
        device=_get_name(config),
        shared_root=Path(config.storage),
        role=config.role,
        accept_classic=not is_pinned if config.accept_classic is None else config.accept_classic,
        bundle_max_bytes=config.bundle_max_bytes,
        bundle_limits=BundleLimits(max_member_bytes=config.bundle_max_bytes, max_total_bytes=config.bundle_max_bytes),
        rate_bps=config.rate_bps,
        shadow=_read_shadow(config),
        probation_requests=config.probation_requests,
        probation_s=config.probation_s,
        report_every_s=config.report_every_s,
        scrub_every_s=config.scrub_every_s,
    )


def _read_shadow(config: DeviceConfig) -> ShadowPolicy | None:
    policy, problem = read_shadow_policy(config.shadow)
    if problem:
        raise ConfigInvalid(f"shadow: {problem}")
    return policy


def _get_name(config: DeviceConfig) -> str:
    if config.connection_string:
        parsed = parse_connection_string(config.connection_string)
        return "/".join(filter(None, (parsed.device_id, parsed.module_id)))
    return f"{config.workload.device}/{config.workload.module}" if config.workload else "device"


# --- who this device is, and whom it trusts ---------------------------------------------------------------------------
def _read_root(config: DeviceConfig, repository: Repository) -> bytes | Digest | None:
    """The pinned root: as told, else as `device init` left it, else nothing."""
    if config.root.startswith("sha256:"):
        return Digest.from_str(config.root)
    path = Path(config.root) if config.root else repository.root / ROOT_FILE
    if not config.root and not path.is_file():
        return None
    return read_bounded(path, _ROOT_MAX_BYTES)


async def _read_ca(config: DeviceConfig) -> bytes | None:
    if config.ca_file:
        return await asyncio.to_thread(read_bounded, Path(config.ca_file), _PEM_MAX_BYTES)
    return None


def make_open_hub(
    config: DeviceConfig,
    ca_pem: bytes | None,
    *,
    meter: WireMeter | None = None,
    get_keepalive_s: Callable[[], int] = lambda: HubSettings().keepalive_s,
) -> OpenHub | None:
    """How this device connects, by its key or by what IoT Edge signs; None when it has no hub.

    The keepalive is asked for at each connection: a twin may have changed it.
    """
    make_identity = _find_identity_maker(config, ca_pem)
    if make_identity is None:
        return None

    @asynccontextmanager
    async def open_hub() -> AsyncIterator[HubConnection]:
        settings = HubSettings(keepalive_s=get_keepalive_s())
        async with open_hub_connection(await make_identity(), settings, meter=meter) as hub:
            yield hub

    return open_hub


MakeIdentity = Callable[[], Awaitable[HubIdentity]]


def _find_identity_maker(config: DeviceConfig, ca_pem: bytes | None) -> MakeIdentity | None:
    if config.connection_string:
        return _make_key_identity(config, ca_pem)
    return _make_workload_identity(config.workload, config, ca_pem) if config.workload is not None else None


def _make_key_identity(config: DeviceConfig, ca_pem: bytes | None) -> MakeIdentity:
    parsed = parse_connection_string(config.connection_string)
    if not parsed.device_id:
        raise ConfigInvalid("expected the connection string of a device or a module, found one of a service policy")
    identity = HubIdentity(
        host=parsed.host_name,
        device=parsed.device_id,
        module=parsed.module_id or "",
        gateway=parsed.gateway_host_name or "",
        sign=make_key_sign(parsed.shared_access_key),
        ca_pem=ca_pem,
        port=config.mqtt_port,
    )

    async def make_identity() -> HubIdentity:
        return identity

    return make_identity


def _make_workload_identity(found: WorkloadConfig, config: DeviceConfig, ca_pem: bytes | None) -> MakeIdentity:
    workload = Workload(found.workload_url, found.api_version)

    async def sign(data: bytes) -> str:
        return await workload.sign(found.module, found.generation, data=data)

    async def make_identity() -> HubIdentity:
        return HubIdentity(
            host=found.hub,
            device=found.device,
            module=found.module,
            gateway=found.gateway,
            sign=sign,
            ca_pem=ca_pem or await workload.fetch_trust_bundle(),
            port=config.mqtt_port,
        )

    return make_identity
