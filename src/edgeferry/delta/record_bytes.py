"""The map's bytes: records column by column, each number as a varint.

Starts are told as distances from where the record before ended, so that a map compresses to little. What a record
means and which bounds it keeps is `records.py`'s.

Rules:
- A column has numbers only for the records that need it.
- What is read was checked; what breaks a rule is DeltaDamaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edgeferry.delta.kinds import KINDS, Buffer
from edgeferry.delta.records import MAX_RECORDS, AnyRecord, Copy, Origin, Place, Record, check_records, require
from edgeferry.delta.varint import make_varint, read_varint
from edgeferry.errors import DeltaDamaged

COPY = len(KINDS)
"""In place of a kind's number: bytes that stand elsewhere."""
(
    _ORIGIN,
    _ORIGIN_IN_TARGET,
    _ROWS,
    _COLUMNS,
    _PRUNED,
    _SCALES,
    _SCALES_IN_BASE,
    _ORIGIN_SCALES,
    _ORIGIN_SCALES_IN_BASE,
) = (1 << bit for bit in range(9))
_MULTIPLIED_AT, _PEAK_AT, _DIVISION_AT, _LATTICE_AT = 9, 11, 13, 15


# --- to bytes ---------------------------------------------------------------------------------------------------------
def make_records(records: Sequence[AnyRecord]) -> bytes:
    """The map's bytes, not yet compressed."""
    columns: dict[str, list[int]] = {name: [] for name in _COLUMNS_OF_RECORDS}
    end, source_end = 0, 0
    for record in records:
        kind = COPY if isinstance(record, Copy) else KINDS.index(record.kind)
        columns["kind"].append(kind)
        columns["start"].append(_fold(record.start - end))
        end = record.end
        if isinstance(record, Copy):
            _put(columns, length=record.size_bytes, flags=_ORIGIN_IN_TARGET * (not record.in_base))
            _put(columns, source=_fold(record.source - source_end))
            source_end = record.source + record.size_bytes
        else:
            source_end = _put_record(columns, record, source_end)
    numbers = [len(records), *(number for column in columns.values() for number in column)]
    return b"".join(map(make_varint, numbers))


def _put(table: dict[str, list[int]], **numbers: int) -> None:
    for name, number in numbers.items():
        table[name].append(number)


def _put_record(columns: dict[str, list[int]], record: Record, source_end: int) -> int:
    flags = _make_flags(record)
    _put(columns, flags=flags, rows=record.rows, columns=record.columns, scale=_fold(record.scale))
    _put(columns, mantissa=record.kind.mantissa - record.mantissa, zero=_fold(record.zero))
    _put(columns, rank=record.rank)
    if record.rank:
        _put(columns, step=_fold(record.step))
    if record.multiplied:
        _put(columns, multiplier_bits=record.multiplier_bits)
    if record.lattice:
        _put(columns, lattice_bits=_fold(record.lattice_bits))
    if record.threshold is not None:
        _put(columns, threshold=record.threshold)
    if record.peak:
        _put(columns, divisor=record.divisor)
    for place in (record.scales, record.origin.scales if record.origin else None):
        if place:
            _put(columns, place=place.start, count=place.length)
    origin = record.origin
    if origin is None:
        return source_end
    _put(columns, source=_fold(origin.start - source_end), origin_kind=KINDS.index(origin.kind))
    _put(columns, origin_rows=_fold(origin.rows - record.rows), origin_columns=_fold(origin.columns - record.columns))
    _put(columns, origin_zero=_fold(origin.zero))
    return origin.start + origin.size_bytes


def _make_flags(record: Record) -> int:
    origin = record.origin
    flags = _ORIGIN * (origin is not None)
    flags |= _ROWS * record.row_scales | _COLUMNS * record.column_scales | _PRUNED * (record.threshold is not None)
    flags |= record.multiplied << _MULTIPLIED_AT | record.peak << _PEAK_AT | record.division << _DIVISION_AT
    flags |= record.lattice << _LATTICE_AT
    if record.scales:
        flags |= _SCALES | _SCALES_IN_BASE * record.scales.in_base
    if origin and not origin.in_base:
        flags |= _ORIGIN_IN_TARGET
    if origin and origin.scales:
        flags |= _ORIGIN_SCALES | _ORIGIN_SCALES_IN_BASE * origin.scales.in_base
    return flags


_COLUMNS_OF_RECORDS = (
    *("kind", "start", "flags", "length", "rows", "columns", "scale", "mantissa", "zero", "rank", "step"),
    *("multiplier_bits", "lattice_bits", "threshold", "divisor", "place", "count"),
    *("source", "origin_kind", "origin_rows", "origin_columns", "origin_zero"),
)
"""The order of the columns. One that a record does not need has no number of it."""


