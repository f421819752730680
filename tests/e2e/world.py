"""A hub, an origin and devices for tests that need several of them; a client that keeps asking; what lies on disk."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from e2e.origin import Origin, open_origin
from e2e.site import Device, Site, Twin, open_site
from e2e.tiny_models import encode, get_md5, make_quadrant_picture

QUICK = "probation_s = 0.1\n"
"""For tests that do not look at probation."""


@dataclass
class World:
    """A hub and an origin. Each device has a folder of its own in which nothing but its storage may ever change."""

    site: Site
    origin: Origin
    folder: Path
    _count: int = field(default=0)

    @asynccontextmanager
    async def open_device(
        self, *extra: str, settings: str = "", **environment: str
    ) -> AsyncIterator[tuple[Device, Twin]]:
        """A new device under a new name, stopped at the end; `settings` are lines of its TOML file."""
        self._count += 1
        module = f"ferry{self._count}"
        await self.site.add_module_at_once(module)
        storage = self.make_surroundings(module)
        temp = storage.parent / "temp"
        environment = {"TMPDIR": str(temp), **environment}
        device = await self.site.start_device(module, *extra, storage=storage, settings=settings, **environment)
        try:
            yield device, Twin(self.site, module)
        finally:
            await device.process.stop()

    @asynccontextmanager
    async def open_device_again(
        self, twin: Twin, storage: Path, *extra: str, settings: str = ""
    ) -> AsyncIterator[Device]:
        """A device that was there before, started on its storage; its log goes on in the same file."""
        device = await self.site.start_device(twin.module, *extra, storage=storage, settings=settings)
        try:
            yield device
        finally:
            await device.process.stop()

    def make_surroundings(self, name: str) -> Path:
        """The storage folder for a device, in a folder with things of others."""
        around = self.folder / "around" / name
        (around / "temp").mkdir(parents=True)
        (around / "others.txt").write_text("not ours")
        storage = around / "storage"
        storage.mkdir()
        return storage


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    """A running hub that sends every message upstream, and an origin."""
    route = "FROM /messages/* INTO $upstream"
    async with open_origin() as origin, open_site(folder, "--route", route) as site:
        await site.add_module("first")
        yield World(site, origin, folder)


async def take(world: World, twin: Twin, name: str, bundle: bytes) -> dict[str, Any]:
    """Publishes a bundle and waits until the device has settled on it; returns what is reported."""
    version = await twin.set_bundle(name, world.origin.put(name, bundle), get_md5(bundle))
    return await twin.wait_active(name, version)


async def find_quadrant(device: Device, bright: int, size: tuple[int, int] = (120, 80)) -> str:
    [best, *_] = await device.score(encode(make_quadrant_picture(bright, size)))
    return str(best["Class"])


def observes(version: int) -> Callable[[dict[str, Any]], bool]:
    return lambda reported: reported.get("edgeferry", {}).get("observed", 0) >= version


@dataclass
class Asker:
    """A client that asks again and again; `answers` holds (status, answer), one entry for those that are the same."""

    answers: list[tuple[int, Any]] = field(default_factory=list)
    asked: int = 0

    @property
    def failed(self) -> list[tuple[int, Any]]:
        return [one for one in self.answers if one[0] != 200]


@asynccontextmanager
async def open_asker(device: Device, picture: bytes, *, pause_s: float = 0.1) -> AsyncIterator[Asker]:
    """Asks `device` for as long as the block runs."""
    asker = Asker()

    async def ask() -> None:
        async with aiohttp.ClientSession() as http:
            while True:
                async with http.post(f"{device.api}/score", data=picture) as reply:
                    answer = (reply.status, await reply.json())
                asker.asked += 1
                if answer not in asker.answers:
                    asker.answers.append(answer)
                await asyncio.sleep(pause_s)

    task = asyncio.create_task(ask())
    try:
        yield asker
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def read_tree(folder: Path) -> dict[str, tuple[str, int, str]]:
    """Everything below `folder` but journals, sockets and locks: path -> (kind, mode, digest or link target).

    Of `blobs/sha256/` only what lies in its 256 folders counts: an empty one is nobody's content.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.parent.name == "sha256" and not any(path.iterdir()):
            continue
        status = path.lstat()
        if stat.S_ISSOCK(status.st_mode) or path.name.startswith("journal.db") or path.name == "lock":
            continue
        content = ""
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
        found[str(path.relative_to(folder))] = (kind, stat.S_IMODE(status.st_mode), content)
    return found


def list_children(pid: int) -> list[int]:
    """Ids of the processes that `pid` has started and that still run."""
    folder = Path(f"/proc/{pid}/task")
    return [int(child) for task in folder.iterdir() for child in (task / "children").read_text().split()]
