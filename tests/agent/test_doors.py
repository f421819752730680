"""agent.sock, the turns, and the hub's conversation: what connects an agent with others."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.agent_world import World
from edgeferry.agent.control import ask_agent, open_control
from edgeferry.agent.machine import State
from edgeferry.agent.turns import Turn
from edgeferry.errors import LinkDown, LinkTimeout, NoSpace, ProtocolViolated
from edgeferry.model.digest import Digest
from edgeferry.storage.journal import Journal
from polling import poll


# --- agent.sock -------------------------------------------------------------------------------------------------------
async def echo(name: str, payload: object) -> tuple[int, dict[str, Any]]:
    return 200, {"name": name, "payload": payload}


async def test_a_command_is_asked_and_answered_by_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / ("deep" * 20) / ("deeper" * 20) / "agent.sock"
    path.parent.mkdir(parents=True)
    path.touch()
    async with open_control(path, echo):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answer = await ask_agent(path, "rollback", {"model": "detector"})
        assert (answer.status, answer.answer) == (200, {"name": "rollback", "payload": {"model": "detector"}})
    assert not path.exists()
    with pytest.raises(LinkDown):
        await ask_agent(path, "status")


@pytest.mark.parametrize("line", [b"rubbish\n", b"[]\n", b'{"command": 7}\n', b'{"no": "command"}\n'])
async def test_a_line_that_is_no_question_is_answered_as_such(tmp_path: Path, line: bytes) -> None:
    async with open_control(tmp_path / "agent.sock", echo):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "agent.sock"))
        writer.write(line)
        assert json.loads(await reader.readline())["status"] == 400
        writer.close()


async def test_a_line_without_end_is_cut_off(tmp_path: Path) -> None:
    async with open_control(tmp_path / "agent.sock", echo):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "agent.sock"))
        writer.write(b"x" * (1 << 20))
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        assert (await ask_agent(tmp_path / "agent.sock", "status")).status == 200


async def test_who_is_no_agent_is_found_out(tmp_path: Path) -> None:
    async def mumble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"hello?\n")
        writer.close()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    for serve, error in ((mumble, ProtocolViolated), (say_nothing, LinkTimeout)):
        path = tmp_path / f"{serve.__name__}.sock"
        server = await asyncio.start_unix_server(serve, path=str(path))
        with pytest.raises(error):
            await ask_agent(path, "status", timeout_s=0.2)
        server.close()


# --- turns ------------------------------------------------------------------------------------------------------------
async def test_one_at_a_time_and_the_highest_priority_first() -> None:
    turn, order, holding = Turn(), [], {"now": 0}

    async def work(name: str, priority: int) -> None:
        async with turn.take(priority):
            holding["now"] += 1
            assert holding["now"] == 1
            order.append(name)
            await asyncio.sleep(0.01)
            holding["now"] -= 1

    names = [("first", 0), ("low", -1), ("high", 5), ("middle", 1), ("high too", 5)]
    await asyncio.gather(*(work(*one) for one in names))
    assert order == ["first", "high", "high too", "middle", "low"]


async def test_a_cancelled_turn_is_passed_on() -> None:
    turn = Turn()

    async def hold() -> None:
        async with turn.take():
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(hold()) for _ in range(3)]
    await asyncio.sleep(0.01)
    tasks[1].cancel()
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(1), turn.take():
        pass


# --- the hub ----------------------------------------------------------------------------------------------------------
async def test_a_token_is_renewed_by_connecting_again_before_it_expires(world: World) -> None:
    world.hub.expires_at = time.time()
    async with world.run():
        await poll(lambda: has_connections(world, 2))
        world.hub.expires_at = 4e9


async def has_connections(world: World, count: int) -> bool:
    return world.hub.connections >= count


async def test_a_hub_that_is_away_is_tried_again_until_it_is_back(world: World) -> None:
    world.hub.down = True
    async with world.run() as agent:
        await asyncio.sleep(0.1)
        assert not agent.get_status().connected
        world.hub.down = False
        await poll(lambda: is_connected(world))


async def is_connected(world: World) -> bool:
    return world.agent is not None and world.agent.get_status().connected


async def test_an_old_version_of_the_twin_is_ignored_within_a_connection(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run() as agent:
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        old = dict(world.hub.desired)
        world.deploy("1.1.0")
        await world.wait_state(State.ACTIVE, version="1.1.0")
        await agent.take_twin(old)
        await asyncio.sleep(0.05)
        assert world.activator.serving["detector"].version == "1.1.0"


async def test_the_outbox_is_emptied_once_and_survives_a_hub_that_is_away(world: World) -> None:
    world.publish("1.0.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.DOWNLOADING, State.VERIFYING, State.STORING, State.PROVING, State.ACTIVE)
        world.hub.down = True
        world.hub.drop()
        await world.wait_state(State.ACTIVE)
    sent = len(world.hub.outputs)
    world.hub.down = False
    async with world.run():
        await poll(lambda: is_connected(world))
        await poll(lambda: has_outputs(world, 1))
        world.hub.drop()
        await poll(lambda: has_connections(world, 3))
        await asyncio.sleep(0.05)
        assert len(world.hub.outputs) <= sent + 1
        assert len({mid for _, _, mid in world.hub.outputs}) == 1


async def has_outputs(world: World, count: int) -> bool:
    return len(world.hub.outputs) >= count


class FullJournal:
    """A journal on a disk that has room for records only."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.full = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.journal, name)

    async def set_value(self, key: str, body: bytes) -> None:
        self._require_room()
        await self.journal.set_value(key, body)

    async def drop_message(self, mid: str) -> None:
        self._require_room()
        await self.journal.drop_message(mid)

    def _require_room(self) -> None:
        if self.full:
            raise NoSpace("no space left for the journal")


