"""The hub's HTTP doors, and the certificates by which all doors are known; opened in order by hub.py.

Rules:
- What is served without TLS is served on loopback only.
- One context serves MQTT and HTTPS: a renewed certificate is taken by both.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.routing import Route

from edgeferry.app.hub_settings import HubSettings
from edgeferry.hub.http_files import FileDoor
from edgeferry.hub.http_front import ServiceRest
from edgeferry.hub.metrics import MetricsDoor
from edgeferry.hub.mqtt_pipe import MqttHall
from edgeferry.hub.mqtt_websocket import WebSocketGuest
from edgeferry.hub.policies import PolicyKeys
from edgeferry.hub.workload import WorkloadApi
from edgeferry.storage.files import read_bounded
from edgeferry.storage.hub_certificates import (
    CertificateFiles,
    ensure_certificates,
    require_operator_files,
    share_authority,
)
from edgeferry.storage.hub_db import HubDb
from edgeferry.storage.hub_tables import HubTables
from edgeferry.transport.http_server import ServerLimits, listen_on_address, listen_on_path, open_http_server
from edgeferry.wire.file_signatures import SERVICE_POLICY

HTTP_LIMITS = ServerLimits(connections=2000, stop_patience_s=5)  # a fleet fetches at once, over links that take hours
AUTHORITY_SETTINGS = "tls.ca.pem", "tls.ca.key"
CERTIFICATE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Trust:
    """By what clients know the hub, and by what it knows them."""

    files: CertificateFiles
    tls: ssl.SSLContext
    policies: PolicyKeys


@dataclass(frozen=True, slots=True)
class HttpPorts:
    """What was really bound; None for a door that is not open."""

    https: int
    http_files: int | None
    metrics: int | None


async def open_http_doors(stack: AsyncExitStack, settings: HubSettings, hall: MqttHall, trust: Trust) -> HttpPorts:
    """Opens HTTPS (service REST, files, MQTT over WebSockets), plain files, metrics and the workload socket."""
    service_key = trust.policies.keys[SERVICE_POLICY]
    file_routes = FileDoor(settings.files, service_key, settings.clock).make_routes() if settings.files else []
    service = ServiceRest(hall.rooms, trust.policies).make_app(file_routes)
    https = listen_on_address(settings.listen, settings.https_port)
    await stack.enter_async_context(
        open_http_server(service, https, tls=trust.tls, limits=HTTP_LIMITS, make_upgraded=lambda: WebSocketGuest(hall))
    )
    metric_routes = MetricsDoor(hall.rooms, hall.counters).make_routes()
    files_port = await _open_on_loopback(stack, settings.http_files_port, file_routes)
    metrics_port = await _open_on_loopback(stack, settings.metrics_port, metric_routes)
    if settings.workload_socket and settings.workload_device:
        bundle = read_bounded(trust.files.authority, 64 * 1024).decode("ascii")
        routes = WorkloadApi(settings.workload_device, hall.rooms.registry, bundle).make_routes()
        unix = listen_on_path(settings.workload_socket)
        await stack.enter_async_context(open_http_server(Starlette(routes=routes), unix, limits=HTTP_LIMITS))
    return HttpPorts(https.getsockname()[1], files_port, metrics_port)


async def _open_on_loopback(stack: AsyncExitStack, port: int | None, routes: list[Route]) -> int | None:
    """Serves routes without TLS, on this machine only; returns the real port, None when it is not wanted."""
    if port is None:
        return None
    sock = listen_on_address("127.0.0.1", port)
    await stack.enter_async_context(open_http_server(Starlette(routes=routes), sock, limits=HTTP_LIMITS))
    return int(sock.getsockname()[1])


async def prepare_certificates(settings: HubSettings, db: HubDb) -> CertificateFiles:
    """The operator's certificates, checked, or our own, made; hubs that share a store share their authority."""
    folder, now = settings.data / "tls", settings.clock()
    if settings.tls_chain is not None and settings.tls_key is not None:
        authority = settings.tls_authority or settings.tls_chain
        given = CertificateFiles(authority, settings.tls_chain, settings.tls_key)
        names = settings.host_names or (settings.host_name,)
        return await asyncio.to_thread(require_operator_files, given, names, now=now)
    if settings.database_url is not None:
        await db.write(lambda tables: _share_authority(tables, folder, now))
    return await asyncio.to_thread(ensure_certificates, folder, settings.certificate_names, now=now)


def _share_authority(tables: HubTables, folder: Path, now: float) -> None:
    """Runs in the one writing transaction at a time: of hubs that start together, the first one's authority counts."""
    certificate, key = (tables.find_setting(name) for name in AUTHORITY_SETTINGS)
    shared = (certificate, key) if certificate and key else None
    for name, pem in zip(AUTHORITY_SETTINGS, share_authority(folder, shared, now=now), strict=True):
        tables.write_setting(name, pem)


async def watch_certificate(tls: ssl.SSLContext, files: CertificateFiles) -> None:
    """Takes a renewed certificate for the connections that come, as soon as both its files are good."""
    seen = files.chain.stat().st_mtime_ns
    while True:
        await asyncio.sleep(CERTIFICATE_EVERY_S)
        try:
            now = files.chain.stat().st_mtime_ns
            if now != seen:
                tls.load_cert_chain(files.chain, files.key)
                seen = now
        except (OSError, ssl.SSLError) as error:
            structlog.get_logger(__name__).warning("the new certificate cannot be used yet", reason=str(error))
