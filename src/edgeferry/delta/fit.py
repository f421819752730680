"""Which expectation makes a tensor shortest: scales, multipliers, products, pruning. The operator's side.

Each choice is tried and its bits are estimated on a sample; what earns its keep stays. What the choices mean is
`predict.py`'s and `cells.py`'s.

Rules:
- A choice changes size, never truth: any record decodes to the same numbers.
- Floating point may be anything here; nothing of it reaches the decoder but the integers of a record and its side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from edgeferry.delta import cells
from edgeferry.delta.estimate import cut_pieces, estimate, get_bytes
from edgeferry.delta.kinds import F64, read_numbers, write_numbers
from edgeferry.delta.predict import Files, Side, expect
from edgeferry.delta.rans import I64
from edgeferry.delta.records import MAX_RANK, MAX_RANKED, MAX_SIDE, Record
from edgeferry.delta.tensor_codec import find_multiples

LEFT_MAX = 1e30  # no products of numbers whose squares are hard to say
LATTICE_LOOK, MAX_STEP = 512, (1 << 20) - 1
ONE_BITS = 0x3F800000  # 1.0 as float32
PRUNED_MIN = 4  # fewer zeros are not worth a look
FLOOR_STEPS = 3  # errors below 2^-3 of the distance of numbers count as that
NOTHING: I64 = np.zeros(0, np.int64)
NO_SIDE = Side(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING.reshape(0, 1), NOTHING.reshape(0, 1), NOTHING)


@dataclass(frozen=True, slots=True)
class Fit:
    """A record, the numbers beside it, and about how many bits it takes."""

    record: Record
    side: Side
    bits: float


def fit_tensor(candidates: Iterable[Record], files: Files) -> Fit:
    """The best of several records of one tensor, with all that earns its keep; at least one must be given."""
    firsts = [fit_scales(each, NO_SIDE, files) for each in candidates]
    on_lattice = [fit for each in firsts for fit in _try_lattice(each, files)]
    if on_lattice:
        return min([*firsts, *on_lattice], key=lambda fit: fit.bits)
    firsts += [pruned for each in firsts for pruned in _try_pruning(each, files)]
    # vectors of scales are alike but for a factor: without it an origin is no help
    firsts += [fit for each in firsts if each.record.rows == 1 for fit in _try_multipliers(each, files)]
    best = min(firsts, key=lambda fit: fit.bits)
    for attempt in (_try_multipliers, _try_products):
        best = min([best, *attempt(best, files)], key=lambda fit: fit.bits)
    return best


# --- scales -----------------------------------------------------------------------------------------------------------
def fit_scales(record: Record, side: Side, files: Files) -> Fit:
    """The record with a scale, and with scales of rows and columns where they earn their keep."""
    plain = replace(record, scale=0, row_scales=False, column_scales=False)
    sizes = _measure_errors(plain, side, files)
    rows, columns = record.rows, record.columns
    whole = sizes.reshape(rows, columns)
    mean = float(np.nanmean(whole)) if np.isfinite(whole).any() else 0.0
    row = _shrink(_mean(whole, 1) - mean, columns) if rows > 1 else np.zeros(rows)
    column = _shrink(_mean(whole - row[:, None], 0) - mean, rows) if columns > 1 else np.zeros(columns)
    tries = []
    for by_row, by_column in ((False, False), (True, False), (False, True), (True, True)):
        if (by_row or by_column) and (min(rows, columns) < 2 or max(rows * by_row, columns * by_column) > MAX_SIDE):
            continue
        scaled = replace(plain, scale=round(4 * mean), row_scales=by_row, column_scales=by_column)
        beside = replace(
            side,
            row_scales=_round(2 * row) if by_row else NOTHING,
            column_scales=_round(2 * column) if by_column else NOTHING,
        )
        tries.append(Fit(scaled, beside, estimate(scaled, beside, files)))
    return min(tries, key=lambda fit: fit.bits)


def _mean(sizes: F64, axis: int) -> F64:
    with np.errstate(all="ignore"):
        count = np.isfinite(sizes).sum(axis)
        return np.where(
            count > 0, np.nansum(np.where(np.isfinite(sizes), sizes, 0.0), axis) / np.maximum(count, 1), 0.0
        )


def _shrink(means: F64, count: int) -> F64:
    """Draws means of few numbers towards zero, by how much of their spread is chance."""
    chance = 2.0 / count  # the variance of log2 of an error's size
    spread = max(float(means.var()) - chance, 0.0)
    return means * (spread / (spread + chance))


def _round(numbers: F64) -> I64:
    return np.clip(np.rint(numbers), -400, 400).astype(np.int64)


def _measure_errors(record: Record, side: Side, files: Files) -> F64:
    """log2 of each error's scale; NaN where pruning says all."""
    found = np.empty(record.elements)
    for start, end in cut_pieces(record):
        expected = expect(record, side, files, start=start, end=end)
        numbers = read_numbers(get_bytes(record, files, start, end), record.kind)
        numbers[~np.isfinite(numbers)] = 0.0
        if record.lattice:
            errors = np.maximum(np.abs(find_multiples(expected, numbers)), 2.0**-FLOOR_STEPS)
        else:
            finest = _find_finest(expected.numbers, record)
            bounded = np.nan_to_num(np.clip(expected.numbers, record.kind.low, record.kind.high))  # a scale of 0: none
            errors = np.maximum(np.abs(numbers - bounded), np.exp2(finest - FLOOR_STEPS))
        # the mean of log2 lies this much below log2 of the scale
        found[start:end] = np.log2(errors) + 0.75
        if record.threshold is not None:
            found[start:end][numbers == 0] = np.nan
    return found


