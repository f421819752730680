"""A device on a small disk that is filled in one state of an update; run as a program, it prints what happened.

`python -m agent.full_disk FOLDER`: FOLDER is a tmpfs of 16 MB. Prints a JSON object: for each state of FILLED what was
found, and the two stories below.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.agent_world import FAST, Origin, World, make_model_file, open_origin
from edgeferry.agent import stepping
from edgeferry.agent.machine import State
from edgeferry.agent.record import Target, UpdateRecord
from edgeferry.agent.tools import Outcome, Tools

SIZE_BYTES = 1_500_000
FILLED = (State.RESOLVING, State.DOWNLOADING, State.PATCHING, State.STORING, State.SWITCHING)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@contextlib.contextmanager
def filled_in(state: State, filler: Path) -> Iterator[None]:
    """The first time that 1.1.0 comes to `state`, no byte is left on the disk."""
    plain: Mapping[State, Any] = stepping.STEPS
    times = [filler]

    async def step(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
        if record.version == "1.1.0" and times:
            await asyncio.to_thread(fill, times.pop())
        return await plain[state](tools, record, target)  # type: ignore[no-any-return]

    stepping.STEPS = MappingProxyType({**plain, state: step})  # type: ignore[misc]
    try:
        yield
    finally:
        stepping.STEPS = plain  # type: ignore[misc]


async def play(folder: Path, origin: Origin, state: State) -> dict[str, Any]:
    world = World(folder / state.lower(), FAST, origin)
    world.publish("1.0.0", size=SIZE_BYTES)
    codec = "none" if state is State.STORING else "zstd"  # a coded file gives its own place free when it is stored
    world.publish("1.1.0", size=SIZE_BYTES, codec=codec)
    filler = folder / "filler"
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE, timeout_s=60)
        before = origin.sent_bytes
        with filled_in(state, filler):
            world.deploy("1.1.0")
            record = await world.wait_state(State.WAITING, version="1.1.0", timeout_s=60)
            rows = await world.agent._parts.journal.load_records()  # type: ignore[union-attr]
            active = world.repository.read_ref("detector", "active")
            serves = world.activator.serving["detector"]
            data = (serves.folder / "model.onnx").read_bytes()
            found = {
                "waits in": record.resume,
                "says": record.fault.code if record.fault else "",
                "journal says": sorted(json.loads(body)["state"] for _, body in rows if b'"1.1.0"' in body),
                "active": active.version if active else "",
                "intact": data == make_model_file("detector", "1.0.0", SIZE_BYTES),
            }
            filler.unlink()
            await world.wait_state(State.ACTIVE, version="1.1.0", timeout_s=60)
    coded = world.manifests.known["detector", "1.1.0"]
    sizes = sum(one["sources"][0]["size"] for one in json.loads(coded)["files"])
    found["sent twice"] = max(0, origin.sent_bytes - before - sizes)
    found["left"] = world.list_leftovers()
    shutil.rmtree(world.root)
    return found


async def play_reserved(folder: Path, origin: Origin) -> dict[str, Any]:
    """Somebody fills the disk when the first bytes of a download have come."""
    world = World(folder / "reserved", FAST, origin)
    world.publish("1.1.0", size=SIZE_BYTES, codec="zstd")
    origin.block_delay_s = 0.001
    sent, filler = origin.sent_bytes, folder / "filler"
    async with world.run():
        world.deploy("1.1.0")
        async with asyncio.timeout(10):
            while origin.sent_bytes - sent < 100_000:
                await asyncio.sleep(0.005)
        await asyncio.to_thread(fill, filler)
        origin.block_delay_s = 0.0
        record = await world.wait_state(State.WAITING, timeout_s=60)
        filler.unlink()
        await world.wait_state(State.ACTIVE, timeout_s=60)
    shutil.rmtree(world.root)
    return {"waits in": record.resume, "says": record.fault.code if record.fault else ""}


async def play_crowded(folder: Path, origin: Origin) -> dict[str, Any]:
    """More versions, one after the other, than the disk holds."""
    world = World(folder / "crowded", FAST, origin)
    versions = [f"1.{number}.0" for number in range(10)]
    ends, kept = [], []
    async with world.run():
        for version in versions:
            world.publish(version, size=SIZE_BYTES)
            world.deploy(version)
            record = await world.wait_state(State.ACTIVE, State.WAITING, version=version, timeout_s=60)
            ends.append(record.state)
            kept = [one.version for one in world.repository.list_versions("detector")]
    return {"ends": sorted(set(ends)), "newest are kept": kept == versions[-len(kept) :], "kept": len(kept)}


async def main(folder: Path) -> None:
    async with open_origin() as origin:
        found: dict[str, Any] = {state: await play(folder, origin, state) for state in FILLED}
        found["reserved"] = await play_reserved(folder, origin)
        found["crowded"] = await play_crowded(folder, origin)
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
