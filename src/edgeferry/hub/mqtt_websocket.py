"""The MQTT door on the HTTPS port: WebSockets at `/$iothub/websocket`, subprotocol `mqtt`.

The request comes from transport/http_server.py; what happens to the bytes stands in mqtt_pipe.py.

Rules (docs/formats/iothub.md section 2):
- MQTT is a stream here too: packets may span messages, messages may hold several. We send one packet a message.
- The hub sends no pings: the device SDK's paho answers them without the mask, which ends the connection. Keepalive is
  MQTT's.
- No compression. A frame is bounded like a packet: 16 KB until the client is known. Text ends the connection.
- Nothing that a frame holds reaches a log: CONNECT carries a token.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from edgeferry.hub.mqtt_pipe import UNKNOWN_MAX_BYTES, MqttHall, MqttPipe
from edgeferry.transport.accept_loop import get_address

WEBSOCKET_PATH = "/$iothub/websocket"
PACKET_HEAD_BYTES = 5  # what comes before the body of a packet
_MUTE = logging.getLogger(f"{__name__}.frames")
_MUTE.disabled = True


class WebSocketGuest(asyncio.Protocol):
    """One upgraded connection; to its pipe it looks like a transport."""

    def __init__(self, hall: MqttHall) -> None:
        self._hall = hall
        self._pipe: MqttPipe | None = None
        self._frames = ServerProtocol(
            subprotocols=[Subprotocol("mqtt")], max_size=UNKNOWN_MAX_BYTES + PACKET_HEAD_BYTES, logger=_MUTE
        )

    # --- what asyncio calls -------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The HTTP server hands over the connection; its request follows as the first bytes."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of the request, then of frames."""
        if self._pipe is not None:
            self._frames.max_message_size = self._pipe.limit_bytes + PACKET_HEAD_BYTES
        self._frames.receive_data(data)
        for event in self._frames.events_received():
            if isinstance(event, Request):
                self._answer(event)
            else:
                self._take(event)
        if self._pipe is not None:
            self._pipe.note_held(bool(self._frames.reader.buffer))
        self._flush()
        if self._frames.state is not State.OPEN and not self._transport.is_closing():
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        if self._pipe is not None:
            self._pipe.lost()

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        if self._pipe is not None:
            self._pipe.pause_writing()

    def resume_writing(self) -> None:
        """It caught up."""
        if self._pipe is not None:
            self._pipe.resume_writing()

    # --- what the pipe calls ------------------------------------------------------------------------------------------
    def write(self, data: bytes) -> None:
        """Sends one message."""
        if self._frames.state is State.OPEN:
            self._frames.send_binary(data)
            self._flush()

    def get_write_buffer_size(self) -> int:
        """Bytes that are kept until the client reads."""
        return self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        """Nothing is to come."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """More may come."""
        self._transport.resume_reading()

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._frames.state is not State.OPEN or self._transport.is_closing()

    def close(self) -> None:
        """Ends the connection after what was written."""
        if self._frames.state is State.OPEN:
            self._frames.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Ends the connection now."""
        self._transport.abort()

    # --- its own ------------------------------------------------------------------------------------------------------
    def _answer(self, request: Request) -> None:
        """Lets an upgrade in, or says why not."""
        address = get_address(self._transport.get_extra_info("peername"))
        response = self._judge(request)
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS and not self._hall.gate.enter(address):
            response = self._frames.reject(HTTPStatus.SERVICE_UNAVAILABLE, "There are too many connections.\n")
        self._frames.send_response(response)
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            started_at = asyncio.get_running_loop().time()
            self._pipe = MqttPipe(self._hall, self, address=address, started_at=started_at)

    def _judge(self, request: Request) -> Response:
        if unquote(request.path.partition("?")[0]) != WEBSOCKET_PATH:
            return self._frames.reject(HTTPStatus.NOT_FOUND, "WebSockets are spoken elsewhere.\n")
        return self._frames.accept(request)

    def _take(self, frame: object) -> None:
        if not isinstance(frame, Frame) or self._pipe is None:
            return
        if frame.opcode is Opcode.TEXT:
            self._frames.fail(CloseCode.UNSUPPORTED_DATA, "MQTT is binary")
        elif frame.opcode in (Opcode.BINARY, Opcode.CONT):
            self._pipe.feed(bytes(frame.data))

    def _flush(self) -> None:
        self._transport.write(b"".join(self._frames.data_to_send()))
        if self._pipe is not None:
            self._pipe.check_unsent()
