"""kill -9 of the real device process at random moments of an update: it comes back serving, and the update ends."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import aiohttp
import pytest

from edgeferry.agent.machine import TERMINAL, State
from edgeferry.agent.record import read_record_bytes
from edgeferry.app.demo_site import MODEL, Site, open_site
from edgeferry.storage.journal import open_journal
from edgeferry.storage.repository import Repository
from soak.orphans import list_orphans

SEED = 20261123
LINK_BPS = 4_000_000
"""Slow enough that an update of 0.7 MB takes seconds and kills fall into every state."""
VERSIONS = {"1.0.0": "v1.0", "1.1.0": "v1.1", "1.2.0": "v1.1"}
LONGEST_WAIT_S = 3.5
SHORT, FULL = 20, 200
"""How often a device is killed."""
ON_ITS_WAY_BYTES = 64 << 10
"""What a kill may leave uncounted: bytes in buffers that nobody had read."""
BOOKED_BYTES = 1 << 20
"""What a kill may leave counted and not spent: at this rate bookings grow to what a second or two takes."""


async def read_served_version(site: Site, picture: bytes) -> str:
    """The version that answers; waits until the device answers at all."""
    url = f"{site.api}/v1/models/{MODEL}/predict"
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.post(url, data=picture) as reply:
                    if reply.status == 200:
                        return str((await reply.json())["version"])
            except aiohttp.ClientError:
                pass  # not listening yet
            await asyncio.sleep(0.05)


async def wait_served(site: Site, version: str, picture: bytes) -> None:
    async with asyncio.timeout(90):
        while await read_served_version(site, picture) != version:
            await asyncio.sleep(0.1)


async def wait_active(site: Site) -> None:
    """Until the probation of what serves has ended."""
    async with asyncio.timeout(30):
        while (await site.read_status())["models"][0]["state"] != "ACTIVE":
            await asyncio.sleep(0.2)


async def kill_device(site: Site) -> None:
    assert site.device is not None
    site.device.child.send_signal(signal.SIGKILL)
    await site.device.child.wait()


async def check_storage(site: Site, kills: int) -> None:
    """No file without an owner, and a ledger that says what went over the link; the device has ended."""
    repository = Repository(site.storage)
    async with open_journal(repository.journal_path) as journal:
        assert journal.damage is None
        rows = [read_record_bytes(body) for _, body in await journal.load_records()]
        ledger = await journal.get_ledger()
    assert [row.state for row in rows if row.state not in TERMINAL] == [State.ACTIVE]
    assert list_orphans(repository, rows) == []
    counted = sum(sum(kinds.values()) for kinds in ledger.values())
    passed = site.link.down.passed_bytes + site.link.up.passed_bytes
    assert passed - (kills + 1) * ON_ITS_WAY_BYTES <= counted <= passed * 1.1 + kills * BOOKED_BYTES


async def live_through_kills(folder: Path, models: Path, count: int, seed: int) -> list[str]:
    """Kills the device `count` times on its way from version to version; returns what it came back with."""
    dice = random.Random(seed)
    picture = (models / "scenes" / "pump-room.jpg").read_bytes()
    came_back: list[str] = []
    async with open_site(folder, models) as site:
        for version, golden in VERSIONS.items():
            await site.publish(version, "detector.onnx", golden)
        await site.deploy("1.0.0")
        await wait_served(site, "1.0.0", picture)
        site.link.limit(LINK_BPS)
        active, order = "1.0.0", ("1.1.0", "1.2.0", "1.0.0")
        while len(came_back) < count:
            target = order[len(came_back) % len(order)]
            await site.deploy(target)
            await asyncio.sleep(dice.uniform(0, LONGEST_WAIT_S))
            await kill_device(site)
            await site.start_device()
            came_back.append(await read_served_version(site, picture))
            assert came_back[-1] in (active, target), "it came back with neither the old nor the new version"
            await wait_served(site, target, picture)
            active = target
        await wait_active(site)
        assert site.device is not None
        site.device.child.terminate()
        await site.device.child.wait()
        await check_storage(site, count)
    return came_back


@pytest.mark.soak
async def test_a_device_that_is_killed_at_random_moments_always_comes_back_and_ends_its_update(
    tmp_path: Path, demo_models: Path
) -> None:
    assert len(await live_through_kills(tmp_path / "site", demo_models, SHORT, SEED)) == SHORT


@pytest.mark.soak_full
async def test_a_device_that_is_killed_two_hundred_times_always_comes_back_and_ends_its_update(
    tmp_path: Path, demo_models: Path
) -> None:
    assert len(await live_through_kills(tmp_path / "site", demo_models, FULL, SEED + 1)) == FULL
