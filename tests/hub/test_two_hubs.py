"""Two hubs, two processes, one PostgreSQL: whichever one a module or a service speaks to, they are one hub."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeferry.hub import upkeep
from edgeferry.storage import hub_sessions
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire import service_api as api
from edgeferry.wire.iothub_topics import DESIRED_PATCH_FILTER, METHOD_FILTER, TWIN_RESPONSE_FILTER
from edgeferry.wire.service_api import Identity
from fixtures_postgres import Postgres
from hub.hub_processes import Hub, TwoHubs, open_two_hubs
from polling import poll
from raw_mqtt import RawClient, open_raw

A, B = Identity("d", "a"), Identity("d", "b")
OUTPUT = "devices/d/modules/a/messages/events/%24.on=out&%24.mid="
INPUTS = "devices/d/modules/b/inputs/#"
BOTH = pytest.mark.parametrize("at", [0, 1], ids=["device here", "device there"])


@pytest.fixture
async def two(tmp_path: Path, database_url: str) -> AsyncIterator[TwoHubs]:
    async with open_two_hubs(tmp_path, database_url) as hubs:
        yield hubs


@asynccontextmanager
async def open_module(hub: Hub, text: str, *filters: str, clean: bool = False) -> AsyncIterator[RawClient]:
    """A module that is connected and subscribed."""
    async with open_raw(hub) as client:
        assert isinstance(answer := await client.connect(text, clean=clean), mqtt.ConnAck) and answer.code == 0, answer
        if filters:
            assert isinstance(await client.subscribe(*filters), mqtt.SubAck)
        yield client


async def receive(client: RawClient, timeout_s: float = 15.0) -> mqtt.Publish:
    packet = await client.receive(timeout_s)
    assert isinstance(packet, mqtt.Publish), packet
    return packet


async def answer_method(client: RawClient, status: int, payload: bytes = b"") -> str:
    """Answers the next method; returns its name."""
    call = await receive(client)
    name, rid = call.topic.removeprefix("$iothub/methods/POST/").split("/?$rid=")
    await client.send(mqtt.Publish(f"$iothub/methods/res/{status}/?$rid={rid}", payload))
    return name


async def is_closed(client: RawClient) -> bool:
    """Whether the hub ends the connection, after whatever it still says."""
    while await client.receive(15.0) is not None:
        pass
    return True


# --- twins ------------------------------------------------------------------------------------------------------------
@BOTH
async def test_twin_writes_through_both_in_turn_reach_a_module_in_order(two: TwoHubs, at: int) -> None:
    text = await two.here.add_module("d", "a")
    async with open_module(two.hubs[at], text, DESIRED_PATCH_FILTER) as client:
        written = [await two.services[n % 2].write_desired(A, {"n": n}) for n in range(200)]
        patches = [json.loads((await receive(client)).payload) for _ in written]
    assert patches == [{"n": n, "$version": n + 2} for n in range(200)]
    assert written == [patch["$version"] for patch in patches]


async def test_twin_writes_through_both_at_once_reach_modules_at_both_in_order(two: TwoHubs) -> None:
    texts = [await two.here.add_module("d", name) for name in "ab"]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_module(hub, text, DESIRED_PATCH_FILTER))
            for hub, text in zip(two.hubs, texts, strict=True)
        ]
        writes = [two.services[n % 2].write_desired(who, {"n": n}) for n in range(60) for who in (A, B)]
        await asyncio.gather(*writes)
        for client in clients:
            versions = [json.loads((await receive(client)).payload)["$version"] for _ in range(60)]
            assert versions == list(range(2, 62))


@BOTH
async def test_a_report_at_one_is_read_at_the_other(two: TwoHubs, at: int) -> None:
    text = await two.here.add_module("d", "a")
    async with open_module(two.hubs[at], text, TWIN_RESPONSE_FILTER) as client:
        await client.send(mqtt.Publish("$iothub/twin/PATCH/properties/reported/?$rid=1", b'{"seen": 1}'))
        assert (await receive(client)).topic == "$iothub/twin/res/204/?$rid=1&$version=2"
        reported = (await two.services[1 - at].read_twin(A))["properties"]["reported"]
    assert (reported["seen"], reported["$version"]) == (1, 2)


# --- methods ----------------------------------------------------------------------------------------------------------
@BOTH
async def test_a_method_reaches_a_device_at_the_other_and_its_answer_returns(two: TwoHubs, at: int) -> None:
    text = await two.here.add_module("d", "a")
    async with open_module(two.hubs[at], text, METHOD_FILTER) as client:
        for status, payload in ((200, b'{"x":[1]}'), (207, b""), (500, b'"why"')):
            call = asyncio.create_task(two.services[1 - at].call_method(A, "reload"))
            assert await answer_method(client, status, payload) == "reload"
            assert await call == (200, {"status": status, "payload": json.loads(payload or b"null")})


@BOTH
async def test_a_method_without_its_device_is_refused_as_it_is_at_one_hub(two: TwoHubs, at: int) -> None:
    text = await two.here.add_module("d", "a")
    caller = two.services[1 - at]

    async def is_refused() -> bool:
        status, body = await caller.call_method(A, "m")
        return status == 404 and "DeviceNotOnline" in body["Message"]

    assert await is_refused()
    async with open_module(two.hubs[at], text) as client:
        assert await is_refused()
        await client.subscribe(METHOD_FILTER)
        status, body = await caller.call_method(A, "m", responseTimeoutInSeconds=5)
        assert status == 504 and "GatewayTimeout" in body["Message"]
    await poll(is_refused)


@BOTH
async def test_a_method_waits_for_a_device_that_connects_at_the_other(two: TwoHubs, at: int) -> None:
    text = await two.here.add_module("d", "a")
    async with open_module(two.hubs[at], text, METHOD_FILTER):
        pass
    for _ in range(5):
        await poll(lambda: _is_away(two, 1 - at))
        call = asyncio.create_task(two.services[1 - at].call_method(A, "m", connectTimeoutInSeconds=20))
        await asyncio.sleep(0.1)
        async with open_module(two.hubs[at], text) as client:
            await answer_method(client, 200)
            assert (await call)[0] == 200


async def test_a_method_waits_for_a_new_device_to_subscribe(two: TwoHubs) -> None:
    text = await two.here.add_module("d", "a")
    for clean_at in (0, 1):
        call = asyncio.create_task(two.services[0].call_method(A, "m", connectTimeoutInSeconds=20))
        await asyncio.sleep(0.1)
        async with open_module(two.hubs[clean_at], text, clean=True) as client:
            await asyncio.sleep(0.3)
            await client.subscribe(METHOD_FILTER)
            await answer_method(client, 200)
            assert (await call)[0] == 200
        await poll(lambda: _is_away(two, 0))


async def _is_away(two: TwoHubs, at: int) -> bool:
    return not await two.services[at].is_connected(A)


# --- messages, sessions, connections ----------------------------------------------------------------------------------
@BOTH
async def test_an_output_sent_at_one_is_delivered_to_an_input_at_the_other_once(two: TwoHubs, at: int) -> None:
    sender, receiver = await two.here.add_module("d", "a"), await two.here.add_module("d", "b")
    async with (
        open_module(two.hubs[1 - at], sender) as a,
        open_module(two.hubs[at], receiver, INPUTS) as b,
    ):
        got = []
        for number in range(50):
            await a.send(mqtt.Publish(f"{OUTPUT}{number}", b"%d" % number, 1, number + 1))
        for _ in range(50):
            packet = await receive(b)
            got.append(int(packet.payload))
            await b.send(mqtt.PubAck(packet.packet_id))
        for number in range(50):
            assert await a.receive() == mqtt.PubAck(number + 1)
        with pytest.raises(TimeoutError):
            await b.receive(1.0)
    assert got == list(range(50))


async def test_a_newer_connection_at_the_other_drops_the_older(two: TwoHubs) -> None:
    text = await two.here.add_module("d", "a")
    async with AsyncExitStack() as stack:
        older = await stack.enter_async_context(open_module(two.hubs[0], text))
        for turn in range(1, 7):
            newer = await stack.enter_async_context(open_module(two.hubs[turn % 2], text))
            assert await is_closed(older)
            older = newer
        await asyncio.sleep(1.0)  # what the older one's end writes must not count
        assert [await service.is_connected(A) for service in two.services] == [True, True]


async def test_a_session_moves_with_its_subscriptions_and_what_is_not_acknowledged(two: TwoHubs) -> None:
    sender, receiver = await two.here.add_module("d", "a"), await two.here.add_module("d", "b")
    async with open_module(two.hubs[0], sender) as a:
        for number in range(4):
            await a.send(mqtt.Publish(f"{OUTPUT}{number}", b"%d" % number, 1, number + 1))
            assert await a.receive() == mqtt.PubAck(number + 1)
        async with open_module(two.hubs[0], receiver, INPUTS) as b:
            first = [await receive(b) for _ in range(4)]
            await b.send(mqtt.PubAck(first[1].packet_id))
            await b.send(mqtt.PingReq())
            assert await b.receive() == mqtt.PingResp()
        for at in (1, 0):
            async with open_raw(two.hubs[at]) as b:
                assert await b.connect(receiver) == mqtt.ConnAck(0, True)
                again = [await receive(b) for _ in range(3)]
                assert again == [replaced(one) for one in first if one is not first[1]]
                await a.send(mqtt.Publish(f"{OUTPUT}new", b"new", 1, 9))
                fresh = await receive(b)
                assert fresh.payload == b"new" and not fresh.dup
                assert fresh.packet_id not in {one.packet_id for one in again}
                await b.send(mqtt.PubAck(fresh.packet_id), mqtt.PingReq())
                assert await b.receive() == mqtt.PingResp()
                assert await a.receive() == mqtt.PubAck(9)


def replaced(packet: mqtt.Publish) -> mqtt.Publish:
    """A packet as it is sent again."""
    return mqtt.Publish(packet.topic, packet.payload, packet.qos, packet.packet_id, dup=True)


async def test_states_queries_and_statistics_agree_at_both(two: TwoHubs) -> None:
    texts = {name: await two.here.add_module(name, "a") for name in ("d0", "d1", "d2")}
    select = "SELECT moduleId, deviceId FROM devices.modules WHERE connectionState = 'Connected'"
    async with open_module(two.hubs[0], texts["d0"]), open_module(two.hubs[1], texts["d1"]):
        for service in two.services:
            assert {one["deviceId"] for one in await service.query(select)} == {"d0", "d1"}
            states = [await service.is_connected(Identity(name, "a")) for name in texts]
            assert states == [True, True, False]
            assert await service("GET", "/statistics/service") == (200, {"connectedDeviceCount": 2})
            assert (await service("GET", "/statistics/devices"))[1]["totalDeviceCount"] == 3


@BOTH
@pytest.mark.parametrize("change", ["disabled", "deleted", "re-keyed", "device disabled", "device deleted"])
async def test_who_is_changed_at_one_is_dropped_at_the_other(two: TwoHubs, at: int, change: str) -> None:
    text, service = await two.here.add_module("d", "a"), two.services[1 - at]
    identity = Identity("d") if change.startswith("device") else A
    if identity == Identity("d"):
        await service("PUT", api.get_identity_path(identity), await _read_record(service, identity), If_Match="*")
    async with open_module(two.hubs[at], text) as client:
        path, record = api.get_identity_path(identity), await _read_record(service, identity)
        if change.endswith("deleted"):
            assert (await service("DELETE", path, If_Match="*"))[0] == 204
        else:
            if change == "re-keyed":
                record["authentication"]["symmetricKey"]["primaryKey"] = "A" * 43 + "="
            else:
                record["status"] = "disabled"
            assert (await service("PUT", path, record, If_Match="*"))[0] == 200
        assert await is_closed(client)
    async with open_raw(two.hubs[at]) as client:
        assert await client.connect(text) == mqtt.ConnAck(5)


async def _read_record(service: Any, identity: Identity) -> dict[str, Any]:
    status, record = await service("GET", api.get_identity_path(identity))
    assert status == 200
    return dict(record)


async def test_a_configuration_written_at_one_holds_for_devices_that_register_at_the_other(two: TwoHubs) -> None:
    body = {
        "id": "c",
        "priority": 1,
        "targetCondition": "from devices.modules where moduleId = 'a'",
        "content": {"moduleContent": {"properties.desired.colour": "red"}},
    }
    status, answer = await two.services[0]("PUT", "/configurations/c", body)
    assert status in (200, 201), answer
    service = two.services[1]
    for identity in (Identity("d"), A):
        fields = {"deviceId": "d"} | ({"moduleId": "a"} if identity.module_id else {})
        status, answer = await service("PUT", api.get_identity_path(identity), fields)
        assert status in (200, 201), answer
    assert (await service.read_twin(A))["properties"]["desired"]["colour"] == "red"


# --- kills, pauses, cuts ----------------------------------------------------------------------------------------------
@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub of this process gives others up sooner; they beat every `upkeep.BEAT_EVERY_S` of their own."""
    monkeypatch.setattr(hub_sessions, "HUB_SILENT_S", upkeep.BEAT_EVERY_S + 3.0)
    monkeypatch.setattr(upkeep, "BEAT_EVERY_S", 0.5)


