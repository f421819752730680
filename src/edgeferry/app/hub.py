"""The embedded hub, put together: database, rooms, doors, in the order in which they open.

Rules:
- One process for each data folder (a lock file says so); commands may open its database beside it.
- What is written to the ready file and to the database (`hub.host_name`, `hub.https_port`) is what was really bound.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from starlette.applications import Starlette

from edgeferry.errors import StorageError
from edgeferry.hub.bus import run_bus
from edgeferry.hub.configurations import Configurations
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.http_files import FileDoor
from edgeferry.hub.http_front import ServiceRest
from edgeferry.hub.identity_records import make_record
from edgeferry.hub.methods import Methods
from edgeferry.hub.mqtt_front import make_tls_context, open_mqtt_front
from edgeferry.hub.policies import OWNER_POLICY, PolicyKeys, ensure_policy_keys
from edgeferry.hub.presence import Presence
from edgeferry.hub.registry import Registry
from edgeferry.hub.routes import DEFAULT_TIME_TO_LIVE_S, Router
from edgeferry.hub.twins import Twins
from edgeferry.hub.upkeep import run_upkeep
from edgeferry.hub.workload import WorkloadApi
from edgeferry.storage.files import make_folder, open_folder_lock, read_bounded
from edgeferry.storage.hub_certificates import CertificateFiles, ensure_certificates
from edgeferry.storage.hub_db import HubDb, open_hub_db
from edgeferry.storage.hub_queues import UpstreamMessage
from edgeferry.storage.hub_tables import HubTables
from edgeferry.transport.http_server import ServerLimits, listen_on_address, listen_on_path, open_http_server
from edgeferry.twin.document import make_twin
from edgeferry.twin.routes import parse_route
from edgeferry.wire.file_signatures import FILES_PREFIX, SERVICE_POLICY, make_file_query
from edgeferry.wire.iothub_auth import ConnectionString
from edgeferry.wire.service_api import Identity, IdentityRecord, require_identity

DEFAULT_MQTT_PORT, DEFAULT_HTTPS_PORT = 8883, 8443
HTTP_LIMITS = ServerLimits(connections=2000, stop_patience_s=5)  # a fleet fetches at once, over links that take hours
DEFAULT_ROUTES = ("FROM /messages/* INTO $upstream",)
HOST_NAME_SETTING, HTTPS_PORT_SETTING = "hub.host_name", "hub.https_port"


@dataclass(frozen=True, slots=True)
class HubSettings:
    """How a hub runs.

    Attributes:
        data: the folder that holds everything it keeps.
    database_url: a PostgreSQL database that holds its state instead, for several hubs that serve one fleet.
        listen: address of all doors; MQTT and HTTPS ports, 0 for any free one.
        host_names: names and addresses for the certificate beside localhost; the first is the hub's name.
        files: folder published below `/files/`; `http_files_port` serves it in the clear too, on loopback only.
        workload_socket, workload_device: the workload API, for one device.
        routes: as in a deployment manifest; time to live of queued messages in seconds.
        mqtt_tls: False for plain TCP in benches.
    """

    data: Path
    database_url: str | None = field(default=None, repr=False, kw_only=True)
    listen: str = "127.0.0.1"
    mqtt_port: int = DEFAULT_MQTT_PORT
    https_port: int = DEFAULT_HTTPS_PORT
    host_names: tuple[str, ...] = ()
    files: Path | None = None
    http_files_port: int | None = None
    workload_socket: Path | None = None
    workload_device: str | None = None
    routes: tuple[str, ...] = DEFAULT_ROUTES
    time_to_live_s: float = DEFAULT_TIME_TO_LIVE_S
    mqtt_tls: bool = True
    clock: Callable[[], float] = field(default=time.time, repr=False)

    @property
    def host_name(self) -> str:
        """The name that connection strings carry."""
        return self.host_names[0] if self.host_names else "localhost"

    @property
    def certificate_names(self) -> list[str]:
        """Every name and address that clients may use."""
        usual = ("localhost", "127.0.0.1", "::1", socket.gethostname())
        bound = () if self.listen in ("0.0.0.0", "::") else (self.listen,)  # noqa: S104 - compared, not bound
        return list(dict.fromkeys((*self.host_names, *usual, *bound)))


@dataclass(frozen=True, slots=True)
class RunningHub:
    """A hub that listens; everything a test or a command needs to reach it."""

    settings: HubSettings
    rooms: HubRooms
    mqtt_port: int
    https_port: int
    http_files_port: int | None
    ca_pem_path: Path
    policies: PolicyKeys

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


def make_connection_string(host_name: str, record: IdentityRecord) -> str:
    """The connection string of a device or a module."""
    device_id, module_id = record.identity
    return str(ConnectionString(host_name, record.primary_key, device_id, module_id))


def make_service_connection_string(host_name: str, https_port: int, key: str, policy: str = SERVICE_POLICY) -> str:
    """The connection string of a policy; its host carries the port."""
    host = host_name if https_port == 443 else f"{host_name}:{https_port}"
    return str(ConnectionString(host, key, shared_access_key_name=policy))


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
        files = await asyncio.to_thread(
            ensure_certificates, settings.data / "tls", settings.certificate_names, now=settings.clock()
        )
        db = await stack.enter_async_context(open_hub_db(settings.data, settings.database_url))
        rooms = make_rooms(settings, db)
        policies = await db.write(lambda tables: _begin(tables, settings.clock()))
        stack.push_async_callback(_end, rooms)
        await rooms.presence.beat()
        tls = make_tls_context(str(files.chain), str(files.key))
        mqtt_tls = tls if settings.mqtt_tls else None
        mqtt_port = await stack.enter_async_context(
            open_mqtt_front(rooms, host=settings.listen, port=settings.mqtt_port, tls=mqtt_tls)
        )
        https_port, http_files_port = await _open_http_doors(stack, settings, rooms, files, policies)
        await db.write(lambda tables: _remember_address(tables, settings.host_name, https_port))
        for work, name in ((run_bus(rooms), "hub bus"), (run_upkeep(rooms), "hub upkeep")):
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(_tell_defect)
            stack.callback(task.cancel)
        yield RunningHub(settings, rooms, mqtt_port, https_port, http_files_port, files.authority, policies)


def make_rooms(settings: HubSettings, db: HubDb) -> HubRooms:
    """The rooms of a hub process over an open database; raises ConfigInvalid for a bad route."""
    clock, hub_id = settings.clock, secrets.token_hex(4)
    presence = Presence(hub_id, db, clock)
    routes = [parse_route(text) for text in settings.routes]
    router = Router(db, clock, routes=routes, time_to_live_s=settings.time_to_live_s)
    return HubRooms(
        hub_id=hub_id,
        db=db,
        registry=Registry(db, clock),
        presence=presence,
        twins=Twins(db, clock),
        configurations=Configurations(db, clock),
        methods=Methods(hub_id, db, presence),
        router=router,
        clock=clock,
    )


async def _open_http_doors(
    stack: AsyncExitStack, settings: HubSettings, rooms: HubRooms, files: CertificateFiles, policies: PolicyKeys
) -> tuple[int, int | None]:
    """Opens HTTPS, plain files and the workload socket; returns the ports of the first two."""
    tls = make_tls_context(str(files.chain), str(files.key))
    file_routes = (
        FileDoor(settings.files, policies.keys[SERVICE_POLICY], settings.clock).make_routes() if settings.files else []
    )
    service = ServiceRest(rooms, policies).make_app(file_routes)
    https = listen_on_address(settings.listen, settings.https_port)
    await stack.enter_async_context(open_http_server(service, https, tls=tls, limits=HTTP_LIMITS))
    http_port = None
    if settings.http_files_port is not None:
        plain = listen_on_address("127.0.0.1", settings.http_files_port)
        http_port = plain.getsockname()[1]
        await stack.enter_async_context(open_http_server(Starlette(routes=file_routes), plain, limits=HTTP_LIMITS))
    if settings.workload_socket and settings.workload_device:
        bundle = read_bounded(files.authority, 64 * 1024).decode("ascii")
        workload = WorkloadApi(settings.workload_device, rooms.registry, bundle)
        unix = listen_on_path(settings.workload_socket)
        await stack.enter_async_context(
            open_http_server(Starlette(routes=workload.make_routes()), unix, limits=HTTP_LIMITS)
        )
    return https.getsockname()[1], http_port


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
