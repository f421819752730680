"""Rooms of two hub processes over one PostgreSQL, without sockets: what two do at once, and one of them too late."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeferry.app.hub import HubSettings, make_rooms
from edgeferry.hub.bus import run_bus
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.identity_records import make_record
from edgeferry.storage.hub_db import open_hub_db
from edgeferry.storage.hub_events import Attached, InputQueued
from edgeferry.storage.hub_postgres import open_postgres
from edgeferry.storage.hub_tables import HubTables
from edgeferry.wire.service_api import Identity, IdentityRecord
from fixtures_postgres import Postgres
from polling import poll

D, A = Identity("d"), Identity("d", "a")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class QuietLink:
    """A link that notes its end."""

    record: IdentityRecord
    number: int
    closed: list[str] = field(default_factory=list)
    bells: int = 0

    def send_desired(self, patch: Any) -> None: ...

    def send_method(self, name: str, rid: str, payload: bytes) -> bool:
        return False

    def wake(self) -> None:
        self.bells += 1

    def close(self, why: str) -> None:
        self.closed.append(why)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pair(tmp_path: Path, database_url: str, clock: Clock) -> AsyncIterator[list[HubRooms]]:
    """The rooms of two processes, their buses running; device `d` and its module `a` are registered."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            db = await stack.enter_async_context(open_hub_db(tmp_path, database_url))
            made.append(make_rooms(HubSettings(tmp_path, clock=clock), db))
            stack.callback(asyncio.create_task(run_bus(made[-1])).cancel)
            await made[-1].presence.beat()
        for identity in (D, A):
            await made[0].registry.add(make_record(identity, clock()))
        yield made


async def attach(rooms: HubRooms, identity: Identity) -> QuietLink:
    """A link as device_link.py makes it."""

    def work(tables: HubTables) -> int:
        number = tables.sessions.connect(identity, hub=rooms.hub_id, now=rooms.clock())
        tables.tell(Attached(identity, number))
        return number

    number = await rooms.db.write(work)
    link = QuietLink(await rooms.registry.read(identity), number)
    rooms.presence.attach(link)
    return link


async def is_connected(rooms: HubRooms) -> bool:
    return (await rooms.twins.read(A)).facts.is_connected


async def cut_off(rooms: HubRooms, postgres: Postgres, meanwhile: str = "SELECT 1") -> None:
    """Runs a statement in the store of these rooms and cuts off everybody who is connected to it."""
    database = str(rooms.db._store.url).rpartition("/")[2]
    cut = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname='{database}'"
    await asyncio.to_thread(postgres.sql, meanwhile, database)
    await asyncio.to_thread(postgres.sql, cut)


async def set_silent(rooms: HubRooms) -> None:
    """Makes every process one that has not beaten for a long time."""
    await rooms.db.write(lambda tables: tables._sql.execute("UPDATE hubs SET seen_at = seen_at - 100"))


async def test_who_was_given_up_restores_what_lives_and_not_what_has_just_ended(pair: list[HubRooms]) -> None:
    one, other = pair
    link = await attach(one, A)
    await other.db.write(lambda tables: tables.sessions.drop_hub(one.hub_id, now=0.0))
    assert not await is_connected(other)
    await one.presence.beat()
    assert await is_connected(other)
    await other.db.write(lambda tables: tables.sessions.drop_hub(one.hub_id, now=0.0))
    one.presence.detach(link, orderly=False)
    await asyncio.gather(one.presence.write_ended(), one.presence.beat())
    assert not await is_connected(other)


async def test_the_late_end_of_a_deleted_identity_does_not_count_for_its_successor(
    pair: list[HubRooms], clock: Clock
) -> None:
    one, other = pair
    link = await attach(one, A)
    one.presence.detach(link, orderly=True)
    await other.registry.delete(A, None)
    await other.registry.add(make_record(A, clock()))
    assert (await attach(other, A)).number == link.number
    clock.now += 11.0
    await one.presence.write_ended()
    assert await is_connected(one)


