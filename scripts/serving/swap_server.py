"""Our side of the swap bench: the device's slots behind its own HTTP server, in a process that is told what to serve.

Arguments: a model, and its labels where it needs some. Reads paths of models, one a line, from stdin, and answers each
with a line of JSON: when the load began and when the old worker's process was gone (seconds of `perf_counter`), and
the error's code if there was one. Its first line is `{"url": ...}`.

What this file leaves to others: the load (`load.py`), the verdict (`bench_swap.py`).

Rules:
- It does what the agent's steps PROVING and SWITCHING do: `Slots.prove`, then `Slots.switch`.
- All models have the spec of the first, as versions that are stored have one: nothing is inspected while it serves.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from machine import read_cpu_s

from edgeferry.app.local_models import open_local_versions
from edgeferry.app.serving import make_slots_settings, open_api
from edgeferry.errors import EdgeferryError
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.api import make_app
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.slots import Slots

MODEL = "swapped"


async def _swap(slots: Slots, version: StoredVersion) -> dict[str, Any]:
    pids = _list_workers(slots)
    began_s, error_code, cpu_s = time.perf_counter(), "", 0.0
    try:
        await slots.prove(version)
        cpu_s = _read_candidate_cpu_s(slots)
        await slots.switch(version)
        await _wait_gone(set(pids) - set(_list_workers(slots)))
    except EdgeferryError as error:
        error_code = error.code
    return {"began_s": began_s, "freed_s": time.perf_counter(), "error": error_code, "load_cpu_s": cpu_s}


def _read_candidate_cpu_s(slots: Slots) -> float:
    candidates = [slot._candidate for slot in slots._slots.values() if slot._candidate is not None]
    return sum(read_cpu_s(one.worker.port.pid) for one in candidates)


async def _wait_gone(pids: set[int]) -> None:
    while any(Path(f"/proc/{pid}").exists() for pid in pids):  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.005)


def _list_workers(slots: Slots) -> list[int]:
    servings = [slot.serving for slot in slots._slots.values() if slot.serving is not None]
    return [serving.worker.port.pid for serving in servings]


def _read_first() -> StoredVersion:
    model, *labels = map(Path, sys.argv[1:])
    with open_local_versions([model], labels=labels[0] if labels else None) as (found,):
        return replace(found, model=MODEL)


async def _serve() -> None:
    slots, first = Slots(ChildEngine(), make_slots_settings(None)), _read_first()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with open_api(make_app(slots), "127.0.0.1", 0) as address:
        print(json.dumps({"url": address.url}), flush=True)
        for number in itertools.count():
            line = await reader.readline()
            if not line:
                break
            folder = Path(line.decode().strip()).parent
            version = replace(first, folder=folder, version=str(number), identity=str(number))
            print(json.dumps(await _swap(slots, version)), flush=True)
    await slots.close()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(_serve())
