"""An MQTT client that does just what it is told, right or wrong; built on our codec, which has vectors of its own."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import make_client_id, make_sas_token, make_user_name, parse_connection_string


class MqttDoor(Protocol):
    """Where a hub is found: a RunningHub, or one in another process."""

    @property
    def mqtt_port(self) -> int: ...
    @property
    def ca_pem_path(self) -> Path: ...


class RawClient:
    """Sends packets or bytes, receives packets; `None` is the end of the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = mqtt.PacketDecoder()
        self.waiting: list[mqtt.Packet] = []

    async def send(self, *packets: mqtt.Packet) -> None:
        self.writer.write(b"".join(map(mqtt.encode, packets)))
        await self.writer.drain()

    async def receive(self, timeout_s: float = 10.0) -> mqtt.Packet | None:
        async with asyncio.timeout(timeout_s):
            while not self.waiting:
                try:
                    data = await self.reader.read(65536)
                except (ConnectionError, ssl.SSLError):
                    return None
                if not data:
                    return None
                self.waiting += self.decoder.feed(data)
        return self.waiting.pop(0)

    async def connect(
        self, connection_string: str, *, clean: bool = False, ttl_s: int = 3600, keepalive_s: int = 60
    ) -> mqtt.Packet | None:
        known = parse_connection_string(connection_string)
        device_id, module_id = known.device_id or "", known.module_id
        token = make_sas_token(known.resource, known.shared_access_key, int(time.time()) + ttl_s)
        user = make_user_name(known.host_name, device_id, module_id)
        client_id = make_client_id(device_id, module_id)
        await self.send(mqtt.Connect(client_id, clean, keepalive_s, user, token.encode()))
        return await self.receive()

    async def subscribe(self, *filters: str, qos: int = 1) -> mqtt.Packet | None:
        await self.send(mqtt.Subscribe(99, tuple((one, qos) for one in filters)))
        return await self.receive()


@asynccontextmanager
async def open_raw(hub: MqttDoor, *, source: str | None = None) -> AsyncIterator[RawClient]:
    """A TLS connection to the hub's MQTT door, from a loopback address of one's own if `source` names it."""
    context = ssl.create_default_context(cafile=str(hub.ca_pem_path))
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", hub.mqtt_port, ssl=context, local_addr=(source, 0) if source else None
    )
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
