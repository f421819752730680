"""A disk that is full at any step of an update: it waits, all is intact, and it goes on when there is room.

On a real tmpfs of 16 MB, in a mount namespace of the device's own (`full_disk.py` is what runs there).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.full_disk import FILLED, SIZE_BYTES
from small_disk import may_mount, on_small_disk


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("small")
    if not may_mount(folder):
        pytest.skip("a small disk needs a mount namespace: run the tests as root, or in a container")
    command = [*on_small_disk(folder, os.geteuid()), sys.executable, "-m", "agent.full_disk", str(folder)]
    here = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=here, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


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
