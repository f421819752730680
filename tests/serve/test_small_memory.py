"""A real control group with room for one worker only: the switch pauses what serves, and no request fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serve.small_group import GROUP_VARIABLE, open_group

ROOT = Path(__file__).resolve().parent.parent.parent


def test_in_a_control_group_with_room_for_one_worker_a_switch_waits_and_fails_none(demo_models: Path) -> None:
    models = [demo_models / "detector" / version / "detector.onnx" for version in ("1.0.0", "1.1.0")]
    picture = next((demo_models / "scenes").glob("*.jpg"))
    with open_group() as group:
        if group is None:
            pytest.skip("control groups of memory cannot be made here: be root, with /sys/fs/cgroup to write to")
        done = subprocess.run(
            [sys.executable, "-m", "tests.serve.small_group", *map(str, (*models, picture))],
            env={**os.environ, GROUP_VARIABLE: str(group)},
            cwd=ROOT,
            capture_output=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["spare"] < said["peak"], "two would not have fitted"
    assert said["paused"], "what served was paused"
    assert said["failures"] == []
    assert said["answers"][0] != "next"
    assert said["answers"][-1] == "next"
