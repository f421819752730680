"""FlatBuffers tables and one FlexBuffers map, read from a buffer without copying; bounded for hostile bytes.

What a field means is left to the caller (`inspect_litert`).

Rules:
- Every offset is checked against the buffer before it is followed; nothing is followed twice in a loop of ours.
- Every table, vector and text costs some of one budget: many offsets may point at the same large thing, so the file's
  size alone bounds nothing.
- Every error is ModelUnreadable.

Source: FlatBuffers documentation, "Internals"; "FlexBuffers" (same place) for operator options.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from edgeferry.errors import ModelUnreadable

BUDGET = 32 << 20
_TABLE_COST = 32
_SCALARS = {code: struct.Struct(f"<{code}") for code in "bBhHiIqQfd"}


class Buffer:
    """Checked reads from `data`, and what may still be read."""

    def __init__(self, data: memoryview, *, budget: int = BUDGET) -> None:
        self.data = data
        self._left = budget

    def read(self, code: str, position: int) -> int | float:
        """One little-endian scalar, by its `struct` code."""
        scalar = _SCALARS[code]
        if not 0 <= position <= len(self.data) - scalar.size:
            raise ModelUnreadable(f"expected {scalar.size} bytes at byte {position} of {len(self.data)}: cut off?")
        value: int | float = scalar.unpack_from(self.data, position)[0]
        return value

    def read_int(self, code: str, position: int) -> int:
        """One integer."""
        return int(self.read(code, position))

    def spend(self, cost: int) -> None:
        """Takes `cost` from the budget."""
        self._left -= cost
        if self._left < 0:
            raise ModelUnreadable("expected a model, found more tables and texts than any model has")

    def get_root(self, identifier: bytes) -> Table:
        """The root table, when the file identifier is this one."""
        if bytes(self.data[4:8]) != identifier:
            raise ModelUnreadable(f"expected the file identifier {identifier!r}, found {bytes(self.data[4:8])!r}")
        return Table(self, self.read_int("I", 0))


class Table:
    """A table of a FlatBuffer; fields by slot number in the order of the schema."""

    def __init__(self, buffer: Buffer, position: int) -> None:
        buffer.spend(_TABLE_COST)
        self._buffer = buffer
        self._position = position
        self._vtable = position - buffer.read_int("i", position)
        self._vtable_bytes = buffer.read_int("H", self._vtable)

    def _find(self, slot: int) -> int:
        """Where the field lies; 0 when it is absent."""
        entry = 4 + 2 * slot
        if entry + 2 > self._vtable_bytes:
            return 0
        offset = self._buffer.read_int("H", self._vtable + entry)
        return self._position + offset if offset else 0

    def get_int(self, slot: int, code: str, default: int = 0) -> int:
        """An integer field."""
        position = self._find(slot)
        return self._buffer.read_int(code, position) if position else default

    def get_table(self, slot: int) -> Table | None:
        """A table field."""
        position = self._find(slot)
        return Table(self._buffer, position + self._buffer.read_int("I", position)) if position else None

    def get_vector(self, slot: int, item_bytes: int) -> tuple[int, int]:
        """Start and length of a vector whose items take `item_bytes`; it lies wholly in the buffer."""
        position = self._find(slot)
        if not position:
            return 0, 0
        start = position + self._buffer.read_int("I", position)
        count = self._buffer.read_int("I", start)
        if count * item_bytes > len(self._buffer.data) - start - 4:
            raise ModelUnreadable(f"expected {count} items at byte {start}, found the end of the file: cut off?")
        return start + 4, count

    def get_scalars(self, slot: int, code: str, max_count: int) -> tuple[int | float, ...]:
        """A vector of scalars."""
        size = _SCALARS[code].size
        start, count = self.get_vector(slot, size)
        if count > max_count:
            raise ModelUnreadable(f"expected at most {max_count} values at byte {start}, found {count}")
        self._buffer.spend(count * size)
        return tuple(self._buffer.read(code, start + size * index) for index in range(count))

    def get_ints(self, slot: int, max_count: int) -> tuple[int, ...]:
        """A vector of 32-bit integers."""
        return tuple(int(value) for value in self.get_scalars(slot, "i", max_count))

    def iter_tables(self, slot: int) -> Iterator[Table]:
        """The tables of a vector, one at a time."""
        start, count = self.get_vector(slot, 4)
        for position in range(start, start + 4 * count, 4):
            yield Table(self._buffer, position + self._buffer.read_int("I", position))

    def get_item(self, slot: int, index: int) -> Table:
        """One table of a vector."""
        start, count = self.get_vector(slot, 4)
        if not 0 <= index < count:
            raise ModelUnreadable(f"expected an index below {count}, found {index}")
        position = start + 4 * index
        return Table(self._buffer, position + self._buffer.read_int("I", position))

    def get_text(self, slot: int, max_bytes: int = 64 << 10) -> str:
        """A text field; "" when absent."""
        start, count = self.get_vector(slot, 1)
        if count > max_bytes:
            raise ModelUnreadable(f"expected a text of at most {max_bytes} bytes at byte {start}, found {count}")
        self._buffer.spend(count)
        try:
            return str(self._buffer.data[start : start + count], "utf-8")
        except UnicodeDecodeError as error:
            raise ModelUnreadable(f"expected UTF-8 at byte {start + error.start}") from error


_WIDTHS = {1: ("b", "B", ""), 2: ("h", "H", ""), 4: ("i", "I", "f"), 8: ("q", "Q", "d")}
"""Width in bytes -> `struct` codes of a signed, an unsigned and a floating number."""
_FLEX_INT, _FLEX_UINT, _FLEX_FLOAT, _FLEX_MAP, _FLEX_BOOL = 1, 2, 3, 9, 26
_FLEX_KEYS_MAX = 64
_FLEX_KEY_MAX_BYTES = 256


def read_flex_numbers(data: memoryview) -> dict[str, float]:
    """The finite numbers of a FlexBuffers map whose keys are texts; other values are left out.

    Raises:
        ModelUnreadable: not such a map.
    """
    buffer = Buffer(data)
    width, packed = _read_width(buffer, len(data) - 1), buffer.read_int("B", len(data) - 2)
    root = len(data) - 2 - width
    if packed >> 2 != _FLEX_MAP:
        raise ModelUnreadable("expected operator options as a map, found another kind")
    start = root - _read_unsigned(buffer, root, width)
    width = 1 << (packed & 3)
    count = _read_unsigned(buffer, start - width, width)
    if count > _FLEX_KEYS_MAX:
        raise ModelUnreadable(f"expected at most {_FLEX_KEYS_MAX} operator options, found {count}")
    keys = start - 3 * width - _read_unsigned(buffer, start - 3 * width, width)
    key_width = _read_unsigned(buffer, start - 2 * width, width)
    numbers: dict[str, float] = {}
    for index in range(count):
        kind = buffer.read_int("B", start + count * width + index)
        code = _find_code(kind >> 2, width)
        if code:
            key = _read_key(buffer, keys + index * key_width, key_width)
            value = buffer.read(code, start + index * width)
            if math.isfinite(value):
                numbers[key] = value
    return numbers


def _find_code(kind: int, width: int) -> str:
    """`struct` code of an inline number; "" for anything else."""
    column = {_FLEX_INT: 0, _FLEX_UINT: 1, _FLEX_BOOL: 1, _FLEX_FLOAT: 2}.get(kind)
    return "" if column is None else _WIDTHS[width][column]


def _read_width(buffer: Buffer, position: int) -> int:
    width = buffer.read_int("B", position)
    if width not in _WIDTHS:
        raise ModelUnreadable(f"expected a width of 1, 2, 4 or 8 bytes, found {width}")
    return width


def _read_unsigned(buffer: Buffer, position: int, width: int) -> int:
    if width not in _WIDTHS:
        raise ModelUnreadable(f"expected a width of 1, 2, 4 or 8 bytes, found {width}")
    return buffer.read_int(_WIDTHS[width][1], position)


def _read_key(buffer: Buffer, position: int, width: int) -> str:
    start = position - _read_unsigned(buffer, position, width)
    if start < 0:
        raise ModelUnreadable("expected an option's name inside its map")
    raw = bytes(buffer.data[start : start + _FLEX_KEY_MAX_BYTES])
    return raw.partition(b"\x00")[0].decode("utf-8", "replace")
