"""A disk that is full at any step of an update: it waits, all is intact, and it goes on when there is room.

On a real tmpfs of 16 MB, in a mount namespace of the device's own (`full_disk.py` is what runs there).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.agent_world import World
from agent.full_disk import FILLED, SIZE_BYTES
from edgeferry.agent.machine import State
from edgeferry.storage.files import open_folder_lock
from small_disk import may_mount, on_small_disk


def run_in_tests(command: list[str]) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parents[1]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=here, timeout=300)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("small")
    if not may_mount(folder):
        pytest.skip("a small disk needs a mount namespace: run the tests as root, or in a container")
    command = [*on_small_disk(folder, os.geteuid()), sys.executable, "-m", "agent.full_disk", str(folder)]
    done = run_in_tests(command)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("state", FILLED)
def test_a_full_disk_waits_with_everything_intact_and_nothing_is_sent_twice(found: dict[str, Any], state: str) -> None:
    assert found[state] == {
        "waits in": state,
        "says": "no_space",
        "journal says": ["WAITING"],
        "active": "1.0.0",
        "intact": True,
        "sent twice": 0,
        "left": [],
    }


def test_a_download_that_has_begun_comes_to_its_end_though_others_fill_the_disk(found: dict[str, Any]) -> None:
    assert found["reserved"] == {"waits in": "PATCHING", "says": "no_space"}


def test_versions_that_are_only_kept_give_way_and_no_update_waits(found: dict[str, Any]) -> None:
    assert found["crowded"]["ends"] == ["ACTIVE"]
    assert found["crowded"]["newest are kept"]
    assert 3 <= found["crowded"]["kept"] <= (16 << 20) // SIZE_BYTES - 1


async def test_a_device_that_starts_on_a_read_only_disk_serves_and_updates_wait(world: World) -> None:
    """Nothing can be written: neither journal nor lock nor socket. A second device is refused all the same."""
    if not may_mount(world.root.parent):
        pytest.skip("a read-only disk needs a mount namespace: run the tests as root, or in a container")
    world.publish("1.0.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
    with open_folder_lock(world.root / "edgeferry"):
        pass
    remount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", remount, str(world.root), sys.executable, "-m", "agent.read_only_disk"]
    done = await asyncio.to_thread(run_in_tests, [*command, str(world.root)])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "serves": "1.0.0",
        "waits": "storage_failed",
        "still serves": "1.0.0",
        "knows": ["1.0.0"],
        "second": "is refused",
    }
