"""Fields of 0 to 32 bits one after the other, highest bit first: the part of a value that is as good as noise.

Rules:
- A reader never reads outside its bytes: what would is DeltaDamaged.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeferry.delta.rans import I64, U64
from edgeferry.errors import DeltaDamaged

MAX_FIELD_BITS = 32
_PIECE = 1 << 16
_SIX, _SEVEN, _ALL = np.uint64(64), np.uint64(7), np.uint64(1)


class FieldReader(Protocol):
    """Where fields come from: a `BitReader`, or one that is watched (`explain.py`)."""

    def take(self, widths: I64) -> U64:
        """The next fields, as wide in bits as `widths` says."""

    def require_end(self) -> None:
        """Raises DeltaDamaged unless all bytes are used."""


class BitReader:
    """Takes fields out of bytes."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0  # in bits

    def take(self, widths: I64) -> U64:
        """The next fields, uint64 [n], as wide as `widths` says (int64 [n], 0 to 32 bits); raises DeltaDamaged."""
        ends = np.cumsum(widths)
        total = int(ends[-1]) if len(ends) else 0
        if not total:
            return np.zeros(len(widths), np.uint64)
        first, last = self._at // 8, (self._at + total + 7) // 8
        if last > len(self._data):
            raise DeltaDamaged("the stream of bits ends early")
        padded = np.zeros(last - first + 8, np.uint8)
        padded[: last - first] = np.frombuffer(self._data[first:last], np.uint8)
        windows = np.ndarray((last - first + 1,), ">u8", padded, 0, (1,))
        starts = ends - widths + (self._at - 8 * first)
        self._at += total
        wide = widths.astype(np.uint64)
        found = windows.take(starts >> 3).astype(np.uint64) << (starts.astype(np.uint64) & _SEVEN)
        # a shift by 64 is undefined: a field without bits is shifted by 63, and then by one more
        return (found >> (_SIX - np.maximum(wide, _ALL))) & ((_ALL << wide) - _ALL)

    def require_end(self) -> None:
        """Raises DeltaDamaged unless all bytes are used."""
        if (self._at + 7) // 8 != len(self._data):
            raise DeltaDamaged("the stream of bits does not end where it should")


class BitWriter:
    """Collects fields; the mirror of `BitReader`."""

    def __init__(self) -> None:
        self._pieces: list[NDArray[np.bool_]] = []
        self._whole: list[bytes] = []
        self.size_bits = 0

    def put(self, values: U64, widths: I64) -> None:
        """Fields of `values`, their lowest `widths` bits."""
        for at in range(0, len(values), _PIECE):
            self._pieces.append(_spread(values[at : at + _PIECE], widths[at : at + _PIECE]))
            self._pack()
        self.size_bits += int(widths.sum())

    def _pack(self) -> None:
        """Keeps whole bytes as bytes, and fewer than eight bits."""
        bits = np.concatenate(self._pieces)
        whole = len(bits) // 8 * 8
        self._whole.append(np.packbits(bits[:whole]).tobytes())
        self._pieces = [bits[whole:]]

    def finish(self) -> bytes:
        """All fields; the last byte is filled with zeros."""
        rest = [np.packbits(bits).tobytes() for bits in self._pieces]
        return b"".join([*self._whole, *rest])


def _spread(values: U64, widths: I64) -> NDArray[np.bool_]:
    """The bits of each field in a row, then all rows joined."""
    width = int(widths.max()) if len(widths) else 0
    places = np.arange(width - 1, -1, -1)
    bits = (values[:, None] >> places.astype(np.uint64)) & _ALL
    return np.asarray(bits[places < widths[:, None]], np.bool_)
