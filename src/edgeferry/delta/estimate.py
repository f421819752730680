"""About how many bits a tensor takes, from a sample: what choices are compared by. The operator's side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeferry.delta import cells
from edgeferry.delta.kinds import read_bits, read_numbers
from edgeferry.delta.predict import PIECE, PRUNE_CONTEXTS, Files, Side, expect, find_prune_contexts
from edgeferry.delta.rans import I64
from edgeferry.delta.records import Record
from edgeferry.delta.tensor_codec import WHOLE, find_multiples

SAMPLE_PIECES = 2
LEARNING_BITS = 3.0
"""About what each symbol of a context costs until the context has learned it."""


def estimate(record: Record, side: Side, files: Files) -> float:
    """About how many bits the tensor takes, from a sample of its pieces."""
    pieces = list(cut_pieces(record))
    chosen = pieces[:: max(1, len(pieces) // SAMPLE_PIECES)][:SAMPLE_PIECES]
    bits = sum(_estimate_piece(record, side, files, start=start, end=end) for start, end in chosen)
    seen = sum(end - start for start, end in chosen)
    beside = sum(map(_estimate_integers, (side.row_scales, side.column_scales, side.multipliers)))
    beside += sum(map(_estimate_integers, [*side.row_factors, *side.column_factors]))
    return bits * record.elements / seen + beside + 64


def _estimate_piece(record: Record, side: Side, files: Files, *, start: int, end: int) -> float:
    expected = expect(record, side, files, start=start, end=end)
    data = get_bytes(record, files, start, end)
    numbers, own = read_numbers(data, record.kind), read_bits(data, record.kind)
    wanted, scales, bits = expected.numbers, expected.scales, 0.0
    if record.threshold is not None:
        contexts, zero = find_prune_contexts(expected.sizes, record.threshold), numbers == 0
        bits += _count_bits(zero.astype(np.int64), contexts, PRUNE_CONTEXTS, 2)
        expected = expected.pick(np.flatnonzero(~zero))
        numbers, own, wanted, scales = numbers[~zero], own[~zero], expected.numbers, expected.scales
    kind, mantissa = record.kind, record.mantissa
    if expected.steps is not None:
        kind, mantissa, numbers = WHOLE.kind, 0, find_multiples(expected, numbers).astype(np.float64)
        wanted = np.zeros(len(numbers))
    grid = cells.make_grid(wanted, scales, kind=kind, mantissa=mantissa)
    said = cells.split(numbers, own, grid=grid, kind=kind, mantissa=mantissa)
    bits += _count_bits(said.symbols.astype(np.int64), grid.contexts, cells.CONTEXTS, cells.ALPHABET)
    return bits + float(said.tail_widths.sum() + said.low_widths.sum()) + 2.5 * len(said.tiny)


def _count_bits(symbols: I64, contexts: I64, rows: int, alphabet: int) -> float:
    """Entropy of symbols in their contexts, and what learning costs."""
    counts = np.bincount(contexts * alphabet + symbols, minlength=rows * alphabet).reshape(rows, alphabet)
    totals = counts.sum(1, keepdims=True)
    with np.errstate(all="ignore"):
        each = np.where(counts > 0, counts * np.log2(totals / np.maximum(counts, 1)), 0.0)
    return float(each.sum()) + LEARNING_BITS * float((counts > 0).sum())


def _estimate_integers(numbers: NDArray[np.int64]) -> float:
    if not numbers.size:
        return 0.0
    flat = numbers.reshape(-1)
    logs = np.where(flat == 0, 0, cells.get_exponents(np.maximum(np.abs(flat), 1).astype(np.float64)) + 1)
    symbols = 2 * logs + (flat < 0)
    zeros = np.zeros(len(flat), np.int64)
    return _count_bits(symbols, zeros, 1, 80) + float(np.maximum(logs - 1, 0).sum())


def cut_pieces(record: Record) -> Iterator[tuple[int, int]]:
    """The pieces (start, end) in which a tensor's numbers are coded."""
    return ((at, min(at + PIECE, record.elements)) for at in range(0, record.elements, PIECE))


def get_bytes(record: Record, files: Files, start: int, end: int) -> bytes:
    """The bytes of the numbers `start` to `end` of a tensor."""
    width = record.kind.width
    return bytes(files.target[record.start + start * width : record.start + end * width])