async def test_a_new_identity_of_an_old_name_takes_the_place_of_the_old_ones_link(
    pair: list[HubRooms], clock: Clock
) -> None:
    one, other = pair
    for _ in range(3):
        older = await attach(one, A)
    await other.registry.delete(A, None)
    await other.registry.add(make_record(A, clock()))
    newer = await attach(one, A)
    assert newer.number < older.number
    assert older.closed and not newer.closed and one.presence.find(A) is newer


async def test_a_silent_process_is_given_up_by_the_others(pair: list[HubRooms]) -> None:
    one, other = pair
    await attach(one, A)
    await set_silent(one)
    await other.presence.beat()
    await other.presence.beat()
    assert not await is_connected(other)


async def test_nobody_is_given_up_when_the_store_itself_was_away(pair: list[HubRooms]) -> None:
    one, other = pair
    await attach(one, A)
    await set_silent(one)
    await other.presence.beat()
    assert await is_connected(other)
    await one.presence.beat()
    await other.presence.beat()
    assert await is_connected(other)


async def test_an_older_link_that_came_late_ends_when_a_newer_was_told_of(pair: list[HubRooms]) -> None:
    one, other = pair
    for _ in range(20):
        older, newer = await asyncio.gather(attach(one, A), attach(other, A))
        older, newer = sorted((older, newer), key=lambda link: link.number)

        async def is_over(link: QuietLink = older) -> bool:
            return bool(link.closed)

        await poll(is_over)
        assert not newer.closed
        one.presence.detach(older, orderly=False)
        other.presence.detach(newer, orderly=False)


async def test_a_connection_that_was_cut_while_idle_fails_nothing(pair: list[HubRooms], postgres: Postgres) -> None:
    one, other = pair
    await attach(other, A)
    await cut_off(one, postgres)
    await one.db.write(lambda tables: tables.tell(InputQueued(A)))
    assert await is_connected(other)


async def require_hearing(one: HubRooms, other: HubRooms) -> None:
    """What `other` tells still rings a new link at `one`."""
    link = await attach(one, A)
    await other.db.write(lambda tables: tables.tell(InputQueued(A)))

    async def has_heard() -> bool:
        return link.bells == 1

    await poll(has_heard)


async def test_an_event_of_another_release_makes_no_process_deaf(pair: list[HubRooms]) -> None:
    one, other = pair
    link = await attach(one, A)
    insert = "INSERT INTO events (body, told_at) VALUES (?, 0)"
    await other.db.write(lambda tables: tables._sql.execute(insert, (b'{"type":"of tomorrow"}',)))
    await other.db.write(lambda tables: tables.tell(InputQueued(A)))

    async def has_missed() -> bool:
        return link.closed == ["the hub missed what was written meanwhile"]

    await poll(has_missed)
    await require_hearing(one, other)


async def test_a_store_that_went_back_in_time_makes_no_process_deaf(pair: list[HubRooms], postgres: Postgres) -> None:
    one, other = pair
    for _ in range(5):
        link = await attach(one, A)
    await cut_off(one, postgres, "DELETE FROM events; ALTER TABLE events ALTER id RESTART")

    async def has_missed() -> bool:
        return "the hub missed what was written meanwhile" in link.closed

    await poll(has_missed)
    await require_hearing(one, other)


async def test_trimmed_events_are_no_store_that_went_back(pair: list[HubRooms], postgres: Postgres) -> None:
    one, other = pair
    link = await attach(one, A)
    await cut_off(one, postgres, "DELETE FROM events")
    await other.db.write(lambda tables: tables.tell(InputQueued(A)))

    async def has_heard() -> bool:
        return link.bells == 1

    await poll(has_heard)
    assert not link.closed


async def test_a_database_whose_host_vanishes_is_noticed(database_url: str) -> None:
    sql = open_postgres(database_url)
    try:
        with socket.socket(fileno=os.dup(sql._connection.fileno())) as seen:
            assert 0 < seen.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000
    finally:
        sql.close()
