"""The map of a patch: which ranges of the target are tensors, copies or remainder, and what each tensor is expected from.

This file knows records and their bytes; how numbers follow from a record is `predict.py` and `tensor_codec.py`.

Rules:
- Records stand in the order in which they are decoded; a record may refer to what was decoded before it.
- `read_records` bounds everything: ranges lie inside their file and never overlap in the target, arrays beside a tensor
  have at most MAX_SIDE numbers, tensors fit the target. What breaks a rule is DeltaDamaged.
- Column by column, each number as a varint of its distance from the one before where that is small: so maps compress.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgeferry.delta.kinds import KINDS, Buffer, Kind
from edgeferry.errors import DeltaDamaged

MAX_RECORDS = 1 << 16
MAX_SIDE = 1 << 16
MAX_RANK = 96
MAX_NUMBER_BITS = 63
COPY = len(KINDS)
"""In place of a kind's number: bytes that stand elsewhere."""


class Place(NamedTuple):
    """`count` float32 from byte `start` of the base, or of the target as far as it is decoded."""

    in_base: bool
    start: int
    count: int


class Origin(NamedTuple):
    """The tensor that another one is expected from: `rows` x `columns` numbers of `kind` from byte `start`.

    `scales` turn its integers into real numbers, one for all, or one per row or column; `zero` is their zero point.
    """

    in_base: bool
    start: int
    kind: Kind
    rows: int
    columns: int
    scales: Place | None = None
    zero: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes."""
        return self.rows * self.columns * self.kind.width


@dataclass(frozen=True, slots=True)
class Record:
    """One tensor: `rows` x `columns` numbers of `kind` from byte `start` of the target.

    Attributes:
        origin: what it is expected from; None: from nothing but its own `zero`.
        peak: it is a vector of scales: each is the greatest size in its row (1) or column (2) of the origin, divided by
            `divisor`. 0: it is not.
        mantissa: stored bits of the mantissa that are in use.
        scale: of the errors, in quarters of an octave; to it come `row_scales` and `column_scales`, in halves.
        multiplied: 1: each row has a multiplier, 2: each column, 0: none; `multiplier_bits` is their unit, 2^-bits.
        rank, step: of the sum of products that is added, and its unit 2^-step.
        threshold: float32 bits; numbers below it are likely pruned. None: nothing is pruned.
        scales, zero: a quantised tensor's own; `division` says how they were used.
    """

    start: int
    kind: Kind
    rows: int
    columns: int
    origin: Origin | None = None
    peak: int = 0
    divisor: int = 0
    mantissa: int = 0
    scale: int = 0
    row_scales: bool = False
    column_scales: bool = False
    multiplied: int = 0
    multiplier_bits: int = 0
    rank: int = 0
    step: int = 0
    threshold: int | None = None
    scales: Place | None = None
    zero: int = 0
    division: int = 0

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return self.rows * self.columns

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes."""
        return self.elements * self.kind.width

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.start + self.size_bytes


@dataclass(frozen=True, slots=True)
class Copy:
    """`size_bytes` from byte `start` of the target, which are those from `source` of the base or the decoded target."""

    start: int
    size_bytes: int
    in_base: bool
    source: int

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.start + self.size_bytes


AnyRecord = Record | Copy
Range = tuple[int, int]

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
_MULTIPLIED_AT, _PEAK_AT, _DIVISION_AT = 9, 11, 13


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
    if record.threshold is not None:
        _put(columns, threshold=record.threshold)
    if record.peak:
        _put(columns, divisor=record.divisor)
    for place in (record.scales, record.origin.scales if record.origin else None):
        if place:
            _put(columns, place=place.start, count=place.count)
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
    if record.scales:
        flags |= _SCALES | _SCALES_IN_BASE * record.scales.in_base
    if origin and not origin.in_base:
        flags |= _ORIGIN_IN_TARGET
    if origin and origin.scales:
        flags |= _ORIGIN_SCALES | _ORIGIN_SCALES_IN_BASE * origin.scales.in_base
    return flags


