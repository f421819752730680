"""blocks: the bytes of a body in the parts that they came in, so that none is copied before it is where it belongs.

What this file leaves to others: reading a body (`serve/body.py`), where it belongs (`line.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

Part = bytes | bytearray | memoryview
_PARTS_MAX = 1024
"""Of a body that comes in crumbs each part would cost more than its bytes."""


class Blocks:
    """A body in parts. `bytes()` of it joins them, its length is that of all."""

    __slots__ = ("_size_bytes", "parts")

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts: Sequence[Part] = parts if len(parts) <= _PARTS_MAX else (b"".join(parts),)
        self._size_bytes = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size_bytes

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


Body = Part | Blocks


def get_parts(body: Body) -> Sequence[Part]:
    """The parts of a body; a whole one is its only part."""
    return body.parts if isinstance(body, Blocks) else (body,)
