"""The map of a patch: which ranges of the target are tensors, copies or remainder, and what tensors are expected from.

This file knows records; their bytes are `record_bytes.py`'s, how numbers follow from one is `predict.py`'s.

Rules:
- Records stand in the order in which they are decoded; a record may refer to what was decoded before it.
- `check_records` bounds everything: ranges lie inside their file and never overlap in the target, arrays beside a
  tensor have at most MAX_SIDE numbers, tensors fit the target. What breaks a rule is DeltaDamaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from edgeferry.delta.kinds import Kind
from edgeferry.errors import DeltaDamaged

MAX_RECORDS = 1 << 16
MAX_SIDE = 1 << 16
MAX_RANK, MAX_RANKED = 96, 8192
INFINITY_BITS = 0x7F800000


class Place(NamedTuple):
    """`length` float32 from byte `start` of the base, or of the target as far as it is decoded."""

    in_base: bool
    start: int
    length: int


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
        lattice: 1: in each row, 2: in each column, numbers are what is expected plus whole multiples of a step, which
            is a whole number of 2^-`lattice_bits`. 0: they are not.
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
    lattice: int = 0
    lattice_bits: int = 0
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


# --- checks -----------------------------------------------------------------------------------------------------------
def check_records(records: Iterable[AnyRecord], *, base_bytes: int, target_bytes: int) -> None:
    """Raises DeltaDamaged when a record breaks a rule."""
    limits = {True: base_bytes, False: target_bytes}
    for record in records:
        require(0 <= record.start <= record.end <= target_bytes, "a range inside the target")
        if isinstance(record, Copy):
            limit = limits[record.in_base]
            require(record.source >= 0 and record.source + record.size_bytes <= limit, "a copy from inside a file")
            apart = record.source >= record.end or record.source + record.size_bytes <= record.start
            require(record.in_base or apart, "a copy from outside of itself")
        else:
            _check_tensor(record, limits)
    ends = 0
    for start, end in sorted((record.start, record.end) for record in records):
        require(start >= ends, "ranges that do not overlap")
        ends = end


def _check_tensor(record: Record, limits: dict[bool, int]) -> None:
    origin = record.origin
    require(record.rows > 0 and record.columns > 0, "a tensor with numbers in it")
    require(0 <= record.mantissa <= record.kind.mantissa, "a mantissa of the kind's width")
    require(
        abs(record.scale) <= 1024 and record.multiplier_bits <= 40 and abs(record.lattice_bits) <= 200,
        "sane scales and multipliers",
    )
    require(record.rank <= MAX_RANK and abs(record.step) <= 200, f"a rank up to {MAX_RANK}")
    longest = max(record.rows, record.columns)
    require(not record.rank or longest <= MAX_RANKED, f"at most {MAX_RANKED} rows and columns with factors")
    require(not record.lattice or record.kind.name in ("f4", "f2"), "a lattice of float32 or float16")
    require(record.multiplied < 3 and record.peak < 3 and record.lattice < 3 and record.division < 3, "sane flags")
    require((record.threshold or 0) < INFINITY_BITS, "a threshold that is a number, and not below zero")
    require(max(abs(record.zero), abs(origin.zero) if origin else 0) < 1 << 32, "sane zero points")
    beside_rows = record.row_scales or 1 in (record.multiplied, record.lattice) or record.rank > 0
    beside_columns = record.column_scales or 2 in (record.multiplied, record.lattice) or record.rank > 0
    require(not beside_rows or record.rows <= MAX_SIDE, f"at most {MAX_SIDE} rows with numbers of their own")
    require(not beside_columns or record.columns <= MAX_SIDE, f"at most {MAX_SIDE} columns with numbers of their own")
    if origin:
        require(origin.rows > 0 and origin.columns > 0 and origin.start >= 0, "an origin with numbers in it")
        end = origin.start + origin.size_bytes
        require(end <= limits[origin.in_base], "an origin inside its file")
        require(origin.in_base or origin.start >= record.end or end <= record.start, "an origin outside of its tensor")
    for place in (record.scales, origin.scales if origin else None):
        require(
            place is None or (0 < place.length <= MAX_SIDE and place.start + 4 * place.length <= limits[place.in_base]),
            "scales inside a file",
        )
    if record.peak:
        require(origin is not None and record.divisor > 0 and record.elements <= MAX_SIDE, "peaks of an origin")
        sides = (origin.rows, origin.columns) if origin else (0, 0)
        require(sides[record.peak - 1] <= MAX_SIDE, f"at most {MAX_SIDE} peaks")


def require(holds: bool, expected: str) -> None:
    """Raises DeltaDamaged unless it holds."""
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
