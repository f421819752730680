"""Unsigned numbers of any size up to 63 bits, in as few bytes as they need: LEB128.

Rules:
- A reader takes at most nine bytes: what is longer, or cut, is DeltaDamaged.
"""

from __future__ import annotations

from edgeferry.errors import DeltaDamaged, InvariantBroken

MAX_NUMBER_BITS = 63


def make_varint(number: int) -> bytes:
    """Unsigned LEB128."""
    if number < 0:
        raise InvariantBroken(f"expected a number from 0, found {number}")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next one stands; raises DeltaDamaged."""
    number = 0
    for shift in range(0, MAX_NUMBER_BITS, 7):
        if at >= len(view):
            break
        byte = view[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
    raise DeltaDamaged(f"the patch is cut, or holds a number over {MAX_NUMBER_BITS} bits")