async def test_what_a_killed_hub_held_shows_as_disconnected_and_comes_back_whole(quick: None, two: TwoHubs) -> None:
    sender, receiver = await two.here.add_module("d", "a"), await two.here.add_module("d", "b")
    service = two.services[0]
    async with open_module(two.there, receiver, INPUTS, DESIRED_PATCH_FILTER) as b:
        async with open_module(two.there, sender) as a:
            await a.send(mqtt.Publish(f"{OUTPUT}1", b"kept", 1, 1))
            assert await a.receive() == mqtt.PubAck(1)
            first = await receive(b)
            version = await two.services[1].write_desired(B, {"kept": 1})
            assert json.loads((await receive(b)).payload)["$version"] == version
            await two.there.kill()
        assert await service.is_connected(B)

    async def is_given_up() -> bool:
        return not await service.is_connected(B) and not await service.is_connected(A)

    await poll(is_given_up, hub_sessions.HUB_SILENT_S + 5.0)
    async with open_raw(two.here) as b:
        assert await b.connect(receiver) == mqtt.ConnAck(0, True)
        assert await receive(b) == replaced(first)
        assert (await service.read_twin(B))["properties"]["desired"]["kept"] == 1
        await service.write_desired(B, {"live": 1})
        assert json.loads((await receive(b)).payload)["live"] == 1
    assert [one.payload for one in await two.here.read_messages()] == [b"kept"]


