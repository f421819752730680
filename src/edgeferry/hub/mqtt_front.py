"""The MQTT door: sockets, TLS, timers; one task for each connection.

What packets mean stands in device_link.py, bytes and order in wire/.

Rules:
- Bounded before it is known: 16 KB a packet until the client is admitted, then a message of IoT Hub's size. A client
  that sends faster than it is served is not read; one that does not read what it is sent is dropped.
- A connection ends when its token expires, when it is silent for 1.5 times its keepalive, or at its first violation.
- asyncio's TLS buffer of 256 KB for each connection is cut to 16 KB: 5,000 modules then need 220 MB less than 1,400.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import structlog

from edgeferry.errors import ConfigInvalid, EdgeferryError, ProtocolError
from edgeferry.hub.device_link import DeviceLink, HubRooms
from edgeferry.wire.mqtt_packets import PACKET_MAX_BYTES, Packet, PacketDecoder, encode
from edgeferry.wire.mqtt_session import Connection

UNKNOWN_MAX_BYTES = 16 * 1024
TLS_BUFFER_BYTES = 16 * 1024
WAITING_MAX = 32  # packets read ahead before reading stops
UNSENT_MAX_BYTES = 2 * 1024 * 1024  # a client that lets more pile up does not read
HANDSHAKE_TIMEOUT_S = 30.0
_log = structlog.get_logger(__name__)


class MqttPipe(asyncio.Protocol):
    """One connection: a decoder, a queue of packets, and the task that hands them to the link."""

    def __init__(self, rooms: HubRooms, pipes: set[MqttPipe]) -> None:
        self._rooms = rooms
        self._pipes = pipes
        self._loop = asyncio.get_running_loop()
        self._decoder = PacketDecoder(UNKNOWN_MAX_BYTES)
        self._order = Connection(self._loop.time())
        self._waiting: deque[Packet] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._is_over = False
        self._token_ends_at = float("inf")
        self._link = DeviceLink(rooms, self)

    # --- what asyncio calls -------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here, its TLS handshake done."""
        self._transport = cast("asyncio.Transport", transport)
        self._pipes.add(self)
        self._timer = self._loop.call_at(self._order.get_deadline(), self._look_at_clock)
        self.task = self._loop.create_task(self._run(), name="mqtt connection")

    def data_received(self, data: bytes) -> None:
        """Bytes came; asyncio's TLS hands over some that came before it had closed."""
        if self._is_over:
            return
        try:
            packets = self._decoder.feed(data)
            for packet in packets:
                self._order.receive(packet, now=self._loop.time())
        except ProtocolError as error:
            self.close(error.message)
            return
        self._waiting.extend(packets)
        self._arrived.set()
        if len(self._waiting) > WAITING_MAX:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed; packets that came before are still done."""
        self._is_over = True
        self._timer.cancel()
        self._arrived.set()
        self._writable.set()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It caught up."""
        self._writable.set()

    # --- what the link calls ------------------------------------------------------------------------------------------
    def write(self, packet: Packet) -> None:
        """Sends a packet, or drops a client that does not read."""
        if self._transport.is_closing():
            return
        self._transport.write(encode(packet))
        if self._transport.get_write_buffer_size() > UNSENT_MAX_BYTES:
            _log.info("mqtt connection dropped", reason="the client does not read")
            self._is_over = True
            self._transport.abort()

    async def wait_writable(self) -> None:
        """Returns when the client has read enough of what was sent, or is gone."""
        await self._writable.wait()

    def admit(self, expires_at: int) -> None:
        """The client is known until its token expires."""
        self._decoder.limit_bytes = PACKET_MAX_BYTES
        self._token_ends_at = self._loop.time() + max(0.0, expires_at - self._rooms.clock())
        self._look_at_clock()

    def close(self, why: str) -> None:
        """Ends the connection after what was written; packets that wait are not done any more."""
        if not self._is_over:
            _log.debug("mqtt connection closed", reason=why)
        self._is_over = True
        self._waiting.clear()
        self._arrived.set()
        self._transport.close()

    # --- its own ------------------------------------------------------------------------------------------------------
    def _look_at_clock(self) -> None:
        """One timer for silence and token; a deadline that has moved only sets it again."""
        self._timer.cancel()
        now, silent_at = self._loop.time(), self._order.get_deadline()
        if now >= self._token_ends_at:
            self.close("its token has expired")
        elif now >= silent_at:
            self.close("it was silent too long")
        else:
            self._timer = self._loop.call_at(min(silent_at, self._token_ends_at, now + 3600.0), self._look_at_clock)

    async def _run(self) -> None:
        """Hands packets to the link, one at a time, until the connection is over."""
        try:
            while self._waiting or not self._is_over:
                while self._waiting:
                    await self._link.receive(self._waiting.popleft())
                self._arrived.clear()
                if not self._is_over:
                    self._transport.resume_reading()
                    await self._arrived.wait()
        except EdgeferryError as error:
            _log.info("mqtt connection refused", code=error.code, reason=error.message, values=error.values)
        except Exception:  # noqa: BLE001 - the edge of a task: a defect met by one connection must not end the hub
            _log.exception("mqtt connection failed")
        finally:
            self._link.detach()
            self.close("its task has ended")
            self._pipes.discard(self)


def make_tls_context(chain: str, key: str) -> ssl.SSLContext:
    """A server's context: TLS 1.2 (older SDKs speak no other) and 1.3."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(chain, key)
    return context


def shrink_tls_buffers() -> None:
    """Cuts the read buffer of every TLS connection of this process that is opened from now on."""
    asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES


@asynccontextmanager
async def open_mqtt_front(rooms: HubRooms, *, host: str, port: int, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Listens for devices; yields the real port. Without `tls` it speaks plain TCP (tests and benches).

    Raises:
        ConfigInvalid: the address is taken or not ours.
    """
    shrink_tls_buffers()
    pipes: set[MqttPipe] = set()
    patience = HANDSHAKE_TIMEOUT_S if tls else None
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            lambda: MqttPipe(rooms, pipes), host, port, ssl=tls, backlog=4096, ssl_handshake_timeout=patience
        )
    except OSError as error:
        raise ConfigInvalid(f"cannot listen for MQTT on {host}:{port}: {error.strerror}") from error
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        tasks = [pipe.task for pipe in pipes]
        for pipe in list(pipes):
            pipe.close("the hub stops")
        if tasks:
            await asyncio.wait(tasks, timeout=10.0)
