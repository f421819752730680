"""One tensor as symbols and bits, both ways: numbers beside it first, then its own, piece by piece.

What is expected of a number is `predict.py`'s, how it is said is `cells.py`'s. Here they meet, with one model of all
contexts that learns from tensor to tensor.

Rules:
- Reading and writing walk through the same steps in the same order.
- Memory is that of one piece, and of the numbers beside a tensor (at most MAX_SIDE each).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeferry.delta import adapt, cells
from edgeferry.delta.bits import BitWriter, FieldReader
from edgeferry.delta.kinds import F64, KIND_BY_NAME, read_bits, read_numbers, write_numbers
from edgeferry.delta.predict import PIECE, PRUNE_CONTEXTS, Expected, Files, Side, expect, find_prune_contexts
from edgeferry.delta.rans import I64, U8, U64, Encoder, SymbolReader
from edgeferry.delta.records import Record
from edgeferry.errors import DeltaDamaged

SETS = 4
"""Contexts are apart for numbers with an origin, without one, for integers, and for factors and multiples of steps."""
_TINY_AT = SETS * cells.CONTEXTS
_PRUNE_AT = _TINY_AT + SETS
_SIDE_AT = _PRUNE_AT + PRUNE_CONTEXTS
_SCALES, _MULTIPLIERS = range(2)
_CONTEXTS = _SIDE_AT + 2
WHOLE = Record(0, KIND_BY_NAME["i4"], 1, 1)
"""Factors of products and multiples of a lattice's steps are coded like integers that are expected to be zero."""
_KEPT, _PRUNED_SAME, _PRUNED_OTHER = 0, 1, 2
"""A number is not pruned; it is zero with the sign of what was expected; zero with the other sign."""


def make_model() -> adapt.Model:
    """A model that has seen nothing."""
    guess, allowed = cells.make_guess()
    others = _CONTEXTS - SETS * cells.CONTEXTS
    rest, rest_allowed = np.full((others, cells.ALPHABET), 4, np.int64), np.zeros((others, cells.ALPHABET), np.bool_)
    rest_allowed[: _PRUNE_AT - _TINY_AT, : cells.TINY_ZERO + 1] = True
    rest_allowed[_PRUNE_AT - _TINY_AT : _SIDE_AT - _TINY_AT, : _PRUNED_OTHER + 1] = True
    rest_allowed[_SIDE_AT - _TINY_AT :, : 2 * 32 + 1] = True
    return adapt.Model(np.concatenate([*[guess] * SETS, rest]), np.concatenate([*[allowed] * SETS, rest_allowed]))


def _find_set(record: Record) -> int:
    if record is WHOLE:
        return 3
    if not record.kind.is_float:
        return 2
    return 0 if record.origin else 1


def _cut(record: Record) -> Iterator[tuple[int, int]]:
    return ((at, min(at + PIECE, record.elements)) for at in range(0, record.elements, PIECE))


# --- reading ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Source:
    """Where symbols and bits come from, and the model that both sides share."""

    decoder: SymbolReader
    bits: FieldReader
    model: adapt.Model

    def take(self, contexts: I64) -> U8:
        """The next symbols."""
        return adapt.take(self.decoder, self.model, contexts)

    def require_end(self) -> None:
        """Raises DeltaDamaged when something is left over."""
        self.decoder.require_end()
        self.bits.require_end()


def read_tensor(record: Record, files: Files, source: Source) -> None:
    """Decodes one tensor into the target; raises DeltaDamaged."""
    side = _read_side(record, source)
    out = files.target[record.start : record.end]
    for start, end in _cut(record):
        expected = expect(record, side, files, start=start, end=end)
        found = _read_piece(record, expected, source)
        out[start * record.kind.width : end * record.kind.width] = found.tobytes()


def _read_piece(record: Record, expected: Expected, source: Source) -> NDArray[np.unsignedinteger]:
    if record.threshold is None:
        return _read_kept(record, expected, source)
    contexts = _PRUNE_AT + find_prune_contexts(expected.sizes, record.threshold)
    pruned = source.take(contexts)
    kept = np.flatnonzero(pruned == _KEPT)
    negative = np.signbit(expected.numbers) ^ (pruned == _PRUNED_OTHER)
    found = write_numbers(np.where(negative, -0.0, 0.0), record.kind)
    found[kept] = _read_kept(record, expected.pick(kept), source)
    return found


