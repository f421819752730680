"""Fields of bits: what went in comes out, in any widths and calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta.bits import MAX_FIELD_BITS, BitReader, BitWriter
from edgeferry.errors import DeltaDamaged

CALLS = st.lists(
    st.lists(st.tuples(st.integers(0, MAX_FIELD_BITS), st.integers(0, (1 << 32) - 1)), max_size=60), max_size=6
)


def split(call: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    widths = np.array([width for width, _ in call], np.int64)
    return np.array([value for _, value in call], np.uint64), widths


def write_plainly(calls: list[list[tuple[int, int]]]) -> bytes:
    """The same as text of zeros and ones."""
    text = "".join(f"{value % (1 << width):0{width}b}" for call in calls for width, value in call if width)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


@given(CALLS)
@settings(max_examples=200)
def test_fields_of_any_width_come_back_and_are_what_they_look_like(calls: list[list[tuple[int, int]]]) -> None:
    writer = BitWriter()
    for call in calls:
        writer.put(*split(call))
    data = writer.finish()
    assert data == write_plainly(calls)
    assert writer.size_bits == sum(width for call in calls for width, _ in call)
    reader = BitReader(memoryview(data))
    for call in calls:
        values, widths = split(call)
        assert reader.take(widths).tolist() == [int(v) & (1 << int(w)) - 1 for v, w in zip(values, widths, strict=True)]
    reader.require_end()


def test_many_fields_in_one_call_come_back() -> None:
    dice = np.random.default_rng(1)
    widths = dice.integers(0, 33, 200_000)
    values = dice.integers(0, 1 << 32, 200_000, np.uint64)
    writer = BitWriter()
    writer.put(values, widths)
    found = BitReader(memoryview(writer.finish())).take(widths)
    assert (found == values & ((np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1))).all()


@pytest.mark.parametrize("widths", [[9], [8, 1], [0, 0, 32], [32] * 1000])
def test_more_bits_than_there_are_is_damage(widths: list[int]) -> None:
    with pytest.raises(DeltaDamaged):
        BitReader(memoryview(b"\xff")).take(np.array(widths))


def test_bytes_that_are_left_over_are_damage() -> None:
    reader = BitReader(memoryview(b"\xff\xff"))
    reader.take(np.array([8]))
    with pytest.raises(DeltaDamaged):
        reader.require_end()
    reader.take(np.array([1]))
    reader.require_end()


def test_fields_without_bits_are_zero_even_at_the_end() -> None:
    reader = BitReader(memoryview(b"\xff"))
    assert reader.take(np.array([0, 8, 0, 0])).tolist() == [0, 255, 0, 0]
    assert reader.take(np.zeros(0, np.int64)).tolist() == []
    assert BitReader(memoryview(b"")).take(np.zeros(3, np.int64)).tolist() == [0, 0, 0]
