"""MQTT over WebSockets on the HTTPS port, spoken to by a real WebSocket client and frame by frame."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from edgeferry.app.hub import HubSettings, RunningHub, open_hub
from edgeferry.hub import mqtt_pipe
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import make_client_id, make_sas_token, make_user_name, parse_connection_string
from edgeferry.wire.iothub_topics import METHOD_FILTER, TWIN_RESPONSE_FILTER
from edgeferry.wire.service_api import Identity
from polling import poll

PATH = "/$iothub/websocket"
Opener = Callable[..., Any]
GET_TWIN = mqtt.Publish("$iothub/twin/GET/?$rid=1", b"", 1, 7)


def make_tls(hub: RunningHub) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(hub.ca_pem_path))


def make_connect(text: str, keepalive_s: int = 60) -> mqtt.Connect:
    known = parse_connection_string(text)
    token = make_sas_token(known.resource, known.shared_access_key, int(time.time()) + 60).encode()
    device_id = known.device_id or ""
    user = make_user_name(known.host_name, device_id, known.module_id)
    return mqtt.Connect(make_client_id(device_id, known.module_id), True, keepalive_s, user, token)


class WebSocketClient:
    """Sends bytes as messages, receives packets; `None` is the end of the connection."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.decoder = mqtt.PacketDecoder()
        self.waiting: list[mqtt.Packet] = []

    async def send(self, *packets: mqtt.Packet) -> None:
        for packet in packets:
            await self.socket.send(mqtt.encode(packet))

    async def receive(self, timeout_s: float = 10.0) -> mqtt.Packet | None:
        async with asyncio.timeout(timeout_s):
            while not self.waiting:
                try:
                    data = await self.socket.recv()
                except ConnectionClosed:
                    return None
                assert isinstance(data, bytes)
                self.waiting += self.decoder.feed(data)
        return self.waiting.pop(0)

    async def receive_end(self) -> int:
        """The code with which the hub closes, after whatever it still says."""
        while await self.receive() is not None:
            pass
        return self.socket.close_code or 0


@asynccontextmanager
async def open_socket(hub: RunningHub, path: str = PATH, **more: Any) -> AsyncIterator[WebSocketClient]:
    more = {"subprotocols": ["mqtt"], "ssl": make_tls(hub), "close_timeout": 1, "ping_interval": None, **more}
    async with connect(f"wss://127.0.0.1:{hub.https_port}{path}", **more) as socket:
        yield WebSocketClient(socket)


async def is_gone(hub: RunningHub) -> None:
    async def ask() -> bool:
        return hub.counters.connections == 0

    await poll(ask)


# --- the upgrade ------------------------------------------------------------------------------------------------------
async def test_a_client_connects_asks_and_is_answered_one_packet_a_message(hub: RunningHub) -> None:
    async with open_socket(hub, PATH + "?iothub-no-client-cert=true") as client:
        assert client.socket.subprotocol == "mqtt" and not client.socket.response.headers.get_all(
            "Sec-WebSocket-Extensions"
        )
        await client.send(make_connect(await hub.add_module("d", "a")))
        assert await client.receive() == mqtt.ConnAck(0, False)
        await client.send(GET_TWIN)
        answer = await client.socket.recv()
        assert isinstance(answer, bytes)
        (packet,) = mqtt.PacketDecoder().feed(answer)
        assert isinstance(packet, mqtt.Publish) and packet.topic == "$iothub/twin/res/200/?$rid=1"
        assert await client.receive() == mqtt.PubAck(7)
        assert hub.counters.connections == 1


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        ("/", {}, 404),
        ("/devices", {}, 404),
        ("/files/x", {}, 404),
        ("/$iothub/websocket/more", {}, 404),
        (PATH, {"subprotocols": None}, 400),
        (PATH, {"subprotocols": ["amqp"]}, 400),
    ],
)
async def test_other_paths_and_protocols_refuse_the_upgrade(
    hub: RunningHub, path: str, more: dict[str, Any], status: int
) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with open_socket(hub, path, **more):
            pass
    assert refusal.value.response.status_code == status
    assert hub.counters.connections == 0


