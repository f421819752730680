"""The MQTT door, spoken to byte by byte: what SDKs never do, and what they do at the worst moment."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import json
import random
import socket
import time
from collections import Counter
from dataclasses import replace

import pytest

from edgeferry.app.hub import RunningHub
from edgeferry.errors import NoSpace
from edgeferry.hub import mqtt_front
from edgeferry.hub.mqtt_pipe import MqttHall
from edgeferry.hub.registry import Admission
from edgeferry.storage.hub_events import InputQueued
from edgeferry.storage.hub_queues import QueuedMessage
from edgeferry.storage.hub_tables import HubTables
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import make_sas_token, make_user_name, parse_connection_string
from edgeferry.wire.iothub_topics import DESIRED_PATCH_FILTER, METHOD_FILTER, TWIN_RESPONSE_FILTER
from edgeferry.wire.mqtt_session import INFLIGHT_MAX
from edgeferry.wire.service_api import Identity, MethodRequest
from polling import poll
from raw_mqtt import RawClient, open_raw

EVENTS = "devices/d/modules/a/messages/events/"
INPUTS_OF_B = "devices/d/modules/b/inputs/#"
A, B = Identity("d", "a"), Identity("d", "b")


async def is_closed(client: RawClient) -> bool:
    """Whether the hub ends the connection, after whatever it still says."""
    while await client.receive() is not None:
        pass
    return True


def test_the_attribute_that_shrinks_tls_buffers_exists() -> None:
    assert isinstance(asyncio.sslproto.SSLProtocol.max_size, int)
    mqtt_front.shrink_tls_buffers()
    assert asyncio.sslproto.SSLProtocol.max_size == mqtt_front.TLS_BUFFER_BYTES


async def test_no_bytes_are_spent_on_tickets_for_sessions_that_no_device_resumes(hub: RunningHub) -> None:
    async with open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"))
        tls = client.writer.get_extra_info("ssl_object")
        assert (tls.version(), tls.session.has_ticket) == ("TLSv1.3", False)


async def test_a_good_connect_is_accepted_and_its_session_found_again(hub: RunningHub) -> None:
    text = await hub.add_module("d", "a")
    async with open_raw(hub) as client:
        assert await client.connect(text) == mqtt.ConnAck(0, False)
    async with open_raw(hub) as client:
        assert await client.connect(text) == mqtt.ConnAck(0, True)
    async with open_raw(hub) as client:
        assert await client.connect(text, clean=True) == mqtt.ConnAck(0, False)
    async with open_raw(hub) as client:
        assert await client.connect(text) == mqtt.ConnAck(0, False)


@pytest.mark.parametrize("flaw", ["token", "device", "host", "client id", "expired", "no password", "level"])
async def test_a_bad_connect_is_refused_and_closed(hub: RunningHub, flaw: str) -> None:
    known = parse_connection_string(await hub.add_module("d", "a"))
    await hub.add_module("d", "b")
    resource = {"device": "localhost/devices/d", "host": "elsewhere/devices/d/modules/a"}.get(flaw, known.resource)
    expires_at = int(time.time()) + (-5 if flaw == "expired" else 60)
    token = make_sas_token(resource, known.shared_access_key, expires_at).encode()
    good = mqtt.Connect("d/a", False, 60, make_user_name("localhost", "d", "a"), token)
    bad = {
        "token": replace(good, password=token[:-3] + b"xyz"),
        "client id": replace(good, client_id="d/b"),
        "no password": replace(good, password=None),
        "level": replace(good, level=3),
    }
    async with open_raw(hub) as client:
        await client.send(bad.get(flaw, good))
        assert await client.receive() == mqtt.ConnAck(1 if flaw == "level" else 5)
        assert await is_closed(client)
    assert hub.rooms.presence.find(A) is None


async def test_a_disabled_device_shuts_its_modules_out(hub: RunningHub) -> None:
    text = await hub.add_module("d", "a")
    await hub.rooms.registry.change(Identity("d"), None, lambda record: replace(record, is_enabled=False))
    async with open_raw(hub) as client:
        assert await client.connect(text) == mqtt.ConnAck(5)


@pytest.mark.parametrize(
    "packet",
    [
        mqtt.Publish("x/y", b"", 1, 1),
        mqtt.Publish("devices/d/modules/b/messages/events/", b"", 1, 1),
        mqtt.Publish("$iothub/twin/GET/", b"", 1, 1),
        mqtt.Publish("$iothub/methods/res/200/", b"{}", 0),
        mqtt.Publish(EVENTS, b"x" * (256 * 1024 + 1), 1, 1),
        mqtt.Connect("d/a"),
        mqtt.PingResp(),
        mqtt.Subscribe(1, tuple((f"devices/d/modules/a/inputs/{n}", 1) for n in range(6))),
        b"\x34\x05\x00\x01a\x00\x01",
        b"\x00\x00",
        b"\x30\xff\xff\xff\x7f",
    ],
)
async def test_a_violation_closes_the_connection(hub: RunningHub, packet: mqtt.Packet | bytes) -> None:
    async with open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"))
        client.writer.write(packet if isinstance(packet, bytes) else mqtt.encode(packet))
        assert await is_closed(client)


async def test_only_own_filters_are_granted(hub: RunningHub) -> None:
    async with open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"))
        granted = await client.subscribe(TWIN_RESPONSE_FILTER, INPUTS_OF_B, "#", qos=2)
        assert granted == mqtt.SubAck(99, (1, 0x80, 0x80))


async def test_get_twin_is_never_answered_with_a_refusal(hub: RunningHub) -> None:
    text = await hub.add_module("d", "a")
    async with open_raw(hub) as client:
        await client.connect(text)
        await client.subscribe(TWIN_RESPONSE_FILTER)
        await client.send(mqtt.Publish("$iothub/twin/GET/?$rid=7", b" ", 1, 1))
        answer = await client.receive()
        assert isinstance(answer, mqtt.Publish) and answer.topic == "$iothub/twin/res/200/?$rid=7" and answer.qos == 0
        assert json.loads(answer.payload) == {"desired": {"$version": 1}, "reported": {"$version": 1}}
        assert await client.receive() == mqtt.PubAck(1)
        await hub.rooms.db.write(lambda tables: tables.delete_identity(A))
        await client.send(mqtt.Publish("$iothub/twin/GET/?$rid=8", b"", 1, 2))
        while (packet := await client.receive()) is not None:
            assert not isinstance(packet, mqtt.Publish)


async def test_get_twin_is_answered_also_to_who_did_not_subscribe(hub: RunningHub) -> None:
    async with open_raw(hub) as client:  # the Python SDK asks like this after a reconnect
        await client.connect(await hub.add_module("d", "a"))
        await client.send(mqtt.Publish("$iothub/twin/GET/?$rid=7", b" ", 1, 1))
        answer = await client.receive()
        assert isinstance(answer, mqtt.Publish) and answer.topic == "$iothub/twin/res/200/?$rid=7"


async def test_a_reported_patch_is_answered_with_its_version_or_its_flaw(hub: RunningHub) -> None:
    async with open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"))
        await client.subscribe(TWIN_RESPONSE_FILTER)
        bodies = {
            b'{"a": 1}': "204/?$rid=1&$version=2",
            b"[": "400/?$rid=1",
            b'{"a": "' + b"x" * 5000 + b'"}': "413/?$rid=1",
        }
        for body, wanted in bodies.items():
            await client.send(mqtt.Publish("$iothub/twin/PATCH/properties/reported/?$rid=1", body))
            answer = await client.receive()
            assert isinstance(answer, mqtt.Publish) and answer.topic == f"$iothub/twin/res/{wanted}"


async def test_a_newer_connection_drops_the_older(hub: RunningHub) -> None:
    text = await hub.add_module("d", "a")
    async with open_raw(hub) as older, open_raw(hub) as newer:
        await older.connect(text)
        await newer.connect(text)
        assert await is_closed(older)
        await newer.subscribe(DESIRED_PATCH_FILTER)
        await hub.rooms.twins.write(A, {"properties": {"desired": {"x": 1}}}, if_match=None, replace_all=False)
        patch = await newer.receive()
        assert isinstance(patch, mqtt.Publish) and json.loads(patch.payload) == {"x": 1, "$version": 2}
        assert (await hub.rooms.twins.read(A)).facts.is_connected


async def test_an_expired_token_ends_the_connection(hub: RunningHub) -> None:
    async with open_raw(hub) as client:
        assert await client.connect(await hub.add_module("d", "a"), ttl_s=2) == mqtt.ConnAck(0, False)
        started = time.monotonic()
        assert await is_closed(client)
        assert 0.3 < time.monotonic() - started < 4


async def test_silence_ends_the_connection_and_a_ping_does_not(hub: RunningHub) -> None:
    async with open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"), keepalive_s=1)
        for _ in range(4):
            await asyncio.sleep(0.5)
            await client.send(mqtt.PingReq())
            assert await client.receive() == mqtt.PingResp()
        started = time.monotonic()
        assert await is_closed(client)
        assert 1.0 < time.monotonic() - started < 4


async def push(hub: RunningHub, count: int) -> None:
    far = time.time() + 60
    await hub.rooms.db.write(
        lambda tables: [tables.queues.push(B, QueuedMessage(0, "in", {}, b"%d" % n, far)) for n in range(count)]
    )


async def read_ids(hub: RunningHub) -> set[int]:
    return await hub.rooms.db.read(lambda tables: tables.queues.read(B, after=0, limit=10))


async def test_messages_that_are_over_before_they_were_acknowledged_hold_no_place(hub: RunningHub) -> None:
    text = await hub.add_module("d", "b")
    soon, far = time.time() + 1.0, time.time() + 600

    def fill(tables: HubTables) -> None:
        for number in range(INFLIGHT_MAX):
            tables.queues.push(B, QueuedMessage(0, "in", {}, b"%d" % number, soon))

    def push_one(tables: HubTables) -> None:
        tables.queues.push(B, QueuedMessage(0, "in", {}, b"new", far))
        tables.tell(InputQueued(B))

    await hub.rooms.db.write(fill)
    async with open_raw(hub) as client:  # it never acknowledges
        await client.connect(text)
        await client.subscribe(INPUTS_OF_B)
        assert len([await client.receive() for _ in range(INFLIGHT_MAX)]) == INFLIGHT_MAX
        await poll(lambda: is_past(soon))
        await hub.rooms.db.write(push_one)
        packet = await client.receive()
        assert isinstance(packet, mqtt.Publish) and packet.payload == b"new"
    async with open_raw(hub) as client:
        await client.connect(text)
        packet = await client.receive()
        assert isinstance(packet, mqtt.Publish) and (packet.payload, packet.dup) == (b"new", True)


async def is_past(at: float) -> bool:
    return time.time() > at


async def holds_back(client: RawClient) -> bool:
    """Whether the client takes no more from its socket: what it does not read piles up at the hub's side."""
    return client.reader._paused  # type: ignore[attr-defined,no-any-return] # nothing public tells


