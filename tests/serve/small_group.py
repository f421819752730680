"""A control group of our own with little memory, and a program that switches in it: `python -m ...small_group`.

The program serves one model, leaves its group less than a second worker takes, and switches to another under load.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgeferry.app.local_models import open_local_versions
from edgeferry.errors import EdgeferryError
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.memory import GROUPS, read_memory
from edgeferry.serve.engine import ChildEngine
from edgeferry.serve.headroom import MARGIN_BYTES
from edgeferry.serve.slots import Slots, SlotsSettings

GROUP_VARIABLE = "EDGEFERRY_TEST_GROUP"
_LIMITS = ("memory.limit_in_bytes", "memory.max")
_USED = ("memory.usage_in_bytes", "memory.current")


@contextmanager
def open_group() -> Iterator[Path | None]:
    """A new group below the one that bounds memory here; None where we may not make one."""
    group = next(
        (root / f"edgeferry-test-{os.getpid()}" for root in (GROUPS / "memory", GROUPS) if root.is_dir()), None
    )
    try:
        if group is not None:
            group.mkdir()
            _find(group, _LIMITS)
    except (OSError, StopIteration):
        group = None
    try:
        yield group
    finally:
        if group is not None:
            group.rmdir()


def _find(group: Path, names: tuple[str, ...]) -> Path:
    return next(group / name for name in names if (group / name).is_file())


async def _switch(model: Path, other_model: Path, picture: bytes, group: Path) -> dict[str, object]:
    slots = Slots(ChildEngine(), SlotsSettings(concurrency=2))
    with open_local_versions([model]) as (found,), open_local_versions([other_model]) as (other,):
        await slots.switch(found)
        slot = slots._slots[found.model]
        assert slot.serving is not None
        reading = read_memory(slot.serving.worker.port.pid)
        used = int(_find(group, _USED).read_text())
        spare = (reading.worker_bytes + MARGIN_BYTES) // 2
        _find(group, _LIMITS).write_text(str(used + spare))
        said: dict[str, list[str]] = {"answers": [], "failures": [], "paused": []}
        switching = asyncio.create_task(_prove_and_switch(slots, replace(other, model=found.model, version="next")))
        while not switching.done():
            said["paused"] += ["paused"] if slot.paused else []
            try:
                async with asyncio.timeout(30), slots.lease(found.model) as lease:
                    await lease.infer(picture, timeout_s=30)
                    said["answers"].append(lease.version.version)
            except EdgeferryError as error:
                said["failures"].append(error.code)
            await asyncio.sleep(0.001)
        await switching
        peak = read_memory(slot.serving.worker.port.pid).worker_bytes
        await slots.close()
    return {**said, "spare": spare, "peak": peak}


async def _prove_and_switch(slots: Slots, version: StoredVersion) -> None:
    await asyncio.sleep(0.2)
    await slots.prove(version)
    await slots.switch(version)
    await asyncio.sleep(0.2)


if __name__ == "__main__":
    own = Path(os.environ[GROUP_VARIABLE])
    (own / "cgroup.procs").write_text("0")
    files = [Path(name) for name in sys.argv[1:]]
    print(json.dumps(asyncio.run(_switch(files[0], files[1], files[2].read_bytes(), own))))
