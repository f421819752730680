"""What traffic over a link came to, measured from both ends of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from link.thin_link import TESTS, End, Link, stop

_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS)}


@dataclass(frozen=True, slots=True)
class BulkTransfer:
    """A TCP transfer; `bps` from its first byte to its last."""

    received_bytes: int
    took_s: float

    @property
    def bps(self) -> float:
        """Payload bits per second."""
        return self.received_bytes * 8 / self.took_s


def run_bulk(link: Link, size_bytes: int) -> BulkTransfer:
    """A TCP transfer from right to left."""
    server = _listen(link.right, "send-bulk", link.right.address, str(size_bytes))
    found = _finish(_start(link.left, "take-bulk", link.right.address))
    _finish(server)
    return BulkTransfer(int(found["received_bytes"]), found["last_at"] - found["first_at"])


def run_datagrams(link: Link, *, count: int, size_bytes: int, every_s: float, quiet_s: float) -> dict[int, float]:
    """Sends UDP datagrams from left to right; the seconds that each took which arrived, by its number."""
    target = link.right.address
    server = _listen(link.right, "take-datagrams", target, str(quiet_s))
    _finish(_start(link.left, "send-datagrams", target, str(count), str(size_bytes), str(every_s)))
    return {int(number): took_s for number, took_s in _finish(server)["took_s"].items()}


def _start(end: End, *words: str) -> subprocess.Popen[bytes]:
    return end.start([sys.executable, "-m", "link.traffic", *words], stdout=subprocess.PIPE, env=_ENVIRONMENT)


def _listen(end: End, *words: str) -> subprocess.Popen[bytes]:
    child = _start(end, *words)
    assert child.stdout is not None
    if child.stdout.readline() != b"listening\n":
        stop(child)
        raise RuntimeError(f"{words[0]} does not listen")
    return child


def _finish(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    printed, _ = child.communicate()
    if child.returncode != 0:
        raise RuntimeError(f"a process that sends or takes traffic ended with {child.returncode}")
    found: dict[str, Any] = json.loads(printed)
    return found
