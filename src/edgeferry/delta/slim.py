"""Slim: puts the weights of a model on grids, so that a patch (or a full download) of it is short. The operator's side.

Only here is anything lost, and only on the operator's word: what comes out is a model file like any other, which is
published, signed and patched bit by bit. How much may be lost is `publish/slim.py`'s to find out.

Rules:
- `number == round(expected + k * step)`: computed in float64, rounded once to the tensor's kind; k is whole. `expected`
  is the base's number at the same place, or 0.
- A step is m * 2^-exponent with 1 <= m <= 255: one m per output channel, one exponent per tensor.
- Every number moves by at most half a step and half the distance to the next number of its kind.
- The layout stays: only the bytes of chosen tensors change, and of tensors that share their content.
- Tensors with numbers that are none, or too fine for any grid, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgeferry.delta.fit import NO_SIDE
from edgeferry.delta.kinds import F64, KIND_BY_NAME, Kind, read_numbers, round_to, write_numbers
from edgeferry.delta.match import match_tensors
from edgeferry.delta.predict import PIECE, Files, expect
from edgeferry.delta.rans import I64
from edgeferry.delta.records import Copy, Record
from edgeferry.delta.scales import get_matrix
from edgeferry.delta.tensors import Tensor, find_tensors

MIN_ELEMENTS = 16
KINDS = ("f4", "f2")
OPERATORS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather", "FusedConv", "FusedMatMul"}
    | {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "FULLY_CONNECTED", "BATCH_MATMUL"}
    | {"UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "EMBEDDING_LOOKUP"}
)
"""What they read is weights; what others read may be anchors, sizes or other numbers that must not move."""
MULTIPLIER_MAX = 255
STEPS = tuple((4 + at % 4) / 4 * 2.0 ** (at // 4) for at in range(-48, 11))
"""Steps that a curve looks at, in units of the weights' own size; like multipliers, of three bits each."""
_ROOM = 16
"""A grid's unit is at least so many distances between numbers of the weights' size, or it would not be found again."""
SAMPLE_MAX = 1 << 17
PRUNED_SHARE = 0.2
"""From this share of zeros on they are meant: around the base they would not stay zeros."""
_WHOLE_MAX = 1 << 20
_DENSE_MAX = 1 << 12


@dataclass(frozen=True, slots=True)
class Weights:
    """A tensor that may go on a grid.

    Attributes:
        by_row: output channels are the rows of the tensor's matrix, not its columns.
        record: how the base's numbers are read beside it; None without them.
        copies: first bytes of what else in the file has the same content.
    """

    tensor: Tensor
    kind: Kind
    by_row: bool
    record: Record | None
    copies: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SlimModel:
    """A model file and those of its tensors that may go on a grid."""

    target: bytes
    files: Files
    weights: tuple[Weights, ...]


class Grid(NamedTuple):
    """`multipliers` [channels] times 2^-`exponent` are the steps; around the base's numbers, or around 0."""

    exponent: int
    multipliers: I64
    around_base: bool

    @property
    def steps(self) -> F64:
        """Of each channel, [channels, 1]."""
        return np.ldexp(self.multipliers.astype(np.float64), -self.exponent)[:, None]


class Point(NamedTuple):
    """A grid for a tensor, about how many bits it costs, and the sum of squared errors that it makes."""

    grid: Grid
    bits: float
    error: float


# --- what may go on a grid --------------------------------------------------------------------------------------------
def open_slim_model(base: bytes, target: bytes) -> SlimModel:
    """The target's weights, each beside what devices with `base` (empty: none) have at its place."""
    files = Files(memoryview(base), memoryview(target))
    known = find_tensors(base, min_elements=MIN_ELEMENTS)
    matches = list(match_tensors(known, find_tensors(target, min_elements=MIN_ELEMENTS), files))
    copies: dict[int, list[int]] = {}
    for _, match in matches:
        if isinstance(match, Copy) and not match.in_base:
            copies.setdefault(match.source, []).append(match.start)
    found = [_make_weights(tensor, match, files) for tensor, match in matches if not isinstance(match, Copy)]
    kept = [each for each in found if each is not None]
    weights = tuple(
        Weights(each.tensor, each.kind, each.by_row, each.record, tuple(copies.get(each.tensor.start, ())))
        for each in kept
    )
    return SlimModel(target, files, weights)


