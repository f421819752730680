"""How one number is said when another one is expected: a cell of a grid around it, and where in the cell.

The line of numbers is cut into cells of equal width 2^e, an eighth to a sixteenth of the scale of the expected error,
but never finer than the numbers themselves stand. Which cell, counted from the expected one, is a symbol; what is left
inside of a cell is as good as noise and goes as plain bits. Cells next to zero hold numbers of many exponents: there
the exponent is a second symbol. This file says both ways; what is expected is `predict.py`'s, symbols are `rans.py`'s.

Rules:
- Scales are in quarters of an octave: the scale S stands for errors of about 2^(S/4).
- Integer arithmetic and single IEEE operations by powers of two only: the same on every machine.
- Any symbols give some numbers: a damaged patch is found by its digest, not here.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeferry.delta.kinds import F64, Kind, round_to
from edgeferry.delta.rans import I64, U8, U64

GRID = 3
"""A cell is 2^-GRID of the scale's octave."""
DIRECT = 32
"""Cells up to this far away have a symbol each; those behind share symbols, two per octave of the distance."""
TAIL_FIRST, TAIL_LOG, TAILS = 2 * DIRECT + 1, 4, 24
ESCAPE = TAIL_FIRST + 2 * TAILS
"""The number itself follows, as plain bits."""
ALPHABET = ESCAPE + 1
FAR = DIRECT + 1 - (1 << TAIL_LOG) + (1 << (TAIL_LOG + TAILS // 2))  # first distance that has no symbol

COARSE, FRACTIONS, FINE_FROM, LOWEST = 10, 7, 8, -12
CONTEXTS = COARSE * FRACTIONS + 4 * (GRID + 1) - FINE_FROM
"""Contexts of a cell: scale against the distance of numbers, in half octaves with the fraction that rounding cut off
while that distance is coarse, in quarters above."""
NARROW, NARROW_BELOW = 8, -LOWEST // 2 * FRACTIONS
"""In contexts of scales below the distance of numbers, what is further away than this is escaped."""
TINY_ZERO, TINY_ESCAPE = 63, 62
"""Symbols of numbers in the cells next to zero: octaves below the cell's width, or these two."""


class Grid(NamedTuple):
    """What is known of each number before it is read: all arrays [n].

    Attributes:
        exponents: e of the cell's width 2^e.
        expected: number of the expected cell.
        contexts: 0 to CONTEXTS - 1.
    """

    exponents: I64
    expected: I64
    contexts: I64


class Cells(NamedTuple):
    """Numbers as they travel: arrays [n], but `tiny` [numbers in a cell next to zero].

    Attributes:
        symbols: the cell, counted from the expected one.
        tail_values, tail_widths: the distance behind a shared symbol, or the number's own bits behind ESCAPE.
        tiny: the second symbol.
        low_values, low_widths: where in the cell.
    """

    symbols: U8
    tail_values: U64
    tail_widths: I64
    tiny: U8
    low_values: U64
    low_widths: I64


def make_grid(expected: F64, scales: I64, *, kind: Kind, mantissa: int) -> Grid:
    """The grid around expected numbers.

    Args:
        expected: finite or not, of any size.
        scales: quarters of an octave.
        kind: of the numbers to come.
        mantissa: how many of its mantissa's bits are used.
    """
    rounded = round_to(expected, kind)
    finest = _get_finest(rounded, kind=kind, mantissa=mantissa)
    relative = scales - 4 * finest
    exponents = np.maximum((scales >> 2) - GRID, finest)
    if not kind.is_float:
        exponents = np.minimum(exponents, 31)
    with np.errstate(all="ignore"):
        fraction = np.ldexp(expected - rounded, -finest)
        part = np.nan_to_num(np.floor((fraction + 0.5) * FRACTIONS), nan=0.0)
    parts = np.clip(part, 0, FRACTIONS - 1).astype(np.int64)
    coarse = ((np.clip(relative, LOWEST, FINE_FROM - 1) - LOWEST) >> 1) * FRACTIONS + parts
    fine = COARSE * FRACTIONS - FINE_FROM + np.where(relative >= 4 * GRID, 4 * GRID + (scales & 3), relative)
    return Grid(exponents, _find_cells(rounded, exponents, kind=kind), np.where(relative < FINE_FROM, coarse, fine))


def _get_finest(numbers: F64, *, kind: Kind, mantissa: int) -> I64:
    """Exponent of the distance to the next number."""
    if not kind.is_float:
        return np.zeros(len(numbers), np.int64)
    return np.maximum(get_exponents(numbers), kind.exponent_min) - mantissa


def get_exponents(numbers: F64) -> I64:
    """floor(log2(|number|)) of numbers that are normal as float64; far below all of them for 0."""
    return ((numbers.view(np.int64) >> 52) & 0x7FF) - 1023


def _find_cells(numbers: F64, exponents: I64, *, kind: Kind) -> I64:
    """Number of the cell: 0 begins at +0, -1 at -0, both away from zero; integers are cut downwards."""
    if not kind.is_float:
        return numbers.astype(np.int64) >> exponents
    with np.errstate(invalid="ignore"):
        sizes = np.ldexp(np.abs(numbers), -exponents).astype(np.int64)
    return np.where(np.signbit(numbers), ~sizes, sizes)


# --- numbers to cells -------------------------------------------------------------------------------------------------
def split(numbers: F64, bits: U64, *, grid: Grid, kind: Kind, mantissa: int) -> Cells:
    """Says `numbers` [n], whose own bits are `bits`, on a grid."""
    with np.errstate(invalid="ignore"):
        usable = np.abs(numbers) < np.ldexp(1.0, np.minimum(grid.exponents + 52, 1023))
    found = _find_cells(np.where(usable, numbers, 0.0), grid.exponents, kind=kind)
    distance = found - grid.expected
    escaped = ~usable | (np.abs(distance) >= FAR) | ((grid.contexts < NARROW_BELOW) & (np.abs(distance) > NARROW))
    symbols, tail_values, tail_widths = _split_distance(distance)
    tiny_at = np.flatnonzero(_is_tiny(found) & ~escaped) if kind.is_float else np.empty(0, np.intp)
    tiny = _split_tiny(numbers[tiny_at], grid.exponents[tiny_at])
    escaped[tiny_at[tiny == TINY_ESCAPE]] = True
    widths = _get_low_widths(found, tiny_at, tiny, grid=grid, kind=kind, mantissa=mantissa)
    low = _get_low_bits(numbers, grid.exponents, widths, kind=kind)
    low[tiny_at] = _get_low_bits(
        numbers[tiny_at], _get_tiny_exponents(grid.exponents[tiny_at], tiny), widths[tiny_at], kind=kind
    )
    # what is escaped is neither in a cell nor tiny
    keep = ~escaped[tiny_at]
    return Cells(
        np.where(escaped, ESCAPE, symbols).astype(np.uint8),
        np.where(escaped, bits, tail_values),
        np.where(escaped, 8 * kind.width, tail_widths),
        tiny[keep],
        np.where(escaped, np.uint64(0), low),
        np.where(escaped, 0, widths),
    )


def _split_distance(distance: I64) -> tuple[I64, U64, I64]:
    """Symbol of a distance, and the bits that a shared symbol leaves open."""
    sizes = np.minimum(np.abs(distance), FAR - 1)
    over = np.maximum(sizes - DIRECT - 1 + (1 << TAIL_LOG), 1)
    logs = get_exponents(over.astype(np.float64))
    shared = TAIL_FIRST + TAILS * (distance < 0) + 2 * (logs - TAIL_LOG) + ((over >> np.maximum(logs - 1, 0)) & 1)
    tail = sizes > DIRECT
    widths = np.where(tail, logs - 1, 0)
    values = over & ((1 << widths) - 1)
    return np.where(tail, shared, distance + DIRECT), values.astype(np.uint64), widths


def _split_tiny(numbers: F64, exponents: I64) -> U8:
    below = exponents - 1 - get_exponents(numbers)
    symbols = np.where(below < TINY_ESCAPE, below, TINY_ESCAPE)
    return np.where(numbers == 0, TINY_ZERO, symbols).astype(np.uint8)


def _get_low_bits(numbers: F64, exponents: I64, widths: I64, *, kind: Kind) -> U64:
    if not kind.is_float:
        return numbers.astype(np.int64).astype(np.uint64) & ((np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1))
    with np.errstate(all="ignore"):
        sizes = np.nan_to_num(np.ldexp(np.abs(numbers), widths - exponents), nan=0.0, posinf=0.0)
        whole = np.where(sizes < 2.0**62, sizes, 0.0).astype(np.uint64)
    return whole & ((np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1))


# --- cells to numbers -------------------------------------------------------------------------------------------------
def get_tail_widths(symbols: U8, kind: Kind) -> I64:
    """How many plain bits follow each symbol."""
    wide = symbols.astype(np.int64)
    octaves = (wide - TAIL_FIRST) % TAILS // 2
    widths = np.where(wide >= TAIL_FIRST, octaves + TAIL_LOG - 1, 0)
    return np.where(wide >= ESCAPE, 8 * kind.width, widths)


def find_numbers_of_cells(symbols: U8, tail_values: U64, grid: Grid) -> I64:
    """The cells that symbols name."""
    wide = symbols.astype(np.int64)
    shared = np.clip(wide - TAIL_FIRST, 0, 2 * TAILS - 1)
    logs = shared % TAILS // 2 + TAIL_LOG
    over = (1 << logs) | ((shared & 1) << (logs - 1)) | (tail_values.astype(np.int64) & 0xFFFF)
    sizes = over + DIRECT + 1 - (1 << TAIL_LOG)
    distance = np.where(wide < TAIL_FIRST, wide - DIRECT, np.where(shared >= TAILS, -sizes, sizes))
    return grid.expected + distance


def find_tiny(cells: I64, symbols: U8, kind: Kind) -> NDArray[np.intp]:
    """Where a second symbol follows."""
    if not kind.is_float:
        return np.empty(0, np.intp)
    return np.flatnonzero(_is_tiny(cells) & (symbols < ESCAPE))


def _is_tiny(cells: I64) -> NDArray[np.bool_]:
    return np.asarray((cells == 0) | (cells == -1), np.bool_)


def get_low_widths(
    cells: I64, symbols: U8, tiny_at: NDArray[np.intp], tiny: U8, *, grid: Grid, kind: Kind, mantissa: int
) -> I64:
    """How many plain bits say where in its cell each number is."""
    widths = _get_low_widths(cells, tiny_at, tiny, grid=grid, kind=kind, mantissa=mantissa)
    return np.where(symbols < ESCAPE, widths, 0)


def _get_low_widths(cells: I64, tiny_at: NDArray[np.intp], tiny: U8, *, grid: Grid, kind: Kind, mantissa: int) -> I64:
    if not kind.is_float:
        return np.minimum(grid.exponents, 32)
    sizes = np.maximum(np.where(cells < 0, ~cells, cells), 1)
    exponents = grid.exponents.copy()
    exponents[tiny_at] = _get_tiny_exponents(exponents[tiny_at], tiny)
    tops = exponents + get_exponents(sizes.astype(np.float64))
    widths = exponents - (np.maximum(tops, kind.exponent_min) - mantissa)
    widths[tiny_at[tiny >= TINY_ESCAPE]] = 0
    return np.asarray(np.clip(widths, 0, 32), np.int64)


def _get_tiny_exponents(exponents: I64, tiny: U8) -> I64:
    return np.asarray(exponents - 1 - np.minimum(tiny, TINY_ESCAPE), np.int64)


def join(
    cells: I64, tiny_at: NDArray[np.intp], tiny: U8, *, low_values: U64, low_widths: I64, grid: Grid, kind: Kind
) -> F64:
    """The numbers. Those behind ESCAPE are the caller's to put in."""
    if not kind.is_float:
        return ((cells << grid.exponents) | low_values.astype(np.int64)).astype(np.float64)
    sizes = np.where(cells < 0, ~cells, cells)
    exponents = grid.exponents.copy()
    exponents[tiny_at] = _get_tiny_exponents(exponents[tiny_at], tiny)
    sizes[tiny_at] = tiny < TINY_ESCAPE
    whole = (sizes << low_widths) | low_values.astype(np.int64)
    with np.errstate(all="ignore"):
        found = np.ldexp(whole.astype(np.float64), exponents - low_widths)
    return np.asarray(np.where(cells < 0, -found, found), np.float64)


# --- first tables -----------------------------------------------------------------------------------------------------
def make_guess() -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Counts int64 [CONTEXTS, ALPHABET] that contexts begin with, and which symbols each may hold.

    The shape is 1 / (1 + (distance / scale)^2)^2: a middle between Gaussian and heavy-tailed errors.
    """
    steps = [*range(LOWEST + 1, FINE_FROM + 1, 2)]
    rows = [_guess_row(step) for step in steps for _ in range(FRACTIONS)]
    rows += [_guess_row(step) for step in range(FINE_FROM, 4 * (GRID + 1))]
    allowed = np.ones((CONTEXTS, ALPHABET), np.bool_)
    allowed[:NARROW_BELOW, : DIRECT - NARROW] = False
    allowed[:NARROW_BELOW, DIRECT + NARROW + 1 : ESCAPE] = False
    return np.array(rows, np.int64), allowed


def _guess_row(step: int) -> list[int]:
    unit = 4096
    square = isqrt(1 << (24 + step))  # unit * 2^(step / 2): the scale's square
    weights = [_weigh(abs(at), square, unit) for at in range(-DIRECT, DIRECT + 1)]
    tails = []
    for tail in range(TAILS):
        log = tail // 2 + TAIL_LOG
        over = (1 << log) + ((tail & 1) << (log - 1))
        tails.append(_weigh(over + DIRECT + 1 - (1 << TAIL_LOG), square, unit) << (log - 1))
    weights += [*tails, *tails, 0]
    total = sum(weights)
    return [max(1, weight * 2048 // total) for weight in weights]


def _weigh(distance: int, square: int, unit: int) -> int:
    return (square << 20) * square // (square + unit * distance * distance) ** 2