async def test_a_full_disk_is_told_and_ends_no_conversation(world: World) -> None:
    journals: list[FullJournal] = []

    def wrap(journal: Journal) -> FullJournal:
        journals.append(FullJournal(journal))
        return journals[-1]

    world.wrap = wrap
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run() as agent:
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        problem = agent.get_status().problem
        assert problem is not None and problem["code"] == "no_space"
        await poll(lambda: has_outputs(world, 1))
        await asyncio.sleep(0.1)
        assert (world.hub.connections, len(world.hub.outputs)) == (1, 1)
        journals[0].full = False
        world.deploy("1.1.0")
        await world.wait_state(State.ACTIVE, version="1.1.0")
        assert agent.get_status().problem is None
        await poll(lambda: has_outputs(world, 2))
        assert await journals[0].journal.list_messages() == []
        assert (world.hub.connections, len(world.hub.outputs)) == (1, 2)


async def test_methods_are_answered_and_unknown_ones_refused(world: World) -> None:
    async with world.run():
        world.hub.call("status", rid="1")
        world.hub.call("dance", rid="2")
        world.hub.call("rollback", ["odd"], rid="3")
        await poll(lambda: has_answers(world, 3))
        statuses = {rid: status for rid, status, _ in world.hub.answers}
        assert statuses == {"1": 200, "2": 404, "3": 404}
        assert world.hub.answers[0][2]["role"] == "both"


async def has_answers(world: World, count: int) -> bool:
    return len(world.hub.answers) >= count


async def test_the_twin_caps_the_rate(world: World) -> None:
    world.publish("1.0.0", size=60_000)
    async with world.run():
        world.hub.desire(edgeferry={"link": {"rate_bps": 400_000}})
        world.deploy("1.0.0")
        began = time.monotonic()
        await world.wait_state(State.ACTIVE)
        assert time.monotonic() - began > 0.6, "60 kB at 50 kB/s, half a second of which is saved up"


async def test_repeated_deaths_of_an_active_version_roll_back(world: World) -> None:
    world.settings = replace(world.settings, active_deaths=3)
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        for version in ("1.0.0", "1.1.0"):
            world.deploy(version)
            await world.wait_state(State.ACTIVE, version=version)
        world.activator.deaths = 3
        await world.wait_state(State.ROLLED_BACK, version="1.1.0")
        assert world.activator.serving["detector"].version == "1.0.0"


async def test_a_version_that_is_damaged_at_rest_is_fetched_again_after_a_restart(world: World) -> None:
    world.publish("1.0.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        stored = world.activator.serving["detector"]
    world.repository.blob_path(Digest.of((stored.folder / "model.onnx").read_bytes())).unlink()
    (stored.folder / "model.onnx").unlink()
    async with world.run():
        await world.wait_state(State.ACTIVE)
        assert (world.activator.serving["detector"].folder / "model.onnx").stat().st_size == 20_000
