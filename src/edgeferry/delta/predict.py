"""What a tensor's numbers are expected to be, from another tensor and a few numbers beside it.

origin -> real numbers -> times a multiplier per row or column -> the target's own units -> plus a sum of products

Rules:
- Single IEEE operations in float64 and integer sums only: no BLAS, no transcendental function; the same everywhere.
- Piece by piece: never more than PIECE numbers at once, whatever the tensor's size.
- The target's decoded part may be an origin too; it is read as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeferry.delta.kinds import F64, KIND_BY_NAME, read_numbers
from edgeferry.delta.rans import I64
from edgeferry.delta.records import Origin, Place, Record

PIECE = 1 << 16
PRUNE_STEPS = 8
"""Steps of a quarter octave on both sides of the threshold."""
PRUNE_CONTEXTS = 2 * PRUNE_STEPS + 1
_QUARTERS = tuple(
    2.0 ** (step // 4) * (1.0, 1.1875, 1.4140625, 1.6796875)[step % 4] for step in range(-PRUNE_STEPS, PRUNE_STEPS)
)
"""About 2^(step / 4), written so that every machine has the same."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where origins lie: the base, and the target as far as it is decoded."""

    base: memoryview
    target: memoryview

    def get(self, *, in_base: bool) -> memoryview:
        """One of the two."""
        return self.base if in_base else self.target


@dataclass(frozen=True, slots=True)
class Side:
    """The numbers beside a tensor, int64; empty where a record has none.

    Scales are [rows] and [columns], multipliers and steps [rows or columns], factors [rank, rows] and [rank, columns].
    """

    row_scales: I64
    column_scales: I64
    multipliers: I64
    factor_scales: I64
    row_factors: I64
    column_factors: I64
    steps: I64


class Expected(NamedTuple):
    """For one piece of a tensor, all [n].

    Attributes:
        numbers: what is expected; of any size, finite or not.
        scales: of the errors, in quarters of an octave; on a lattice, of the multiples.
        sizes: what pruning looks at.
        steps: of the lattice; None without one.
    """

    numbers: F64
    scales: I64
    sizes: F64
    steps: F64 | None = None

    def pick(self, index: NDArray[np.intp]) -> Expected:
        """The part at `index`."""
        steps = None if self.steps is None else self.steps[index]
        return Expected(self.numbers[index], self.scales[index], self.sizes[index], steps)


def expect(record: Record, side: Side, files: Files, *, start: int, end: int) -> Expected:
    """What is expected of the numbers `start` to `end` of a tensor, counted row by row."""
    index = np.arange(start, end, dtype=np.int64)
    rows = index // record.columns
    columns = index - rows * record.columns
    numbers = _read_origin(record, files, rows=rows, columns=columns, index=index)
    if record.multiplied:
        along = rows if record.multiplied == 1 else columns
        numbers *= 1.0 + np.ldexp(side.multipliers.astype(np.float64), -record.multiplier_bits).take(along)
    sizes = np.abs(numbers)
    numbers = _quantise(numbers, record, files, rows=rows, columns=columns)
    if record.rank:
        numbers = numbers + _add_products(record, side, rows=rows, start=start, end=end)
    scales = np.full(len(index), record.scale, np.int64)
    if record.row_scales:
        scales += 2 * side.row_scales.take(rows)
    if record.column_scales:
        scales += 2 * side.column_scales.take(columns)
    most = 1200 if record.kind.is_float and not record.lattice else 4 * 24
    steps = None
    if record.lattice:
        along = rows if record.lattice == 1 else columns
        steps = np.ldexp(side.steps.astype(np.float64), -record.lattice_bits).take(along)
    return Expected(numbers, np.clip(scales, -most, most), sizes, steps)


# --- the origin -------------------------------------------------------------------------------------------------------
def _read_origin(record: Record, files: Files, *, rows: I64, columns: I64, index: I64) -> F64:
    origin = record.origin
    if origin is None:
        return np.zeros(len(index), np.float64)
    if record.peak:
        return _find_peaks(record, origin, files).take(index)
    if origin.columns != record.columns:
        index = rows * origin.columns + columns
    inside = (rows < origin.rows) & (columns < origin.columns)
    found = np.zeros(len(index), np.float64)
    found[inside] = _take(origin, files, index[inside])
    _scale_origin(found, origin, files, rows=rows, columns=columns)
    return found


