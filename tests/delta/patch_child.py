"""A process that applies seeded damaged patches under limits and prints a line of JSON for each.

Usage: python -W error::RuntimeWarning patch_child.py FOLDER [planted]. FOLDER holds the good patches (samples.json and
their files) and mutations (`<number>-<sample>`). Each line: number, what came of it, milliseconds of processor time,
peak of anonymous memory in KiB above what the process had before.

Rules:
- Bounded as the device bounds it: address space by what stands already, what the manifest states and the device's
  slack; processor time by a timer that ends the process.
- Whatever is no verdict of ours is printed by its name; that it is a defect is for the tests to say.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from pathlib import Path

from edgeferry.delta.apply import CODEC, apply_patch, get_memory
from edgeferry.errors import DeltaBaseMismatch, DeltaDamaged
from edgeferry.storage.patching import ADDRESS_SLACK_BYTES

ONE_PATCH_MAX_S = 10.0


def read_status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise KeyError(name)


def limit(memory_bytes: int) -> None:
    """Bounds the address space for the next patch, and the time it takes."""
    most = read_status("VmSize") * 1024 + memory_bytes + ADDRESS_SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, ONE_PATCH_MAX_S)


def judge(base: bytes, patch: bytes, target: bytes, memory_bytes: int) -> str:
    """What the device would say of a patch."""
    found = memoryview(bytearray(len(target)))
    try:
        if get_memory(patch, CODEC) > memory_bytes:
            return "damaged"
        apply_patch(base, patch, found)
    except DeltaDamaged:
        return "damaged"
    except DeltaBaseMismatch:
        return "other base"
    except MemoryError:
        return "memory"
    return "target" if found == target else "WRONG TARGET"


def measure(base: bytes, patch: bytes, target: bytes, memory_bytes: int) -> tuple[str, float, int]:
    """What came of it, milliseconds and KiB."""
    before, begun = read_status("RssAnon"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew
    limit(memory_bytes)
    try:
        outcome = judge(base, patch, target, memory_bytes)
    except Exception as error:  # noqa: BLE001 what it is, is what the tests ask
        outcome = f"{type(error).__name__}: {error}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    spent = (time.process_time() - begun) * 1000
    files = read_status("RssFile") + read_status("RssShmem")
    return outcome, spent, read_status("VmHWM") - files - before


def main(folder: Path, planted: bool) -> None:
    """Goes through the folder's mutations, in order."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    samples = json.loads((folder / "samples.json").read_text())
    files = {name: [(folder / each).read_bytes() for each in names] for name, (*names, _) in samples.items()}
    for base, target, patch in files.values():  # imports, caches and the allocator's first pages
        judge(base, patch, target, 1 << 30)
    for path in sorted(folder.glob("m*-*")):
        number, name = path.name[1:].split("-", 1)
        base, target, _ = files[name]
        outcome, spent, peak = measure(base, path.read_bytes(), target, samples[name][-1])
        if planted and outcome == "damaged":
            outcome = "IndexError: planted"
        print(json.dumps([int(number), outcome, round(spent), peak]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["planted"])
