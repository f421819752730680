"""Cells around what is expected: every number comes back, whatever is expected of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta import cells
from edgeferry.delta.kinds import KINDS, Kind, read_bits, read_numbers, round_to, write_numbers

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

FLOATS = [kind for kind in KINDS if kind.is_float]
IDS = {"ids": lambda kind: kind.name}


def find_used_mantissa(words: np.ndarray, kind: Kind) -> int:
    """How many stored bits of the mantissa any of the numbers uses."""
    used = int(np.bitwise_or.reduce(words.astype(np.int64) & ((1 << kind.mantissa) - 1))) if len(words) else 0
    return kind.mantissa - ((used & -used).bit_length() - 1 if used else kind.mantissa)


def split_and_join(
    words: np.ndarray, expected: np.ndarray, scales: np.ndarray, kind: Kind, mantissa: int
) -> np.ndarray:
    """The words after they were said as cells, as a reader finds them; checks what both sides must agree on."""
    data = words.astype(f"<u{kind.width}").tobytes()
    numbers, bits = read_numbers(data, kind), read_bits(data, kind)
    grid = cells.make_grid(expected, scales, kind=kind, mantissa=mantissa)
    said = cells.split(numbers, bits, grid=grid, kind=kind, mantissa=mantissa)
    _, allowed = cells.make_guess()
    assert allowed[grid.contexts, said.symbols].all()
    assert (cells.get_tail_widths(said.symbols, kind) == said.tail_widths).all()
    at = cells.find_numbers_of_cells(said.symbols, said.tail_values, grid)
    tiny_at = cells.find_tiny(at, said.symbols, kind)
    assert len(tiny_at) == len(said.tiny)
    widths = cells.get_low_widths(at, said.symbols, tiny_at, said.tiny, grid=grid, kind=kind, mantissa=mantissa)
    assert (widths == said.low_widths).all()
    for values, limits in ((said.tail_values, said.tail_widths), (said.low_values, said.low_widths)):
        assert limits.min(initial=0) >= 0 and limits.max(initial=0) <= 32
        assert (values >> limits.astype(np.uint64) == 0).all()
    joined = cells.join(at, tiny_at, said.tiny, low_values=said.low_values, low_widths=widths, grid=grid, kind=kind)
    found = write_numbers(joined, kind)
    escaped = said.symbols == cells.ESCAPE
    found[escaped] = said.tail_values[escaped].astype(found.dtype)
    return found


def draw_expected(words: np.ndarray, kind: Kind, dice: np.random.Generator) -> np.ndarray:
    """Near to the numbers, far from them, or nothing that can be."""
    numbers = np.nan_to_num(read_numbers(words.astype(f"<u{kind.width}").tobytes(), kind), posinf=0.0, neginf=0.0)
    errors = dice.normal(size=len(words)) * 10.0 ** dice.integers(-9, 3, len(words))
    near = numbers * (1 + errors)
    odd = dice.choice([0.0, -0.0, math.inf, -math.inf, math.nan, 1e300, -1e-300, 1.0], len(words))
    return np.where(dice.random(len(words)) < 0.15, odd, near)


def draw_scales(kind: Kind, count: int, dice: np.random.Generator, around: np.ndarray) -> np.ndarray:
    """Scales that fit the numbers, and some that do not."""
    most = 1200 if kind.is_float else 96
    sizes = np.where(np.isfinite(around) & (np.abs(around) > 0), np.abs(around), 1.0)
    fit = np.rint(4 * np.log2(np.clip(sizes, 1e-300, 1e300))).astype(np.int64) - dice.integers(0, 100, count)
    return np.clip(np.where(dice.random(count) < 0.2, dice.integers(-most, most + 1, count), fit), -most, most)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.width < 4], **IDS)
@pytest.mark.parametrize("seed", range(3))
def test_every_pattern_comes_back_from_any_grid(kind: Kind, seed: int) -> None:
    dice = np.random.default_rng(seed)
    words = np.arange(1 << (8 * kind.width))
    expected = draw_expected(words, kind, dice)
    scales = draw_scales(kind, len(words), dice, expected)
    assert (split_and_join(words, expected, scales, kind, kind.mantissa) == words).all()


@pytest.mark.parametrize("kind", KINDS, **IDS)
@given(seed=st.integers(0, 1 << 32), count=st.integers(0, 300), unused=st.integers(0, 23))
@settings(max_examples=80)
def test_any_numbers_come_back_from_any_grid(kind: Kind, seed: int, count: int, unused: int) -> None:
    dice = np.random.default_rng(seed)
    words = dice.integers(0, 1 << (8 * kind.width), count, np.uint64)
    words &= ~np.uint64((1 << min(unused, kind.mantissa)) - 1)
    mantissa = find_used_mantissa(words, kind)
    expected = draw_expected(words, kind, dice)
    scales = draw_scales(kind, count, dice, expected)
    assert (split_and_join(words, expected, scales, kind, mantissa) == words).all()


@pytest.mark.parametrize("kind", FLOATS, **IDS)
@pytest.mark.parametrize("scale", [-1200, -600, -500, -92, -40, 0, 60, 500, 1200])
def test_the_ends_of_the_line_come_back_from_extreme_grids(kind: Kind, scale: int) -> None:
    sign, top = 1 << (8 * kind.width - 1), 1 << (8 * kind.width - 1 - kind.mantissa)
    infinity = ((top - 1) << kind.mantissa) & (sign - 1)
    edges = [0, 1, 2, (1 << kind.mantissa) - 1, 1 << kind.mantissa, infinity - 1, infinity, infinity + 1, sign - 1]
    words = np.array([*edges, *(sign | edge for edge in edges)], np.uint64)
    for expected in (0.0, -0.0, kind.high, kind.low, 2.0**kind.exponent_min, 1.0, math.nan, math.inf):
        grids = np.full(len(words), expected), np.full(len(words), scale)
        assert (split_and_join(words, *grids, kind, kind.mantissa) == words).all()


def test_a_good_expectation_needs_few_bits() -> None:
    kind, dice = KINDS[0], np.random.default_rng(1)
    expected = dice.normal(size=4000).astype(np.float32)
    numbers = (expected * (1 + 1e-5 * dice.normal(size=4000))).astype(np.float32)
    grid = cells.make_grid(expected.astype(np.float64), np.full(4000, -64), kind=kind, mantissa=23)
    said = cells.split(
        numbers.astype(np.float64), numbers.view(np.uint32).astype(np.uint64), grid=grid, kind=kind, mantissa=23
    )
    assert (said.symbols < cells.ESCAPE).all()
    assert said.low_widths.mean() + said.tail_widths.mean() < 8


def test_what_was_expected_exactly_is_the_middle_symbol() -> None:
    for kind in KINDS:
        numbers = round_to(np.linspace(max(kind.low, -300.0), 300, 99), kind)
        words = write_numbers(numbers, kind).astype(np.uint64)
        # cells next to zero hold several numbers, told apart by a second symbol
        grid = cells.make_grid(numbers, np.full(99, -1200 if kind.is_float else -96), kind=kind, mantissa=kind.mantissa)
        said = cells.split(numbers, words, grid=grid, kind=kind, mantissa=kind.mantissa)
        assert (said.symbols == cells.DIRECT).all()
        assert said.low_widths.sum() == 0


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=60)
def test_any_symbols_give_some_numbers(seed: int) -> None:
    dice = np.random.default_rng(seed)
    for kind in KINDS:
        count, mantissa = 200, int(dice.integers(0, kind.mantissa + 1))
        expected = draw_expected(dice.integers(0, 1 << (8 * kind.width), count, np.uint64), kind, dice)
        grid = cells.make_grid(expected, draw_scales(kind, count, dice, expected), kind=kind, mantissa=mantissa)
        symbols = dice.integers(0, cells.ALPHABET, count, np.uint8)
        tails = dice.integers(0, 1 << 32, count, np.uint64) >> (32 - cells.get_tail_widths(symbols, kind)).astype(
            np.uint64
        )
        at = cells.find_numbers_of_cells(symbols, tails, grid)
        tiny_at = cells.find_tiny(at, symbols, kind)
        tiny = dice.integers(0, cells.TINY_ZERO + 1, len(tiny_at), np.uint8)
        widths = cells.get_low_widths(at, symbols, tiny_at, tiny, grid=grid, kind=kind, mantissa=mantissa)
        assert widths.min() >= 0 and widths.max() <= 32
        low = dice.integers(0, 1 << 32, count, np.uint64) & ((np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1))
        joined = cells.join(at, tiny_at, tiny, low_values=low, low_widths=widths, grid=grid, kind=kind)
        assert len(write_numbers(joined, kind)) == count


def test_guesses_give_each_symbol_that_is_allowed_a_count() -> None:
    guess, allowed = cells.make_guess()
    assert guess.shape == allowed.shape == (cells.CONTEXTS, cells.ALPHABET)
    assert guess.min() > 0
    assert allowed[:, cells.ESCAPE].all() and allowed[:, cells.DIRECT].all()
    assert allowed[cells.NARROW_BELOW :].all() and not allowed[0].all()
