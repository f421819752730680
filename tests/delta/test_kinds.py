"""Kinds of numbers: every pattern of 16 bits, and rounding as IEEE 754 has it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta.kinds import KIND_BY_NAME, KINDS, Kind, read_bits, read_numbers, round_to, write_numbers

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

FLOATS = [kind for kind in KINDS if kind.is_float]
INTEGERS = [kind for kind in KINDS if not kind.is_float]
ODD = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e300, -1e300, 5e-324, 65519.99, 65520.0, 2.0**31 - 0.5, 127.5, -128.5]


def list_words(kind: Kind) -> np.ndarray:
    """Every pattern of up to 16 bits; of 32 bits all exponents with several mantissas, and random ones."""
    if kind.width < 4:
        return np.arange(1 << (8 * kind.width), dtype=np.uint32).astype(f"<u{kind.width}")
    heads = np.arange(1 << 9, dtype=np.uint32) << 23
    mantissas = np.array([0, 1, 2, 0x3FFFFF, 0x400000, 0x7FFFFE, 0x7FFFFF], np.uint32)
    return np.concatenate(
        [(heads[:, None] | mantissas).ravel(), np.random.default_rng(1).integers(0, 1 << 32, 50_000, np.uint32)]
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_pattern_comes_back_but_for_what_is_no_number(kind: Kind) -> None:
    words = list_words(kind)
    numbers = read_numbers(words.tobytes(), kind)
    back, real = write_numbers(numbers, kind), ~np.isnan(numbers)
    assert (back[real] == words[real]).all()
    assert real.sum() > 0.5 * len(words)
    assert np.isnan(read_numbers(back[~real].tobytes(), kind)).all()
    assert (read_bits(words.tobytes(), kind) == words).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_number_of_the_kind_is_rounded_to_itself_with_its_sign(kind: Kind) -> None:
    numbers = read_numbers(list_words(kind).tobytes(), kind)
    rounded, finite = round_to(numbers, kind), np.isfinite(numbers)
    assert (rounded[finite] == numbers[finite]).all()
    assert (np.signbit(rounded[finite]) == np.signbit(numbers[finite])).all()
    assert (rounded[~finite] == 0).all()


def round_plainly(value: float, kind: Kind) -> float:
    """To the nearest, ties to even, by exact fractions; 0 for what is none or too large."""
    if not math.isfinite(value):
        return 0.0
    exponent = max(math.frexp(value)[1] - 1, kind.exponent_min) - kind.mantissa
    found = Fraction(round(Fraction(value) / Fraction(2) ** exponent)) * Fraction(2) ** exponent
    return float(found) if kind.low <= found <= kind.high else 0.0


@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
@given(value=st.one_of(st.floats(width=32), st.floats(), st.sampled_from(ODD)), halves=st.integers(-3, 3))
@settings(max_examples=300)
def test_floats_are_rounded_once_to_the_nearest_and_ties_to_even(kind: Kind, value: float, halves: int) -> None:
    values = [value]
    if math.isfinite(value) and kind.low < value < kind.high:
        near = round_plainly(value, kind)
        step = 2.0 ** (max(math.frexp(near)[1] - 1, kind.exponent_min) - kind.mantissa)
        values.append(near + halves * step / 2)
    found = round_to(np.array(values), kind)
    if kind.name == "bf2":  # by way of float32, as writers of bfloat16 do it
        values = (
            [float(each) for each in np.array(values).astype(np.float32, casting="unsafe")]
            if all(abs(each) < 3e38 for each in values)
            else []
        )
        found = found[: len(values)]
    assert found.tolist() == [round_plainly(each, kind) for each in values]


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda kind: kind.name)
@given(st.one_of(st.floats(), st.floats(-300, 300), st.sampled_from(ODD)))
@settings(max_examples=200)
def test_integers_are_rounded_and_cut_to_their_range(kind: Kind, value: float) -> None:
    wanted = 0.0 if math.isnan(value) else max(kind.low, min(kind.high, value))
    assert round_to(np.array([value]), kind)[0] == round(wanted)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@given(st.lists(st.floats(), max_size=20))
@settings(max_examples=100)
def test_any_values_are_written_as_some_numbers(kind: Kind, values: list[float]) -> None:
    assert write_numbers(np.array(values, np.float64), kind).dtype == np.dtype(f"<u{kind.width}")


def test_the_ends_of_each_kind_are_numbers_of_it() -> None:
    for kind in KINDS:
        ends = np.array([kind.low, kind.high])
        assert read_numbers(write_numbers(ends, kind).tobytes(), kind).tolist() == ends.tolist()
        assert KIND_BY_NAME[kind.name] is kind
