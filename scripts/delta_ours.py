"""What ours makes of a pair, and what that costs: bytes, CPU time and memory, each step in a child (delta_child.py).

Rules:
- Every patch is applied and every byte compared with the target before its size counts.
- CPU time is the child's own, above its imports; of several runs of a short step the least counts: the rest is noise.
- Memory is RssAnon above what the child had after its imports. While making it is read from outside every few
  milliseconds. Applying may take less than that: its peak is told by a run of its own (`weigh` in delta_child.py).
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from delta_child import read_memory
from delta_judge import Cost, Made

HERE = Path(__file__).resolve().parent
REPEAT_BELOW_S, REPEATS = 1.5, 3
_CHILD_MAX_S = 1200
"""A child that takes longer hangs."""
_SAMPLE_EVERY_S = 0.005
_BLOCK_BYTES = 1 << 20


def make_patch(base: Path, target: Path, out: Path) -> Made:
    """Makes the patch as `out`."""
    return _make(out, "make", base, target, out)


def make_full(target: Path, out: Path) -> Made:
    """Makes the coded file as `out`."""
    return _make(out, "full", target, out)


def _make(out: Path, *words: str | Path) -> Made:
    answer, cost = run_child(*words)
    return Made(out.stat().st_size, answer["way"], answer["memory_bytes"], cost, answer["remainder_only"])


def apply_patch(base: Path | None, patch: Path, target: Path) -> Cost:
    """Applies a patch and compares; without a base, a coded file.

    Raises:
        SystemExit: the result is not the target.
    """
    with tempfile.TemporaryDirectory(dir=patch.parent) as name:
        empty, out = Path(name) / "empty", Path(name) / "out"
        empty.touch()
        words = (base or empty, patch, out, str(target.stat().st_size))
        weighed = run_child("weigh", *words)[1]
        require_same(out, target)
        if weighed.cpu_s >= REPEAT_BELOW_S:
            return weighed
        costs = [run_child("apply", *words)[1] for _ in range(REPEATS)]
    return Cost(min(cost.cpu_s for cost in costs), weighed.memory_bytes)


def require_same(found: Path, wanted: Path) -> None:
    """Compares two files; raises SystemExit when a byte differs."""
    with found.open("rb") as one, wanted.open("rb") as two:
        while True:
            left, right = one.read(_BLOCK_BYTES), two.read(_BLOCK_BYTES)
            if left != right:
                raise SystemExit(f"FALLS SHORT: the patch for {wanted} does not give the target")
            if not left:
                return


def run_child(*words: str | Path) -> tuple[dict[str, Any], Cost]:
    """Runs one step in a child; what it answered, and what it cost."""
    command: list[str | Path] = [sys.executable, HERE / "delta_child.py", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        if child.stdin is None or child.stdout is None:
            raise SystemExit("the child has no pipes")
        before = _read_line(child.stdout.readline(), words)["ready"]
        child.stdin.write("go\n")
        child.stdin.flush()
        peak = _watch(child, child.stdout.fileno())
        answer = _read_line(child.stdout.readline(), words)
    return answer, Cost(answer["cpu_s"], max(0, answer.get("anonymous", peak) - before))


def _watch(child: subprocess.Popen[str], answers: int) -> int:
    """The highest RssAnon until the child answers or ends; a child that hangs is ended."""
    peak, end_s = 0, time.monotonic() + _CHILD_MAX_S
    while not select.select([answers], [], [], _SAMPLE_EVERY_S)[0]:
        peak = max(peak, read_memory(str(child.pid), "RssAnon"))
        if time.monotonic() > end_s:
            child.kill()
    return peak


def _read_line(line: str, words: tuple[str | Path, ...]) -> dict[str, Any]:
    if not line:
        raise SystemExit(f"the child ended early: {' '.join(map(str, words))}")
    answer: dict[str, Any] = json.loads(line)
    return answer
