"""Flaws of the guide's sample on the way from the origin to the disk; the table is in test_flaws_of_the_sample.py."""

from __future__ import annotations

import asyncio
import io
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from e2e.origin import answer_status
from e2e.site import Device, Twin
from e2e.tiny_models import ORDERS, encode, get_md5, make_quadrant_bundle, make_quadrant_picture
from e2e.world import QUICK, World, find_quadrant, observes, open_asker, read_tree, take
from edgeferry.app.processes import Process

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


# --- downloads --------------------------------------------------------------------------------------------------------
async def test_a_large_download_does_not_go_through_memory(world: World, shared: tuple[Device, Twin]) -> None:
    size_bytes = 160 << 20

    async def send(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(size_bytes)})
        await response.prepare(request)
        for _ in range(size_bytes >> 20):
            await response.write(bytes(1 << 20))
        return response

    device, twin = shared
    await twin.wait(observes(1))
    before = read_peak_kb(device.process)
    version = await twin.set_bundle("large.zip", world.origin.behave("large.zip", send))
    assert (await twin.wait_error(version))["code"] == "bundle_unreadable"
    assert read_peak_kb(device.process) - before < 40_000


def read_peak_kb(process: Process) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def test_a_stalled_download_holds_up_neither_answers_nor_a_newer_twin(
    world: World, shared: tuple[Device, Twin]
) -> None:
    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100000"})
        await response.prepare(request)
        await response.write(bytes(1000))
        await asyncio.sleep(30)
        return response

    device, twin = shared
    await take(world, twin, "lively.zip", make_quadrant_bundle())
    async with open_asker(device, encode(make_quadrant_picture(1)), pause_s=0.02) as asker:
        await twin.set_bundle("stalled.zip", world.origin.behave("stalled.zip", stall))
        await twin.wait(lambda reported: reported["edgeferry"]["models"]["default"]["state"] == "DOWNLOADING")
        asked = asker.asked
        assert (await asyncio.wait_for(twin.call("status"), 5))["status"] == 200
        await asyncio.wait_for(take(world, twin, "newer.zip", make_quadrant_bundle(ORDERS[1])), 15)
        assert asker.asked > asked + 10
        assert not asker.failed


async def test_a_download_is_tried_again_when_the_origin_failed_for_a_while(
    world: World, shared: tuple[Device, Twin]
) -> None:
    bundle = make_quadrant_bundle()
    failures = [answer_status(500), answer_status(503, **{"Retry-After": "1"})]

    async def fail_at_first(request: web.Request) -> web.StreamResponse:
        return await (failures.pop()(request) if failures else world.origin.send(request, bundle))

    _, twin = shared
    url = world.origin.behave("flaky.zip", fail_at_first)
    version = await twin.set_bundle("flaky.zip", url, get_md5(bundle))
    await twin.wait_active("flaky.zip", version, timeout_s=30)
    assert len(world.origin.list_ranges("flaky.zip")) == 3


async def test_a_cut_download_goes_on_where_it_was_cut(world: World, shared: tuple[Device, Twin]) -> None:
    bundle = make_quadrant_bundle(ballast_bytes=1_500_000)

    async def cut(request: web.Request) -> web.StreamResponse:
        is_first = len(world.origin.list_ranges("cut.zip")) == 1
        return await world.origin.send(request, bundle, stop_after=800_000 if is_first else None)

    _, twin = shared
    version = await twin.set_bundle("cut.zip", world.origin.behave("cut.zip", cut), get_md5(bundle))
    await twin.wait_active("cut.zip", version)
    assert world.origin.list_ranges("cut.zip") == ["", "bytes=800000-"]
    assert world.origin.sent_bytes["cut.zip"] == len(bundle)


# --- the disk ---------------------------------------------------------------------------------------------------------
async def test_other_modules_never_see_half_a_folder(world: World, shared: tuple[Device, Twin]) -> None:
    bundles = [make_quadrant_bundle(order, ballast_bytes=400_000 * number) for number, order in enumerate(ORDERS)]
    seen: set[frozenset[tuple[str, int]]] = set()
    device, twin = shared
    looking = asyncio.create_task(asyncio.to_thread(watch, device.storage / "same", seen))
    for number, bundle in enumerate(bundles):
        url = world.origin.put(f"same-{number}", bundle)
        version = await twin.set_bundle("same.zip", url, get_md5(bundle))
        await twin.wait_active("same.zip", version)
    (device.storage / "stop").touch()
    await looking
    (device.storage / "stop").unlink()
    wholes = {frozenset((info.filename, info.file_size) for info in list_infos(bundle)) for bundle in bundles}
    assert len(wholes) == len(bundles)
    assert seen == wholes