# --- from bytes -------------------------------------------------------------------------------------------------------
def read_records(data: Buffer, *, base_bytes: int, target_bytes: int) -> tuple[AnyRecord, ...]:
    """Reads and checks a map; raises DeltaDamaged."""
    numbers = _Numbers(memoryview(data))
    count = numbers.take_below(MAX_RECORDS, "records")
    kinds = [numbers.take_below(COPY, "kinds") for _ in range(count)]
    starts = [numbers.take() for _ in range(count)]
    flags = [numbers.take_below((1 << 17) - 1, "flags") for _ in range(count)]
    tensors = [at for at in range(count) if kinds[at] != COPY]
    fields = {"length": numbers.take_for([at for at in range(count) if kinds[at] == COPY])}
    for name in ("rows", "columns", "scale", "mantissa", "zero", "rank"):
        fields[name] = numbers.take_for(tensors)
    fields["step"] = numbers.take_for([at for at in tensors if fields["rank"][at]])
    fields["multiplier_bits"] = numbers.take_for([at for at in tensors if flags[at] >> _MULTIPLIED_AT & 3])
    fields["lattice_bits"] = numbers.take_for([at for at in tensors if flags[at] >> _LATTICE_AT & 3])
    fields["threshold"] = numbers.take_for([at for at in tensors if flags[at] & _PRUNED])
    fields["divisor"] = numbers.take_for([at for at in tensors if flags[at] >> _PEAK_AT & 3])
    places = [(at, flag) for at in tensors for flag in (_SCALES, _ORIGIN_SCALES) if flags[at] & flag]
    fields["place"], fields["count"] = numbers.take_for(range(len(places))), numbers.take_for(range(len(places)))
    with_origin = [at for at in range(count) if kinds[at] == COPY or flags[at] & _ORIGIN]
    fields["source"] = numbers.take_for(with_origin)
    for name in ("origin_kind", "origin_rows", "origin_columns", "origin_zero"):
        fields[name] = numbers.take_for([at for at in tensors if flags[at] & _ORIGIN])
    numbers.require_end()
    found = _Places({pair: index for index, pair in enumerate(places)}, fields, flags)
    records = _join(kinds, starts, flags, fields=fields, places=found)
    check_records(records, base_bytes=base_bytes, target_bytes=target_bytes)
    return records


class _Places(NamedTuple):
    numbers: dict[tuple[int, int], int]
    fields: dict[str, dict[int, int]]
    flags: list[int]

    def find(self, at: int, flag: int, base_flag: int) -> Place | None:
        index = self.numbers.get((at, flag))
        if index is None:
            return None
        return Place(bool(self.flags[at] & base_flag), self.fields["place"][index], self.fields["count"][index])


def _join(
    kinds: list[int], starts: list[int], flags: list[int], *, fields: dict[str, dict[int, int]], places: _Places
) -> tuple[AnyRecord, ...]:
    records: list[AnyRecord] = []
    end, source_end = 0, 0
    for at, kind in enumerate(kinds):
        start = end + _unfold(starts[at])
        record: AnyRecord
        if kind == COPY:
            source = source_end + _unfold(fields["source"][at])
            record = Copy(start, fields["length"][at], not flags[at] & _ORIGIN_IN_TARGET, source)
            source_end = source + record.size_bytes
        else:
            record = _join_record(at, start, source_end, kind=kind, flags=flags[at], fields=fields, places=places)
            source_end = record.origin.start + record.origin.size_bytes if record.origin else source_end
        records.append(record)
        end = record.end
    return tuple(records)


def _join_record(
    at: int, start: int, source_end: int, *, kind: int, flags: int, fields: dict[str, dict[int, int]], places: _Places
) -> Record:
    rows, columns = fields["rows"][at], fields["columns"][at]
    origin = None
    if flags & _ORIGIN:
        if fields["origin_kind"][at] >= len(KINDS):
            raise DeltaDamaged(f"expected the number of a kind below {len(KINDS)}, found {fields['origin_kind'][at]}")
        origin = Origin(
            in_base=not flags & _ORIGIN_IN_TARGET,
            start=source_end + _unfold(fields["source"][at]),
            kind=KINDS[fields["origin_kind"][at]],
            rows=rows + _unfold(fields["origin_rows"][at]),
            columns=columns + _unfold(fields["origin_columns"][at]),
            scales=places.find(at, _ORIGIN_SCALES, _ORIGIN_SCALES_IN_BASE),
            zero=_unfold(fields["origin_zero"][at]),
        )
    return Record(
        start=start,
        kind=KINDS[kind],
        rows=rows,
        columns=columns,
        origin=origin,
        peak=flags >> _PEAK_AT & 3,
        divisor=fields["divisor"].get(at, 0),
        mantissa=KINDS[kind].mantissa - fields["mantissa"][at],
        scale=_unfold(fields["scale"][at]),
        row_scales=bool(flags & _ROWS),
        column_scales=bool(flags & _COLUMNS),
        multiplied=flags >> _MULTIPLIED_AT & 3,
        multiplier_bits=fields["multiplier_bits"].get(at, 0),
        rank=fields["rank"][at],
        step=_unfold(fields["step"].get(at, 0)),
        lattice=flags >> _LATTICE_AT & 3,
        lattice_bits=_unfold(fields["lattice_bits"].get(at, 0)),
        threshold=fields["threshold"].get(at),
        scales=places.find(at, _SCALES, _SCALES_IN_BASE),
        zero=_unfold(fields["zero"][at]),
        division=flags >> _DIVISION_AT & 3,
    )


# --- numbers ----------------------------------------------------------------------------------------------------------
def _fold(number: int) -> int:
    return number << 1 if number >= 0 else ~(number << 1)


def _unfold(number: int) -> int:
    return number >> 1 if not number & 1 else ~(number >> 1)


class _Numbers:
    """Reads varints one after the other."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def take(self) -> int:
        number, self._at = read_varint(self._view, self._at)
        return number

    def take_below(self, most: int, name: str) -> int:
        number = self.take()
        require(number <= most, f"at most {most} {name}")
        return number

    def take_for(self, keys: Iterable[int]) -> dict[int, int]:
        return {key: self.take() for key in keys}

    def require_end(self) -> None:
        require(self._at == len(self._view), "nothing behind the last record")
