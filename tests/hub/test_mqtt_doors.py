"""The MQTT door under pressure: too many, too fast, too slow, wrong keys, a storm, the end."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from edgeferry.app.hub import RunningHub
from edgeferry.hub import mqtt_pipe
from edgeferry.transport import accept_loop
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import make_sas_token, make_user_name, parse_connection_string
from edgeferry.wire.iothub_topics import TWIN_RESPONSE_FILTER
from edgeferry.wire.service_api import Identity
from polling import poll
from raw_mqtt import RawClient, open_raw

GET_TWIN = mqtt.Publish("$iothub/twin/GET/?$rid=1", b"", 0)
Opener = Callable[..., Any]


def is_true(check: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    """For `poll`."""

    async def ask() -> bool:
        return check()

    return ask


async def is_let_in(hub: RunningHub, **more: Any) -> bool:
    """Whether one more client, of an identity of its own, may connect."""
    text = await hub.add_module("d", f"one{time.monotonic_ns()}")
    try:
        async with open_raw(hub, **more) as client:
            return await client.connect(text) == mqtt.ConnAck(0, False)
    except (OSError, ssl.SSLError):
        return False


# --- too many ---------------------------------------------------------------------------------------------------------
async def test_an_address_gets_its_share_and_others_theirs(open_limited: Opener) -> None:
    async with open_limited(connections_per_address=2) as hub, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_raw(hub, source="127.0.0.2")) for _ in range(2)]
        assert not await is_let_in(hub, source="127.0.0.2")
        assert hub.counters.refused_by_address == 1 and hub.counters.connections == 2
        assert await is_let_in(hub, source="127.0.0.3")
        clients[0].writer.close()
        await poll(is_true(lambda: hub.counters.connections == 1))
        assert await is_let_in(hub, source="127.0.0.2")


async def test_there_is_a_limit_in_all(open_limited: Opener) -> None:
    async with open_limited(connections=1) as hub, open_raw(hub):
        assert not await is_let_in(hub, source="127.0.0.3")
        assert hub.counters.refused_in_all == 1


async def test_the_limit_in_all_leaves_files_for_the_rest(open_limited: Opener) -> None:
    async with open_limited(connections=10**9) as hub:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert files == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert await is_let_in(hub)
        left = files - accept_loop.get_connections_max(files) - accept_loop.get_http_connections_max(files)
        assert 0 < left <= files // 8 and accept_loop.get_connections_max(files) > files // 2


async def test_without_file_descriptors_the_door_pauses_and_goes_on(
    open_limited: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_loop, "ACCEPT_PAUSE_S", 0.2)
    async with open_limited() as hub:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        waiting = socket.create_connection(("127.0.0.1", hub.mqtt_port))
        await poll(is_true(lambda: hub.counters.connections == 1))
        other = socket.socket()
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (other.fileno() + 1, before[1]))
            other.connect(("127.0.0.1", hub.mqtt_port))
            await poll(is_true(lambda: hub.counters.accept_pauses >= 2))
            used, started = time.process_time(), time.monotonic()
            await asyncio.sleep(0.5)
            assert time.process_time() - used < (time.monotonic() - started) / 2
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        await poll(is_true(lambda: hub.counters.connections == 2))
        waiting.close()
        other.close()


# --- too fast ---------------------------------------------------------------------------------------------------------
async def count_answers(client: RawClient, seconds: float) -> int:
    """Asks for the twin as fast as it can; every answer must be a good one."""
    count, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        await client.send(*[GET_TWIN] * 20)
        for _ in range(20):
            answer = await client.receive()
            assert isinstance(answer, mqtt.Publish) and answer.topic == "$iothub/twin/res/200/?$rid=1"
            count += 1
    return count


async def test_who_asks_too_fast_is_answered_late_and_well_and_others_at_once(open_limited: Opener) -> None:
    async with open_limited(packets_per_s=100, packets_burst=50) as hub:
        loud_text, calm_text = await hub.add_module("d", "loud"), await hub.add_module("d", "calm")
        async with open_raw(hub) as loud, open_raw(hub) as calm:
            await loud.connect(loud_text)
            await loud.subscribe(TWIN_RESPONSE_FILTER)
            await calm.connect(calm_text)
            asking, started = asyncio.create_task(count_answers(loud, 1.5)), time.monotonic()
            await asyncio.sleep(1)
            asked_at = time.monotonic()
            await calm.send(GET_TWIN)
            assert isinstance(await calm.receive(), mqtt.Publish)
            assert time.monotonic() - asked_at < 0.5
            count = await asking
            assert 50 < count <= 50 + 100 * (time.monotonic() - started) + 20
            assert hub.counters.delayed_s > 0.5


async def test_to_reconnect_does_not_refill_the_bucket(open_limited: Opener) -> None:
    async with open_limited(packets_per_s=20, packets_burst=20) as hub:
        text, started, count = await hub.add_module("d", "a"), time.monotonic(), 0
        for _ in range(3):
            async with open_raw(hub) as client:
                await client.connect(text)
                count += await count_answers(client, 0.2)
        assert 20 < count <= 20 + 20 * (time.monotonic() - started) + 1


async def test_the_task_of_who_waits_for_its_turn_ends_with_its_connection(open_limited: Opener) -> None:
    async with open_limited(packets_per_s=0.01, packets_burst=1) as hub:
        async with open_raw(hub) as client:
            await client.connect(await hub.add_module("d", "a"))
            await client.send(*[GET_TWIN] * 3)
            assert await client.receive() is not None
            link = hub.rooms.presence.find(Identity("d", "a"))
            assert link is not None
            link.close("deleted")
            assert await client.receive(5.0) is None
        await poll(is_true(lambda: hub.counters.connections == 0), 5.0)


async def test_a_wrong_key_is_told_later_and_later_and_a_right_one_at_once(hub: RunningHub) -> None:
    text = await hub.add_module("d", "a")
    known = parse_connection_string(text)
    wrong = text.replace(known.shared_access_key, "d3Jvbmc=")

    async def measure(string: str, source: str = "127.0.0.2") -> tuple[mqtt.Packet | None, float]:
        async with open_raw(hub, source=source) as client:
            started = time.monotonic()
            return await client.connect(string), time.monotonic() - started

    for _ in range(20):
        assert (await measure(wrong))[0] == mqtt.ConnAck(5)
    times = [await measure(wrong) for _ in range(4)]
    assert all(packet == mqtt.ConnAck(5) for packet, _ in times)
    assert all(took >= 0.1 * 2**n for n, (_, took) in enumerate(times))
    assert (await measure(wrong, "127.0.0.3"))[1] < 0.5
    packet, took = await measure(text)
    assert packet == mqtt.ConnAck(0, False) and took < 0.5
    assert hub.counters.refused_connects == 25


# --- too slow ---------------------------------------------------------------------------------------------------------
async def drip(client: RawClient, data: bytes, pause_s: float) -> float:
    """Sends byte by byte until the hub ends the connection; returns after how many seconds."""
    started, ended = time.monotonic(), asyncio.create_task(client.reader.read())
    for byte in data:
        client.writer.write(bytes((byte,)))
        if (await asyncio.wait({ended}, timeout=pause_s))[0]:
            break
    await asyncio.wait_for(ended, 10)
    return time.monotonic() - started


async def test_connect_that_never_is_whole_ends_the_connection(open_limited: Opener) -> None:
    async with open_limited(connect_s=0.6) as hub, open_raw(hub) as client:
        assert await drip(client, mqtt.encode(mqtt.Connect("d/a" * 50)), 0.05) < 3


@pytest.mark.parametrize("keepalive_s", [0, 60])
async def test_a_packet_that_never_is_whole_ends_the_connection(open_limited: Opener, keepalive_s: int) -> None:
    async with open_limited(packet_s=0.6) as hub, open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"), keepalive_s=keepalive_s)
        await asyncio.sleep(1)  # silence without a packet that began is no reason
        await client.send(mqtt.PingReq())
        assert await client.receive() == mqtt.PingResp()
        message = mqtt.encode(mqtt.Publish("devices/d/modules/a/messages/events/", b"x" * 200, 1, 1))
        assert 0.5 < await drip(client, message, 0.05) < 3


async def test_a_slow_packet_that_gets_done_in_time_is_one(open_limited: Opener) -> None:
    async with open_limited(packet_s=5) as hub, open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"))
        for byte in mqtt.encode(mqtt.Publish("devices/d/modules/a/messages/events/", b"x", 1, 1)):
            client.writer.write(bytes((byte,)))
            await asyncio.sleep(0.01)
        assert await client.receive() == mqtt.PubAck(1)


async def test_who_sends_nothing_at_all_holds_no_slot_and_is_let_go(open_limited: Opener) -> None:
    async with open_limited(handshakes=1, connect_s=1.0) as hub:
        silent = [await asyncio.open_connection("127.0.0.1", hub.mqtt_port) for _ in range(5)]
        await poll(is_true(lambda: hub.counters.connections == 5))
        assert await asyncio.wait_for(is_let_in(hub), 0.9)
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        await poll(is_true(lambda: hub.counters.connections == 0))
        assert hub.counters.handshake_failures == 5


async def test_who_begins_a_handshake_and_stops_gives_its_slot_back(
    open_limited: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_loop, "SLOT_HOLD_S", 0.2)
    async with open_limited(handshakes=1, handshake_s=2.0) as hub:
        stuck = [await asyncio.open_connection("127.0.0.1", hub.mqtt_port) for _ in range(3)]
        for _, writer in stuck:
            writer.write(b"\x16\x03\x01")
        await poll(is_true(lambda: hub.counters.connections == 3))
        assert await asyncio.wait_for(is_let_in(hub), 1.8)
        for reader, writer in stuck:
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        await poll(is_true(lambda: hub.counters.connections == 0))


async def test_what_is_no_handshake_is_let_go_and_counted(hub: RunningHub) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.mqtt_port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1000), 5)
    await poll(is_true(lambda: hub.counters.handshake_failures == 1 and hub.counters.connections == 0))
    writer.close()


async def test_nothing_is_read_behind_a_connect_that_is_not_answered(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, admit, gate = await hub.add_module("d", "a"), hub.rooms.registry.admit, asyncio.Event()

    async def admit_late(connect: mqtt.Connect) -> Any:
        await gate.wait()
        return await admit(connect)

    monkeypatch.setattr(hub.rooms.registry, "admit", admit_late)
    known = parse_connection_string(text)
    token = make_sas_token(known.resource, known.shared_access_key, int(time.time()) + 60).encode()
    async with open_raw(hub) as client:
        client.writer.write(mqtt.encode(mqtt.Connect("d/a", True, 60, make_user_name("localhost", "d", "a"), token)))
        await asyncio.sleep(0.2)
        message = mqtt.encode(mqtt.Publish("devices/d/modules/a/messages/events/", b"x" * 10_000))
        client.writer.write(message * 20)
        await asyncio.sleep(0.5)
        assert hub.counters.bytes_in < 2 * mqtt_pipe.UNKNOWN_MAX_BYTES
        client.writer.transport.abort()
        gate.set()
    await poll(is_true(lambda: hub.counters.connections == 0))


async def test_who_does_not_read_its_answers_is_dropped(open_limited: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_pipe, "UNSENT_MAX_BYTES", 100_000)
    async with open_limited(packets_per_s=0) as hub, open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"))
        client.writer.transport.pause_reading()

        async def ask() -> None:
            with pytest.raises(ConnectionError):
                while True:
                    await client.send(*[GET_TWIN] * 200)

        await asyncio.wait_for(ask(), 60)
        await poll(is_true(lambda: hub.counters.connections == 0))


async def test_who_does_not_read_cannot_put_off_the_end(open_limited: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_pipe, "CLOSE_PATIENCE_S", 0.5)
    async with open_limited() as hub, open_raw(hub) as client:
        await make_deaf(hub, client)
        link = hub.rooms.presence.find(Identity("d", "a"))
        assert link is not None
        link.close("deleted")
        await poll(is_true(lambda: hub.counters.connections == 0), 3.0)
        client.writer.transport.abort()


async def test_time_in_which_the_hub_lets_a_client_wait_is_no_silence(open_limited: Opener) -> None:
    async with open_limited(packets_per_s=10, packets_burst=1) as hub, open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"), keepalive_s=1)
        await client.send(*[mqtt.PingReq()] * 40)
        assert [await client.receive() for _ in range(40)] == [mqtt.PingResp()] * 40
        assert await client.receive(4.0) is None


# --- a storm, and the end ---------------------------------------------------------------------------------------------
async def connect_all(hub: RunningHub, stack: AsyncExitStack, count: int) -> list[RawClient]:
    """All at once, each a module of its own."""
    strings = [await hub.add_module("d", f"m{number}") for number in range(count)]

    async def one(text: str) -> RawClient:
        client = await stack.enter_async_context(open_raw(hub))
        assert isinstance(await client.connect(text), mqtt.ConnAck)
        return client

    return list(await asyncio.gather(*map(one, strings)))


async def test_a_storm_goes_through_few_slots_without_a_failure(open_limited: Opener) -> None:
    async with open_limited(handshakes=4) as hub, AsyncExitStack() as stack:
        await connect_all(hub, stack, 200)
        counters = hub.counters
        assert (counters.connections, counters.accepted, counters.handshake_failures) == (200, 200, 0)
        assert (counters.packets_in, counters.packets_out) == (200, 200)
        assert counters.bytes_out == 200 * len(mqtt.encode(mqtt.ConnAck(0)))


async def test_a_stop_ends_every_connection_after_what_was_written(open_limited: Opener) -> None:
    async with AsyncExitStack() as stack:
        async with open_limited() as hub:
            clients = await connect_all(hub, stack, 50)
            link = hub.rooms.presence.find(Identity("d", "m7"))
            assert link is not None
            await clients[7].subscribe("$iothub/methods/POST/#")
            link.send_method("last", "9", b"x" * 100_000)
            started = time.monotonic()
        assert time.monotonic() - started < 10
        assert hub.counters.connections == 0
        last = await clients[7].receive()
        assert isinstance(last, mqtt.Publish) and len(last.payload) == 100_000
        assert [await client.receive() for client in clients] == [None] * 50
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("mqtt", "tls"))]


async def test_a_stop_does_not_wait_for_who_does_not_read_or_never_spoke(open_limited: Opener) -> None:
    async with AsyncExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        async with open_limited(stop_s=1.0) as hub:
            silent.connect(("127.0.0.1", hub.mqtt_port))
            deaf = await stack.enter_async_context(open_raw(hub))
            await make_deaf(hub, deaf)
            started = time.monotonic()
        assert time.monotonic() - started < 5
        assert hub.counters.connections == 0
        deaf.writer.transport.abort()


async def make_deaf(hub: RunningHub, deaf: RawClient) -> None:
    """Lets the hub write more than the client's side takes."""
    await deaf.connect(await hub.add_module("d", "a"))
    await deaf.subscribe("$iothub/methods/POST/#")
    deaf.writer.transport.pause_reading()
    link = hub.rooms.presence.find(Identity("d", "a"))
    assert link is not None
    carrier = link._pipe._carrier
    for number in range(1000):
        if carrier.get_write_buffer_size() > 500_000:
            break
        link.send_method("m", str(number), b"x" * 100_000)
        await asyncio.sleep(0.005)
    assert 500_000 < carrier.get_write_buffer_size() <= mqtt_pipe.UNSENT_MAX_BYTES