def _find_finest(numbers: F64, record: Record) -> F64:
    kind = record.kind
    if not kind.is_float:
        return np.zeros(len(numbers))
    safe = np.where(np.isfinite(numbers), numbers, 0.0)
    return np.maximum(cells.get_exponents(safe), kind.exponent_min).astype(np.float64) - record.mantissa


# --- pruning ----------------------------------------------------------------------------------------------------------
def _try_pruning(best: Fit, files: Files) -> Iterator[Fit]:
    """Zeros where something else is expected: the sizes at which they begin."""
    record = best.record
    if record.origin is None:  # nothing is expected: a threshold only tells zeros from the rest
        data = get_bytes(record, files, 0, record.elements)
        if (read_numbers(data, record.kind) == 0).sum() >= max(PRUNED_MIN, record.elements // 50):
            yield fit_scales(replace(record, threshold=ONE_BITS), best.side, files)
        return
    kept, cut = [], []
    for start, end in cut_pieces(record):
        expected = expect(record, best.side, files, start=start, end=end)
        zero = read_numbers(get_bytes(record, files, start, end), record.kind) == 0
        kept.append(expected.sizes[~zero])
        cut.append(expected.sizes[zero & (expected.sizes > 0)])
    sizes, gone = np.concatenate(kept), np.concatenate(cut)
    if len(gone) < PRUNED_MIN or not len(sizes):
        return
    for border in {float(sizes.min()), float(np.quantile(gone, 0.98))}:
        threshold = int(np.array([border], "<f4").view("<u4")[0])
        if border > 0:
            yield fit_scales(replace(record, threshold=threshold), best.side, files)


# --- lattice ----------------------------------------------------------------------------------------------------------
def _try_lattice(first: Fit, files: Files) -> Iterator[Fit]:
    """Numbers that were put on a lattice of few steps (`slim.py`): found by their greatest common divisors."""
    record = first.record
    if record.kind.name not in ("f4", "f2") or record.peak or record.scales:
        return
    plain = replace(record, row_scales=False, column_scales=False)
    expected, wanted = _get_pairs(plain, NO_SIDE, files)
    bits = _find_lattice_bits(expected.ravel(), wanted.ravel(), record)
    if bits is None:
        return
    whole = np.rint((wanted - expected) * 2.0**bits).astype(np.int64)
    for axis in (1, 2):
        steps = np.maximum(np.gcd.reduce(whole, axis=2 - axis), 1)
        if len(steps) > MAX_SIDE or int(steps.max()) > MAX_STEP:
            continue
        changed = replace(plain, lattice=axis, lattice_bits=bits)
        side = replace(NO_SIDE, steps=steps)
        if _is_exact(changed, side, files):
            yield fit_scales(changed, side, files)


def _find_lattice_bits(expected: F64, wanted: F64, record: Record) -> int | None:
    """The coarsest unit 2^-bits of which all differences are whole multiples, but for the rounding of the numbers."""
    left = wanted - expected
    largest = float(np.abs(left).max())
    if largest == 0:
        return None
    noise = np.exp2(_find_finest(wanted, replace(record, mantissa=record.kind.mantissa)) - 1)
    first = -math.ceil(math.log2(largest))
    some = slice(None, None, max(1, len(left) // LATTICE_LOOK))
    for bits in range(first, first + 24):
        if float(np.median(noise[some])) * 2.0**bits > 0.05:
            return None
        # a few, of all channels, may fit a unit that is too coarse for the rest
        if all(_are_multiples(left[part], noise[part], bits) for part in (some, slice(None))):
            return bits
    return None


def _are_multiples(numbers: F64, noise: F64, bits: int) -> bool:
    scaled = numbers * 2.0**bits
    return bool((np.abs(scaled - np.rint(scaled)) <= noise * 2.0**bits + 1e-9).all())


def _is_exact(record: Record, side: Side, files: Files) -> bool:
    for start, end in cut_pieces(record):
        expected = expect(record, side, files, start=start, end=end)
        data = get_bytes(record, files, start, end)
        multiples = find_multiples(expected, read_numbers(data, record.kind))
        if (
            expected.steps is None
            or write_numbers(expected.numbers + multiples * expected.steps, record.kind).tobytes() != data
        ):
            return False
    return True


# --- multipliers ------------------------------------------------------------------------------------------------------
def _try_multipliers(best: Fit, files: Files) -> Iterator[Fit]:
    """A multiplier for each row or column, by least squares: folded batch norm."""
    record = best.record
    if record.origin is None or record.peak:
        return
    real, wanted = _get_pairs(record, best.side, files)
    for axis, count, other in ((1, record.rows, record.columns), (2, record.columns, record.rows)):
        if other < 4 or count > MAX_SIDE:
            continue
        multipliers = _find_multipliers(real, wanted, 2 - axis)
        bits = _find_multiplier_bits(real, wanted, multipliers, 2 - axis)
        if bits is None:
            continue
        whole = np.clip(np.rint((multipliers - 1.0) * 2.0**bits), -(2**32) + 1, 2**32 - 1).astype(np.int64)
        changed = replace(record, multiplied=axis, multiplier_bits=bits)
        yield fit_scales(changed, replace(best.side, multipliers=whole), files)


def _get_pairs(record: Record, side: Side, files: Files) -> tuple[F64, F64]:
    """What is expected and what is there, in the target's units without its zero; what is pruned as 0."""
    plain = replace(record, multiplied=0, rank=0)
    expected, wanted = np.empty(record.elements), np.empty(record.elements)
    for start, end in cut_pieces(record):
        expected[start:end] = expect(plain, side, files, start=start, end=end).numbers - record.zero
        numbers = read_numbers(get_bytes(record, files, start, end), record.kind)
        wanted[start:end] = np.where(np.isfinite(numbers), numbers, 0.0) - record.zero
    expected[~np.isfinite(expected)] = 0.0
    if record.threshold is not None:
        expected[wanted == 0] = 0.0
    return expected.reshape(record.rows, record.columns), wanted.reshape(record.rows, record.columns)


def _find_multipliers(real: F64, wanted: F64, axis: int) -> F64:
    """Least squares, twice: the second time without what the first left far away."""
    weights = np.ones_like(real)
    for _ in range(2):
        squares = (weights * real * real).sum(axis)
        found = np.where(squares > 0, (weights * real * wanted).sum(axis) / np.where(squares > 0, squares, 1), 1.0)
        left = np.abs(wanted - real * np.expand_dims(found, axis))
        weights = (left <= 4 * left.mean(axis, keepdims=True)).astype(np.float64)
    return np.clip(found, -8.0, 8.0)


def _find_multiplier_bits(real: F64, wanted: F64, multipliers: F64, axis: int) -> int | None:
    """How fine multipliers must be, so that their own error does not show in what they leave."""
    left = np.median(np.abs(wanted - real * np.expand_dims(multipliers, axis)))
    size = np.median(np.abs(real))
    if size <= 0:
        return None
    finest = np.median(np.abs(wanted)) * 2.0**-26
    return int(np.clip(np.ceil(np.log2(size / max(float(left), float(finest), 1e-300))) + 3, 3, 31))


# --- products ---------------------------------------------------------------------------------------------------------
def _try_products(best: Fit, files: Files) -> Iterator[Fit]:
    """A sum of few products of a number per row and one per column: what few steps of training change."""
    record = best.record
    if record.origin is None or record.peak or min(record.rows, record.columns) < 8:
        return
    if max(record.rows, record.columns) > MAX_RANKED or record.elements > 1 << 23:
        return
    left = _get_left(record, best.side, files)
    if float(np.abs(left).max()) > LEFT_MAX:
        return
    rows, sizes, columns = _decompose(left)
    rank, unit = _find_rank(sizes, record)
    if not rank:
        return
    step = int(np.clip(np.floor(-np.log2(unit)), -90, 90))
    # both factors get numbers of the same size
    middle = (record.rows / record.columns) ** 0.25
    root = np.sqrt(sizes[:rank, None]) * 2.0**step
    row_factors = np.rint(rows[:rank] * root * middle).astype(np.int64)
    column_factors = np.rint(columns[:rank] * root / middle).astype(np.int64)
    typical = sizes[:rank] / math.sqrt(record.elements) * 4.0**step
    scales = np.clip(np.rint(2 * np.log2(np.maximum(typical, 0.1))) + 1, 0, 64).astype(np.int64)
    side = replace(best.side, factor_scales=scales, row_factors=row_factors, column_factors=column_factors)
    yield fit_scales(replace(record, rank=rank, step=2 * step), side, files)


def _decompose(left: F64) -> tuple[F64, F64, F64]:
    """Singular value decomposition: vectors of rows [n, rows], sizes [n], falling, vectors of columns [n, columns].

    By the smaller of the two Gram matrices: several times as fast, and exact enough for the large sizes that count.
    """
    wide = left.shape[0] <= left.shape[1]
    matrix = left if wide else left.T
    squares, vectors = np.linalg.eigh(matrix @ matrix.T)
    sizes = np.sqrt(np.maximum(squares[::-1], 0.0))
    first = vectors.T[::-1]
    second = (first @ matrix) / np.maximum(sizes, float(sizes[0]) * 1e-12 + 1e-300)[:, None]
    return (first, sizes, second) if wide else (second, sizes, first)


def _get_left(record: Record, side: Side, files: Files) -> F64:
    real = np.empty(record.elements)
    for start, end in cut_pieces(record):
        expected = expect(record, side, files, start=start, end=end).numbers
        numbers = read_numbers(get_bytes(record, files, start, end), record.kind)
        with np.errstate(all="ignore"):
            left = numbers - expected
        left[~np.isfinite(left) | ((numbers == 0) & (record.threshold is not None))] = 0.0
        real[start:end] = left
    return real.reshape(record.rows, record.columns)


def _find_rank(sizes: F64, record: Record) -> tuple[int, float]:
    """The rank and the unit of its factors whose gain most exceeds their cost; rank 0 when none does.

    Half a bit per number is gained for each halving of the energy left. The unit d adds an error of its own; where
    both together are cheapest, that error is K / (N - K) of the one left, with K factors for N numbers.
    """
    energy, numbers, both = np.cumsum(sizes**2), record.elements, record.rows + record.columns
    if energy[-1] <= 0:
        return 0, 1.0
    best, found = 0.005 * numbers, (0, 1.0)
    for rank in range(1, min(MAX_RANK + 1, len(sizes))):
        left = max(float(energy[-1] - energy[rank - 1]), float(energy[-1]) * 1e-9) / numbers
        share = min(rank * both / numbers, 0.45)
        added = share / (1 - share)
        typical = sizes[:rank] / math.sqrt(numbers)  # mean square of a factor
        square = added * left * 6 / float(typical.sum())
        bits = np.maximum(0.5 * np.log2(2 * math.pi * math.e * np.maximum(typical, 1e-300) / square), 0.4)
        gain = numbers / 2 * math.log2(float(energy[-1]) / numbers / (left * (1 + added))) - both * float(bits.sum())
        if gain > best:
            best, found = gain, (rank, math.sqrt(square))
    return found
