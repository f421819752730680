"""Damage in a download costs the damaged pieces: each row damages bytes on their way and says what is sent again."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

import pytest
from aiohttp import web

from agent.agent_world import CrashingJournal, Odd, Origin, World
from agent.test_damage import flip
from edgeferry.agent.machine import State
from edgeferry.agent.record import Fault, Target
from edgeferry.agent.repair import repair
from edgeferry.errors import BudgetTooSmall
from edgeferry.link.policy import read_link_policy
from edgeferry.model.chunks import CHUNK_BYTES, CHUNK_DIGEST_BYTES
from edgeferry.model.digest import Digest
from edgeferry.storage.partial import open_partial
from polling import poll

SIZE = 7 * CHUNK_BYTES + 1000
LIST_BYTES = 8 * CHUNK_DIGEST_BYTES


def damage(*places: int) -> Odd:
    """The answer that was asked for, with a byte flipped at each of these places of the file."""

    async def answer(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
        flipped = bytearray(data)
        for place in places:
            flipped[place] ^= 1
        first, _, last = request.headers.get("Range", "bytes=-").removeprefix("bytes=").partition("-")
        start, stop = int(first or 0), int(last or len(data) - 1) + 1
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"} if first else {}
        return await origin.send(request, 206 if first else 200, bytes(flipped[start:stop]), headers)

    return answer


async def break_off(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
    """The right piece, and the connection ends in the middle of it."""
    origin.cut_after.append(10_000)
    return await damage()(origin, request, data)  # type: ignore[misc] # an answer, as damage() always makes


@dataclass(frozen=True)
class Damage:
    """How the model file is answered, and which ranges of it are asked for after the first."""

    name: str
    odd: tuple[Odd, ...]
    ranges: tuple[str, ...]
    ends: State = State.ACTIVE
    has_ranges: bool = True
    chunk_list: bytes | None = None
    """What lies in the place of the list; empty: nothing."""


def piece(first: int, last: int | None = None) -> str:
    last = first if last is None else last
    return f"bytes={first * CHUNK_BYTES}-{min((last + 1) * CHUNK_BYTES, SIZE) - 1}"


DAMAGES = [
    Damage("one piece", (damage(3 * CHUNK_BYTES + 5),), (piece(3),)),
    Damage("the first piece", (damage(0),), (piece(0),)),
    Damage("the last piece, which is short", (damage(SIZE - 1),), (piece(7),)),
    Damage("two pieces apart", (damage(CHUNK_BYTES, 5 * CHUNK_BYTES),), (piece(1), piece(5))),
    Damage("two neighbours", (damage(2 * CHUNK_BYTES - 1, 2 * CHUNK_BYTES),), (piece(1, 2),)),
    Damage("all of it", (damage(*range(0, SIZE, CHUNK_BYTES)),), (piece(0, 7),)),
    Damage("a piece, and the link breaks in its repair", (damage(CHUNK_BYTES - 1), break_off), (piece(0), piece(0))),
    Damage("a piece, on a server without ranges", (damage(5),), (piece(0),), has_ranges=False),
    Damage("a piece, and the list is not there", (damage(5),), ("",), chunk_list=b""),
    Damage("a piece, and the list is another", (damage(5),), ("",), chunk_list=bytes(LIST_BYTES)),
    Damage("a piece, and the list is too long", (damage(5),), ("",), chunk_list=bytes(LIST_BYTES + 1)),
    Damage("a piece, again and again", (damage(5), damage(5)), (piece(0),), State.REJECTED),
]


@pytest.mark.parametrize("row", DAMAGES, ids=lambda row: row.name)
async def test_damage_costs_the_damaged_pieces(world: World, row: Damage) -> None:
    model, listed = publish(world)
    if row.chunk_list is not None:
        world.origin.files[listed] = row.chunk_list
    if row.chunk_list == b"":
        del world.origin.files[listed]
    world.origin.odd, world.origin.ranges = deque(row.odd), row.has_ranges
    async with world.run():
        world.deploy("1.0.0")
        record = await world.wait_state(row.ends)
        assert tuple(list_ranges(world, model)[1:]) == row.ranges
        assert len(list_ranges(world, listed)) == 1
        assert record.fault is None or record.fault.code == "digest_mismatch"
        await poll(lambda: is_clean(world))


@pytest.mark.parametrize("has_ranges", [True, False], ids=["pieces", "no ranges"])
async def test_a_repair_keeps_to_the_budget_and_goes_on_the_next_day(world: World, has_ranges: bool) -> None:
    """The budget of the first day holds the download and one piece or two of four."""
    world.policy, _ = read_link_policy({"zone": "UTC", "day_bytes": SIZE + 150_000, "report_share": 0})
    world.origin.ranges = has_ranges
    world.origin.odd = deque([damage(*(number * CHUNK_BYTES for number in (0, 2, 4, 6))), None])
    publish(world)
    async with world.run() as agent:
        world.deploy("1.0.0")
        await wait_too_small(world)
        pieces = CHUNK_BYTES if has_ranges else 0
        assert SIZE + pieces < agent.get_status().ledger.day_bytes <= SIZE + 150_000
        world.clock_error_s += 24 * 3600
        await agent.run_command("reload", None)
        await world.wait_state(State.ACTIVE)
    assert not has_ranges or world.origin.sent_bytes < SIZE + 5 * CHUNK_BYTES, "no piece that is whole comes twice"


async def wait_too_small(world: World) -> Fault:
    """Until it waits for a day to come: what is left of today's budget would be spent for nothing."""
    return await poll(lambda: find_too_small(world))