async def test_large_inputs_reach_a_client_that_reads_slowly(hub: RunningHub) -> None:
    text, far = await hub.add_module("d", "b"), time.time() + 600
    large = b"x" * 250_000
    await hub.rooms.db.write(
        lambda tables: [tables.queues.push(B, QueuedMessage(0, "in", {}, large, far)) for _ in range(24)]
    )
    async with open_raw(hub) as client:
        await client.connect(text)
        await client.send(mqtt.Subscribe(99, ((INPUTS_OF_B, 1),)))
        await poll(lambda: holds_back(client))
        seen = 0
        while seen < 24:
            packet = await client.receive()
            assert packet is not None, f"dropped after {seen}"
            if isinstance(packet, mqtt.Publish):
                seen += 1
                await client.send(mqtt.PubAck(packet.packet_id or 0))


async def test_inputs_arrive_once_the_store_is_back_on_the_same_connection(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, far = await hub.add_module("d", "b"), time.time() + 600

    def push_one(tables: HubTables) -> None:
        tables.queues.push(B, QueuedMessage(0, "in", {}, b"kept", far))
        tables.tell(InputQueued(B))

    failed = Counter[str]()

    async def has_failed(name: str) -> bool:
        return failed[name] > 0

    async with open_raw(hub) as client:
        await client.connect(text)
        await client.subscribe(INPUTS_OF_B)
        pushed = asyncio.create_task(hub.rooms.db.write(push_one))
        await asyncio.sleep(0)  # it has been handed over: what is written from now on fails
        for name in ("write", "read"):

            async def fail(_: object, name: str = name) -> None:
                failed[name] += 1
                raise NoSpace("the hub's disk is full")

            with monkeypatch.context() as patched:
                patched.setattr(hub.rooms.db, name, fail)
                await pushed
                await poll(lambda name=name: has_failed(name))  # type: ignore[misc] # bound now
        packet = await client.receive()
        assert isinstance(packet, mqtt.Publish) and packet.payload == b"kept"


async def test_a_filter_longer_than_any_input_is_refused(hub: RunningHub) -> None:
    async with open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "b"))
        granted = await client.subscribe(
            INPUTS_OF_B, "devices/d/modules/b/inputs/" + "x" * 600, INPUTS_OF_B[:-1] + "/" * 9
        )
        assert isinstance(granted, mqtt.SubAck) and granted.codes == (1, 0x80, 0x80)


