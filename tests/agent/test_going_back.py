"""Going back, and what watches the version that serves: nothing that is whole is given up for something that is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from agent.agent_world import CrashingJournal, World, make_model_file
from agent.test_faults import damaged
from edgeferry.agent.agent import Agent
from edgeferry.agent.machine import State
from edgeferry.errors import GoldenMismatch, ModelCrashed, WorkerStartFailed
from edgeferry.model.digest import Digest
from polling import poll


def flip(world: World, version: str) -> None:
    """A bit of the version's model rots."""
    path = world.repository.blob_path(Digest.of(make_model_file("detector", version, 20_000)))
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def get_serving(world: World) -> str:
    return world.activator.serving["detector"].version


def get_refs(world: World) -> list[str]:
    return [one.version for one in world.repository.refs.list_refs("detector")]


@asynccontextmanager
async def run_updated(world: World, *more: str, **settings: Any) -> AsyncIterator[Agent]:
    """A device on which 2.0.0 is active and 1.0.0 was before; `more` versions are published."""
    for version in ("1.0.0", "2.0.0", *more):
        world.publish(version)
    world.settings = replace(world.settings, **settings)
    async with world.run() as agent:
        for version in ("1.0.0", "2.0.0"):
            world.deploy(version)
            await world.wait_state(State.ACTIVE, version=version)
        yield agent


def harm_before(world: World, how: str) -> None:
    if how == "damaged":
        flip(world, "1.0.0")
    else:
        world.activator.failures["prove"].append(ModelCrashed("the engine changed"))


@pytest.mark.parametrize("how", ["damaged", "not proven"])
async def test_a_rollback_to_what_does_not_serve_leaves_what_does(world: World, how: str) -> None:
    async with run_updated(world) as agent:
        harm_before(world, how)
        assert (await agent.run_command("rollback", None))[0] == 202
        record = await poll(lambda: find_fault(world))
        assert (record.state, record.version) == (State.ACTIVE, "2.0.0")
        assert get_serving(world) == "2.0.0"
        assert get_refs(world) == ["2.0.0", "1.0.0"]
    world.hub.down = True
    async with world.run():
        assert get_serving(world) == "2.0.0"


async def find_fault(world: World) -> Any:
    record = world.get_record()
    return record if record is not None and record.fault is not None else None


@pytest.mark.parametrize("how", ["damaged", "not proven"])
async def test_a_version_that_dies_with_nothing_sound_before_it_is_failed_and_still_there(
    world: World, how: str
) -> None:
    async with run_updated(world):
        harm_before(world, how)
        world.activator.deaths = 5
        await world.wait_state(State.FAILED, version="2.0.0")
        assert get_refs(world) == ["2.0.0", "1.0.0"]
    async with world.run():
        assert get_serving(world) == "2.0.0"


async def test_a_switch_back_that_fails_leaves_both_versions_within_reach_of_a_restart(world: World) -> None:
    async with run_updated(world) as agent:
        world.activator.failures["switch"].append(ModelCrashed("the candidate died"))
        assert (await agent.run_command("rollback", None))[0] == 202
        await world.wait_state(State.FAILED, version="2.0.0")
        assert sorted(get_refs(world)) == ["1.0.0", "2.0.0"]
    flip(world, "1.0.0")
    async with world.run():
        assert get_serving(world) == "2.0.0"


@pytest.mark.parametrize(
    ("state", "after"), [(State.ROLLING_BACK, False), (State.ROLLING_BACK, True), (State.ROLLED_BACK, False)]
)
async def test_a_kill_on_the_way_back_ends_there_or_where_it_began(world: World, state: State, after: bool) -> None:
    async with run_updated(world):
        pass
    crashing: list[CrashingJournal] = []
    world.wrap = lambda journal: crashing.append(CrashingJournal(journal, state, after=after)) or crashing[0]
    async with world.run() as agent:
        assert (await agent.run_command("rollback", None))[0] == 202
        await poll(lambda: has_crashed(crashing[0]))
    world.wrap = lambda journal: journal
    async with world.run():
        version, ends = ("2.0.0", State.ACTIVE) if not after and state is State.ROLLING_BACK else ("1.0.0", None)
        await poll(lambda: serves(world, version))
        record = await world.wait_state(ends or State.ROLLED_BACK, version="2.0.0")
        assert record.fault is None
        assert get_refs(world) == (["2.0.0", "1.0.0"] if ends else ["1.0.0"])


async def has_crashed(journal: CrashingJournal) -> bool:
    return journal.crashed


# --- what serves is watched after another version has ended -----------------------------------------------------------
@asynccontextmanager
async def run_with_rejected(world: World, **settings: Any) -> AsyncIterator[Agent]:
    """The same device, after 3.0.0 was asked for and rejected."""
    async with run_updated(world, "3.0.0", **settings) as agent:
        world.activator.failures["prove"].append(GoldenMismatch("1 of 4"))
        world.deploy("3.0.0")
        await world.wait_state(State.REJECTED, version="3.0.0")
        yield agent


async def serves(world: World, version: str) -> bool:
    return get_serving(world) == version and get_refs(world)[0] == version


async def has_whole(world: World, version: str) -> bool:
    data = make_model_file("detector", version, 20_000)
    active = world.repository.read_ref("detector", "active")
    return active is not None and (active.folder / "model.onnx").read_bytes() == data