async def find_too_small(world: World) -> Fault | None:
    record = world.get_record()
    waits = record is not None and record.state is State.WAITING
    fault = record.fault if record is not None and waits else None
    is_later = record is not None and record.retry_at > world.now() + world.clock_error_s
    return fault if fault is not None and is_later and fault.code == "budget_too_small" else None


async def test_a_piece_that_no_day_holds_waits_and_says_so_and_no_day_is_spent_for_it(world: World) -> None:
    """Damage at rest, and the least budget that may be set: no piece has room in it beside what travels around it."""
    model, listed = publish(world)
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
    flip(world.repository.blob_path(Digest.of(world.origin.files[model])))
    world.policy, _ = read_link_policy({"zone": "UTC", "day_bytes": 65_536, "report_share": 0})
    world.clock_error_s += 24 * 3600
    world.origin.requests.clear()
    async with world.run() as agent:
        for _ in range(3):
            assert "no other day more than" in (await wait_too_small(world)).message
            assert [path for path, _ in world.origin.requests] == [listed], "the list is kept, the piece not asked for"
            world.clock_error_s += 24 * 3600
            await agent.run_command("reload", None)


async def test_a_list_that_the_budget_does_not_hold_is_not_asked_for(world: World) -> None:
    publish(world)
    async with world.run() as agent:
        world.deploy("1.0.0")
        record = await world.wait_state(State.ACTIVE)
        world.origin.requests.clear()
        with open_partial(world.repository.partial_folder, "ab", max_bytes=SIZE) as partial:
            target = Target(kind="signed", model="", version="", key="", identity="", repo=f"{world.origin.url}/repo")
            work = repair(agent._tools, record.artifacts[0], target, partial, print, most_bytes=LIST_BYTES - 1)
            with pytest.raises(BudgetTooSmall):
                await work
    assert world.origin.requests == []


def publish(world: World) -> tuple[str, str]:
    """A version whose model file has eight pieces; returns the paths of its blob and of the list."""
    source = world.publish("1.0.0", size=SIZE).files[0].sources[0]
    paths = [f"/repo/{Digest.from_str(text).blob_path}" for text in (source.blob, source.chunks)]
    return paths[0], paths[1]


def list_ranges(world: World, path: str) -> list[str]:
    return [asked for name, asked in world.origin.requests if name == path]


async def is_clean(world: World) -> bool:
    return world.list_leftovers() == []


async def test_a_file_that_is_sound_or_has_one_piece_asks_for_no_list(world: World) -> None:
    _, listed = publish(world)
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
    assert list_ranges(world, listed) == []


async def test_a_kill_in_a_repair_costs_the_piece_that_was_under_way(world: World) -> None:
    """Three pieces are damaged; the first is repaired when the kill comes."""
    model, listed = publish(world)
    world.origin.odd = deque([damage(0, 2 * CHUNK_BYTES, 4 * CHUNK_BYTES), None, hang])
    async with world.run():
        world.deploy("1.0.0")
        await poll(lambda: has_asked(world, model, 3))
    world.origin.requests.clear()
    async with world.run():
        await world.wait_state(State.ACTIVE)
    assert list_ranges(world, model) == [piece(2), piece(4)]
    assert list_ranges(world, listed) == [], "it was kept"


async def hang(origin: Origin, request: web.Request, data: bytes) -> web.StreamResponse:
    """Nothing, until the one who asked has gone."""
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.01)
    return web.Response()


async def has_asked(world: World, path: str, count: int) -> bool:
    return len(list_ranges(world, path)) >= count


@pytest.mark.parametrize("after", [False, True], ids=["before it is written", "after it is written"])
@pytest.mark.parametrize("state", [State.DOWNLOADING, State.VERIFYING])
async def test_a_kill_around_a_repair_ends_active_after_restart(world: World, state: State, after: bool) -> None:
    model, _ = publish(world)
    world.origin.odd = deque([damage(SIZE - 1)])
    crashing: list[SecondTime] = []
    world.wrap = lambda journal: crashing.append(SecondTime(journal, state, after=after)) or crashing[0]  # type: ignore[func-returns-value]
    async with world.run():
        world.deploy("1.0.0")
        await poll(lambda: has_crashed(crashing[0]))
    world.wrap = lambda journal: journal
    async with world.run():
        await world.wait_state(State.ACTIVE)
    assert list_ranges(world, model) == ["", piece(7)]


class SecondTime(CrashingJournal):
    """Kills when the state is written for the second time: the repair, and the look at what it brought."""

    times = 0

    async def save_record(self, key: str, *, model: str, state: str, body: bytes) -> None:
        self.times += state == self._state
        if self.times < 2 or self.crashed:
            await self._journal.save_record(key, model=model, state=state, body=body)
            return
        await super().save_record(key, model=model, state=state, body=body)


async def has_crashed(journal: CrashingJournal) -> bool:
    return journal.crashed
