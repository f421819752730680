"""A hub to put load on: its folder with identities, its process, and what that process costs.

Rules:
- Identities are written straight into the database, in one transaction: registering is not what is measured.
- The hub runs in a process of its own, started as users start it; memory and CPU are those of it and its children.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeferry.app.hub import ensure_device
from edgeferry.hub.identity_records import make_record
from edgeferry.hub.policies import ensure_policy_key
from edgeferry.storage.files import make_folder
from edgeferry.storage.hub_store import open_tables
from edgeferry.twin.document import make_twin
from edgeferry.wire.file_signatures import SERVICE_POLICY
from edgeferry.wire.service_api import Identity

HERE = Path(__file__).resolve().parent
MODULE_ID = "models"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
USUAL_LIMIT = 'ulimit -Sn 1024 && exec "$@"'  # what a shell gives: the hub raises it by itself
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process tree holds, in bytes: resident, of that not backed by a file, and the highest ever resident."""

    resident: int
    anonymous: int
    peak: int


@dataclass(frozen=True, slots=True)
class HubProcess:
    """A hub that listens."""

    facts: dict[str, Any]
    log_path: Path

    @property
    def pid(self) -> int:
        """The hub's own process."""
        return int(self.facts["pid"])

    def read_memory(self) -> Memory:
        """The memory of the whole tree now."""
        rows = [_read_status(pid) for pid in list_tree(self.pid)]
        return Memory(*(sum(row.get(name, 0) for row in rows) for name in ("VmRSS", "RssAnon", "VmHWM")))

    def read_cpu_s(self) -> float:
        """Seconds of CPU that the tree has used, user and system."""
        return sum(read_cpu_s(pid) for pid in list_tree(self.pid))

    def count_log_lines(self) -> int:
        """How much it had to say."""
        return self.log_path.read_bytes().count(b"\n")


def register(data: Path, count: int) -> tuple[str, list[tuple[str, str, str]]]:
    """Registers `count` devices with one module each; returns the service's key and (device, module, key) of each."""
    make_folder(data, mode=0o700)
    now, modules = time.time(), []
    with open_tables(data) as tables, tables.transaction():
        for number in range(count):
            device_id = f"device-{number:05d}"
            ensure_device(tables, device_id, now)
            record = make_record(Identity(device_id, MODULE_ID), now)
            tables.add_identity(record, make_twin(now))
            modules.append((device_id, MODULE_ID, record.primary_key))
        return ensure_policy_key(tables, SERVICE_POLICY), modules


@contextmanager
def open_hub_process(folder: Path, *, tls: bool) -> Iterator[HubProcess]:
    """A hub on `folder`/data for as long as the block runs."""
    data, ready, log_path = folder / "data", folder / "ready.json", folder / "hub.log"
    command: Sequence[str | Path] = [sys.executable, HERE / "plain_hub.py", data, ready]
    if tls:
        ports = ["--mqtt-port", "0", "--https-port", "0"]
        command = [sys.executable, "-m", "edgeferry.cli.main", "hub", "run", "--data", data, *ports]
        command = [*command, "--ready-file", ready]
    command = ["bash", "-c", USUAL_LIMIT, "bash", *command]
    with log_path.open("ab") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield HubProcess(_wait_until_ready(child, ready, log_path), log_path)
    finally:
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_until_ready(child: subprocess.Popen[bytes], ready: Path, log_path: Path) -> dict[str, Any]:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not ready.is_file():
        if child.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the hub did not start:\n{log_path.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
    facts: dict[str, Any] = json.loads(ready.read_text())
    return facts


def list_tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found.extend(int(child) for child in task.read_text().split())
    return found


def _read_status(pid: int) -> dict[str, int]:
    """The sizes in /proc/<pid>/status, in bytes."""
    pairs = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(text.split()[0]) * 1024 for name, text in pairs if text.endswith(" kB")}


def read_cpu_s(pid: int) -> float:
    """Seconds of CPU that one process has used, user and system.

    Fields 14 and 15 of /proc/<pid>/stat (proc(5)); the name before them may hold blanks.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
