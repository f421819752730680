"""The sides of the swap bench: servers that can change a model while they run, each behind the same few words.

What this file leaves to others: what is asked of them (`bench_swap.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.load import Target

HERE = Path(__file__).resolve().parent
Swap = Callable[[Path], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Side:
    """A running server. `swap` orders a model and returns once the old one is freed: when it began and ended (seconds of
    `time.perf_counter`), and the error, if it says one."""

    name: str
    pid: int
    url: str
    swap: Swap
    media_type: str = "image/jpeg"

    def make_target(self, picture: bytes) -> Target:
        """What is asked of it."""
        return Target(self.url, picture, self.media_type)


@asynccontextmanager
async def open_ours() -> AsyncIterator[Side]:
    """Our own server in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent / "src")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "swap_server.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    count = 0

    async def read() -> dict[str, Any]:
        assert process.stdout is not None
        return dict(json.loads(await process.stdout.readline()))

    async def swap(model: Path) -> dict[str, Any]:
        nonlocal count
        assert process.stdin is not None
        count += 1
        process.stdin.write(json.dumps({"model": str(model), "spec": None, "version": str(count)}).encode() + b"\n")
        return await read()

    try:
        url = (await read())["url"]
        yield Side("edgeferry", process.pid, f"{url}/score", swap)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
