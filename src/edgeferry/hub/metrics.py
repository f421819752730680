"""What operators of a hub count, as Prometheus text, and whether it lives: a door of its own, on loopback.

Rules:
- No label carries what a caller can make up, and none names a device: a fleet of thousands stays a few dozen rows.
- Values are read at each scrape, never copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeferry.errors import StorageError
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.door_guard import DoorCounters
from edgeferry.storage.hub_tables import HubTables

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HELP = {
    "connections": "MQTT connections now, of this process",
    "accepted": "MQTT connections accepted",
    "refused_by_address": "Connections refused: too many from one address",
    "refused_in_all": "Connections refused: too many in all",
    "refused_connects": "CONNECTs refused: unknown, disabled or wrongly signed",
    "handshake_failures": "TLS handshakes that failed or never began",
    "accept_pauses": "Moments in which nothing could be accepted",
    "packets_in": "MQTT packets received",
    "packets_out": "MQTT packets sent",
    "bytes_in": "Bytes of MQTT packets received",
    "bytes_out": "Bytes of MQTT packets sent",
    "delayed_s": "Seconds by which packets of eager identities were delayed",
}


@dataclass(frozen=True, slots=True)
class FleetCounts:
    """What the store holds, for the whole fleet."""

    devices: int
    enabled: int
    connected: int
    queued: int

    @classmethod
    def read(cls, tables: HubTables) -> FleetCounts:
        """Counted now."""
        devices, enabled = tables.count_devices()
        return cls(devices, enabled, tables.sessions.count_connected_devices(), tables.queues.count())


@dataclass(frozen=True, slots=True)
class MetricsDoor:
    """`/metrics`, `/healthz` and `/readyz`."""

    rooms: HubRooms
    counters: DoorCounters

    def make_routes(self) -> list[Route]:
        """All three."""
        return [
            Route("/metrics", self.show_metrics, methods=["GET"]),
            Route("/healthz", self.show_health, methods=["GET"]),
            Route("/readyz", self.show_readiness, methods=["GET"]),
        ]

    async def show_metrics(self, _: Request) -> Response:
        """GET /metrics; without the store's part while the store cannot be read."""
        try:
            fleet = await self.rooms.db.read(FleetCounts.read)
        except StorageError:
            fleet = None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_HubCollector(self.rooms, self.counters, fleet))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE)

    async def show_health(self, _: Request) -> Response:
        """GET /healthz: the loop runs."""
        return Response(b"ok", media_type="text/plain")

    async def show_readiness(self, _: Request) -> Response:
        """GET /readyz: the store can be read."""
        try:
            await self.rooms.db.read(lambda tables: tables.find_setting("policy.service"))
        except StorageError as error:
            return Response(f"not ready: {error.code}".encode(), 503, media_type="text/plain")
        return Response(b"ok", media_type="text/plain")


class _HubCollector(Collector):
    def __init__(self, rooms: HubRooms, counters: DoorCounters, fleet: FleetCounts | None) -> None:
        self._rooms, self._counters, self._fleet = rooms, counters, fleet

    def collect(self) -> Iterator[Metric]:
        """What is counted at this moment."""
        links = len(self._rooms.presence.get_links())
        yield GaugeMetricFamily("edgeferry_hub_links", "Identities connected to this process", value=links)
        for field in fields(self._counters):
            name, text = f"edgeferry_hub_mqtt_{field.name.removesuffix('_s')}", _HELP[field.name]
            value = getattr(self._counters, field.name)
            if field.name == "connections":
                yield GaugeMetricFamily(name, text, value=value)
            else:
                yield CounterMetricFamily(name + ("_seconds" if field.name.endswith("_s") else ""), text, value=value)
        db = self._rooms.db.counters
        yield CounterMetricFamily("edgeferry_hub_store_jobs", "Pieces of work done by the store", value=db.jobs)
        yield CounterMetricFamily("edgeferry_hub_store_batches", "Transactions that they shared", value=db.batches)
        yield CounterMetricFamily("edgeferry_hub_store_failures", "Pieces of work that failed", value=db.failures)
        if self._fleet is not None:
            yield GaugeMetricFamily("edgeferry_hub_devices", "Registered devices", value=self._fleet.devices)
            yield GaugeMetricFamily("edgeferry_hub_devices_enabled", "Enabled devices", value=self._fleet.enabled)
            text = "Devices connected, themselves or by a module, to any process"
            yield GaugeMetricFamily("edgeferry_hub_devices_connected", text, value=self._fleet.connected)
            text = "Messages that wait for inputs of modules"
            yield GaugeMetricFamily("edgeferry_hub_messages_waiting", text, value=self._fleet.queued)
