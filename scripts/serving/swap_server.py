"""Our side of the swap bench: the device's slots behind its own HTTP server, in a process that is told what to serve.

Reads lines of JSON from stdin, `{"model": FILE, "spec": FILE or null, "version": TEXT}`, and answers each with a line:
when the load began, when the switch was made and when the old worker's process was gone (seconds of CLOCK_MONOTONIC), or
the error. The first line that it writes is `{"url": ...}`.

What this file leaves to others: the load (`load.py`), the verdict (`bench_swap.py`).

Rules:
- It does what the agent's steps PROVING and SWITCHING do: `Slots.prove`, then `Slots.switch`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from edgeferry.app.local_models import open_local_versions
from edgeferry.app.serving import open_api
from edgeferry.errors import EdgeferryError
from edgeferry.serve.api import make_app
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.slots import Slots

MODEL = "swapped"


async def _swap(slots: Slots, wish: dict[str, Any]) -> dict[str, Any]:
    pids = _list_workers(slots)
    spec = Path(wish["spec"]) if wish["spec"] else None
    began_s = time.perf_counter()
    try:
        with open_local_versions([Path(wish["model"])], spec=spec) as (found,):
            version = replace(found, model=MODEL, version=wish["version"], identity=wish["version"])
        await slots.prove(version)
        await slots.switch(version)
    except EdgeferryError as error:
        return {"began_s": began_s, "freed_s": time.perf_counter(), "error": error.code, "message": error.message}
    switched_s = time.perf_counter()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        await asyncio.sleep(0.005)
    return {"began_s": began_s, "switched_s": switched_s, "freed_s": time.perf_counter(), "error": ""}


def _list_workers(slots: Slots) -> list[int]:
    servings = [slot.serving for slot in slots._slots.values() if slot.serving is not None]
    return [serving.worker.port.pid for serving in servings]


async def _serve() -> None:
    slots = Slots(ChildEngine())
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with open_api(make_app(slots), "127.0.0.1", 0) as address:
        print(json.dumps({"url": address.url}), flush=True)
        while line := await reader.readline():
            print(json.dumps(await _swap(slots, json.loads(line))), flush=True)
    await slots.close()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(_serve())
