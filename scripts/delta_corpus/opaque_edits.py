"""Edits after which a file is no model any more: for patches it is opaque bytes."""

from __future__ import annotations

import textwrap

KEPT = 0.7
DAMAGED_EVERY = 5_003
NARROW = 60


def cut(data: bytes) -> bytes:
    """The first part: what an interrupted download leaves."""
    return data[: int(len(data) * KEPT)]


def damage(data: bytes) -> bytes:
    """The head gone, and a bit flipped every few thousand bytes."""
    damaged = bytearray(data)
    damaged[:16] = bytes(16)
    for at in range(DAMAGED_EVERY, len(damaged), DAMAGED_EVERY):
        damaged[at] ^= 1 << at % 8
    return bytes(damaged)


def wrap(data: bytes) -> bytes:
    """A text in narrower lines."""
    return "\n\n".join(textwrap.fill(part, NARROW) for part in data.decode().split("\n\n")).encode()
