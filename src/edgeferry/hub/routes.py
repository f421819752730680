"""Messages on their way: from an output through the routes into queues of inputs and the store of `$upstream`.

The grammar stands in twin/routes.py, the tables in storage/hub_tables.py; delivery of a queue in device_link.py.

Rules:
- A message is accepted (PUBACK) after every copy of it is on disk; then each is delivered at least once, until its time
  to live is over. A receiver tells copies apart by `$.mid`.
- Routes work within one device: the module that a route names is on the device of the sender.
- A route with a condition is refused at the start: none is silently ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeferry.errors import ConfigInvalid, LimitExceeded
from edgeferry.hub.presence import Presence
from edgeferry.storage.hub_db import HubDb
from edgeferry.storage.hub_tables import HubTables, QueuedMessage, UpstreamMessage
from edgeferry.twin.routes import Route
from edgeferry.wire.iothub_topics import FROM_DEVICE_KEY, FROM_MODULE_KEY, OUTPUT_KEY, Telemetry, encode_bag
from edgeferry.wire.service_api import Identity

PROPERTIES_MAX_BYTES = 60_000  # as they travel to an input: in a topic of at most 65,535 bytes
DEFAULT_TIME_TO_LIVE_S = 7200.0  # storeAndForwardConfiguration.timeToLiveSecs of the usual manifest


class Router:
    """Takes messages in. `clock` gives Unix seconds.

    Raises:
        ConfigInvalid: a route has a condition.
    """

    def __init__(
        self,
        db: HubDb,
        presence: Presence,
        clock: Callable[[], float],
        *,
        routes: Sequence[Route],
        time_to_live_s: float = DEFAULT_TIME_TO_LIVE_S,
    ) -> None:
        for route in routes:
            if route.condition:
                raise ConfigInvalid(f"WHERE is not evaluated by this release: {str(route)!r:.200}")
        self._db = db
        self._presence = presence
        self._clock = clock
        self._routes = tuple(routes)
        self._time_to_live_s = time_to_live_s

    async def accept(self, sender: Identity, telemetry: Telemetry, payload: bytes) -> None:
        """Stores a message wherever a route sends it, once for each sink, then wakes the receivers.

        Raises:
            LimitExceeded: its properties would not fit into the topic of a delivery.
        """
        taken = [route for route in self._routes if route.takes(sender.module_id, telemetry.output)]
        sinks = dict.fromkeys(route.sink for route in taken)
        if not sinks:
            return
        now = self._clock()
        expires_at = now + self._time_to_live_s
        passed_on = _make_passed_on(sender, telemetry)
        if len(encode_bag(passed_on)) > PROPERTIES_MAX_BYTES:
            raise LimitExceeded(f"expected properties of at most {PROPERTIES_MAX_BYTES} bytes, percent-encoded")

        def work(tables: HubTables) -> None:
            for sink in sinks:
                if sink is None:
                    bag = dict(telemetry.properties)
                    tables.append_upstream(UpstreamMessage(0, sender, telemetry.output, bag, payload, now))
                else:
                    message = QueuedMessage(0, sink[1], passed_on, payload, expires_at)
                    tables.push_message(Identity(sender.device_id, sink[0]), message)

        await self._db.write(work)
        for sink in sinks:
            link = sink and self._presence.find(Identity(sender.device_id, sink[0]))
            if link:
                link.wake()


def _make_passed_on(sender: Identity, telemetry: Telemetry) -> dict[str, str | None]:
    """The properties that a receiver sees: the sender's own, and who it was."""
    bag = {key: value for key, value in telemetry.properties.items() if key != OUTPUT_KEY}
    bag[FROM_DEVICE_KEY] = sender.device_id
    if sender.module_id:
        bag[FROM_MODULE_KEY] = sender.module_id
    return bag
