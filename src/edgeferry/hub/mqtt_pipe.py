"""One MQTT connection: bytes become packets, packets are handed to the link one at a time. And the hall they share.

What carries the bytes stands in mqtt_front.py (TCP, TLS) and mqtt_websocket.py; what packets mean in device_link.py;
bytes and order in wire/; what is allowed in door_guard.py.

Rules:
- Bounded before it is known: 16 KB a packet and nothing read behind CONNECT until the client is admitted; then messages
  of IoT Hub's size. A client that sends faster than it is served is not read; one that does not read is dropped.
- A connection ends when its token expires, at its first violation, and when the client is too slow: with CONNECT, with
  a packet that began, or silent for 1.5 times its keepalive. Time in which we do not read is not the client's.
- Whoever sends faster than its rate waits; a refusal may be told late (door_guard.py), an admission never.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Protocol

import structlog

from edgeferry.errors import EdgeferryError, HubRefused, ProtocolError
from edgeferry.hub.device_link import DeviceLink, HubRooms
from edgeferry.hub.door_guard import ConnectionGate, DoorCounters, DoorLimits, GuessingBrake, PacketRates
from edgeferry.wire.mqtt_packets import (
    CONNACK_NOT_AUTHORISED,
    PACKET_MAX_BYTES,
    ConnAck,
    Connect,
    Packet,
    PacketDecoder,
    Publish,
    encode,
)
from edgeferry.wire.mqtt_session import Connection

UNKNOWN_MAX_BYTES = 16 * 1024
PIECE_BYTES = 4096  # decoded at once: at most 2,048 packets, the smallest having two bytes
WAITING_MAX = 32  # packets read ahead before reading stops
WAITING_MAX_BYTES = 512 * 1024
UNSENT_MAX_BYTES = 2 * 1024 * 1024  # a client that lets more pile up does not read
CLOSE_PATIENCE_S = 10.0  # for a client to take what was written before the end
CLOCK_MAX_S = 3600.0
_NEVER = float("inf")
_log = structlog.get_logger(__name__)


class Carrier(Protocol):
    """What bytes go through: an asyncio transport, or what looks like one."""

    def write(self, data: bytes) -> None:
        """Sends bytes, or keeps them until they can be sent."""

    def get_write_buffer_size(self) -> int:
        """Bytes that are kept."""

    def pause_reading(self) -> None:
        """Nothing is to come."""

    def resume_reading(self) -> None:
        """More may come."""

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""

    def close(self) -> None:
        """Ends the connection after what was written."""

    def abort(self) -> None:
        """Ends the connection now."""


class MqttHall:
    """What all MQTT doors of one hub share."""

    def __init__(self, rooms: HubRooms, limits: DoorLimits | None = None) -> None:
        self.rooms = rooms
        self.limits = limits or DoorLimits()
        self.counters = DoorCounters()
        self.gate = ConnectionGate(self.limits, self.counters)
        self.rates = PacketRates(self.limits)
        self.brake = GuessingBrake()
        self.pipes: set[MqttPipe] = set()
        self._emptied = asyncio.Event()

    async def close(self) -> None:
        """Lets nobody in any more and ends every connection after what was written to it; takes `stop_s` at most."""
        self.gate.shut()
        tasks = [pipe.task for pipe in self.pipes]
        for count, pipe in enumerate(list(self.pipes)):
            pipe.close("the hub stops")
            if count % 100 == 99:
                await asyncio.sleep(0)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.limits.stop_s / 2)
            for task in late:
                task.cancel()
        await self._wait_until_empty(self.limits.stop_s / 4)
        for pipe in list(self.pipes):
            pipe.abort()
        await self._wait_until_empty(self.limits.stop_s / 4)

    def leave(self, pipe: MqttPipe) -> None:
        """Nothing of this connection is left."""
        self.pipes.discard(pipe)
        if not self.pipes:
            self._emptied.set()

    async def _wait_until_empty(self, patience_s: float) -> None:
        self._emptied.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self.pipes:
                    await self._emptied.wait()
                    self._emptied.clear()


class MqttPipe:
    """One connection that the gate has let in: a decoder, a queue of packets, the task that hands them to the link."""

    def __init__(self, hall: MqttHall, carrier: Carrier, *, address: str, started_at: float) -> None:
        self._hall, self._carrier, self._address = hall, carrier, address
        self._counters = hall.counters
        self._loop = asyncio.get_running_loop()
        self._decoder = PacketDecoder(UNKNOWN_MAX_BYTES)
        self._order = Connection(started_at)
        self._unread = bytearray()
        self._waiting: deque[Packet] = deque()
        self._waiting_bytes = 0
        self._packet_began_at = _NEVER
        self._token_ends_at = _NEVER
        self._candidate = ""  # who it says it is
        self._name: str | None = None  # who it is, once admitted
        self._refusal: ConnAck | None = None
        self._is_holding = self._is_busy = self._is_paused = self._is_over = self._is_lost = False
        self._nap: asyncio.Future[None] | None = None
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._link = DeviceLink(hall.rooms, self)
        self._timer = self._loop.call_at(self._get_deadline(), self._look_at_clock)
        self.task = self._loop.create_task(self._run(), name="mqtt connection")
        hall.pipes.add(self)

    # --- what the carrier's side calls --------------------------------------------------------------------------------
    @property
    def limit_bytes(self) -> int:
        """How long a packet may be now."""
        return self._decoder.limit_bytes

    def feed(self, data: bytes) -> None:
        """Bytes came, cut anywhere; asyncio's TLS hands over some that came before it had closed."""
        if self._is_over:
            return
        self._counters.bytes_in += len(data)
        self._unread += data
        self._parse()
        self._arrived.set()
        if self._is_full() and not self._is_paused:
            self._is_paused = True
            self._carrier.pause_reading()

    def note_held(self, is_holding: bool) -> None:
        """Whether the carrier holds bytes that it cannot hand over before more come."""
        self._is_holding = is_holding
        self._note_unfinished()

    def lost(self) -> None:
        """The socket is closed; packets that came before are still done."""
        self._is_lost = True
        self._timer.cancel()
        self._end()
        self._writable.set()
        self._hall.gate.leave(self._address)
        self._leave_hall()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It caught up."""
        self._writable.set()

    def check_unsent(self) -> None:
        """Drops a client that does not read; called after each write."""
        if self._carrier.get_write_buffer_size() > UNSENT_MAX_BYTES:
            _log.info("mqtt connection dropped", reason="the client does not read")
            self._end()
            self.abort()

    def abort(self) -> None:
        """Ends the connection now, whatever was written."""
        self._carrier.abort()

    # --- what the link calls ------------------------------------------------------------------------------------------
    def write(self, packet: Packet) -> None:
        """Sends a packet, or drops a client that does not read. A refusal is kept until its time has come."""
        if isinstance(packet, ConnAck) and packet.code == CONNACK_NOT_AUTHORISED:
            self._refusal = packet
        else:
            self._send(packet)

    async def wait_writable(self) -> None:
        """Returns when the client has read enough of what was sent, or is gone."""
        await self._writable.wait()

    def admit(self, expires_at: int) -> None:
        """The client is known until its token expires."""
        self._name = self._candidate
        self._decoder.limit_bytes = PACKET_MAX_BYTES
        self._token_ends_at = self._loop.time() + max(0.0, expires_at - self._hall.rooms.clock())
        self._look_at_clock()

    def close(self, why: str) -> None:
        """Ends the connection after what was written; packets that wait are not done any more."""
        if not self._is_over:
            _log.debug("mqtt connection closed", reason=why)
        self._waiting.clear()
        self._unread.clear()
        self._end()
        if not self._is_lost and not self._carrier.is_closing():
            self._carrier.close()
            self._timer.cancel()
            self._timer = self._loop.call_later(CLOSE_PATIENCE_S, self._carrier.abort)

    # --- bytes --------------------------------------------------------------------------------------------------------
    def _parse(self) -> None:
        """Decodes until enough packets wait; the rest stays bytes."""
        try:
            while self._unread and not self._is_full():
                piece = bytes(self._unread[:PIECE_BYTES])
                del self._unread[:PIECE_BYTES]
                for packet in self._decoder.feed(piece):
                    self._order.receive(packet, now=self._loop.time())
                    self._packet_began_at = _NEVER
                    self._waiting.append(packet)
                    self._waiting_bytes += _get_weight(packet)
        except ProtocolError as error:
            self.close(error.message)
        self._note_unfinished()

    def _is_full(self) -> bool:
        if self._name is None:  # one CONNECT and its answer
            return self._is_busy or bool(self._waiting)
        return len(self._waiting) >= WAITING_MAX or self._waiting_bytes >= WAITING_MAX_BYTES

    def _note_unfinished(self) -> None:
        """Starts or ends the clock of a packet that is not whole."""
        if not self._decoder.buffered_bytes and not self._is_holding:
            self._packet_began_at = _NEVER
        elif self._packet_began_at == _NEVER and not self._is_over:
            self._packet_began_at = self._loop.time()
            if self._timer.when() > self._get_deadline():
                self._look_at_clock()

    def _send(self, packet: Packet) -> None:
        if self._carrier.is_closing():
            return
        data = encode(packet)
        self._counters.packets_out += 1
        self._counters.bytes_out += len(data)
        self._carrier.write(data)
        self.check_unsent()

    # --- time ---------------------------------------------------------------------------------------------------------
    def _get_deadline(self) -> float:
        """When the client will have been too slow."""
        limits, order = self._hall.limits, self._order
        silent_at = order.get_deadline() if order.is_connected else order.heard_at + limits.connect_s
        return min(silent_at, self._packet_began_at + limits.packet_s)

    def _look_at_clock(self) -> None:
        """One timer for slowness and token; a deadline that has moved only sets it again."""
        self._timer.cancel()
        if self._is_over:
            return
        now = self._loop.time()
        if self._is_busy or self._waiting:
            self._order.heard_at = now
            self._packet_began_at = _NEVER if self._packet_began_at == _NEVER else now
        if now >= self._token_ends_at:
            self.close("its token has expired")
        elif now >= self._get_deadline():
            self.close("it was silent or slow too long")
        else:
            due = min(self._get_deadline(), self._token_ends_at, now + CLOCK_MAX_S)
            self._timer = self._loop.call_at(due, self._look_at_clock)

    async def _wait(self, seconds: float) -> None:
        """Waits, but not past the end of the connection."""
        self._counters.delayed_s += seconds
        nap = self._nap = self._loop.create_future()
        timer = self._loop.call_later(seconds, _wake, nap)
        try:
            await nap
        finally:
            timer.cancel()
            self._nap = None

    # --- its task -----------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        """Hands packets to the link, one at a time, until the connection is over."""
        try:
            while await self._wait_for_packet():
                packet = self._waiting.popleft()
                self._waiting_bytes -= _get_weight(packet)
                await self._handle(packet)
                self._parse()
        except EdgeferryError as error:
            _log.info("mqtt connection refused", code=error.code, reason=error.message, values=error.values)
        except Exception:  # noqa: BLE001 - the edge of a task: a defect met by one connection must not end the hub
            _log.exception("mqtt connection failed")
        finally:
            self._link.detach()
            self.close("its task has ended")
            self._loop.call_soon(self._leave_hall)

    async def _wait_for_packet(self) -> bool:
        """Whether there is a packet to hand on; False at the end."""
        while not self._waiting and not self._is_over:
            self._arrived.clear()
            if self._is_paused:
                self._is_paused = False
                self._carrier.resume_reading()
            if not self._waiting and not self._is_over:
                await self._arrived.wait()
        return bool(self._waiting)

    async def _handle(self, packet: Packet) -> None:
        self._counters.packets_in += 1
        self._is_busy = True
        try:
            if isinstance(packet, Connect):
                self._candidate = packet.client_id
            if await self._take_turn():
                await self._link.receive(packet)
        except HubRefused:
            await self._refuse()
            raise
        finally:
            self._is_busy = False

    async def _take_turn(self) -> bool:
        """Waits as the identity's rate asks; False when the connection was closed meanwhile."""
        if self._name is None:
            return True
        wait_s = self._hall.rates.take(self._name, self._loop.time())
        if not wait_s or self._is_over:
            return True
        await self._wait(wait_s)
        return self._is_lost or not self._carrier.is_closing()

    async def _refuse(self) -> None:
        """Tells what the link has refused, late when many were refused before."""
        self._counters.refused_connects += 1
        delay_s = self._hall.brake.note(self._address, self._loop.time())
        if delay_s and not self._is_over:
            await self._wait(delay_s)
        if self._refusal is not None:
            self._send(self._refusal)

    def _end(self) -> None:
        """Nothing is read any more; whoever waits goes on."""
        self._is_over = True
        self._arrived.set()
        if self._nap is not None:
            _wake(self._nap)

    def _leave_hall(self) -> None:
        """It stands in the hall until its task and its socket have ended."""
        if self._is_lost and self.task.done():
            self._hall.leave(self)


def _get_weight(packet: Packet) -> int:
    return len(packet.payload) if isinstance(packet, Publish) else 0


def _wake(nap: asyncio.Future[None]) -> None:
    if not nap.done():
        nap.set_result(None)
