"""Kinds of numbers that tensors hold, and how their bytes become float64 and come back.

Rules:
- Exact: reading and writing back gives the same bits, NaN apart, whose bits travel as they are (`cells.py`).
- `round_to` is one IEEE rounding (to the nearest, ties to even) or `rint`; the same on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview
F64 = NDArray[np.float64]


class Kind(NamedTuple):
    """A kind of number.

    Attributes:
        name: as in `tensors.Tensor.kind`; `dtype`: numpy's name of the bytes, little-endian.
        width: bytes of one.
        mantissa: stored bits of the mantissa; 0 for integers.
        exponent_min: exponent of the smallest normal number.
        low, high: least and greatest value.
    """

    name: str
    dtype: str
    width: int
    mantissa: int
    exponent_min: int
    low: float
    high: float

    @property
    def is_float(self) -> bool:
        """Whether it has an exponent."""
        return self.mantissa > 0


def _make_int(name: str, bits: int, *, signed: bool) -> Kind:
    low = -(1 << (bits - 1)) if signed else 0
    return Kind(name, f"<{name}", bits // 8, 0, 0, float(low), float(low + (1 << bits) - 1))


KINDS = (
    Kind("f4", "<f4", 4, 23, -126, -3.4028234663852886e38, 3.4028234663852886e38),
    Kind("f2", "<f2", 2, 10, -14, -65504.0, 65504.0),
    Kind("bf2", "<u2", 2, 7, -126, -3.3895313892515355e38, 3.3895313892515355e38),
    _make_int("i1", 8, signed=True),
    _make_int("u1", 8, signed=False),
    _make_int("i2", 16, signed=True),
    _make_int("u2", 16, signed=False),
    _make_int("i4", 32, signed=True),
)
"""Index in this tuple is the kind's number in a patch."""
KIND_BY_NAME = {kind.name: kind for kind in KINDS}


def read_numbers(data: Buffer, kind: Kind) -> F64:
    """The numbers as float64; NaN and infinities too."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        if kind.name == "bf2":
            wide = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
            return wide.view(np.float32).astype(np.float64)
        return np.frombuffer(data, kind.dtype).astype(np.float64)


def read_bits(data: Buffer, kind: Kind) -> NDArray[np.uint64]:
    """The numbers' own bits."""
    return np.frombuffer(data, f"<u{kind.width}").astype(np.uint64)


def write_numbers(values: F64, kind: Kind) -> NDArray[np.unsignedinteger]:
    """The numbers' bits, as unsigned integers of their width; values that are none of the kind give some number."""
    with np.errstate(all="ignore"):
        if kind.name == "bf2":
            return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype("<u2")
        if kind.is_float:
            return values.astype(kind.dtype).view(f"<u{kind.width}")
        bounded = np.clip(values, kind.low, kind.high)
        return bounded.astype(np.int64).astype(kind.dtype).view(f"<u{kind.width}")


def round_to(values: F64, kind: Kind) -> F64:
    """The nearest number of the kind; 0 for what is none."""
    with np.errstate(all="ignore"):
        if kind.name == "bf2":
            found = _round_bfloat(values)
        elif kind.is_float:
            found = values.astype(kind.dtype).astype(np.float64)
        else:
            found = np.clip(np.rint(values), kind.low, kind.high)
    found[~np.isfinite(found)] = 0.0
    return found


def _round_bfloat(values: F64) -> F64:
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)
