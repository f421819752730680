"""Ours at work in a process of its own, so that its CPU time and its memory are its own: make, full, apply.

Usage: python scripts/delta_child.py make BASE TARGET OUT | full TARGET OUT | apply BASE PATCH OUT SIZE | weigh ...

Says `ready` once its imports are done, waits for a line, works, and answers with one line of JSON. delta_ours.py starts
it, and reads its memory while it makes.

Rules:
- `open_ours` is the one place that knows how edgeferry.delta is called.
- What lazy imports cost is paid before `ready`: the figures are the work's alone.
- `weigh` is `apply` with every mapped page touched before: mapped files, which do not count, then stay as large as they
  are, and what the peak of resident memory has above them was anonymous. No sampling could miss it.
"""

from __future__ import annotations

import gc
import json
import lzma
import mmap
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hdiffpatch
import numpy as np
import zstandard

IMPORTED = (hdiffpatch, lzma, np, zstandard)
"""What coders load when first used."""
PAGE_BYTES = 4096
RESET_PEAK = Path("/proc/self/clear_refs")
"""Takes 5: the peak of resident memory begins anew (proc(5))."""


@dataclass(frozen=True, slots=True)
class Ours:
    """What the bench asks of edgeferry; a patch has `data`, `way` and `memory_bytes`."""

    make_patch: Callable[[bytes, bytes], Any]
    make_full: Callable[[bytes], Any]
    apply: Callable[[Any, Any, memoryview], None]
    tensor_ways: frozenset[str]
    """The ways that code tensors as such; every other patch is remainder only."""


def open_ours() -> Ours:
    """The contract with edgeferry.delta."""
    from edgeferry.delta.apply import apply_patch
    from edgeferry.delta.make import make_full, make_patch

    return Ours(make_patch, make_full, apply_patch, tensor_ways=frozenset({"tensors"}))


def do_make(ours: Ours, base: str, target: str, out: str) -> dict[str, Any]:
    """Writes the patch from `base` to `target`."""
    return _keep(ours, ours.make_patch(Path(base).read_bytes(), Path(target).read_bytes()), out)


def do_full(ours: Ours, target: str, out: str) -> dict[str, Any]:
    """Writes the coded file that needs no base."""
    return _keep(ours, ours.make_full(Path(target).read_bytes()), out)


def do_apply(ours: Ours, base: str, patch: str, out: str, size_bytes: str) -> dict[str, Any]:
    """Fills a mapped file with what base and patch give, as a device does."""
    with _open_output(out, int(size_bytes)) as view:
        ours.apply(_map(base), _map(patch), view)
    return {}


def do_weigh(ours: Ours, base: str, patch: str, out: str, size_bytes: str) -> dict[str, Any]:
    """The same; tells the highest anonymous memory."""
    with _open_output(out, int(size_bytes)) as view:
        maps = _map(base), _map(patch)
        for one in (*maps, view):
            sum(one[::PAGE_BYTES])
        RESET_PEAK.write_text("5")
        before = read_mapped()
        ours.apply(*maps, view)
        return {"anonymous": read_memory("self", "VmHWM") - max(before, read_mapped())}


@contextmanager
def _open_output(name: str, size_bytes: int) -> Iterator[memoryview]:
    """A new file, mapped and shared as in storage/patching.py, so that it is no anonymous memory."""
    with Path(name).open("w+b") as file:
        file.truncate(size_bytes)
        with mmap.mmap(file.fileno(), 0) as target, memoryview(target) as view:
            yield view


def read_memory(pid: str, name: str) -> int:
    """A figure of a process's memory in bytes; 0 when it is gone (proc(5), status)."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return 0
    _, _, rest = status.partition(f"{name}:".encode())
    return int(rest.split(None, 1)[0]) * 1024 if rest else 0


def read_mapped() -> int:
    """What of this process is resident and not anonymous."""
    return read_memory("self", "RssFile") + read_memory("self", "RssShmem")


def _keep(ours: Ours, patch: Any, out: str) -> dict[str, Any]:
    Path(out).write_bytes(patch.data)
    way = str(patch.way)
    return {"way": way, "memory_bytes": patch.memory_bytes, "remainder_only": way not in ours.tensor_ways}


def _map(name: str) -> Any:
    """The file as a memory map; an empty one cannot be mapped."""
    with Path(name).open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if Path(name).stat().st_size else b""


def _read_cpu_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "make": do_make,
    "full": do_full,
    "apply": do_apply,
    "weigh": do_weigh,
}


def main() -> None:
    """Waits for the word, works, answers."""
    do, *words = sys.argv[1:]
    ours = open_ours()
    gc.collect()
    print(json.dumps({"ready": read_memory("self", "RssAnon")}), flush=True)
    sys.stdin.readline()
    began = _read_cpu_s()
    answer = STEPS[do](ours, *words)
    print(json.dumps({**answer, "cpu_s": _read_cpu_s() - began}), flush=True)


if __name__ == "__main__":
    main()
