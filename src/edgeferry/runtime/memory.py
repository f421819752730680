"""memory: what this machine, and the control groups that this process stands in, have left; what a process has taken.

What this file leaves to others: what follows from it (`serve/headroom.py`).

Rules:
- Every group above this process counts, of version 1 and 2: the tightest one decides, the machine itself included.
- Pages of files that nobody used lately can be had at once and count as free, as in MemAvailable.
- A file that is not there sets no limit; nothing here raises. Swap does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
UNKNOWN = 1 << 62
"""Free bytes where nobody says; a limit that is none reads as large in version 1."""


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes that can still be had, and the most that one process has had in memory at once."""

    free_bytes: int
    worker_bytes: int


@dataclass(frozen=True, slots=True)
class _Names:
    """How a version of control groups names its files; `folders` are its mounts below GROUPS."""

    folders: tuple[str, ...]
    limit: str
    used: str
    idle: str


_V1 = _Names(("memory",), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names((".", "unified"), "memory.max", "memory.current", "inactive_file")


def read_memory(pid: int, *, proc: Path = PROC, groups: Path = GROUPS) -> MemoryReading:
    """What is free now, and what process `pid` has taken at its most (0 when it is gone)."""
    return MemoryReading(read_free_bytes(proc=proc, groups=groups), _read_field(proc / str(pid) / "status", "VmHWM:"))


def read_free_bytes(*, proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Bytes that may be taken before the machine or a control group refuses."""
    machine = _read_field(proc / "meminfo", "MemAvailable:") or UNKNOWN
    return max(0, min([machine, *_read_groups(proc, groups)]))


def _read_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What each group above this process has left."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        names = _V1 if controllers else _V2
        own = PurePosixPath(path.lstrip("/"))
        for folder in names.folders:
            # in a container the path may be the host's: then its own group is the mount itself
            for group in (own, *own.parents):
                yield from _read_left(groups / folder / group, names)


def _read_left(group: Path, names: _Names) -> Iterator[int]:
    limit, used = _read(group / names.limit).strip(), _read(group / names.used).strip()
    if limit.isdigit() and used.isdigit():
        yield int(limit) - int(used) + _read_field(group / "memory.stat", names.idle)


def _read_field(path: Path, name: str) -> int:
    """The number after `name` in a file of lines, in bytes; 0 where there is none."""
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return 0


def _read(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text("ascii")
    return ""