def _read_kept(record: Record, expected: Expected, source: Source) -> NDArray[np.unsignedinteger]:
    if expected.steps is None:
        return _read_cells(record, expected.numbers, expected.scales, source=source)
    multiples = _read_cells(WHOLE, np.zeros(len(expected.scales)), expected.scales, source=source).view(np.int32)
    return write_numbers(expected.numbers + multiples * expected.steps, record.kind)


def _read_cells(record: Record, numbers: F64, scales: I64, *, source: Source) -> NDArray[np.unsignedinteger]:
    kind, chosen = record.kind, _find_set(record)
    grid = cells.make_grid(numbers, scales, kind=kind, mantissa=record.mantissa)
    symbols = source.take(grid.contexts + chosen * cells.CONTEXTS)
    tails = source.bits.take(cells.get_tail_widths(symbols, kind))
    at = cells.find_numbers_of_cells(symbols, tails, grid)
    tiny_at = cells.find_tiny(at, symbols, kind)
    tiny = source.take(np.full(len(tiny_at), _TINY_AT + chosen, np.int64))
    widths = cells.get_low_widths(at, symbols, tiny_at, tiny, grid=grid, kind=kind, mantissa=record.mantissa)
    low = source.bits.take(widths)
    joined = cells.join(at, tiny_at, tiny, low_values=low, low_widths=widths, grid=grid, kind=kind)
    found = write_numbers(joined, kind)
    escaped = np.flatnonzero(symbols >= cells.ESCAPE)
    found[escaped] = tails[escaped].astype(found.dtype)
    return found


def _read_side(record: Record, source: Source) -> Side:
    row_scales = _read_integers(record.rows * record.row_scales, _SCALES, source)
    column_scales = _read_integers(record.columns * record.column_scales, _SCALES, source)
    multipliers = _read_integers(_count_along(record, record.multiplied), _MULTIPLIERS, source)
    factor_scales = _read_integers(record.rank, _SCALES, source)
    rows = _read_factors(factor_scales, record.rows, source)
    return Side(
        row_scales,
        column_scales,
        multipliers,
        factor_scales,
        rows,
        _read_factors(factor_scales, record.columns, source),
        _read_integers(_count_along(record, record.lattice), _MULTIPLIERS, source),
    )


def _count_along(record: Record, axis: int) -> int:
    """How many numbers stand beside rows (1), columns (2) or nothing (0)."""
    return (0, record.rows, record.columns)[axis]


def _read_factors(scales: I64, count: int, source: Source) -> I64:
    """int64 [rank, count]: integers whose size the scale of their rank tells."""
    wanted = np.repeat(np.clip(scales, 0, 64), count)
    found = np.zeros(len(wanted), np.int64)
    for at in range(0, len(wanted), PIECE):
        piece = wanted[at : at + PIECE]
        found[at : at + PIECE] = _read_cells(WHOLE, np.zeros(len(piece)), piece, source=source).view(np.int32)
    return found.reshape(len(scales), count)


