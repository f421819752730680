"""The embedded hub, put together: database, rooms, doors, in the order in which they open.

Rules:
- One process for each data folder (a lock file says so); commands may open its database beside it.
- What is written to the ready file and to the database (`hub.host_name`, `hub.https_port`) is what was really bound.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from edgeferry.app.hub_doors import HttpPorts, Trust, open_http_doors, prepare_certificates, watch_certificate
from edgeferry.app.hub_settings import HubSettings, make_connection_string, make_service_connection_string
from edgeferry.errors import ConfigInvalid, StorageError
from edgeferry.hub.bus import run_bus
from edgeferry.hub.configurations import Configurations
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.door_guard import DoorCounters
from edgeferry.hub.identity_records import make_record
from edgeferry.hub.methods import Methods
from edgeferry.hub.mqtt_front import make_tls_context, open_mqtt_front
from edgeferry.hub.mqtt_pipe import MqttHall
from edgeferry.hub.policies import OWNER_POLICY, PolicyKeys, ensure_policy_keys
from edgeferry.hub.presence import Presence
from edgeferry.hub.registry import Registry
from edgeferry.hub.routes import DeviceRoutes, Router, find_edge_hub_routes
from edgeferry.hub.twins import Twins
from edgeferry.hub.upkeep import run_upkeep
from edgeferry.storage.files import make_folder, open_folder_lock, read_bounded
from edgeferry.storage.hub_db import HubDb, open_hub_db
from edgeferry.storage.hub_queues import UpstreamMessage
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.configuration import EDGE_HUB, make_desired, parse_content
from edgeferry.twin.document import make_twin, parse_object
from edgeferry.twin.routes import NamedRoute, parse_route, parse_routes
from edgeferry.wire.file_signatures import FILES_PREFIX, SERVICE_POLICY, make_file_query
from edgeferry.wire.service_api import Identity, require_identity

HOST_NAME_SETTING, HTTPS_PORT_SETTING = "hub.host_name", "hub.https_port"
MANIFEST_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RunningHub:
    """A hub that listens; everything a test or a command needs to reach it."""

    settings: HubSettings
    rooms: HubRooms
    mqtt_port: int
    ports: HttpPorts
    ca_pem_path: Path
    counters: DoorCounters
    policies: PolicyKeys

    @property
    def https_port(self) -> int:
        """The port of service REST, files and MQTT over WebSockets."""
        return self.ports.https

    @property
    def service_url(self) -> str:
        """Base of the service REST and of `/files/`."""
        return f"https://{self.settings.host_name}:{self.https_port}"

    @property
    def service_connection_string(self) -> str:
        """For service SDKs and `deploy`; carries the policy's key."""
        return self.get_policy_connection_string(SERVICE_POLICY)

    def get_policy_connection_string(self, policy: str = OWNER_POLICY) -> str:
        """The connection string of any policy; carries its key."""
        host_name, key = self.settings.host_name, self.policies.keys[policy]
        return make_service_connection_string(host_name, self.https_port, key, policy)

    async def add_device(self, device_id: str) -> str:
        """Registers a device; returns its connection string."""
        return await self._add(require_identity(device_id))

    async def add_module(self, device_id: str, module_id: str) -> str:
        """Registers a module, and its device when that is missing; returns the module's connection string."""
        await self.rooms.db.write(lambda tables: ensure_device(tables, device_id, self.settings.clock()))
        return await self._add(require_identity(device_id, module_id))

    async def read_messages(self, *, after: int = 0) -> list[UpstreamMessage]:
        """Messages that routes sent `$upstream`."""
        return await self.rooms.db.read(lambda tables: tables.queues.read_upstream(after=after))

    def make_file_url(self, path: str, *, folder: str = "", expires_in_s: float = 3600.0) -> str:
        """A signed HTTPS URL below the published folder; the signature opens all of `folder`."""
        expires_at = int(self.settings.clock() + expires_in_s)
        query = make_file_query(folder, self.policies.keys[SERVICE_POLICY], expires_at)
        return f"{self.service_url}{FILES_PREFIX}{path}?{query}"

    async def _add(self, identity: Identity) -> str:
        record = await self.rooms.registry.add(make_record(identity, self.settings.clock()))
        return make_connection_string(self.settings.host_name, record)


def ensure_device(tables: HubTables, device_id: str, now: float) -> None:
    """Registers a device that is not. Runs inside a writing transaction."""
    identity = require_identity(device_id)
    if tables.find_identity(identity) is None:
        tables.add_identity(make_record(identity, now), make_twin(now))