async def test_a_plain_request_of_the_path_is_answered_404(hub: RunningHub) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.https_port, ssl=make_tls(hub))
    writer.write(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert b" 404 " in await reader.readline()
    writer.close()


async def test_the_limits_of_the_doors_hold_here_too(open_limited: Opener) -> None:
    async with open_limited(connections_per_address=1) as hub, open_socket(hub):
        with pytest.raises(InvalidStatus) as refusal:
            async with open_socket(hub):
                pass
        assert refusal.value.response.status_code == 503
        assert (hub.counters.refused_by_address, hub.counters.connections) == (1, 1)


async def test_more_sockets_than_http_connections_leave_the_service_reachable(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edgeferry.app import hub_doors
    from edgeferry.transport.http_server import ServerLimits

    monkeypatch.setattr(hub_doors, "HTTP_LIMITS", ServerLimits(connections=3, silence_s=1.0))
    async with open_hub(HubSettings(tmp_path / "other", mqtt_port=0, https_port=0)) as other:
        clients = [connect_to(other) for _ in range(6)]
        opened = [await client.__aenter__() for client in clients]
        await opened[0].send(make_connect(await other.add_module("d", "a")))
        await asyncio.sleep(1.5)  # the HTTP server's limit for silence is not theirs
        assert await opened[0].receive() == mqtt.ConnAck(0, False)
        reader, writer = await asyncio.open_connection("127.0.0.1", other.https_port, ssl=make_tls(other))
        writer.write(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 404 " in await reader.readline()
        writer.close()
        for client in clients:
            await client.__aexit__(None, None, None)


def connect_to(hub: RunningHub) -> Any:
    return open_socket(hub)


# --- messages and packets ---------------------------------------------------------------------------------------------
@pytest.fixture
def encoded_talk() -> bytes:
    """What comes behind CONNECT: three answers are wanted."""
    talk = (mqtt.Subscribe(1, ((TWIN_RESPONSE_FILTER, 1),)), GET_TWIN, mqtt.PingReq())
    return b"".join(map(mqtt.encode, talk))


async def test_packets_may_span_messages_and_messages_hold_several(hub: RunningHub, encoded_talk: bytes) -> None:
    text = await hub.add_module("d", "a")
    stream = mqtt.encode(make_connect(text)) + encoded_talk
    loop = asyncio.get_running_loop()

    @settings(max_examples=30, deadline=None)
    @given(cuts=st.lists(st.integers(0, len(stream)), max_size=30), fragmented=st.booleans())
    def check(cuts: list[int], fragmented: bool) -> None:
        edges = [0, *sorted(cuts), len(stream)]
        pieces = [stream[start:end] for start, end in pairwise(edges)]
        asyncio.run_coroutine_threadsafe(talk_in(hub, pieces, fragmented=fragmented), loop).result(30)

    await asyncio.to_thread(check)


async def talk_in(hub: RunningHub, pieces: list[bytes], *, fragmented: bool) -> None:
    """Sends pieces as messages, or as the fragments of one; the answers are the same."""
    async with open_socket(hub) as client:
        if fragmented:
            await client.socket.send(iter(pieces))
        else:
            for piece in pieces:
                await client.socket.send(piece)
        answers = [await client.receive() for _ in range(5)]
        assert [type(answer) for answer in answers] == [
            mqtt.ConnAck,
            mqtt.SubAck,
            mqtt.Publish,
            mqtt.PubAck,
            mqtt.PingResp,
        ]


async def test_text_closes_the_connection(hub: RunningHub) -> None:
    async with open_socket(hub) as client:
        await client.socket.send("CONNECT")
        assert await client.receive_end() == 1003
    await is_gone(hub)


async def test_a_message_of_who_is_unknown_is_bounded_and_then_of_iot_hubs_size(hub: RunningHub) -> None:
    async with open_socket(hub) as client:
        await client.socket.send(b"\x10" + b"x" * 17_000)
        assert await client.receive_end() == 1009
    async with open_socket(hub) as client:
        await client.send(make_connect(await hub.add_module("d", "a")))
        assert await client.receive() == mqtt.ConnAck(0, False)
        topic = "devices/d/modules/a/messages/events/"
        await client.send(mqtt.Publish(topic, b"x" * 256 * 1024, 1, 1))
        assert await client.receive() == mqtt.PubAck(1)
        await client.socket.send(b"\x30" + b"x" * 400_000)
        assert await client.receive_end() == 1009
    await is_gone(hub)


@pytest.mark.parametrize("flaw", [b"\x82\x03abc", b"\xff\xff\xff\xff", b"\xc2\x85\x00\x00\x00\x00abcde"])
async def test_frames_against_the_rules_close_the_connection(hub: RunningHub, flaw: bytes) -> None:
    async with open_socket(hub) as client:
        client.socket.transport.write(flaw)
        assert await client.receive_end() == 1002
    await is_gone(hub)


async def test_a_refused_connect_is_told_and_closed(hub: RunningHub) -> None:
    text = await hub.add_module("d", "a")
    wrong = text.replace(parse_connection_string(text).shared_access_key, "d3Jvbmc=")
    async with open_socket(hub) as client:
        await client.send(make_connect(wrong))
        assert await client.receive() == mqtt.ConnAck(5)
        assert await client.receive_end() == 1000
    assert hub.counters.refused_connects == 1


async def test_a_ping_is_answered_and_none_is_sent(hub: RunningHub) -> None:
    async with open_socket(hub) as client:
        await client.send(make_connect(await hub.add_module("d", "a")))
        await client.receive()
        await asyncio.wait_for(await client.socket.ping(), 5)
        assert hub.counters.connections == 1


# --- slow, fast and deaf ----------------------------------------------------------------------------------------------
async def test_silence_ends_the_connection_and_a_websocket_ping_does_not_help(hub: RunningHub) -> None:
    async with open_socket(hub) as client:
        await client.send(make_connect(await hub.add_module("d", "a"), keepalive_s=1))
        await client.receive()
        started = time.monotonic()
        with pytest.raises(ConnectionClosed):
            while time.monotonic() - started < 5:
                await client.socket.ping()
                await asyncio.sleep(0.1)
        assert 1.0 < time.monotonic() - started < 4


async def test_connect_that_never_comes_ends_the_connection(open_limited: Opener) -> None:
    async with open_limited(connect_s=0.5) as hub, open_socket(hub) as client:
        started = time.monotonic()
        await client.receive_end()
        assert 0.3 < time.monotonic() - started < 3


async def test_a_frame_that_never_is_whole_ends_the_connection(open_limited: Opener) -> None:
    async with open_limited(packet_s=0.5) as hub, open_socket(hub) as client:
        await client.send(make_connect(await hub.add_module("d", "a"), keepalive_s=0))
        await client.receive()
        frame = Frame(Opcode.BINARY, mqtt.encode(GET_TWIN) * 20).serialize(mask=True)
        started, ended = time.monotonic(), asyncio.create_task(client.receive_end())
        for byte in frame:
            client.socket.transport.write(bytes((byte,)))
            if (await asyncio.wait({ended}, timeout=0.05))[0]:
                break
        await asyncio.wait_for(ended, 5)
        assert 0.3 < time.monotonic() - started < 3


async def test_who_asks_too_fast_is_answered_late_and_well(open_limited: Opener) -> None:
    async with open_limited(packets_per_s=50, packets_burst=10) as hub, open_socket(hub) as client:
        await client.send(make_connect(await hub.add_module("d", "a")))
        await client.receive()
        started = time.monotonic()
        await client.send(*[mqtt.PingReq()] * 60)
        assert [await client.receive() for _ in range(60)] == [mqtt.PingResp()] * 60
        assert time.monotonic() - started > 0.9
        assert hub.counters.delayed_s > 0.5


@pytest.mark.parametrize("flood", ["twin", "ping"])
async def test_who_does_not_read_is_dropped(open_limited: Opener, monkeypatch: pytest.MonkeyPatch, flood: str) -> None:
    monkeypatch.setattr(mqtt_pipe, "UNSENT_MAX_BYTES", 100_000)
    async with open_limited(packets_per_s=0) as hub, open_socket(hub) as client:
        await client.send(make_connect(await hub.add_module("d", "a")))
        await client.receive()
        client.socket.transport.pause_reading()
        frames = {"twin": (Opcode.BINARY, mqtt.encode(GET_TWIN)), "ping": (Opcode.PING, b"x" * 125)}
        data = Frame(*frames[flood]).serialize(mask=True) * 100
        async with asyncio.timeout(30):
            while hub.counters.connections and not client.socket.transport.is_closing():
                client.socket.transport.write(data)
                await asyncio.sleep(0.001)
        await is_gone(hub)
        client.socket.transport.abort()


async def test_a_stop_closes_every_socket_after_what_was_written(open_limited: Opener) -> None:
    async with open_limited() as hub:
        opened = open_socket(hub)
        client = await opened.__aenter__()
        await client.send(make_connect(await hub.add_module("d", "a")))
        await client.receive()
        await client.send(mqtt.Subscribe(1, ((METHOD_FILTER, 1),)))
        await client.receive()
        link = hub.rooms.presence.find(Identity("d", "a"))
        assert link is not None
        link.send_method("last", "9", json.dumps("x" * 100_000).encode())
        started = time.monotonic()
    assert time.monotonic() - started < 5
    last = await client.receive()
    assert isinstance(last, mqtt.Publish) and len(last.payload) == 100_002
    assert await client.receive_end() == 1000
    assert hub.counters.connections == 0
    await opened.__aexit__(None, None, None)


async def test_a_connection_that_is_gone_leaves_nothing_behind(hub: RunningHub) -> None:
    from edgeferry.hub.mqtt_websocket import WebSocketGuest

    text = await hub.add_module("d", "a")
    for _ in range(5):
        async with open_socket(hub) as client:
            await client.send(make_connect(text))
            await client.receive()
    await is_gone(hub)

    async def are_collected() -> bool:
        gc.collect()
        return not [one for one in gc.get_objects() if isinstance(one, WebSocketGuest | mqtt_pipe.MqttPipe)]

    await poll(are_collected)