def _make_weights(tensor: Tensor, records: Sequence[Record], files: Files) -> Weights | None:
    if tensor.kind not in KINDS or tensor.role.partition("/")[0] not in OPERATORS:
        return None
    kind = KIND_BY_NAME[tensor.kind]
    numbers = read_numbers(files.target[tensor.start : tensor.end], kind)
    # a grid point beyond the greatest number would be infinite
    if not np.isfinite(numbers).all() or np.abs(numbers).max() > kind.high / 2 or not numbers.any():
        return None
    by_row = len(tensor.shape) < 2 or tensor.channel_axis != len(tensor.shape) - 1
    usable = [each for each in records if each.origin and each.origin.in_base and each.origin.kind.is_float]
    if np.mean(numbers == 0) >= PRUNED_SHARE:
        usable = []
    best = min(usable, key=lambda each: float(np.square(numbers - _expect(each, files)).sum()), default=None)
    return Weights(tensor, kind, by_row, best)


def _expect(record: Record, files: Files) -> F64:
    pieces = range(0, record.elements, PIECE)
    return np.concatenate(
        [expect(record, NO_SIDE, files, start=at, end=min(at + PIECE, record.elements)).numbers for at in pieces]
    )


def read_weights(model: SlimModel, weights: Weights) -> F64:
    """The numbers, [channels, numbers of each]."""
    data = model.target[weights.tensor.start : weights.tensor.end]
    return _turn(read_numbers(data, weights.kind), weights)


def read_expected(model: SlimModel, weights: Weights, *, around_base: bool) -> F64:
    """What the grid lies around, [channels, numbers of each]."""
    if not around_base or weights.record is None:
        return _turn(np.zeros(weights.tensor.elements), weights)
    return _turn(_expect(weights.record, model.files), weights)


def _turn(numbers: F64, weights: Weights) -> F64:
    matrix = numbers.reshape(get_matrix(weights.tensor))
    return matrix if weights.by_row else matrix.T


# --- grids ------------------------------------------------------------------------------------------------------------
def make_grid(steps: F64, *, around_base: bool) -> Grid:
    """The grid whose steps come nearest to `steps` [channels], all above 0; none is below 1/255 of the greatest.

    Multipliers have three bits and are as small as can be: each is in the patch, and its bits cost.
    """
    sizes, exponents = np.frexp(steps)
    short = np.ldexp(np.rint(sizes * 8), exponents - 3)
    exponent = 8 - int(np.frexp(short.max())[1])
    multipliers = np.clip(np.rint(np.ldexp(short, exponent)), 1, MULTIPLIER_MAX).astype(np.int64)
    common = int(np.bitwise_or.reduce(multipliers))
    shift = (common & -common).bit_length() - 1
    return Grid(exponent - shift, multipliers >> shift, around_base)


def put_on_grid(numbers: F64, expected: F64, grid: Grid, *, kind: Kind) -> tuple[I64, F64]:
    """The whole numbers k, and the numbers of the grid that they stand for; both [channels, numbers of each]."""
    steps = grid.steps
    whole = np.rint((numbers - expected) / steps)
    return whole.astype(np.int64), round_to(expected + whole * steps, kind)


def make_slim(model: SlimModel, chosen: Iterable[tuple[Weights, Grid]]) -> bytes:
    """The target with the chosen weights on their grids."""
    data = bytearray(model.target)
    for weights, grid in chosen:
        expected = read_expected(model, weights, around_base=grid.around_base)
        _, numbers = put_on_grid(read_weights(model, weights), expected, grid, kind=weights.kind)
        matrix = numbers if weights.by_row else numbers.T
        written = write_numbers(np.ascontiguousarray(matrix).reshape(-1), weights.kind).tobytes()
        for start in (weights.tensor.start, *weights.copies):
            data[start : start + len(written)] = written
    return bytes(data)