async def test_a_hub_that_stood_still_gets_its_live_connections_back(quick: None, two: TwoHubs) -> None:
    texts = [await two.here.add_module("d", name) for name in "ab"]
    service = two.services[0]
    async with open_module(two.there, texts[0], DESIRED_PATCH_FILTER) as a, open_module(two.there, texts[1]) as b:
        two.there.send(signal.SIGSTOP)

        async def is_given_up() -> bool:
            return not await service.is_connected(A) and not await service.is_connected(B)

        await poll(is_given_up, 40.0)
        await service.write_desired(A, {"meanwhile": 1})
        async with open_module(two.here, texts[1]) as moved:
            two.there.send(signal.SIGCONT)
            await poll(lambda: service.is_connected(A), 20.0)
            assert json.loads((await receive(a)).payload)["meanwhile"] == 1
            assert await is_closed(b)
            assert await service.is_connected(B)
            await moved.send(mqtt.PingReq())
            assert await moved.receive() == mqtt.PingResp()


async def test_no_live_patch_is_lost_when_the_database_cuts_a_hub_off(two: TwoHubs, postgres: Postgres) -> None:
    texts = [await two.here.add_module("d", name) for name in "ab"]
    database = str(two.here.settings.database_url).rpartition("/")[2]
    cut = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname='{database}'"
    async with (
        open_module(two.hubs[0], texts[0], DESIRED_PATCH_FILTER) as a,
        open_module(two.hubs[1], texts[1], DESIRED_PATCH_FILTER) as b,
    ):
        wanted: dict[Identity, list[int]] = {A: [], B: []}
        cuts = []
        for n in range(30):
            for identity in (A, B):
                path = api.get_twin_path(identity)
                status, twin = await two.services[n % 2]("PATCH", path, {"properties": {"desired": {"n": n}}})
                assert status in (200, 503), twin
                if status == 200:
                    wanted[identity].append(twin["properties"]["desired"]["$version"])
            if n % 10 == 5:
                cuts.append(int(await asyncio.to_thread(postgres.sql, cut)))
        assert cuts[0] >= 6  # of each hub: one that works, one that listens, one that reads what was told
        assert len(wanted[A]) + len(wanted[B]) >= 54
        for client, identity in ((a, A), (b, B)):
            got = [json.loads((await receive(client)).payload)["$version"] for _ in wanted[identity]]
            assert got == wanted[identity]


