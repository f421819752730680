"""What processes cost: CPU and memory of a whole tree, from /proc; and what this machine is.

Rules:
- CPU of a tree counts its threads and processes that ended too, as far as somebody of the tree has waited for them.
- Memory is PSS: what several processes share counts once.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
_PSS_ANONYMOUS = re.compile(rb"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)
_PROC = Path("/proc")


def list_tree(pid: int) -> list[int]:
    """`pid` and all that descend from it."""
    parents = {int(one.name): _read_parent(one) for one in _PROC.iterdir() if one.name.isdigit()}
    tree = [pid]
    for member in tree:  # grows while it is walked
        tree += [child for child, parent in parents.items() if parent == member]
    return tree


def read_cpu_s(pid: int) -> float:
    """CPU seconds that the tree of `pid` has used, to 10 ms."""
    return sum(_read_ticks(member) for member in list_tree(pid)) / _TICKS_PER_S


def read_pss_bytes(pid: int) -> int:
    """Memory of the tree of `pid`."""
    return sum(_read_pss(member) for member in list_tree(pid))


def read_own_bytes(pid: int) -> int:
    """The same without pages of files: their share changes with what else on this machine maps them."""
    return sum(_read_pss(member, _PSS_ANONYMOUS) for member in list_tree(pid))


def describe_machine() -> str:
    """Cores, processor and Python, in words."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processor = found[1] if found else platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores ({processor}), Python {platform.python_version()}"


def _read_stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat after the name, which may hold anything; empty once the process is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _read_parent(process: Path) -> int:
    fields = _read_stat(int(process.name))
    return int(fields[1]) if fields else 0


def _read_ticks(pid: int) -> int:
    return sum(int(field) for field in _read_stat(pid)[11:15])  # utime, stime, and those of children waited for


def _read_pss(pid: int, kind: re.Pattern[bytes] = _PSS) -> int:
    try:
        found = kind.search((_PROC / str(pid) / "smaps_rollup").read_bytes())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