def _take(origin: Origin, files: Files, index: I64) -> F64:
    data = files.get(in_base=origin.in_base)[origin.start : origin.start + origin.size_bytes]
    words = np.frombuffer(data, f"<u{origin.kind.width}")
    contiguous = len(index) > 0 and index[-1] - index[0] + 1 == len(index)
    part = words[index[0] : index[-1] + 1] if contiguous else words.take(index)
    found = read_numbers(part.tobytes(), origin.kind)
    found[~np.isfinite(found)] = 0.0
    return found


def _scale_origin(numbers: F64, origin: Origin, files: Files, *, rows: I64, columns: I64) -> None:
    if origin.zero:
        numbers -= origin.zero
    if origin.scales:
        with np.errstate(all="ignore"):
            numbers *= _read_scales(
                origin.scales, files, rows=origin.rows, columns=origin.columns, along=(rows, columns)
            )


def _read_scales(place: Place, files: Files, *, rows: int, columns: int, along: tuple[I64, I64]) -> F64:
    """The scale of each number: one for all, or that of its row or column, whichever there are as many of."""
    data = files.get(in_base=place.in_base)[place.start : place.start + 4 * place.length]
    scales = read_numbers(data, KIND_BY_NAME["f4"])
    scales[~np.isfinite(scales)] = 0.0
    if place.length == rows:
        return scales.take(along[0], mode="clip")
    if place.length == columns:
        return scales.take(along[1], mode="clip")
    return scales[:1]


def _find_peaks(record: Record, origin: Origin, files: Files) -> F64:
    """The greatest size in each row or column of the origin, divided."""
    count = origin.rows if record.peak == 1 else origin.columns
    peaks = np.zeros(max(count, record.elements), np.float64)
    for start in range(0, origin.rows * origin.columns, PIECE):
        index = np.arange(start, min(start + PIECE, origin.rows * origin.columns), dtype=np.int64)
        along = index // origin.columns if record.peak == 1 else index % origin.columns
        np.maximum.at(peaks, along, np.abs(_take(origin, files, index)))
    return peaks / record.divisor


# --- products, and the target's own units -----------------------------------------------------------------------------
def _add_products(record: Record, side: Side, *, rows: I64, start: int, end: int) -> F64:
    """Sums of products of whole numbers, in 32 bits: they may wrap, on every machine in the same way."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    row_factors = side.row_factors[:, first:last].astype(np.int32)
    column_factors = side.column_factors.astype(np.int32)
    total = np.zeros((last - first, record.columns), np.int32)
    for at in range(record.rank):
        total += row_factors[at, :, None] * column_factors[at]
    part = total.reshape(-1)[start - first * record.columns : end - first * record.columns]
    return np.ldexp(part.astype(np.float64), -record.step)


def _quantise(numbers: F64, record: Record, files: Files, *, rows: I64, columns: I64) -> F64:
    """Divides by the target's scales: in float64, in float32, or by the reciprocal in float32 (`division` 0, 1, 2)."""
    if record.scales is not None:
        scales = _read_scales(record.scales, files, rows=record.rows, columns=record.columns, along=(rows, columns))
        with np.errstate(all="ignore"):
            if record.division == 0:
                numbers = numbers / scales
            elif record.division == 1:
                numbers = (numbers / scales).astype(np.float32).astype(np.float64)
            else:
                inverse = (1.0 / scales).astype(np.float32)
                numbers = (numbers.astype(np.float32) * inverse).astype(np.float64)
        numbers[np.isnan(numbers)] = 0.0  # 0 / 0: which sign it has depends on the machine
    return numbers + record.zero if record.zero else numbers


def find_prune_contexts(sizes: F64, threshold: int) -> I64:
    """How far each size is from the threshold (float32 bits): above PRUNE_STEPS it is not below it."""
    border = float(np.array([threshold], "<u4").view("<f4").astype(np.float64)[0])
    borders = np.array([border * factor for factor in _QUARTERS], np.float64)
    return np.searchsorted(borders, sizes, side="right").astype(np.int64)
