"""A device that starts on a disk that is read-only; run as a program on such a disk, it prints what happened.

`python -m agent.read_only_disk FOLDER`: FOLDER holds a storage with 1.0.0 active.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from agent.agent_world import FAST, World, open_origin
from edgeferry.agent.machine import State
from edgeferry.app.device import open_device
from edgeferry.config import DeviceConfig
from edgeferry.errors import StorageBusy
from edgeferry.storage.files import open_folder_lock


async def main(folder: Path) -> None:
    found = {}
    async with open_origin() as origin:
        world = World(folder, FAST, origin)
        world.publish("1.0.0")
        world.publish("1.1.0")
        async with world.run():
            found["serves"] = world.activator.serving["detector"].version
            world.deploy("1.1.0")
            record = await world.wait_state(State.WAITING, version="1.1.0", timeout_s=60)
            found["waits"] = record.fault.code if record.fault else ""
            found["still serves"] = world.activator.serving["detector"].version
    async with open_device(DeviceConfig(storage=str(folder), port=0)) as device:
        found["knows"] = [one.active for one in device.get_status().models]
        try:
            with open_folder_lock(folder / "edgeferry"):
                found["second"] = "starts"
        except StorageBusy:
            found["second"] = "is refused"
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
