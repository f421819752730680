"""How a whole file travels: every codec is tried, the shortest is kept.

Codecs are `delta/`'s. Patches between versions are `patches.py`'s, chunk lists `model/chunks.py`'s.

Rules:
- What is kept was decoded again and compared (the container by `make_full` itself).
- The same bytes on every run.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeferry.delta.apply import decode_full, get_memory
from edgeferry.delta.codecs import compress_zstd
from edgeferry.delta.make import Progress, make_full, tell_nobody
from edgeferry.errors import InvariantBroken


@dataclass(frozen=True, slots=True)
class Coded:
    """A file as it travels. `sizes` holds what each codec would have taken, in bytes."""

    data: bytes
    codec: str
    memory_bytes: int
    sizes: dict[str, int]


def code_full(data: bytes, *, progress: Progress = tell_nobody) -> Coded:
    """The shortest full download of `data`; among equals the one that is decoded most simply.

    Raises:
        InvariantBroken: it does not come back.
    """
    made = make_full(data, progress=progress)
    ways = {"none": data, "zstd": compress_zstd(data), made.codec: made.data}
    codec = min(ways, key=lambda name: len(ways[name]))
    best = ways[codec]
    if codec != made.codec:
        _require_same(best, codec, data)
    return Coded(best, codec, get_memory(best, codec), {name: len(way) for name, way in ways.items()})


def _require_same(coded: bytes, codec: str, data: bytes) -> None:
    again = bytearray(len(data))
    decode_full(coded, codec, memoryview(again))
    if again != data:
        raise InvariantBroken(f"a file does not come back from the codec {codec}; nothing was published")
