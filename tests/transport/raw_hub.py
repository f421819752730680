"""A loopback MQTT server over TLS that answers with exactly the packets a test gives it: a hub that misbehaves."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from edgeferry.storage.hub_certificates import CertificateFiles
from edgeferry.wire import mqtt_packets as mqtt

Reply = Callable[[mqtt.Packet], Sequence[mqtt.Packet] | None]
"""Packets to send after one that came; None hangs up."""


def behave(packet: mqtt.Packet) -> Sequence[mqtt.Packet] | None:
    """What a hub says that accepts everything and never answers a twin request."""
    match packet:
        case mqtt.Connect():
            return [mqtt.ConnAck(0)]
        case mqtt.Subscribe(packet_id, filters):
            return [mqtt.SubAck(packet_id, tuple(1 for _ in filters))]
        case mqtt.Publish(packet_id=int(packet_id)):
            return [mqtt.PubAck(packet_id)]
        case mqtt.PingReq():
            return [mqtt.PingResp()]
        case mqtt.Disconnect():
            return None
    return []


@dataclass
class RawHub:
    """`port` listens on localhost; `seen` are the packets that came; `open_connections` how many are not hung up."""

    port: int = 0
    seen: list[mqtt.Packet] = field(default_factory=list)
    open_connections: int = 0


@asynccontextmanager
async def open_raw_hub(files: CertificateFiles, reply: Reply = behave) -> AsyncIterator[RawHub]:
    """Serves while the block runs."""
    hub, running = RawHub(), set[asyncio.Task[object]]()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.chain, files.key)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        hub.open_connections += 1
        try:
            await _talk(hub, reply, reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            hub.open_connections -= 1
            running.discard(task)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    hub.port = server.sockets[0].getsockname()[1]
    try:
        yield hub
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _talk(hub: RawHub, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    decoder = mqtt.PacketDecoder()
    while data := await reader.read(4096):
        for packet in decoder.feed(data):
            hub.seen.append(packet)
            answers = reply(packet)
            if answers is None:
                return
            writer.write(b"".join(mqtt.encode(answer) for answer in answers))
            await writer.drain()
