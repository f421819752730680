"""Rooms of the hub without sockets: routes, methods, presence, order of twin patches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgeferry.app.hub import HubSettings, make_rooms
from edgeferry.errors import ConfigInvalid, NotFound, RequestTimeout
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.identity_records import make_record
from edgeferry.storage.hub_queues import QueuedMessage
from edgeferry.storage.hub_store import HubStore
from edgeferry.wire.iothub_topics import MethodAnswer, Telemetry
from edgeferry.wire.service_api import Identity, MethodRequest
from hub.hub_rooms import A, B, Clock, D, FakeLink, attach, open_rooms, until


@pytest.fixture
async def rooms(store: HubStore, clock: Clock) -> AsyncIterator[HubRooms]:
    async with open_rooms(store, clock) as made:
        for identity in (D, A, B):
            await made.registry.add(make_record(identity, clock()))
        yield made


async def is_connected(rooms: HubRooms, identity: Identity) -> bool:
    """What the service sees, after what is over was written."""
    await rooms.presence.write_ended()
    return (await rooms.twins.read(identity)).facts.is_connected


async def read_queue(rooms: HubRooms) -> list[QueuedMessage]:
    return await rooms.db.read(lambda tables: tables.queues.read(B, after=0, limit=10))


async def test_a_message_reaches_each_sink_once_and_rings_its_bell(rooms: HubRooms) -> None:
    b = await attach(rooms, B)
    await rooms.router.accept(A, Telemetry("x", {"$.on": "x", "$.mid": "7", "k": None}), b"hi")
    queued = await read_queue(rooms)
    assert [(one.input, one.payload) for one in queued] == [("i", b"hi")]
    await until(lambda: b.bells == 1)
    assert queued[0].properties == {"$.mid": "7", "k": None, "$.cdid": "d", "$.cmid": "a"}
    upstream = await rooms.db.read(lambda tables: tables.queues.read_upstream())
    assert [(one.identity, one.output, one.payload) for one in upstream] == [(A, "x", b"hi")]


async def test_a_message_without_a_route_is_dropped(rooms: HubRooms) -> None:
    await rooms.router.accept(B, Telemetry("x", {}), b"hi")
    assert await read_queue(rooms) == []


async def test_a_message_lives_as_long_as_it_may(rooms: HubRooms, clock: Clock) -> None:
    from edgeferry.hub.upkeep import trim

    await rooms.router.accept(A, Telemetry("x", {}), b"hi")
    clock.now += 59
    await trim(rooms)
    assert len(await read_queue(rooms)) == 1
    clock.now += 1
    await trim(rooms)
    assert await read_queue(rooms) == []


async def test_a_condition_chooses_the_route(rooms: HubRooms, store: HubStore, clock: Clock) -> None:
    route = "FROM /messages/* WHERE $body.level > 3 AND colour = 'red' INTO $upstream"
    router = make_rooms(HubSettings(store.folder, routes=(route,), clock=clock), rooms.db).router
    json_type = {"$.ct": "application/json", "$.ce": "utf-8"}
    for level, colour in ((5, "red"), (2, "red"), (5, "blue")):
        await router.accept(A, Telemetry("x", {**json_type, "colour": colour}), b'{"level":%d}' % level)
    stored = await rooms.db.read(lambda tables: tables.queues.read_upstream())
    assert [(one.payload, one.properties["colour"]) for one in stored] == [(b'{"level":5}', "red")]


async def test_a_route_that_cannot_be_read_is_refused_at_the_start(rooms: HubRooms, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid):
        make_rooms(HubSettings(tmp_path, routes=("FROM /* WHERE a = INTO $upstream",)), rooms.db)


async def test_routes_of_a_devices_own_deployment_count_instead_of_the_hubs(rooms: HubRooms, clock: Clock) -> None:
    routes = {
        "short": {"route": 'FROM /messages/* INTO BrokeredEndpoint("/modules/b/inputs/own")', "timeToLiveSecs": 5},
        "broken": "FROM nowhere",
    }
    content = {"modulesContent": {"$edgeHub": {"properties.desired": {"routes": routes}}}}
    await rooms.configurations.apply_content("d", content)
    await rooms.router.accept(A, Telemetry("x", {}), b"hi")
    queued = await read_queue(rooms)
    assert [(one.input, one.expires_at - clock()) for one in queued] == [("own", 5.0)]
    assert await rooms.db.read(lambda tables: tables.queues.read_upstream()) == []


async def test_a_method_is_answered_by_who_was_called_only(rooms: HubRooms) -> None:
    a = await attach(rooms, A)
    call = asyncio.create_task(rooms.methods.call(A, MethodRequest("m", {"x": 1}, 5.0)))
    while not a.calls:
        await asyncio.sleep(0.001)
    name, rid, payload = a.calls[0]
    assert (name, payload) == ("m", b'{"x":1}')
    await rooms.methods.answer(B, MethodAnswer(rid, 500), b"1")
    await rooms.methods.answer(A, MethodAnswer("other", 500), b"1")
    assert not call.done()
    await rooms.methods.answer(A, MethodAnswer(rid, 200), b" ")
    assert await call == {"status": 200, "payload": None}
    await rooms.methods.answer(A, MethodAnswer(rid, 200), b"2")  # too late: nobody waits


async def test_a_method_waits_for_a_device_that_comes(rooms: HubRooms) -> None:
    call = asyncio.create_task(rooms.methods.call(A, MethodRequest("m", None, 5.0, 5.0)))
    await asyncio.sleep(0.01)
    a = await attach(rooms, A)
    while not a.calls:
        await asyncio.sleep(0.001)
    await rooms.methods.answer(A, MethodAnswer(a.calls[0][1], 200), b"")
    assert (await call)["status"] == 200


async def test_a_method_is_refused_offline_unsubscribed_and_late(rooms: HubRooms) -> None:
    with pytest.raises(NotFound):
        await rooms.methods.call(A, MethodRequest("m", None, 1.0, 0.05))
    await attach(rooms, A, takes_methods=False)
    with pytest.raises(NotFound):
        await rooms.methods.call(A, MethodRequest("m", None, 1.0))
    await attach(rooms, A)
    with pytest.raises(RequestTimeout):
        await rooms.methods.call(A, MethodRequest("m", None, 0.05))


async def test_a_newer_link_takes_the_place_of_the_older(rooms: HubRooms) -> None:
    older = await attach(rooms, A)
    newer = await attach(rooms, A)
    assert older.closed and rooms.presence.find(A) is newer
    rooms.presence.detach(older, orderly=True)
    assert rooms.presence.find(A) is newer and not newer.closed


async def test_a_link_that_comes_late_does_not_take_the_place_of_a_newer(rooms: HubRooms) -> None:
    newer = await attach(rooms, A)
    late = FakeLink(newer.record, newer.number - 1)
    rooms.presence.attach(late)
    assert late.closed and rooms.presence.find(A) is newer and not newer.closed


async def test_an_orderly_end_counts_as_connected_for_a_while(rooms: HubRooms, clock: Clock) -> None:
    link = await attach(rooms, A)
    rooms.presence.detach(link, orderly=True)
    assert rooms.presence.find(A) is None and await is_connected(rooms, A)
    clock.now += 11
    assert not await is_connected(rooms, A)
    other = await attach(rooms, B)
    rooms.presence.detach(other, orderly=False)
    assert not await is_connected(rooms, B)


async def test_who_comes_back_in_time_was_never_away(rooms: HubRooms, clock: Clock) -> None:
    first = await attach(rooms, A)
    began_at = (await rooms.twins.read(A)).facts.changed_at
    clock.now += 5
    rooms.presence.detach(first, orderly=True)
    clock.now += 5
    await attach(rooms, A)
    clock.now += 100
    assert await is_connected(rooms, A)
    assert (await rooms.twins.read(A)).facts.changed_at == began_at


async def test_twin_patches_arrive_in_the_order_of_their_versions(rooms: HubRooms) -> None:
    a = await attach(rooms, A)
    bodies = [{"properties": {"desired": {"n": n}}} for n in range(200)]
    await asyncio.gather(*(rooms.twins.write(A, body, if_match=None, replace_all=False) for body in bodies))
    await until(lambda: len(a.patches) == 200)
    assert [patch["$version"] for patch in a.patches] == list(range(2, 202))
    assert (await rooms.twins.read(A)).twin.desired.body == {"n": 199}


async def test_a_connection_that_only_the_store_knows_ends_when_it_was_seen_twice(rooms: HubRooms) -> None:
    await attach(rooms, A)
    await rooms.db.write(lambda tables: tables.sessions.connect(B, hub=rooms.hub_id, now=rooms.clock()))
    await rooms.presence.end_ghosts()
    assert await is_connected(rooms, B)
    await rooms.presence.end_ghosts()
    assert not await is_connected(rooms, B) and await is_connected(rooms, A)