def _read_integers(count: int, context: int, source: Source) -> I64:
    """Integers of up to 32 bits and a sign: a symbol for sign and length, then plain bits."""
    if not count:
        return np.zeros(0, np.int64)
    if count > 1 << 22:
        raise DeltaDamaged(f"expected at most {1 << 22} numbers beside a tensor, found {count}")
    symbols = source.take(np.full(count, _SIDE_AT + context, np.int64)).astype(np.int64)
    logs = np.maximum((symbols - 1) // 2, 0)
    sizes = (1 << logs) + source.bits.take(logs).astype(np.int64)
    return np.where(symbols == 0, 0, np.where(symbols & 1, sizes, -sizes))


# --- writing ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Sink:
    """Where symbols and bits go; the mirror of `Source`."""

    encoder: Encoder
    bits: BitWriter
    model: adapt.Model

    def put(self, symbols: U8, contexts: I64) -> None:
        """The next symbols."""
        adapt.put(self.encoder, self.model, symbols, contexts)


def write_tensor(record: Record, side: Side, files: Files, *, sink: Sink) -> None:
    """Codes one tensor of the target."""
    _write_side(record, side, sink)
    data = files.target[record.start : record.end]
    for start, end in _cut(record):
        expected = expect(record, side, files, start=start, end=end)
        piece = bytes(data[start * record.kind.width : end * record.kind.width])
        _write_piece(record, expected, piece, sink=sink)


def _write_piece(record: Record, expected: Expected, data: bytes, *, sink: Sink) -> None:
    numbers, bits = read_numbers(data, record.kind), read_bits(data, record.kind)
    if record.threshold is None:
        _write_kept(record, expected, numbers=numbers, bits=bits, sink=sink)
        return
    contexts = _PRUNE_AT + find_prune_contexts(expected.sizes, record.threshold)
    same = (np.signbit(numbers) == np.signbit(expected.numbers)) | (not record.kind.is_float)
    pruned = np.where(numbers == 0, np.where(same, _PRUNED_SAME, _PRUNED_OTHER), _KEPT).astype(np.uint8)
    sink.put(pruned, contexts)
    kept = np.flatnonzero(pruned == _KEPT)
    _write_kept(record, expected.pick(kept), numbers=numbers[kept], bits=bits[kept], sink=sink)


def _write_kept(record: Record, expected: Expected, *, numbers: F64, bits: U64, sink: Sink) -> None:
    if expected.steps is None:
        _write_cells(record, expected, numbers=numbers, bits=bits, sink=sink)
    else:
        _write_whole(find_multiples(expected, numbers), expected.scales, sink)


def find_multiples(expected: Expected, numbers: F64) -> I64:
    """How many steps of the lattice each number is away from what is expected."""
    if expected.steps is None:
        return np.zeros(len(numbers), np.int64)
    return np.rint((numbers - expected.numbers) / expected.steps).astype(np.int64)


def _write_whole(numbers: I64, scales: I64, sink: Sink) -> None:
    bits = numbers.astype(np.int32).view(np.uint32).astype(np.uint64)
    expected = Expected(np.zeros(len(numbers)), scales, np.zeros(len(numbers)))
    _write_cells(WHOLE, expected, numbers=numbers.astype(np.float64), bits=bits, sink=sink)


def _write_cells(record: Record, expected: Expected, *, numbers: F64, bits: U64, sink: Sink) -> None:
    chosen = _find_set(record)
    grid = cells.make_grid(expected.numbers, expected.scales, kind=record.kind, mantissa=record.mantissa)
    said = cells.split(numbers, bits, grid=grid, kind=record.kind, mantissa=record.mantissa)
    sink.put(said.symbols, grid.contexts + chosen * cells.CONTEXTS)
    sink.bits.put(said.tail_values, said.tail_widths)
    sink.put(said.tiny, np.full(len(said.tiny), _TINY_AT + chosen, np.int64))
    sink.bits.put(said.low_values, said.low_widths)


def _write_side(record: Record, side: Side, sink: Sink) -> None:
    if record.row_scales:
        _write_integers(side.row_scales, _SCALES, sink)
    if record.column_scales:
        _write_integers(side.column_scales, _SCALES, sink)
    if record.multiplied:
        _write_integers(side.multipliers, _MULTIPLIERS, sink)
    if record.rank:
        _write_integers(side.factor_scales, _SCALES, sink)
        _write_factors(side.factor_scales, side.row_factors, sink)
        _write_factors(side.factor_scales, side.column_factors, sink)
    if record.lattice:
        _write_integers(side.steps, _MULTIPLIERS, sink)


def _write_factors(scales: I64, factors: I64, sink: Sink) -> None:
    wanted, flat = np.repeat(np.clip(scales, 0, 64), factors.shape[1]), factors.reshape(-1)
    for at in range(0, len(flat), PIECE):
        _write_whole(flat[at : at + PIECE], wanted[at : at + PIECE], sink)


def _write_integers(numbers: I64, context: int, sink: Sink) -> None:
    sizes = np.abs(numbers)
    logs = cells.get_exponents(np.maximum(sizes, 1).astype(np.float64))
    symbols = np.where(numbers == 0, 0, 2 * logs + np.where(numbers > 0, 1, 2))
    sink.put(symbols.astype(np.uint8), np.full(len(numbers), _SIDE_AT + context, np.int64))
    sink.bits.put((sizes - (1 << logs)).astype(np.uint64), np.where(numbers == 0, 0, logs))
