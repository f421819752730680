"""Applying stays within the memory that a patch states: anonymous memory of a process, above its imports.

Large models in a process of their own, which maps base, patch and target as the device does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from delta.model_pairs import make_onnx
from edgeferry.delta.make import MEMORY_BOUND_BYTES, Patch, make_full, make_patch

ROOT = Path(__file__).resolve().parents[2]
TENSOR_BYTES, BYTES_BYTES = 30 << 20, 26 << 20
IMPORTS_KIB = 2 << 10
"""What one application brings in once, whatever the patch: modules that load late, caches."""

_APPLY = """
import json, mmap, pathlib, sys, threading, time
from edgeferry.delta.apply import apply_patch

def read(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

def open_mapped(path, write=False):
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)

base, patch, target = (open_mapped(path, path == sys.argv[3]) for path in sys.argv[1:4])
before, peak, running = read("RssAnon"), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, read("RssAnon"))
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
begun = time.process_time()
apply_patch(base, patch, memoryview(target))
spent = time.process_time() - begun
running = False
watcher.join()
print(json.dumps({"kib": peak - before, "cpu_s": spent}))
"""


def measure(folder: Path, base: bytes, target: bytes, patch: Patch) -> dict[str, float]:
    """Peak of anonymous memory in KiB and seconds of processor time of one application; checks the target."""
    paths = [folder / name for name in ("base", "patch", "target")]
    for path, data in zip(paths, (base, patch.data, bytes(len(target))), strict=True):
        path.write_bytes(data)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OPENBLAS_NUM_THREADS": "1"}
    words = [sys.executable, "-c", _APPLY, *map(str, paths)]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True, timeout=300)
    assert paths[2].read_bytes() == target
    return dict(json.loads(done.stdout))


def make_tensors() -> tuple[bytes, bytes]:
    """One large matrix, all of whose numbers moved a little."""
    dice = np.random.default_rng(1)
    weights = (dice.normal(size=(TENSOR_BYTES // 4 // 1024, 1024)) * 0.1).astype(np.float32)
    moved = (weights * (1 + 1e-6 * dice.normal(size=weights.shape))).astype(np.float32)
    return make_onnx({"w": weights}), make_onnx({"w": moved})


@cache
def make_many_tensors() -> tuple[bytes, bytes]:
    """Many small tensors: their map takes memory too."""
    dice = np.random.default_rng(2)
    base = {f"w{at}": dice.normal(size=64).astype(np.float32) for at in range(1_500)}
    target = {name: (values * np.float32(1.001)).astype(np.float32) for name, values in base.items()}
    return make_onnx(base), make_onnx(target)


def make_bytes() -> tuple[bytes, bytes]:
    """No model; several pieces, as words that repeat, with changes and insertions."""
    dice = np.random.default_rng(3)
    words = [dice.bytes(int(size)) for size in dice.integers(4, 40, 4000)]
    base = b"".join(words[at] for at in dice.integers(0, 4000, BYTES_BYTES // 22))
    cuts = sorted(int(at) for at in dice.integers(0, len(base), 60))
    parts = [base[start:end] for start, end in zip([0, *cuts], [*cuts, len(base)], strict=True)]
    return base, b"something new".join(parts)


KINDS: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "a large tensor": make_tensors,
    "many tensors": make_many_tensors,
    "bytes in pieces": make_bytes,
}


@pytest.mark.parametrize("kind", KINDS)
def test_applying_a_patch_stays_within_the_memory_that_it_states(kind: str, tmp_path: Path) -> None:
    base, target = KINDS[kind]()
    patch = make_patch(base, target)
    assert patch.way == ("in pieces" if kind == "bytes in pieces" else "tensors")
    found = measure(tmp_path, base, target, patch)
    print(f"{kind}: {len(target):,} bytes by {len(patch.data):,}; states {patch.memory_bytes >> 10} KiB, took {found}")
    assert 0 < found["kib"] <= (patch.memory_bytes >> 10) + IMPORTS_KIB
    assert patch.memory_bytes <= MEMORY_BOUND_BYTES


def test_decoding_a_full_file_stays_within_the_memory_that_it_states(tmp_path: Path) -> None:
    _, target = make_tensors()
    full = make_full(target)
    (tmp_path / "nothing").write_bytes(b"")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OPENBLAS_NUM_THREADS": "1"}
    (tmp_path / "patch").write_bytes(full.data)
    (tmp_path / "target").write_bytes(bytes(len(target)))
    script = _APPLY.replace("base, patch, target = (", "base = b''\npatch, target = (").replace(
        "argv[1:4]", "argv[2:4]"
    )
    words = [sys.executable, "-c", script, "", str(tmp_path / "patch"), str(tmp_path / "target")]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True, timeout=300)
    assert (tmp_path / "target").read_bytes() == target
    assert 0 < json.loads(done.stdout)["kib"] <= (full.memory_bytes >> 10) + IMPORTS_KIB


def test_memory_that_is_taken_is_seen(tmp_path: Path) -> None:
    """The measure can fail: a patch that states nothing takes more."""
    base, target = make_many_tensors()
    patch = make_patch(base, target)
    assert measure(tmp_path, base, target, patch)["kib"] > 4 << 10