def list_infos(bundle: bytes) -> list[zipfile.ZipInfo]:
    return zipfile.ZipFile(io.BytesIO(bundle)).infolist()


def watch(folder: Path, seen: set[frozenset[tuple[str, int]]]) -> None:
    """Notes what `folder` holds, again and again, as long as it is the same folder before and after the look."""
    while not (folder.parent / "stop").exists():
        try:
            before = folder.stat().st_ino
            found = frozenset((path.name, path.stat().st_size) for path in folder.iterdir())
            if folder.stat().st_ino == before:
                seen.add(found)
        except FileNotFoundError:
            pass  # not there yet, or being replaced by the next


async def test_a_bundle_for_which_there_is_no_space_is_refused_before_it_is_fetched(world: World) -> None:
    sent = []

    async def announce(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(1 << 42)})
        await response.prepare(request)
        for number in range(2000):
            await response.write(bytes(65536))
            await asyncio.sleep(0.001)
            sent.append(number)
        return response

    async with world.open_device(settings=f"bundle_max_bytes = {1 << 43}\n") as (device, twin):
        await take(world, twin, "fits.zip", make_quadrant_bundle())
        tree = read_tree(device.storage)
        version = await twin.set_bundle("vast.zip", world.origin.behave("vast.zip", announce))
        error = await twin.wait_error(version)
        assert error["code"] == "no_space"
        assert "gc" in error["advice"]
        await take(world, twin, "fits.zip", make_quadrant_bundle())
        assert read_tree(device.storage) == tree
    assert len(sent) < 100


def fill_disk(device: Device, room_bytes: int) -> Callable[[], Any]:
    """A limit on the length of files stands for a full disk: the system refuses to write on. Returns what ends it."""
    pid, kind = device.process.pid, resource.RLIMIT_FSIZE
    before = resource.prlimit(pid, kind, (room_bytes, resource.RLIM_INFINITY))
    return lambda: resource.prlimit(pid, kind, before)


async def test_a_full_disk_is_told_and_the_update_goes_on_when_there_is_space(world: World) -> None:
    bundle = make_quadrant_bundle(ORDERS[1], ballast_bytes=3_000_000)
    async with world.open_device(settings=QUICK) as (device, twin):
        await take(world, twin, "small.zip", make_quadrant_bundle())
        make_room = fill_disk(device, 1_000_000)
        version = await twin.set_bundle("full.zip", world.origin.put("full.zip", bundle), get_md5(bundle))
        error = await twin.wait_error(version, "no_space")
        assert error["advice"]
        assert await find_quadrant(device, 3) == "bottom_right"
        make_room()
        await twin.wait_active("full.zip", version, timeout_s=60)
    assert set(world.origin.list_ranges("full.zip")) == {"", "bytes=1000000-"}


async def test_a_full_disk_on_which_nothing_can_be_noted_is_told_and_serves_on_even_after_a_restart(
    world: World,
) -> None:
    async with world.open_device(settings=QUICK) as (device, twin):
        await take(world, twin, "small.zip", make_quadrant_bundle())
        make_room = fill_disk(device, 10_000)
        version = await twin.set_bundle("more.zip", world.origin.put("more.zip", make_quadrant_bundle(ORDERS[1])))
        error = await twin.wait_error(version)
        assert error["code"] in ("no_space", "storage_failed")
        assert "disk" in error["message"]
        assert await find_quadrant(device, 3) == "bottom_right"
        make_room()
        await twin.wait_active("more.zip", version, timeout_s=60)
        assert await device.process.stop() == 0
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # the device inherits it
        try:
            again = await world.site.start_device(twin.module, storage=device.storage)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await again.wait_ready(timeout_s=60)
        assert await find_quadrant(again, 3) == "bottom_right"
        assert await again.process.stop() == 0


async def test_once_tidied_only_the_active_and_the_previous_version_are_kept(
    world: World, shared: tuple[Device, Twin]
) -> None:
    device, twin = shared
    for number, order in enumerate(ORDERS):
        await take(world, twin, f"v{number}.zip", make_quadrant_bundle(order, ballast_bytes=100_000))
    await twin.wait(lambda _: not (device.storage / "v1").exists(), timeout_s=20)
    assert sorted(path.name for path in device.storage.iterdir()) == ["edgeferry", "v2", "v3"]
    await world.site.processes.run(["device", "gc", "--storage", str(device.storage)])
    versions = device.storage / "edgeferry" / "models" / "default" / "versions"
    assert sorted(path.name[:2] for path in versions.iterdir()) == ["v2", "v3"]
    models = [path for path in device.storage.rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    assert len({path.stat().st_ino for path in models if not path.name.startswith("journal.db")}) <= 4