async def test_modules_stay_connected_while_the_database_restarts(two: TwoHubs, postgres: Postgres) -> None:
    texts = [await two.here.add_module("d", name) for name in "ab"]
    async with (
        open_module(two.hubs[0], texts[0], DESIRED_PATCH_FILTER) as a,
        open_module(two.hubs[1], texts[1], DESIRED_PATCH_FILTER) as b,
    ):
        await asyncio.to_thread(postgres.stop)
        try:
            for service in two.services:
                assert (await service("GET", api.get_twin_path(A)))[0] == 503
        finally:
            await asyncio.to_thread(postgres.start)
        for n, service in enumerate(two.services):
            for client, identity in ((a, A), (b, B)):
                version = await service.write_desired(identity, {"n": n})
                assert json.loads((await receive(client)).payload) == {"n": n, "$version": version}
                assert await service.is_connected(identity)


# --- back and forth ---------------------------------------------------------------------------------------------------
async def test_inputs_of_a_module_that_moves_back_and_forth_all_arrive_under_packet_ids_of_their_own(
    two: TwoHubs,
) -> None:
    sender, receiver = await two.here.add_module("d", "a"), await two.here.add_module("d", "b")
    total, got = 300, set()
    async with open_module(two.hubs[0], sender) as a, open_module(two.hubs[0], receiver, INPUTS):

        async def flood() -> None:
            for number in range(total):
                await a.send(mqtt.Publish(f"{OUTPUT}{number}", b"%d" % number, 1, number + 1))
                assert await a.receive() == mqtt.PubAck(number + 1)

        flooding, turn = asyncio.create_task(flood()), 0
        async with AsyncExitStack() as stack:
            while len(got) < total:
                turn += 1
                client = await stack.enter_async_context(open_raw(two.hubs[turn % 2]))
                assert await client.connect(receiver) == mqtt.ConnAck(0, True)
                is_last = flooding.done()
                waiting: dict[int, bytes] = {}
                for _ in range(total if is_last else 12):
                    try:
                        packet = await client.receive(3.0 if is_last else 0.05)
                    except TimeoutError:
                        break
                    assert isinstance(packet, mqtt.Publish), packet
                    assert packet.packet_id not in waiting, (turn, packet)
                    waiting[packet.packet_id or 0] = packet.payload
                    if is_last or len(waiting) % 3 == 0:
                        await client.send(mqtt.PubAck(packet.packet_id))
                        del waiting[packet.packet_id or 0]
                        got.add(int(packet.payload))
        await flooding
    assert got == set(range(total)) and turn > 4, turn
    assert await two.here.rooms.db.read(lambda tables: tables.queues.read(B, after=0, limit=9)) == []