@asynccontextmanager
async def open_hub(settings: HubSettings) -> AsyncIterator[RunningHub]:
    """A hub for as long as the block runs: it listens when the block begins.

    Raises:
        ConfigError: a route, name, port or folder cannot be used.
        StorageError: the data folder is in use or unusable.
    """
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(make_folder, settings.data, mode=0o700)
        stack.enter_context(open_folder_lock(settings.data))
        db = await stack.enter_async_context(open_hub_db(settings.data, settings.database_url))
        rooms = make_rooms(settings, db)
        policies = await db.write(lambda tables: _begin(tables, settings.clock()))
        stack.push_async_callback(_end, rooms)
        await rooms.presence.beat()
        files = await prepare_certificates(settings, db)
        tls = make_tls_context(str(files.chain), str(files.key))
        mqtt_tls = tls if settings.mqtt_tls else None
        hall = MqttHall(rooms, settings.doors)
        mqtt_port = await stack.enter_async_context(
            open_mqtt_front(hall, host=settings.listen, port=settings.mqtt_port, tls=mqtt_tls)
        )
        ports = await open_http_doors(stack, settings, hall, Trust(files, tls, policies))
        stack.push_async_callback(hall.close)
        await db.write(lambda tables: _remember_address(tables, settings.host_name, ports.https))
        watch = watch_certificate(tls, files)
        for work, name in ((run_bus(rooms), "bus"), (run_upkeep(rooms), "upkeep"), (watch, "certificate")):
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(_tell_defect)
            stack.callback(task.cancel)
        yield RunningHub(settings, rooms, mqtt_port, ports, files.authority, hall.counters, policies)


def make_rooms(settings: HubSettings, db: HubDb) -> HubRooms:
    """The rooms of a hub process over an open database; raises ConfigInvalid for a bad route."""
    clock, hub_id = settings.clock, secrets.token_hex(4)
    presence = Presence(hub_id, db, clock)
    return HubRooms(
        hub_id=hub_id,
        db=db,
        registry=Registry(db, clock),
        presence=presence,
        twins=Twins(db, clock),
        configurations=Configurations(db, clock),
        methods=Methods(hub_id, db, presence),
        router=Router(db, clock, routes=make_routes(settings)),
        clock=clock,
    )


def make_routes(settings: HubSettings) -> DeviceRoutes:
    """The routes of devices that have none of their own.

    Raises:
        ConfigInvalid: a route cannot be read, or the manifest has none.
    """
    if settings.deployment is None:
        named = [NamedRoute(f"route{number}", parse_route(text)) for number, text in enumerate(settings.routes, 1)]
        return DeviceRoutes(tuple(named), settings.time_to_live_s)
    manifest = parse_object(read_bounded(settings.deployment, MANIFEST_MAX_BYTES), limit_bytes=MANIFEST_MAX_BYTES)
    content = parse_content(manifest.get("content", manifest))
    desired = make_desired({}, [content.modules.get(EDGE_HUB, {})])
    if not isinstance(desired.get("routes"), dict):
        raise ConfigInvalid(f"expected routes at $edgeHub in {settings.deployment}")
    parse_routes(desired["routes"])  # at the start a route that cannot be read is refused, not left out
    routes = find_edge_hub_routes(desired)
    return routes or DeviceRoutes((), settings.time_to_live_s)


def _tell_defect(task: asyncio.Task[None]) -> None:
    """A background task ends with the hub; one that ends before, by a defect, must not do so silently."""
    if not task.cancelled() and (error := task.exception()) is not None:
        structlog.get_logger(__name__).error("a background task of the hub ended", task=task.get_name(), exc_info=error)


def _begin(tables: HubTables, now: float) -> PolicyKeys:
    """The first write of a process: connections of one that died in our folder are over."""
    if not tables.is_shared:
        tables.sessions.end_connections(now=now)
    return ensure_policy_keys(tables)


async def _end(rooms: HubRooms) -> None:
    """The last write of a process: its connections are over, and others need not wait for its silence."""
    try:
        await rooms.db.write(lambda tables: tables.sessions.drop_hub(rooms.hub_id, now=rooms.clock()))
    except StorageError as error:
        structlog.get_logger(__name__).warning("the end of the hub was not noted", reason=error.message)


def _remember_address(tables: HubTables, host_name: str, https_port: int) -> None:
    tables.write_setting(HOST_NAME_SETTING, host_name)
    tables.write_setting(HTTPS_PORT_SETTING, str(https_port))
