"""When everything that is stored is read again: once in a while, whatever the clock does, and slowly."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.agent_world import FAST, World
from edgeferry.agent import healing
from edgeferry.agent.machine import State
from edgeferry.agent.tools import AgentSettings
from edgeferry.model.digest import Digest
from edgeferry.storage.journal import Journal, open_journal
from edgeferry.storage.mending import Named
from edgeferry.storage.repository import Repository


@dataclass
class FakeTools:
    """As much of the device's parts as reading takes."""

    repository: Repository
    journal: Journal
    settings: AgentSettings
    clock: float = 1e9

    def now(self) -> float:
        return self.clock


async def test_it_is_done_once_in_its_time_after_a_restart_too_and_when_the_clock_jumped_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path)
    repository.prepare()
    scrubs: list[float] = []

    async def scrub(repository: Repository) -> list[Named]:
        scrubs.append(tools.clock)
        return []

    monkeypatch.setattr(healing, "scrub", scrub)
    monkeypatch.setattr(healing, "_LOOK_AGAIN_S", 0.005)
    async with open_journal(repository.journal_path) as journal:
        for clock, count in ((1e9, 1), (1e9 + 3599, 1), (1e9 + 3601, 2), (1e9 + 7000, 2), (5e8, 3), (5e8 + 10, 3)):
            tools = FakeTools(repository, journal, replace(FAST, scrub_every_s=3600.0), clock)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await healing.watch_content(tools, lambda one: None)  # type: ignore[arg-type]
            assert len(scrubs) == count, clock


async def test_it_reads_no_faster_than_it_is_told(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    repository.prepare()
    data = bytes(300_000)
    temp = repository.partial_folder / "a"
    temp.write_bytes(data)
    repository.adopt_blob(Digest.of(data), temp)
    began = time.monotonic()
    assert await healing.scrub(repository, bytes_per_s=1_000_000) == []
    assert time.monotonic() - began >= 0.3
    assert repository.has_blob(Digest.of(data))


async def test_a_device_that_never_reads_again_lives_all_the_same(world: World) -> None:
    world.settings = replace(world.settings, scrub_every_s=0.0)
    world.publish("1.0.0")
    async with asyncio.timeout(10), world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)


async def test_a_damaged_manifest_of_an_update_under_way_keeps_no_device_from_starting(world: World) -> None:
    world.publish("1.0.0")
    manifest = world.publish("1.1.0", size=100_000)
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.origin.statuses.extend([503] * 50)
        world.deploy("1.1.0")
        await world.wait_state(State.WAITING, version="1.1.0")
    kept = world.repository.blob_path(Digest.of(world.manifests.known["detector", manifest.version]))
    kept.chmod(0o644)
    kept.write_bytes(b"rot" * 10)
    async with world.run():
        assert world.activator.serving["detector"].version == "1.0.0"
