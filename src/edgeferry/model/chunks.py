"""Chunk lists: the pieces of a blob by their digests, so that damage costs a piece (docs/formats/manifest.md).

What this file leaves to others: publishing lists (`publish/`), fetching them and what they find (`agent/repair.py`).

Rules:
- A list is the first 16 bytes of the SHA-256 of each 64 KB piece, in order, without a header.
- A list says which pieces are damaged; that the blob is right is for the blob's own digest to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

CHUNK_BYTES = 64 << 10
CHUNK_DIGEST_BYTES = 16


def make_chunk_list(data: bytes) -> bytes:
    """The list of `data`; empty for data of one piece, whose digest says as much."""
    if len(data) <= CHUNK_BYTES:
        return b""
    return b"".join(_hash(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))


def get_list_size(size_bytes: int) -> int:
    """How long the list of a blob of `size_bytes` is."""
    return -(-size_bytes // CHUNK_BYTES) * CHUNK_DIGEST_BYTES


def find_damaged(pieces: Iterable[bytes], chunk_list: bytes) -> list[tuple[int, int]]:
    """The damaged stretches of a blob as (start, stop) in bytes, neighbours joined.

    Args:
        pieces: of the blob as it is here, 64 KB each but the last; as many as `chunk_list` has entries.
        chunk_list: what they should be.
    """
    holes: list[tuple[int, int]] = []
    start = 0
    for number, piece in enumerate(pieces):
        at, stop = number * CHUNK_DIGEST_BYTES, start + len(piece)
        if _hash(piece) != chunk_list[at : at + CHUNK_DIGEST_BYTES]:
            joined = holes.pop()[0] if holes and holes[-1][1] == start else start
            holes.append((joined, stop))
        start = stop
    return holes


def _hash(piece: bytes) -> bytes:
    return hashlib.sha256(piece).digest()[:CHUNK_DIGEST_BYTES]
