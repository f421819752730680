"""kill -9 of the real device process at random moments of an update: it comes back serving, and the update ends."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import aiohttp
import pytest

from edgeferry.app.demo_site import MODEL, Site, open_site

SEED = 20261123
LINK_BPS = 4_000_000
"""Slow enough that an update of 0.7 MB takes seconds and kills fall into every state."""
VERSIONS = {"1.0.0": "v1.0", "1.1.0": "v1.1", "1.2.0": "v1.1"}
LONGEST_WAIT_S = 3.5


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


async def kill_device(site: Site) -> None:
    assert site.device is not None
    site.device.child.send_signal(signal.SIGKILL)
    await site.device.child.wait()


def list_leftovers(site: Site) -> list[str]:
    """What should not lie about once nothing is under way."""
    root = site.storage / "edgeferry"
    partials = [path.name for path in (root / "partial").iterdir()]
    return partials + [str(path) for path in site.storage.rglob("*") if ".tmp" in path.name]


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
        async with asyncio.timeout(30):
            while list_leftovers(site):
                await asyncio.sleep(0.2)
    return came_back


@pytest.mark.soak
async def test_a_device_that_is_killed_at_random_moments_always_comes_back_and_ends_its_update(
    tmp_path: Path, demo_models: Path
) -> None:
    assert len(await live_through_kills(tmp_path / "site", demo_models, 5, SEED)) == 5


@pytest.mark.soak_full
async def test_a_device_that_is_killed_forty_times_always_comes_back_and_ends_its_update(
    tmp_path: Path, demo_models: Path
) -> None:
    assert len(await live_through_kills(tmp_path / "site", demo_models, 40, SEED + 1)) == 40
