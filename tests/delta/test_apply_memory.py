"""Applying stays within the memory that a patch states: anonymous memory of a process, above its imports.

Large models in a process of their own. Base, patch and target stand in its memory before (a device maps them), so that
what the peak rises by is what applying takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from delta.hostile_patches import make_texts, wrap
from delta.model_pairs import make_onnx
from edgeferry.delta import codecs
from edgeferry.delta.apply import CODEC
from edgeferry.delta.bits import BitWriter
from edgeferry.delta.container import Container, Header, Piece, Streams, make_container
from edgeferry.delta.fit import NO_SIDE
from edgeferry.delta.kinds import KIND_BY_NAME
from edgeferry.delta.make import MEMORY_BOUND_BYTES, TENSOR_WORK_BYTES, Patch, make_full, make_patch
from edgeferry.delta.predict import Files
from edgeferry.delta.rans import Encoder
from edgeferry.delta.record_bytes import make_records
from edgeferry.delta.records import Origin, Record
from edgeferry.delta.tensor_codec import Sink, make_model, write_tensor
from edgeferry.delta.tensors import find_tensors
from edgeferry.model.digest import Digest

ROOT = Path(__file__).resolve().parents[2]
TENSOR_BYTES, BYTES_BYTES, PIECE_BYTES = 30 << 20, 26 << 20, 6 << 20
IMPORTS_KIB = 2 << 10
"""What one application brings in once, whatever the patch: modules that load late, caches."""

_APPLY = """
import json, pathlib, sys, time
from edgeferry.delta.apply import apply_patch

def read(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

base, patch, zeros = (pathlib.Path(path).read_bytes() for path in sys.argv[1:4])
target = bytearray(zeros)
del zeros
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before, begun = read("VmRSS"), time.process_time()
apply_patch(base, patch, memoryview(target))
spent, peak = time.process_time() - begun, read("VmHWM")
pathlib.Path(sys.argv[3]).write_bytes(target)
print(json.dumps({"kib": peak - before, "cpu_s": spent}))
"""


def measure(folder: Path, base: bytes, target: bytes, patch: Patch) -> dict[str, float]:
    """Peak of anonymous memory in KiB and seconds of processor time of one application; checks the target."""
    paths = [folder / name for name in ("base", "patch", "target")]
    for path, data in zip(paths, (base, patch.data, bytes(len(target))), strict=True):
        path.write_bytes(data)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OPENBLAS_NUM_THREADS": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system
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


def code_tensor() -> tuple[bytes, bytes, Patch]:
    """The large matrix by a record that nobody fitted: what is slow about patches is to choose."""
    base, target = make_tensors()
    (one,), kind = find_tensors(target), KIND_BY_NAME["f4"]
    origin = Origin(True, find_tensors(base)[0].start, kind, *one.shape)
    record = Record(one.start, kind, *one.shape, origin=origin, mantissa=23, scale=-92)
    sink = Sink(Encoder(), BitWriter(), make_model())
    write_tensor(record, NO_SIDE, Files(memoryview(base), memoryview(target)), sink=sink)
    plain, lanes = make_records([record]), 512
    streams = Streams(codecs.RAW, len(plain), plain, lanes, sink.encoder.finish(lanes), sink.bits.finish())
    digests = [bytes.fromhex(Digest.of(data).hex)[:12] for data in (base, target)]
    header = Header(True, *digests, len(target), TENSOR_WORK_BYTES)
    piece = Piece(codecs.RAW, -1, target[: one.start] + target[one.end :], 0, -1)
    return (
        base,
        target,
        Patch(make_container(Container(header, streams, (piece,))), CODEC, "tensors", TENSOR_WORK_BYTES),
    )


def require_within(found: dict[str, float], memory_bytes: int) -> None:
    print(f"states {memory_bytes >> 10} KiB, took {found}")
    assert 0 < found["kib"] <= (memory_bytes >> 10) + IMPORTS_KIB
    assert memory_bytes <= MEMORY_BOUND_BYTES


def test_a_large_tensor_takes_no_more_memory_than_every_patch_of_tensors_states(tmp_path: Path) -> None:
    base, target, patch = code_tensor()
    require_within(measure(tmp_path, base, target, patch), TENSOR_WORK_BYTES)


@pytest.mark.parametrize("method", codecs.METHODS, ids=codecs.METHODS.get)
def test_a_piece_takes_no_more_memory_than_its_method_states(method: int, tmp_path: Path) -> None:
    base, target = (data[:PIECE_BYTES] for data in make_bytes())
    data = codecs.encode(method, base, target)
    memory_bytes = codecs.get_memory(method, len(base), data, len(target))
    patch = Patch(wrap(base, target, (Piece(method, len(target), data, 0, len(base)),)), CODEC, "", memory_bytes)
    require_within(measure(tmp_path, base, target, patch), memory_bytes)


@pytest.mark.parametrize("make", [make_many_tensors, make_texts], ids=["many tensors", "texts"])
def test_a_patch_as_it_is_made_takes_no_more_memory_than_it_states(
    make: Callable[[], tuple[bytes, bytes]], tmp_path: Path
) -> None:
    base, target = make()
    patch = make_patch(base, target)
    require_within(measure(tmp_path, base, target, patch), patch.memory_bytes)


@pytest.mark.soak
@pytest.mark.parametrize("make", [make_tensors, make_bytes], ids=["a large tensor", "bytes in pieces"])
def test_a_large_patch_as_it_is_made_takes_no_more_memory_than_it_states(
    make: Callable[[], tuple[bytes, bytes]], tmp_path: Path
) -> None:
    base, target = make()
    for first, patch in ((base, make_patch(base, target)), (b"", make_full(target))):
        require_within(measure(tmp_path, first, target, patch), patch.memory_bytes)


def test_memory_that_is_taken_is_seen(tmp_path: Path) -> None:
    """The measure can fail: bytes as they are, are copied once."""
    target = np.random.default_rng(4).bytes(PIECE_BYTES)
    patch = Patch(wrap(b"", target, (Piece(codecs.RAW, len(target), target),), has_base=False), CODEC, "", 0)
    assert measure(tmp_path, b"", target, patch)["kib"] > 0.9 * (PIECE_BYTES >> 10)
