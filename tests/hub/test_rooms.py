"""Rooms of the hub without sockets: routes, methods, presence, order of twin patches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgeferry.app.hub import HubSettings, make_rooms
from edgeferry.errors import ConfigInvalid, NotFound, RequestTimeout
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.registry import make_record
from edgeferry.storage.hub_db import open_hub_db
from edgeferry.storage.hub_tables import QueuedMessage
from edgeferry.wire.iothub_topics import MethodAnswer, Telemetry
from edgeferry.wire.mqtt_session import Session
from edgeferry.wire.service_api import Identity, IdentityRecord, MethodRequest

D, A, B = Identity("d"), Identity("d", "a"), Identity("d", "b")
ROUTES = (
    'FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint("/modules/b/inputs/i")',
    'FROM /messages/modules/a/* INTO BrokeredEndpoint("/modules/b/inputs/i")',
    'FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint("/modules/gone/inputs/i")',
    "FROM /messages/modules/a/outputs/* INTO $upstream",
)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class FakeLink:
    """Remembers what it was told."""

    def __init__(self, record: IdentityRecord, takes_methods: bool = True) -> None:
        self.record, self.takes_methods = record, takes_methods
        self.patches: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str, bytes]] = []
        self.closed: list[str] = []
        self.bells = 0

    def send_desired(self, patch: dict[str, Any]) -> None:
        self.patches.append(patch)

    def send_method(self, name: str, rid: str, payload: bytes) -> bool:
        self.calls.append((name, rid, payload))
        return self.takes_methods

    def wake(self) -> None:
        self.bells += 1

    def close(self, why: str) -> None:
        self.closed.append(why)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def rooms(tmp_path: Path, clock: Clock) -> AsyncIterator[HubRooms]:
    async with open_hub_db(tmp_path) as db:
        made = make_rooms(HubSettings(tmp_path, routes=ROUTES, time_to_live_s=60.0, clock=clock), db)
        for identity in (D, A, B):
            await made.registry.add(make_record(identity, clock()))
        yield made


async def attach(rooms: HubRooms, identity: Identity, **more: Any) -> FakeLink:
    link = FakeLink(await rooms.registry.read(identity), **more)
    rooms.presence.attach(link, Session())
    return link


async def read_queue(rooms: HubRooms) -> list[QueuedMessage]:
    return await rooms.db.read(lambda tables: tables.read_queue(B, after=0, limit=10))


async def test_a_message_reaches_each_sink_once_and_rings_its_bell(rooms: HubRooms) -> None:
    b = await attach(rooms, B)
    await rooms.router.accept(A, Telemetry("x", {"$.on": "x", "$.mid": "7", "k": None}), b"hi")
    queued = await read_queue(rooms)
    assert [(one.input, one.payload) for one in queued] == [("i", b"hi")] and b.bells == 1
    assert queued[0].properties == {"$.mid": "7", "k": None, "$.cdid": "d", "$.cmid": "a"}
    upstream = await rooms.db.read(lambda tables: tables.read_upstream())
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


async def test_a_route_with_a_condition_is_refused_at_the_start(rooms: HubRooms, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="WHERE"):
        make_rooms(HubSettings(tmp_path, routes=("FROM /* WHERE a = 1 INTO $upstream",)), rooms.db)


async def test_a_method_is_answered_by_who_was_called_only(rooms: HubRooms) -> None:
    a = await attach(rooms, A)
    call = asyncio.create_task(rooms.methods.call(A, MethodRequest("m", {"x": 1}, 5.0)))
    while not a.calls:
        await asyncio.sleep(0.001)
    name, rid, payload = a.calls[0]
    assert (name, payload) == ("m", b'{"x":1}')
    rooms.methods.answer(B, MethodAnswer(rid, 500), b"1")
    rooms.methods.answer(A, MethodAnswer("other", 500), b"1")
    assert not call.done()
    rooms.methods.answer(A, MethodAnswer(rid, 200), b" ")
    assert await call == {"status": 200, "payload": None}
    rooms.methods.answer(A, MethodAnswer(rid, 200), b"2")  # too late: nobody waits


async def test_a_method_waits_for_a_device_that_comes(rooms: HubRooms) -> None:
    call = asyncio.create_task(rooms.methods.call(A, MethodRequest("m", None, 5.0, 5.0)))
    await asyncio.sleep(0.01)
    a = await attach(rooms, A)
    while not a.calls:
        await asyncio.sleep(0.001)
    rooms.methods.answer(A, MethodAnswer(a.calls[0][1], 200), b"")
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
    rooms.presence.detach(older, orderly=True, keeps_session=True)
    assert rooms.presence.find(A) is newer


async def test_an_orderly_end_counts_as_connected_for_a_while(rooms: HubRooms, clock: Clock) -> None:
    link = await attach(rooms, A)
    rooms.presence.detach(link, orderly=True, keeps_session=True)
    assert rooms.presence.find(A) is None and rooms.presence.get_facts(A).is_connected
    clock.now += 11
    assert not rooms.presence.get_facts(A).is_connected
    other = await attach(rooms, B)
    rooms.presence.detach(other, orderly=False, keeps_session=True)
    assert not rooms.presence.get_facts(B).is_connected


async def test_twin_patches_arrive_in_the_order_of_their_versions(rooms: HubRooms) -> None:
    a = await attach(rooms, A)
    bodies = [{"properties": {"desired": {"n": n}}} for n in range(200)]
    await asyncio.gather(*(rooms.twins.write(A, body, if_match=None, replace_all=False) for body in bodies))
    assert [patch["$version"] for patch in a.patches] == list(range(2, 202))
    assert (await rooms.twins.read(A))[1].desired.body == {"n": 199}