async def test_a_store_that_cannot_write_refuses_a_connect_as_unavailable(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = await hub.add_module("d", "a")

    async def fail(_: object) -> None:
        raise NoSpace("the hub's disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(hub.rooms.db, "write", fail)
        async with open_raw(hub) as client:
            assert await client.connect(text) == mqtt.ConnAck(3)
            assert await is_closed(client)
    async with open_raw(hub) as client:
        assert await client.connect(text) == mqtt.ConnAck(0, False)


async def test_a_method_answer_that_is_no_json_reaches_the_caller_and_the_connection_stays(hub: RunningHub) -> None:
    async with open_raw(hub) as client:
        await client.connect(await hub.add_module("d", "a"))
        await client.subscribe(METHOD_FILTER)
        call = asyncio.create_task(hub.rooms.methods.call(A, MethodRequest("m", None, 10.0)))
        asked = await client.receive()
        assert isinstance(asked, mqtt.Publish)
        rid = asked.topic.partition("$rid=")[2]
        await client.send(mqtt.Publish(f"$iothub/methods/res/200/?$rid={rid}", b"{no json", 1, 7))
        assert await client.receive() == mqtt.PubAck(7)
        assert (await call)["status"] == 502


async def test_a_client_that_subscribes_anew_while_it_acknowledges_is_sent_nothing_twice(hub: RunningHub) -> None:
    text = await hub.add_module("d", "b")
    async with open_raw(hub) as client:
        await client.connect(text)
        await client.subscribe(INPUTS_OF_B)
    for _ in range(10):
        await push(hub, 20)
        async with open_raw(hub) as client:
            await client.connect(text)
            await client.send(mqtt.Subscribe(99, ((INPUTS_OF_B, 1),)))
            seen: list[bytes] = []
            while len(seen) < 20:
                packet = await client.receive()
                if isinstance(packet, mqtt.Publish):
                    seen.append(packet.payload)
                    await client.send(mqtt.PubAck(packet.packet_id or 0))
            await client.send(mqtt.PingReq())
            while (packet := await client.receive()) != mqtt.PingResp():
                assert not isinstance(packet, mqtt.Publish), f"{packet.payload!r} came again"
        assert seen == [b"%d" % n for n in range(20)]


async def test_an_input_is_sent_again_with_its_id_until_it_is_acknowledged(hub: RunningHub) -> None:
    text = await hub.add_module("d", "b")
    await push(hub, 2)
    async with open_raw(hub) as client:
        await client.connect(text)
        await client.subscribe(INPUTS_OF_B)
        first, second = await client.receive(), await client.receive()
        assert isinstance(first, mqtt.Publish) and isinstance(second, mqtt.Publish)
        assert (first.payload, first.qos, first.dup, second.payload) == (b"0", 1, False, b"1")
        await client.send(mqtt.PubAck(second.packet_id or 0))
    async with open_raw(hub) as client:
        await client.connect(text)
        again = await client.receive()
        assert again == replace(first, dup=True)
        await client.send(mqtt.PubAck(first.packet_id or 0))

        async def is_empty() -> bool:
            return not await read_ids(hub)

        await poll(is_empty)


async def test_more_inputs_than_the_window_all_arrive_in_order(hub: RunningHub) -> None:
    count = INFLIGHT_MAX * 3
    text = await hub.add_module("d", "b")
    await push(hub, count)
    async with open_raw(hub) as client:
        await client.connect(text)
        await client.subscribe(INPUTS_OF_B)
        found = []
        for _ in range(INFLIGHT_MAX):
            found.append(await client.receive())
        with pytest.raises(TimeoutError):
            await client.receive(0.3)
        while len(found) < count:
            done = found[len(found) - INFLIGHT_MAX]
            await client.send(mqtt.PubAck(done.packet_id))
            found.append(await client.receive())
        assert [packet.payload for packet in found] == [b"%d" % n for n in range(count)]
        assert not any(packet.dup for packet in found)


async def test_an_input_at_qos_0_leaves_the_queue_when_it_is_sent(hub: RunningHub) -> None:
    text = await hub.add_module("d", "b")
    await push(hub, 1)
    async with open_raw(hub) as client:
        await client.connect(text)
        await client.subscribe(INPUTS_OF_B, qos=0)
        packet = await client.receive()
        assert isinstance(packet, mqtt.Publish) and packet.qos == 0

        async def is_empty() -> bool:
            return not await read_ids(hub)

        await poll(is_empty)


async def test_a_message_is_routed_to_the_module_of_the_same_device_only(hub: RunningHub) -> None:
    sender, receiver, foreign = (
        await hub.add_module("d", "a"),
        await hub.add_module("d", "b"),
        await hub.add_module("e", "b"),
    )
    async with open_raw(hub) as a, open_raw(hub) as b, open_raw(hub) as other:
        await a.connect(sender)
        await b.connect(receiver)
        await other.connect(foreign)
        await b.subscribe(INPUTS_OF_B)
        await other.subscribe("devices/e/modules/b/inputs/#")
        await a.send(mqtt.Publish(EVENTS + "%24.on=out&%24.mid=7&k=v/", b"hi", 1, 5, retain=True))
        assert await a.receive() == mqtt.PubAck(5)
        packet = await b.receive()
        assert isinstance(packet, mqtt.Publish) and packet.payload == b"hi"
        assert packet.topic == ("devices/d/modules/b/inputs/in/%24.mid=7&k=v&mqtt-retain=true&%24.cdid=d&%24.cmid=a")
        with pytest.raises(TimeoutError):
            await other.receive(0.3)


async def test_a_command_beside_the_hub_drops_a_deleted_module(hub: RunningHub) -> None:
    from edgeferry.app import hub_admin
    from edgeferry.storage.hub_store import open_tables

    text = await hub.add_module("d", "a")
    async with open_raw(hub) as client:
        await client.connect(text)
        with open_tables(hub.settings.data) as tables:
            hub_admin.delete_device(tables, "d", ["a"])
        assert await is_closed(client)


async def test_properties_that_fit_no_delivery_are_refused_and_do_not_block_the_receiver(hub: RunningHub) -> None:
    sender, receiver = await hub.add_module("d", "a"), await hub.add_module("d", "b")
    async with open_raw(hub) as b:
        await b.connect(receiver)
        await b.subscribe(INPUTS_OF_B)
        async with open_raw(hub) as a:
            await a.connect(sender)
            await a.send(mqtt.Publish(EVENTS + "%24.on=out&k=" + "é" * 12_000, b"long", 1, 1))
            assert await is_closed(a)
        async with open_raw(hub) as a:
            await a.connect(sender)
            await a.send(mqtt.Publish(EVENTS + "%24.on=out&k=" + "é" * 9_000, b"fits", 1, 2))
            assert await a.receive() == mqtt.PubAck(2)
        packet = await b.receive()
        assert isinstance(packet, mqtt.Publish) and packet.payload == b"fits"


async def test_an_identity_that_is_deleted_while_it_connects_is_not_let_in(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, admit = await hub.add_module("d", "a"), hub.rooms.registry.admit

    async def admit_and_delete(connect: mqtt.Connect) -> Admission:
        admission = await admit(connect)
        await hub.rooms.registry.delete(A, None)
        return admission

    monkeypatch.setattr(hub.rooms.registry, "admit", admit_and_delete)
    async with open_raw(hub) as client:
        assert await client.connect(text) == mqtt.ConnAck(5)
        assert await is_closed(client)
    assert hub.rooms.presence.find(A) is None


async def test_what_arrives_after_the_end_of_a_connection_is_not_done(hub: RunningHub) -> None:
    known = parse_connection_string(await hub.add_module("d", "a"))
    token = make_sas_token(known.resource, known.shared_access_key, int(time.time()) + 60)
    connect = mqtt.Connect("d/a", True, 60, make_user_name("localhost", "d", "a"), token.encode())
    hall, loop, (ours, theirs) = MqttHall(hub.rooms), asyncio.get_running_loop(), socket.socketpair()
    assert hall.gate.enter("here")
    with theirs:
        _, guest = await loop.create_connection(lambda: mqtt_front.TcpGuest(hall, "here", loop.time()), sock=ours)
        guest.pipe.close("its token has expired")
        guest.data_received(mqtt.encode(connect) + mqtt.encode(mqtt.Publish(EVENTS, b"too late", 1, 1)))
        await asyncio.wait_for(guest.pipe.task, 10)
    assert await hub.read_messages() == []


async def test_the_hub_outlives_rubbish_on_its_door(hub: RunningHub) -> None:
    dice = random.Random(7)
    for _ in range(40):
        async with open_raw(hub) as client:
            client.writer.write(dice.randbytes(dice.randint(1, 3000)))
            client.writer.write_eof() if client.writer.can_write_eof() else None
    async with open_raw(hub) as client:
        assert await client.connect(await hub.add_module("d", "a")) == mqtt.ConnAck(0, False)
