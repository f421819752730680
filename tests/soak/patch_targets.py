"""What the coverage-guided fuzzer feeds to the reader of patches: maps, streams and methods. Needs `edgeferry.delta`.

Rules:
- As in fuzz_targets.py. A reader may raise DeltaError; whatever else it raises is a defect, as is a numpy warning.
- Small bases and targets, so that an input takes a millisecond.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

from edgeferry.delta import codecs
from edgeferry.delta.apply import apply_patch
from edgeferry.delta.container import Container, make_container, read_container
from edgeferry.delta.record_bytes import read_records
from edgeferry.errors import DeltaError
from soak.fuzz_targets import Target

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "patch"
SAMPLES = (
    *("int8-requantised", "uint8-from-int8-with-the-same-scales", "scales-that-are-peaks", "pruned-with-both-zeros"),
    *("a-lattice-by-columns", "numbers-that-are-none", "rows-that-were-added", "bfloat16", "a-change-of-low-rank"),
)
SIZE = 4096
warnings.simplefilter("error", RuntimeWarning)


@cache
def read_sample(name: str) -> tuple[bytes, int, Container]:
    """Base, size of the target, and the good patch of a vector."""
    base = (VECTORS / f"good-{name}.base").read_bytes()
    patch = (VECTORS / f"good-{name}.efd").read_bytes()
    return base, (VECTORS / f"good-{name}.target").stat().st_size, read_container(patch, base_bytes=len(base))


def read_layout(data: bytes) -> None:
    """A container as it stands, and its bytes as a map."""
    for read in (
        lambda: read_container(data, base_bytes=SIZE),
        lambda: read_records(data, base_bytes=SIZE, target_bytes=SIZE),
    ):
        try:
            read()
        except DeltaError:
            continue


def read_tensors(data: bytes) -> None:
    """A good patch with another map, symbols and bits: its first byte chooses which, two more how long each is."""
    if len(data) < 3:
        return
    base, target_bytes, container = read_sample(SAMPLES[data[0] % len(SAMPLES)])
    if container.streams is None:
        return
    ends = 3 + data[1], 3 + data[1] + 2 * data[2]
    plain, symbols, bits = data[3 : ends[0]], data[ends[0] : ends[1]], data[ends[1] :]
    streams = container.streams
    streams = replace(streams, map_method=codecs.RAW, map_bytes=len(plain), map_data=plain, symbols=symbols, bits=bits)
    try:
        patch = make_container(replace(container, streams=streams))
        apply_patch(base, patch, memoryview(bytearray(target_bytes)))
    except DeltaError:
        return


def read_methods(data: bytes) -> None:
    """Each method: the first byte chooses it, the next is the size."""
    if len(data) < 2:
        return
    method = data[0] % (len(codecs.METHODS) + 1)
    try:
        codecs.get_memory(method, SIZE, data[2:], data[1])
        found = codecs.decode(method, bytes(SIZE), data[2:], data[1])
    except DeltaError:
        return
    if len(found) != data[1]:
        raise AssertionError(f"expected {data[1]} bytes, found {len(found)}")


def make_layout(dice: random.Random) -> bytes:
    return dice.choice(sorted(VECTORS.glob("*.efd"))).read_bytes()[:2000]


def make_tensors(dice: random.Random) -> bytes:
    """A vector's own map and the begin of its streams."""
    chosen = dice.randrange(len(SAMPLES))
    streams = read_sample(SAMPLES[chosen])[2].streams
    if streams is None:
        return b""
    plain = codecs.decode(streams.map_method, b"", streams.map_data, streams.map_bytes)[:255]
    words = min(255, len(streams.symbols) // 2)
    head = bytes([chosen, len(plain), words])
    return head + plain + bytes(streams.symbols[: 2 * words]) + bytes(streams.bits[:800])


def make_methods(dice: random.Random) -> bytes:
    method, size = dice.randrange(len(codecs.METHODS)), dice.randrange(256)
    return bytes([method, size]) + codecs.encode(method, bytes(SIZE), dice.randbytes(size))


TARGETS = {
    "patch layouts": Target(read_layout, make_layout),
    "patch tensors": Target(read_tensors, make_tensors),
    "patch methods": Target(read_methods, make_methods),
}