_COLUMNS_OF_RECORDS = (
    *("kind", "start", "flags", "length", "rows", "columns", "scale", "mantissa", "zero", "rank", "step"),
    *("multiplier_bits", "threshold", "divisor", "place", "count"),
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
    flags = [numbers.take_below((1 << 16) - 1, "flags") for _ in range(count)]
    tensors = [at for at in range(count) if kinds[at] != COPY]
    fields = {"length": numbers.take_for([at for at in range(count) if kinds[at] == COPY])}
    for name in ("rows", "columns", "scale", "mantissa", "zero", "rank"):
        fields[name] = numbers.take_for(tensors)
    fields["step"] = numbers.take_for([at for at in tensors if fields["rank"][at]])
    fields["multiplier_bits"] = numbers.take_for([at for at in tensors if flags[at] >> _MULTIPLIED_AT & 3])
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
    _check(records, base_bytes=base_bytes, target_bytes=target_bytes)
    return records


class _Places(NamedTuple):
    index: dict[tuple[int, int], int]
    fields: dict[str, dict[int, int]]
    flags: list[int]

    def find(self, at: int, flag: int, base_flag: int) -> Place | None:
        index = self.index.get((at, flag))
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
        threshold=fields["threshold"].get(at),
        scales=places.find(at, _SCALES, _SCALES_IN_BASE),
        zero=_unfold(fields["zero"][at]),
        division=flags >> _DIVISION_AT & 3,
    )


# --- checks -----------------------------------------------------------------------------------------------------------
def _check(records: Iterable[AnyRecord], *, base_bytes: int, target_bytes: int) -> None:
    limits = {True: base_bytes, False: target_bytes}
    for record in records:
        _require(0 <= record.start <= record.end <= target_bytes, "a range inside the target")
        if isinstance(record, Copy):
            limit = limits[record.in_base]
            _require(record.source >= 0 and record.source + record.size_bytes <= limit, "a copy from inside a file")
        else:
            _check_tensor(record, limits)
    ends = 0
    for start, end in sorted((record.start, record.end) for record in records):
        _require(start >= ends, "ranges that do not overlap")
        ends = end


def _check_tensor(record: Record, limits: dict[bool, int]) -> None:
    origin = record.origin
    _require(record.rows > 0 and record.columns > 0, "a tensor with numbers in it")
    _require(0 <= record.mantissa <= record.kind.mantissa, "a mantissa of the kind's width")
    _require(abs(record.scale) <= 1024 and record.multiplier_bits <= 40, "sane scales and multipliers")
    _require(record.rank <= MAX_RANK and abs(record.step) <= 200, f"a rank up to {MAX_RANK}")
    _require(record.multiplied < 3 and record.peak < 3 and (record.threshold or 0) < 1 << 32, "sane flags")
    _require(max(abs(record.zero), abs(origin.zero) if origin else 0) < 1 << 32, "sane zero points")
    beside_rows = record.row_scales or record.multiplied == 1 or record.rank > 0
    beside_columns = record.column_scales or record.multiplied == 2 or record.rank > 0
    _require(not beside_rows or record.rows <= MAX_SIDE, f"at most {MAX_SIDE} rows with numbers of their own")
    _require(not beside_columns or record.columns <= MAX_SIDE, f"at most {MAX_SIDE} columns with numbers of their own")
    if origin:
        _require(origin.rows > 0 and origin.columns > 0 and origin.start >= 0, "an origin with numbers in it")
        _require(origin.start + origin.size_bytes <= limits[origin.in_base], "an origin inside its file")
    for place in (record.scales, origin.scales if origin else None):
        _require(
            place is None or (0 < place.count <= MAX_SIDE and place.start + 4 * place.count <= limits[place.in_base]),
            "scales inside a file",
        )
    if record.peak:
        _require(origin is not None and record.divisor > 0 and record.elements <= MAX_SIDE, "peaks of an origin")


def _require(holds: bool, expected: str) -> None:
    if not holds:
        raise DeltaDamaged(f"the map of the patch is damaged: expected {expected}")


def find_gaps(ranges: Iterable[Range], size_bytes: int) -> list[Range]:
    """What of a file `ranges` (they may overlap) leave over, in order."""
    gaps, at = [], 0
    for start, end in sorted(ranges):
        if start > at:
            gaps.append((at, start))
        at = max(at, end)
    if at < size_bytes:
        gaps.append((at, size_bytes))
    return gaps


def list_base_ranges(records: Iterable[AnyRecord]) -> list[Range]:
    """What of the base records are expected from or copied from: it is no help for the remainder."""
    found = []
    for record in records:
        if isinstance(record, Copy):
            found += [(record.source, record.source + record.size_bytes)] * record.in_base
        elif record.origin:
            found += [(record.origin.start, record.origin.start + record.origin.size_bytes)] * record.origin.in_base
    return found


# --- numbers ----------------------------------------------------------------------------------------------------------
def make_varint(number: int) -> bytes:
    """Unsigned LEB128."""
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
        _require(number <= most, f"at most {most} {name}")
        return number

    def take_for(self, keys: Iterable[int]) -> dict[int, int]:
        return {key: self.take() for key in keys}

    def require_end(self) -> None:
        _require(self._at == len(self._view), "nothing behind the last record")
