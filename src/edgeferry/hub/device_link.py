"""What the hub does for one connected device or module: packets in, answers out, inputs delivered.

Bytes, timers and sockets stand in mqtt_front.py; packets, sessions and topics in wire/.

Rules (docs/formats/iothub.md section 3):
- GET twin is answered with 200 or not at all: on any trouble the connection is closed. SDKs repeat a refused GET at
  once, thousands of times a second. Answers about the twin go to who asked, subscribed or not: after a reconnect the
  Python SDK asks without having subscribed, and waits for the answer for ever.
- Subscriptions of a persistent session are on disk before SUBACK: SDKs never subscribe again after a reconnect.
- An unknown topic, QoS 2 or a message over 256 KB closes the connection. RETAIN becomes the property `mqtt-retain`.
- A message is acknowledged when it is on disk; an input leaves its queue when it was acknowledged.
- An older link that has not heard yet of a newer one writes nothing of the session any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import msgspec
import structlog

from edgeferry.errors import EdgeferryError, HubRefused, LimitExceeded, ProtocolViolated, RequestError, StorageError
from edgeferry.hub.configurations import Configurations
from edgeferry.hub.methods import Methods
from edgeferry.hub.presence import Presence
from edgeferry.hub.registry import Admission, Registry, is_admissible
from edgeferry.hub.routes import Router
from edgeferry.hub.twins import Twins
from edgeferry.storage.hub_db import HubDb
from edgeferry.storage.hub_events import Attached
from edgeferry.storage.hub_queues import QueuedMessage
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.document import Json, parse_object
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_topics import (
    DESIRED_PATCH_FILTER,
    METHOD_FILTER,
    DesiredPatch,
    Downlink,
    InputMessage,
    MethodAnswer,
    MethodCall,
    ReportedPatch,
    Telemetry,
    TwinGet,
    TwinResponse,
    is_known_filter,
    make_downlink_topic,
    parse_uplink,
)
from edgeferry.wire.mqtt_session import FILTERS_MAX, Session
from edgeferry.wire.service_api import IdentityRecord

MESSAGE_MAX_BYTES = 256 * 1024
SUBSCRIPTIONS_MAX = 50
QUEUE_PAGE_ROWS, DELIVER_AGAIN_S = 16, 1.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HubRooms:
    """What a link works with, in the process `hub_id` of a hub."""

    hub_id: str
    db: HubDb
    registry: Registry
    presence: Presence
    twins: Twins
    configurations: Configurations
    methods: Methods
    router: Router
    clock: Callable[[], float]


class Pipe(Protocol):
    """The way back to the client."""

    def write(self, packet: mqtt.Packet) -> None:
        """Sends a packet."""

    async def wait_writable(self) -> None:
        """Returns when the client has read enough of what was sent."""

    def admit(self, expires_at: int) -> None:
        """The client is known now, until its token expires (Unix seconds)."""

    def close(self, why: str) -> None:
        """Ends the connection after what was written."""


class DeviceLink:
    """One connection, from CONNECT to its end. Its packets are handed over one at a time."""

    def __init__(self, rooms: HubRooms, pipe: Pipe) -> None:
        self._rooms = rooms
        self._pipe = pipe
        self._admission: Admission | None = None
        self.number = 0
        self._session = Session()
        self._is_clean = True
        self._is_orderly = False
        self._bell = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._delivered_up_to = 0  # ids of the queue rise
        self._sent_here: set[int] = set()  # sent on this connection and not acknowledged yet

    @property
    def record(self) -> IdentityRecord:
        """Who is connected; only after a CONNECT was admitted."""
        if self._admission is None:
            raise ProtocolViolated("nobody is connected here yet")
        return self._admission.record

    def send_desired(self, patch: Json) -> None:
        """Tells of a write of desired properties, if subscribed."""
        if DESIRED_PATCH_FILTER in self._session.subscriptions:
            self._send(DesiredPatch(patch["$version"]), msgspec.json.encode(patch))

    def send_method(self, name: str, rid: str, payload: bytes) -> bool:
        """Calls a direct method; False when not subscribed."""
        if METHOD_FILTER not in self._session.subscriptions:
            return False
        self._send(MethodCall(name, rid), payload)
        return True

    def wake(self) -> None:
        """Something waits in the queue of inputs, or there is room to send it."""
        self._bell.set()

    def close(self, why: str) -> None:
        """Ends the connection."""
        if self._pump is not None:
            self._pump.cancel()
        self._pipe.close(why)

    async def receive(self, packet: mqtt.Packet) -> None:
        """Does what a packet asks for.

        Raises:
            ProtocolError: the connection must end.
            HubRefused: the client is not admitted; it has been told.
        """
        match packet:
            case mqtt.Connect():
                await self._connect(packet)
            case mqtt.Publish():
                await self._publish(packet)
            case mqtt.PubAck(packet_id):
                await self._acknowledge(packet_id)
            case mqtt.Subscribe():
                await self._subscribe(packet)
            case mqtt.Unsubscribe():
                await self._unsubscribe(packet)
            case mqtt.PingReq():
                self._pipe.write(mqtt.PingResp())
            case mqtt.Disconnect():
                self._is_orderly = True
                self.close("the client disconnected")
            case _:
                raise ProtocolViolated(f"a client never sends {type(packet).__name__}")

    def detach(self) -> None:
        """The connection is gone."""
        if self._pump is not None:
            self._pump.cancel()
        if self._admission is not None:
            self._rooms.presence.detach(self, orderly=self._is_orderly)

    async def _connect(self, connect: mqtt.Connect) -> None:
        if connect.level != 4:
            self._pipe.write(mqtt.ConnAck(mqtt.CONNACK_WRONG_LEVEL))
            raise ProtocolViolated(f"expected MQTT level 4, found {connect.level}")
        try:
            self._admission = admission = await self._rooms.registry.admit(connect)
            is_present = await self._open_session(admission.record, clean=connect.clean_session)
        except HubRefused:
            self._admission = None
            self._pipe.write(mqtt.ConnAck(mqtt.CONNACK_NOT_AUTHORISED))
            raise
        except StorageError:
            self._admission = None
            self._pipe.write(mqtt.ConnAck(mqtt.CONNACK_UNAVAILABLE))
            raise
        self._rooms.presence.attach(self)
        self._pipe.admit(admission.expires_at)
        self._pipe.write(mqtt.ConnAck(mqtt.CONNACK_ACCEPTED, is_present))
        self._pump = asyncio.create_task(self._deliver_inputs(), name=f"inputs of {self.record.identity}")
        self._bell.set()

    async def _open_session(self, admitted: IdentityRecord, *, clean: bool) -> bool:
        """Takes up the stored session, or begins anew; True when there was one.

        Raises:
            HubRefused: the identity has changed since it was admitted. Whoever changes it later finds this link.
        """
        identity, now, hub_id = admitted.identity, self._rooms.clock(), self._rooms.hub_id

        def work(tables: HubTables) -> tuple[int, dict[str, int] | None, dict[int, int]]:
            if not is_admissible(tables, admitted) or tables.find_identity(identity) != admitted:
                raise HubRefused("the identity changed while it connected", identity=str(identity))
            stored = None if clean else tables.sessions.read_subscriptions(identity)
            if stored is None:
                tables.sessions.write_subscriptions(identity, None if clean else {})
                tables.queues.forget_sent(identity)
            number = tables.sessions.connect(identity, hub=hub_id, now=now)
            tables.tell(Attached(identity, number))
            return number, stored, tables.queues.read_sent(identity, now=now) if stored is not None else {}

        self._is_clean = clean
        self.number, stored, sent = await self._rooms.db.write(work)
        self._session = Session(stored or {}, {**sent})
        return stored is not None

    async def _publish(self, packet: mqtt.Publish) -> None:
        device_id, module_id = self.record.identity
        message = parse_uplink(packet.topic, device_id=device_id, module_id=module_id)
        match message:
            case TwinGet(rid):
                await self._answer_twin_get(rid)
            case ReportedPatch(rid):
                await self._answer_reported(rid, packet.payload)
            case MethodAnswer():
                await self._rooms.methods.answer(self.record.identity, message, packet.payload)
            case Telemetry():
                await self._accept_message(message, packet)
        if packet.packet_id is not None:
            self._pipe.write(mqtt.PubAck(packet.packet_id))

    async def _answer_twin_get(self, rid: str) -> None:
        twin = await self._rooms.db.read(partial(HubTables.read_twin, identity=self.record.identity))
        self._send(TwinResponse(rid, 200), msgspec.json.encode(twin.to_device_view()))

    async def _answer_reported(self, rid: str, payload: bytes) -> None:
        status, version, body = 204, None, b""
        try:
            version = await self._rooms.twins.report(self.record.identity, parse_object(payload))
        except (RequestError, LimitExceeded, StorageError) as error:
            status = 503 if isinstance(error, StorageError) else 413 if isinstance(error, LimitExceeded) else 400
            body = msgspec.json.encode({"errorCode": status * 1000, "message": error.message})
        self._send(TwinResponse(rid, status, version), body)

    async def _accept_message(self, message: Telemetry, packet: mqtt.Publish) -> None:
        if len(packet.payload) > MESSAGE_MAX_BYTES:
            raise LimitExceeded(f"expected a message of at most {MESSAGE_MAX_BYTES} bytes, found {len(packet.payload)}")
        if packet.retain:
            message = replace(message, properties={**message.properties, "mqtt-retain": "true"})
        await self._rooms.router.accept(self.record.identity, message, packet.payload)

    async def _subscribe(self, packet: mqtt.Subscribe) -> None:
        if len(packet.filters) > FILTERS_MAX:
            raise ProtocolViolated(f"expected at most {FILTERS_MAX} filters in one SUBSCRIBE")
        device_id, module_id = self.record.identity
        codes, wanted = [], dict(self._session.subscriptions)
        for name, qos in packet.filters:
            is_known = is_known_filter(name, device_id=device_id, module_id=module_id)
            codes.append(min(qos, 1) if is_known else mqtt.SUBACK_REFUSED)
            wanted.update({name: min(qos, 1)} if is_known else {})
        if len(wanted) > SUBSCRIPTIONS_MAX:
            raise LimitExceeded(f"expected at most {SUBSCRIPTIONS_MAX} subscriptions")
        await self._store_subscriptions(wanted)
        self._pipe.write(mqtt.SubAck(packet.packet_id, tuple(codes)))
        self._delivered_up_to = 0
        self._bell.set()

    async def _unsubscribe(self, packet: mqtt.Unsubscribe) -> None:
        kept = {name: qos for name, qos in self._session.subscriptions.items() if name not in packet.filters}
        await self._store_subscriptions(kept)
        self._pipe.write(mqtt.UnsubAck(packet.packet_id))

    async def _store_subscriptions(self, filters: dict[str, int]) -> None:
        if not self._is_clean:
            identity, number = self.record.identity, self.number

            def work(tables: HubTables) -> None:
                tables.sessions.require_newest(identity, number)
                tables.sessions.write_subscriptions(identity, filters)

            await self._rooms.db.write(work)
        self._session.subscriptions = filters

    async def _acknowledge(self, packet_id: int) -> None:
        key = self._session.acknowledge(packet_id)
        if isinstance(key, int):
            await self._rooms.db.write(lambda tables: tables.queues.drop([key]))
            self._sent_here.discard(key)  # not before: a page that is read meanwhile still holds the message
        self._bell.set()

    async def _deliver_inputs(self) -> None:
        """Runs as long as the connection: sends what waits for this module's inputs, in order."""
        try:
            while True:
                await self._bell.wait()
                self._bell.clear()
                await self._deliver_all()
        except EdgeferryError as error:
            _log.warning("delivery stopped", identity=str(self.record.identity), reason=error.message)
            self.close("delivery failed")

    async def _deliver_all(self) -> None:
        """Sends what there is room for. While the store is away the connection stays, and it is tried again."""
        try:
            while await self._deliver_page():
                await self._pipe.wait_writable()
        except StorageError as error:
            _log.info("delivery put off", identity=str(self.record.identity), reason=error.message)
            await asyncio.sleep(DELIVER_AGAIN_S)
            self._bell.set()

    async def _deliver_page(self) -> bool:
        """Sends the next messages; False when there is nothing to send or no room."""
        identity, after = self.record.identity, self._delivered_up_to
        page = await self._rooms.db.read(
            lambda tables: tables.queues.read(identity, after=after, limit=QUEUE_PAGE_ROWS)
        )
        if self._delivered_up_to != after:  # a SUBSCRIBE wants everything looked at again
            return True
        taken = self._take(page)
        try:
            await self._note_sent(taken)
        except StorageError:
            self._put_back(taken, after)
            raise
        for row, message in taken:
            await self._pipe.wait_writable()  # on a thin link a page at once would look like a deaf client
            if message.qos == 0 or row.id in self._session.inflight:  # else a PUBACK came for what was sent before
                self._pipe.write(message)
        if page and not taken and not self._session.has_room:
            return await self._forget_gone()
        return bool(taken) or (bool(page) and self._delivered_up_to == page[-1].id)

    def _put_back(self, taken: Sequence[tuple[QueuedMessage, mqtt.Publish]], after: int) -> None:
        """Nothing of a page was sent: it is looked at again."""
        self._delivered_up_to = after
        for row, message in taken:
            self._sent_here.discard(row.id)
            if not message.dup:
                self._session.forget(row.id)

    async def _forget_gone(self) -> bool:
        """Frees the places of deliveries whose message is over or was given up; whether that made room."""
        identity, now = self.record.identity, self._rooms.clock()
        waiting = await self._rooms.db.read(lambda tables: tables.queues.read_sent(identity, now=now))
        for gone in self._session.inflight.keys() - waiting.keys():
            self._session.forget(gone)
            self._sent_here.discard(gone)
        return self._session.has_room

    def _take(self, page: Sequence[QueuedMessage]) -> list[tuple[QueuedMessage, mqtt.Publish]]:
        """The packets of a page that are to be sent now, as far as there is room for them."""
        taken = []
        for row in page:
            if not self._session.has_room and row.id not in self._session.inflight:
                break
            self._delivered_up_to = row.id
            message = self._make_delivery(row)
            if message is not None:
                taken.append((row, message))
        return taken

    def _make_delivery(self, row: QueuedMessage) -> mqtt.Publish | None:
        """The packet of one message; None for what is not subscribed, over, or on its way here already."""
        device_id, module_id = self.record.identity
        topic = make_downlink_topic(InputMessage(row.input, row.properties), device_id=device_id, module_id=module_id)
        qos = self._session.get_qos(topic)
        if row.id in self._sent_here:
            return None
        if not qos or row.expires_at <= self._rooms.clock():
            self._session.forget(row.id)  # it was sent at QoS 1 once, and is not again
        if qos is None or row.expires_at <= self._rooms.clock():
            return None
        if qos == 0:
            return mqtt.Publish(topic, row.payload)
        self._sent_here.add(row.id)
        return self._session.deliver(row.id, mqtt.Publish(topic, row.payload))

    async def _note_sent(self, taken: Sequence[tuple[QueuedMessage, mqtt.Publish]]) -> None:
        """Notes packet ids before they are used, and drops what QoS 0 sends once."""
        noted = {row.id: one.packet_id for row, one in taken if one.packet_id is not None and not one.dup}
        dropped = [row.id for row, one in taken if one.qos == 0]
        if not noted and not dropped:
            return

        identity, number = self.record.identity, self.number

        def work(tables: HubTables) -> None:
            tables.sessions.require_newest(identity, number)
            tables.queues.mark_sent(noted)
            tables.queues.drop(dropped)

        await self._rooms.db.write(work)

    def _send(self, message: Downlink, payload: bytes) -> None:
        device_id, module_id = self.record.identity
        topic = make_downlink_topic(message, device_id=device_id, module_id=module_id)
        self._pipe.write(mqtt.Publish(topic, payload))
