"""Messages on their way: from an output through the routes into queues of inputs and the store of `$upstream`.

The grammar stands in twin/routes.py, the tables in storage/hub_tables.py; delivery of a queue in device_link.py.

Rules:
- A message is accepted (PUBACK) after every copy of it is on disk; then each is delivered at least once, until its time
  to live is over. A receiver tells copies apart by `$.mid`.
- Routes work within one device: the module that a route names is on the device of the sender. The routes of the
  device's own deployment (module `$edgeHub`) count where there are any, else the hub's.
- A message that no route takes is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import structlog

from edgeferry.errors import ConfigInvalid, LimitExceeded
from edgeferry.storage.hub_db import HubDb
from edgeferry.storage.hub_events import InputQueued
from edgeferry.storage.hub_queues import QueuedMessage, UpstreamMessage
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.configuration import EDGE_HUB
from edgeferry.twin.document import Json
from edgeferry.twin.routes import NamedRoute, RoutedMessage, parse_routes
from edgeferry.wire.iothub_topics import FROM_DEVICE_KEY, FROM_MODULE_KEY, OUTPUT_KEY, Telemetry, encode_bag
from edgeferry.wire.service_api import Identity

PROPERTIES_MAX_BYTES = 60_000  # as they travel to an input: in a topic of at most 65,535 bytes
TRIM_AFTER_BYTES = 32 * 1024 * 1024  # that were accepted since the last time
DEFAULT_TIME_TO_LIVE_S = 7200.0  # storeAndForwardConfiguration.timeToLiveSecs of the usual manifest
_log = structlog.get_logger(__name__)


class Router:
    """Takes messages in. `routes` are for devices without a deployment of their own; `clock` gives Unix seconds."""

    def __init__(
        self,
        db: HubDb,
        clock: Callable[[], float],
        *,
        routes: DeviceRoutes,
    ) -> None:
        self._db = db
        self._clock = clock
        self._own = routes
        self._untrimmed_bytes = 0

    async def accept(self, sender: Identity, telemetry: Telemetry, payload: bytes) -> None:
        """Stores a message wherever a route sends it, once for each sink, and rings the receivers.

        Raises:
            LimitExceeded: its properties would not fit into the topic of a delivery.
        """
        now, passed_on = self._clock(), _make_passed_on(sender, telemetry)
        if len(encode_bag(passed_on)) > PROPERTIES_MAX_BYTES:
            raise LimitExceeded(f"expected properties of at most {PROPERTIES_MAX_BYTES} bytes, percent-encoded")
        message = RoutedMessage(sender.module_id, telemetry.output, telemetry.properties, payload, sender.device_id)

        def work(tables: HubTables) -> None:
            self._trim_in_time(tables, len(payload))
            routes = find_device_routes(tables, sender.device_id) or self._own
            for sink, expires_in_s in routes.find_sinks(message).items():
                if sink is None:
                    bag = dict(telemetry.properties)
                    tables.queues.append_upstream(UpstreamMessage(0, sender, telemetry.output, bag, payload, now))
                    continue
                receiver = Identity(sender.device_id, sink[0])
                if tables.find_identity(receiver) is not None:
                    tables.queues.push(receiver, QueuedMessage(0, sink[1], passed_on, payload, now + expires_in_s))
                    tables.tell(InputQueued(receiver))

        await self._db.write(work)

    def _trim_in_time(self, tables: HubTables, size_bytes: int) -> None:
        """Holds the stores to their bounds in bytes also between two rounds of upkeep. Runs on the store's thread."""
        self._untrimmed_bytes += size_bytes
        if self._untrimmed_bytes > TRIM_AFTER_BYTES:
            self._untrimmed_bytes = 0
            tables.queues.trim()
            tables.queues.trim_upstream()


@dataclass(frozen=True, slots=True)
class DeviceRoutes:
    """The routes that hold for a device, and how long a message may wait where a route says nothing else."""

    routes: tuple[NamedRoute, ...]
    time_to_live_s: float

    def find_sinks(self, message: RoutedMessage) -> dict[tuple[str, str] | None, float]:
        """Where a message goes, each sink once, with the longest time that a route gives it there."""
        sinks: dict[tuple[str, str] | None, float] = {}
        for named in self.routes:
            if named.route.accepts(message):
                lives_s = self.time_to_live_s if named.time_to_live_s is None else float(named.time_to_live_s)
                sinks[named.route.sink] = max(lives_s, sinks.get(named.route.sink, 0.0))
        return sinks


def find_device_routes(tables: HubTables, device_id: str) -> DeviceRoutes | None:
    """The routes of the device's own deployment (the desired properties of `$edgeHub`), None when it has none."""
    twin = tables.find_twin(Identity(device_id, EDGE_HUB))
    return find_edge_hub_routes(twin.desired.body) if twin is not None else None


def find_edge_hub_routes(desired: Json) -> DeviceRoutes | None:
    """The routes in the desired properties of an `$edgeHub`, None when they name none."""
    if not isinstance(section := desired.get("routes"), dict):
        return None
    storing = desired.get("storeAndForwardConfiguration")
    lives_s = storing.get("timeToLiveSecs") if isinstance(storing, dict) else None
    if isinstance(lives_s, bool) or not isinstance(lives_s, int | float) or lives_s <= 0:
        lives_s = DEFAULT_TIME_TO_LIVE_S
    return DeviceRoutes(_parse_good_routes(msgspec.json.encode(section)), float(lives_s))


@lru_cache(maxsize=256)  # read once, not with every message; a fleet shares few deployments
def _parse_good_routes(section: bytes) -> tuple[NamedRoute, ...]:
    """Routes that can be read; one that cannot is told in the log and left out, as edgeHub does."""
    good: list[NamedRoute] = []
    for name, value in msgspec.json.decode(section).items():
        try:
            good += parse_routes({name: value})
        except ConfigInvalid as error:
            _log.warning("a route of a deployment cannot be read", route=name, reason=error.message)
    return tuple(good)


def _make_passed_on(sender: Identity, telemetry: Telemetry) -> dict[str, str | None]:
    """The properties that a receiver sees: the sender's own, and who it was."""
    bag = {key: value for key, value in telemetry.properties.items() if key != OUTPUT_KEY}
    bag[FROM_DEVICE_KEY] = sender.device_id
    if sender.module_id:
        bag[FROM_MODULE_KEY] = sender.module_id
    return bag
