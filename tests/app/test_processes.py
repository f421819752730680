"""Commands of ours as processes: none outlives whoever started it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from edgeferry.app import processes
from edgeferry.app.processes import open_processes

SLEEPER = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"


async def read_pid(path: Path) -> int:
    async with asyncio.timeout(10):
        while not path.is_file() or not path.read_text():
            await asyncio.sleep(0.01)
    return int(path.read_text())


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", ["start", "run"])
async def test_a_command_ends_with_its_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(processes, "_COMMAND", (sys.executable, "-c", SLEEPER))

    async def use() -> None:
        async with open_processes(tmp_path) as ours:
            if how == "run":
                await ours.run([str(tmp_path / "pid")])
            await ours.start("sleeper", [str(tmp_path / "pid")])
            await asyncio.Event().wait()

    caller = asyncio.create_task(use())
    pid = await read_pid(tmp_path / "pid")
    assert is_running(pid)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not is_running(pid)