async def test_after_a_rejected_version_an_operator_can_roll_back(world: World) -> None:
    async with run_with_rejected(world) as agent:
        assert (await agent.run_command("rollback", None))[0] == 202
        await poll(lambda: serves(world, "1.0.0"))
        await world.wait_state(State.REJECTED, version="3.0.0")
        assert (await agent.run_command("rollback", None))[0] == 409


async def test_after_a_rejected_version_deaths_of_what_serves_roll_back(world: World) -> None:
    async with run_with_rejected(world):
        world.activator.deaths = 5
        await poll(lambda: serves(world, "1.0.0"))


async def test_after_a_rejected_version_damage_of_what_serves_is_healed(world: World) -> None:
    async with run_with_rejected(world, scrub_every_s=0.05):
        flip(world, "2.0.0")
        await poll(lambda: has_whole(world, "2.0.0"))
        record = await world.wait_state(State.REJECTED, version="3.0.0")
        assert record.fault is not None and record.fault.code == "golden_mismatch"
        assert get_refs(world) == ["2.0.0", "1.0.0"]


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_serves_after_a_rollback_is_healed_too(world: World, restarts: bool) -> None:
    async with run_updated(world, scrub_every_s=0.05) as agent:
        assert (await agent.run_command("rollback", None))[0] == 202
        await world.wait_state(State.ROLLED_BACK, version="2.0.0")
        if not restarts:
            await harm_and_heal(world)
    if restarts:
        async with world.run():
            await harm_and_heal(world)


async def harm_and_heal(world: World) -> None:
    flip(world, "1.0.0")
    await asyncio.sleep(0.2)
    await poll(lambda: has_whole(world, "1.0.0"))
    await world.wait_state(State.ROLLED_BACK, version="2.0.0")
    assert get_serving(world) == "1.0.0"


# --- a worker that is dead and cannot be started again ----------------------------------------------------------------
async def test_a_version_that_is_healed_without_a_link_gives_way_when_its_worker_dies(world: World) -> None:
    async with run_updated(world, scrub_every_s=0.05):
        world.origin.statuses.extend([503] * 10_000)
        flip(world, "2.0.0")
        await world.wait_state(State.WAITING, version="2.0.0")
        assert get_serving(world) == "2.0.0", "the worker that runs serves on"
        world.activator.alive = False
        await poll(lambda: has_slot_at(world, "1.0.0"))
        assert get_refs(world) == ["2.0.0", "1.0.0"]
        world.origin.statuses.clear()
        await poll(lambda: serves(world, "2.0.0"))
        await world.wait_state(State.ACTIVE, version="2.0.0")


async def has_slot_at(world: World, version: str) -> bool:
    return get_serving(world) == version


# --- a version that does not load when the device starts --------------------------------------------------------------
async def test_an_active_version_that_does_not_load_again_is_rolled_back_with_its_error(world: World) -> None:
    async with run_updated(world):
        pass
    world.activator.failures["prove"].append(ModelCrashed("the engine changed"))
    async with world.run():
        assert get_serving(world) == "1.0.0"
        world.activator.failures["prove"].append(ModelCrashed("the engine changed"))
        record = await world.wait_state(State.ROLLED_BACK, version="2.0.0")
        assert record.fault is not None and record.fault.message == "the engine changed"
        assert await serves(world, "1.0.0")


async def test_an_active_version_that_had_no_room_at_the_start_serves_when_it_has(world: World) -> None:
    async with run_updated(world):
        pass
    world.activator.failures["prove"].append(WorkerStartFailed("no memory"))
    async with world.run():
        assert get_serving(world) == "1.0.0"
        await poll(lambda: serves(world, "2.0.0"))
        await world.wait_state(State.ACTIVE, version="2.0.0")


# --- a version that serves is never given up --------------------------------------------------------------------------
async def test_what_is_healed_with_bytes_that_are_wrong_waits_and_its_worker_serves_on(world: World) -> None:
    async with run_updated(world, scrub_every_s=0.05) as agent:
        with damaged(world, 3):
            flip(world, "2.0.0")
            record = await world.wait_state(State.WAITING, State.REJECTED, version="2.0.0")
        assert record.state is State.WAITING
        assert record.fault is not None and record.fault.code == "digest_mismatch"
        proven = list(world.activator.proven)
        await agent.run_command("reload", None)
        await world.wait_state(State.ACTIVE, version="2.0.0")
        assert await has_whole(world, "2.0.0")
        assert world.activator.proven == proven, "the worker that serves needs no other beside it"
        assert world.activator.switched == ["1.0.0", "2.0.0"]


async def test_a_version_that_dies_again_and_again_goes_back_also_while_a_newer_one_waits(world: World) -> None:
    async with run_updated(world, "3.0.0", active_deaths=3):
        closed = {"windows": [{"cron": "0 0 29 2 *", "duration_s": 60}]}
        world.hub.desire(edgeferry={"link": closed})
        world.deploy("3.0.0")
        await world.wait_state(State.WAITING, version="3.0.0")
        world.activator.deaths = 3
        await poll(lambda: serves(world, "1.0.0"))
        world.activator.deaths = 0
        assert (await world.wait_state(State.WAITING, version="3.0.0")).fault is not None
        assert get_refs(world) == ["1.0.0"]
        world.hub.desire(edgeferry={"link": None})
        await world.wait_state(State.ACTIVE, version="3.0.0")
        assert get_refs(world) == ["3.0.0", "1.0.0"]
