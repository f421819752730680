"""The sides of the swap bench: servers that can change a model while they run, each behind the same few words.

What this file leaves to others: starting peers (`servers.py`), what is asked of them (`bench_swap.py`).

Rules:
- A peer that says when the new model is there, but not when the old one is gone, is given `FREE_S` more.
- A peer loads its own file again: that is what its way to change a model does.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from .load import Target
from .machine import list_tree
from .peers import PEERS, Peer, ask_raw
from .servers import NotStarted, Server, open_peer
from .swap_scenes import Scene

OURS = "edgeferry"
HERE = Path(__file__).resolve().parent
FREE_S = 0.5
SWAP_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Swapped:
    """One swap, in seconds of `time.perf_counter`; `error` is the code with which a version was refused.

    `load_cpu_s`: what the new worker had cost when it was proven; 0 where that is not known.
    """

    began_s: float
    freed_s: float
    error: str = ""
    load_cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Side:
    """A running server; `swap` orders a model and returns once the old one is freed."""

    name: str
    pid: int
    url: str
    ask: Callable[[str, bytes], Target]
    swap: Callable[[Path], Awaitable[Swapped]]

    def make_target(self, picture: bytes) -> Target:
        """The request of a picture."""
        return self.ask(self.url, picture)


OpenSide = Callable[[Scene, bytes], AbstractAsyncContextManager[Side]]


# --- ours -------------------------------------------------------------------------------------------------------------
@asynccontextmanager
async def open_ours(scene: Scene, picture: bytes) -> AsyncIterator[Side]:
    """Our own server in a process of its own, serving the first file of the scene."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "swap_server.py"), str(scene.files[0])),
        *([str(scene.labels)] if scene.labels else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")},
    )
    if process.stdin is None or process.stdout is None:
        raise NotStarted("the server has no pipes")
    reads, writes = process.stdout, process.stdin

    async def swap(model: Path) -> Swapped:
        writes.write(f"{model}\n".encode())
        return Swapped(**json.loads(await asyncio.wait_for(reads.readline(), SWAP_MAX_S)))

    try:
        url = json.loads(await reads.readline())["url"]
        first = await swap(scene.files[0])
        if first.error:
            raise NotStarted(f"edgeferry does not serve {scene.files[0].name}: {first.error}")
        yield Side(OURS, process.pid, url, ask_raw, swap)
    finally:
        writes.close()
        await process.wait()


# --- peers ------------------------------------------------------------------------------------------------------------
Change = Callable[[Server], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Changing:
    """A peer, and how it is told to change its model."""

    name: str
    peer: Peer
    change: Change

    @asynccontextmanager
    async def open(self, scene: Scene, picture: bytes) -> AsyncIterator[Side]:
        """Runs it over the scene's site."""
        if scene.site is None:
            raise NotStarted("this scene has no files")
        opened = open_peer(self.peer, scene.site, picture)
        server = await asyncio.to_thread(opened.__enter__)

        async def swap(_: Path) -> Swapped:
            began_s = time.perf_counter()
            async with asyncio.timeout(SWAP_MAX_S):
                await self.change(server)
            await asyncio.sleep(FREE_S)
            return Swapped(began_s, time.perf_counter())

        try:
            yield Side(self.name, server.process.pid, server.url, server.ask, swap)
        finally:
            await asyncio.to_thread(opened.__exit__, None, None, None)


async def _load_mlserver(server: Server) -> None:
    await _post(f"{server.url}/v2/repository/models/served/load")


async def _load_triton(server: Server) -> None:
    """A new version beside the old one, then the order to load: the newest alone is kept."""
    options = Path(f"/proc/{server.process.pid}/cmdline").read_text().split("\0")
    folder = Path(next(one for one in options if one.startswith("--model-repository=")).partition("=")[2]) / "served"
    shutil.copytree(folder / "1", folder / str(time.time_ns() // 1_000_000 % 1_000_000_000))
    await _post(f"{server.url}/v2/repository/models/served/load")


async def _reload_gunicorn(server: Server) -> None:
    """SIGHUP, until every worker of before is gone and another runs."""
    before = set(list_tree(server.process.pid)) - {server.process.pid}
    os.kill(server.process.pid, signal.SIGHUP)
    while before & (now := set(list_tree(server.process.pid))) or len(now) < 2:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.02)


async def _post(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.post(url, json={}) as response:
        if response.status != 200:
            raise NotStarted(f"{url}: {response.status} {(await response.text())[:200]}")


def _find(word: str) -> Peer:
    return next(peer for peer in PEERS if word in peer.name)


CHANGING = (
    Changing("MLServer, load", _find("MLServer"), _load_mlserver),
    Changing("Triton, explicit load", _find("Triton"), _load_triton),
    Changing("gunicorn, HUP", _find("gunicorn"), _reload_gunicorn),
)
