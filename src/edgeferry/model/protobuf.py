"""Protobuf wire format, read field by field from a buffer without copying; enough for ONNX, bounded for hostile bytes.

What a field means is left to the caller (`inspect_onnx`).

Rules:
- Offsets into one view, never copies; nested messages are walked by the caller, so depth is the caller's.
- Every field visited costs one of the budget: a file of empty fields ends in an error, not in minutes.
- Groups (wire types 3 and 4, long deprecated) are refused. Every error is ModelUnreadable.

Source: Protocol Buffers documentation, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from edgeferry.errors import ModelUnreadable

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
FIELDS_MAX = 3_000_000
_VARINT_MAX_BITS = 70


class Field(NamedTuple):
    """A field: of a varint `value` counts, of all others the bytes from `start` to `end`."""

    number: int
    kind: int
    value: int
    start: int
    end: int


class WireReader:
    """Walks messages in `data`."""

    def __init__(self, data: memoryview, *, fields_max: int = FIELDS_MAX) -> None:
        self._data = data
        self._left = fields_max

    def walk(self, start: int = 0, end: int | None = None) -> Iterator[Field]:
        """Yields the fields of the message that lies from `start` to `end`."""
        end = len(self._data) if end is None else end
        position = start
        while position < end:
            self._spend()
            tag, position = self._read_varint(position, end)
            field = self._read_field(tag, position, end)
            position = field.end
            yield field

    def read_text(self, field: Field, max_bytes: int) -> str:
        """The text of a length-delimited field."""
        if field.kind != LENGTH or field.end - field.start > max_bytes:
            raise ModelUnreadable(f"expected a text of at most {max_bytes} bytes at byte {field.start}")
        try:
            return str(self._data[field.start : field.end], "utf-8")
        except UnicodeDecodeError as error:
            raise ModelUnreadable(f"expected UTF-8 at byte {field.start + error.start}") from error

    def read_varints(self, field: Field) -> Iterator[int]:
        """Yields the varints of a packed field; each costs one of the budget."""
        position = field.start
        while position < field.end:
            self._spend()
            value, position = self._read_varint(position, field.end)
            yield value

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ModelUnreadable("expected a model, found more protobuf fields than any model has")

    def _read_field(self, tag: int, position: int, end: int) -> Field:
        number, kind = tag >> 3, tag & 7
        value = 0
        if number == 0 or kind not in (VARINT, FIXED64, LENGTH, FIXED32):
            raise ModelUnreadable(f"expected a protobuf field before byte {position}, found tag {tag}")
        if kind == VARINT:
            value, stop = self._read_varint(position, end)
        elif kind == LENGTH:
            length, position = self._read_varint(position, end)
            stop = position + length
        else:
            stop = position + (8 if kind == FIXED64 else 4)
        if stop > end:
            raise ModelUnreadable(
                f"expected {stop - position} bytes at byte {position}, found {end - position}: cut off?"
            )
        return Field(number, kind, value, position, stop)

    def _read_varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < _VARINT_MAX_BITS:
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position
            shift += 7
        raise ModelUnreadable(f"expected a varint before byte {position}, found none: cut off?")


def to_signed(value: int) -> int:
    """An int64 as protobuf's varints carry it (two's complement) as a number."""
    return value - (1 << 64) if value >= 1 << 63 else value
