"""Our own commands as child processes: started, waited for, stopped by id; for the demo and for tests.

Rules:
- Every process started here is stopped here, also when the caller fails.
- What a process prints goes into a log file, never to the terminal.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeferry.errors import InvariantBroken

_COMMAND = (sys.executable, "-m", "edgeferry.cli.main")
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.1


@dataclass(slots=True)
class Process:
    """A running command of ours; `log_path` holds what it prints."""

    name: str
    log_path: Path
    child: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        """The process id."""
        return self.child.pid

    @property
    def running(self) -> bool:
        """False once it has ended."""
        return self.child.returncode is None

    def read_log_tail(self, size_bytes: int = 2000) -> str:
        """The end of what it printed."""
        return self.log_path.read_bytes()[-size_bytes:].decode("utf-8", "replace")

    async def stop(self) -> int:
        """Asks it to end, ends it when it does not, and returns its exit code."""
        if self.running:
            self.child.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.child.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            self.child.kill()
            return await self.child.wait()


@dataclass(slots=True)
class Processes:
    """Starts commands with one environment and one folder for logs."""

    log_folder: Path
    environment: Mapping[str, str]
    _running: list[Process] = field(default_factory=list)

    async def start(self, name: str, arguments: Sequence[str], **environment: str) -> Process:
        """Starts `edgeferry <arguments>` and returns at once."""
        log_path = self.log_folder / f"{name}.log"
        with log_path.open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                *_COMMAND,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environment, **environment},
            )
        process = Process(name, log_path, child)
        self._running.append(process)
        return process

    async def run(self, arguments: Sequence[str], **environment: str) -> str:
        """Runs `edgeferry <arguments>` to its end and returns what it printed; raises InvariantBroken when it fails."""
        child = await asyncio.create_subprocess_exec(
            *_COMMAND,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**self.environment, **environment},
        )
        try:
            printed, complained = await child.communicate()
        finally:
            if child.returncode is None:  # cancelled
                child.kill()
                await child.wait()
        if child.returncode != 0:
            said = complained.decode("utf-8", "replace")[-1500:]
            raise InvariantBroken(f"edgeferry {' '.join(arguments[:2])} ended with {child.returncode}: {said}")
        return printed.decode("utf-8")

    async def stop_all(self) -> None:
        """Stops what is still running, the newest first."""
        for process in reversed(self._running):
            await process.stop()


@asynccontextmanager
async def open_processes(log_folder: Path) -> AsyncIterator[Processes]:
    """Processes that all end with the context."""
    log_folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    processes = Processes(log_folder, environment)
    try:
        yield processes
    finally:
        await processes.stop_all()


async def wait_for_json(path: Path, process: Process, *, timeout_s: float) -> dict[str, Any]:
    """Waits until `process` has written the JSON file `path`; raises InvariantBroken with the end of its log."""
    async with asyncio.timeout(timeout_s):
        while not path.is_file():
            if not process.running:
                raise InvariantBroken(f"{process.name} ended before it was ready: {process.read_log_tail()}")
            await asyncio.sleep(_POLL_S)
    found: dict[str, Any] = json.loads(path.read_text())
    return found