# --- what a grid costs ------------------------------------------------------------------------------------------------
def draw_curve(model: SlimModel, weights: Weights, *, spread: float = 0.0) -> tuple[Point, ...]:
    """Grids from fine to coarse, around the base and around 0, with what they cost and lose.

    Args:
        model: the weights' own.
        weights: the tensor.
        spread: power of a channel's size that its step goes by; 0 gives all channels the same step.
    """
    numbers = read_weights(model, weights)
    relative = _get_relative_steps(numbers, spread)
    part = slice(None, None, max(1, numbers.size // SAMPLE_MAX))
    ways = (False, True) if weights.record is not None else (False,)
    around = {way: read_expected(model, weights, around_base=way)[:, part] for way in ways}
    numbers, share = numbers[:, part], numbers.size / numbers[:, part].size
    size = 2.0 ** int(np.frexp(np.sqrt(np.square(numbers).mean()))[1])
    grids = (make_grid(size * step * relative, around_base=way) for step in STEPS for way in ways)
    points = (_measure(numbers, around[grid.around_base], grid, kind=weights.kind) for grid in grids)
    return tuple(Point(each.grid, each.bits * share, each.error * share) for each in points if each is not None)


def _get_relative_steps(numbers: F64, spread: float) -> F64:
    """In half octaves, so that they are few different numbers."""
    sizes = np.sqrt(np.square(numbers).mean(1))
    if not spread or not sizes.any():
        return np.ones(len(numbers))
    logs = np.log2(np.maximum(sizes, sizes.max() / 256))
    relative: F64 = np.exp2(np.rint(2 * spread * (logs - logs.mean())) / 2)
    return relative


def _measure(numbers: F64, expected: F64, grid: Grid, *, kind: Kind) -> Point | None:
    """None where the grid is too fine for the kind to hold it."""
    usual, most = (int(np.frexp(each)[1]) - 1 for each in (np.sqrt(np.square(numbers).mean()), np.abs(numbers).max()))
    finest = max(_ROOM * 2.0**usual, 2 * 2.0**most) * 2.0**-kind.mantissa
    if 2.0**-grid.exponent < finest:
        return None
    whole, placed = put_on_grid(numbers, expected, grid, kind=kind)
    if np.abs(whole).max() > _WHOLE_MAX:
        return None
    return Point(grid, estimate_bits(whole) + _estimate_steps(grid), float(np.square(placed - numbers).sum()))


def estimate_bits(whole: I64) -> float:
    """About how many bits whole numbers [channels, numbers of each] cost, coded by the size of their channel's."""
    sizes = np.sqrt(np.square(whole.astype(np.float64)).mean(1) + 0.02)
    classes = np.rint(2 * np.log2(sizes)).astype(np.int64)
    return sum(_count_bits(whole[classes == each]) for each in np.unique(classes))


def _count_bits(whole: I64) -> float:
    low, high = int(whole.min()), int(whole.max())
    counts = (
        np.bincount(whole.reshape(-1) - low) if high - low < _DENSE_MAX else np.unique(whole, return_counts=True)[1]
    )
    seen = counts[counts > 0].astype(np.float64)
    bits = float((seen * np.log2(seen.sum() / seen)).sum())
    # what no table knows yet costs more: at most as much as a normal distribution of that size
    spread = float(np.log2(4.13 * np.sqrt(np.square(whole.astype(np.float64)).mean() + 1 / 12)))
    return min(bits + 2.0 * len(seen), whole.size * max(spread, 0.05) + 8)


def _estimate_steps(grid: Grid) -> float:
    sizes = np.frexp(grid.multipliers.astype(np.float64))[1]
    different = len(np.unique(sizes))
    return 24.0 + float((sizes - 1).sum()) + float(np.log2(different)) * len(sizes) + 4 * different


def pick_point(curve: Sequence[Point], slope: float) -> Point | None:
    """The point that costs least where an error of 1 is worth `slope` bits; None of an empty curve."""
    return min(curve, key=lambda each: each.bits + slope * each.error, default=None)
