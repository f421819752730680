"""The MQTT door on a port of its own: TCP, with TLS or (tests and benches) without.

Who gets to speak stands in transport/accept_loop.py, what happens to the bytes in mqtt_pipe.py.

Rules:
- asyncio's TLS buffer of 256 KB for each connection is cut to 4 KB, in the whole process.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from edgeferry.hub.mqtt_pipe import MqttHall, MqttPipe
from edgeferry.transport.accept_loop import AcceptLoop, Guest, HandshakeLimits, get_connections_max, raise_file_limit
from edgeferry.transport.http_server import listen_on_address

TLS_BUFFER_BYTES = 4 * 1024
BACKLOG = 4096


class TcpGuest(Guest):
    """One connection over TCP: hands on what asyncio calls; the transport itself carries what the pipe writes."""

    def __init__(self, hall: MqttHall, address: str, started_at: float) -> None:
        self._hall, self._address, self._started_at = hall, address, started_at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here, its TLS handshake done."""
        self.has_begun = True
        carrier = cast("asyncio.Transport", transport)
        self.pipe = MqttPipe(self._hall, carrier, address=self._address, started_at=self._started_at)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.pipe.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self.pipe.lost()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self.pipe.pause_writing()

    def resume_writing(self) -> None:
        """It caught up."""
        self.pipe.resume_writing()


def make_tls_context(chain: str, key: str) -> ssl.SSLContext:
    """A server's context: TLS 1.2 (older SDKs speak no other) and 1.3.

    No session tickets: devices resume no sessions, and two tickets are 510 bytes of every connection on a thin link.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0
    context.load_cert_chain(chain, key)
    return context


def shrink_tls_buffers() -> None:
    """Cuts the read buffer of every TLS connection of this process that is opened from now on."""
    asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES


@asynccontextmanager
async def open_mqtt_front(hall: MqttHall, *, host: str, port: int, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Listens for devices; yields the real port. Without `tls` it speaks plain TCP.

    At the end nobody is let in any more, at none of the hall's doors, and every connection is closed.

    Raises:
        ConfigInvalid: the address is taken or not ours.
    """
    shrink_tls_buffers()
    hall.gate.connections_max = min(hall.limits.connections, get_connections_max(raise_file_limit()))
    listener = listen_on_address(host, port, backlog=BACKLOG)
    limits = hall.limits
    handshakes = HandshakeLimits(limits.handshakes, limits.handshake_s, limits.connect_s, limits.stop_s)

    def make_guest(address: str, started_at: float) -> Guest:
        return TcpGuest(hall, address, started_at)

    loop = AcceptLoop(listener, make_guest, tls, handshakes, hall.gate)
    loop.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        await loop.close()
        await hall.close()
