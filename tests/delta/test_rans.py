"""rANS in lanes: what went in comes out, whatever the lanes, contexts and tables; damage is damage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta.rans import MAX_LANES, STATE_LOW, TOTAL, Decoder, Encoder, Tables
from edgeferry.errors import DeltaDamaged


def make_tables(counts: np.ndarray) -> Tables:
    """Tables of slots [contexts, alphabet] whose rows sum up to TOTAL."""
    letters = np.arange(counts.shape[1], dtype=np.uint8)
    symbols = np.concatenate([np.repeat(letters, row) for row in counts])
    starts = np.cumsum(counts, 1) - counts
    return Tables(symbols, starts.ravel().astype(np.uint64), counts.ravel().astype(np.uint64), counts.shape[1])


def draw_counts(dice: np.random.Generator, contexts: int, alphabet: int) -> np.ndarray:
    """Random slots, at least one for each symbol, some rows with one symbol that takes nearly all."""
    weights = dice.random((contexts, alphabet)) ** dice.integers(1, 12, (contexts, 1))
    counts = 1 + (weights / weights.sum(1, keepdims=True) * (TOTAL - alphabet)).astype(np.int64)
    counts[:, 0] += TOTAL - counts.sum(1)
    return counts


def encode(calls: list[tuple[np.ndarray, np.ndarray]], tables: Tables, lanes: int) -> bytes:
    encoder = Encoder()
    for symbols, contexts in calls:
        encoder.put(symbols, contexts, tables)
    return encoder.finish(lanes)


@st.composite
def draw_work(draw: st.DrawFn) -> tuple[Tables, list[tuple[np.ndarray, np.ndarray]], int]:
    dice = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    contexts, alphabet = draw(st.integers(1, 6)), draw(st.integers(1, 256))
    calls = []
    for _ in range(draw(st.integers(0, 5))):
        count = draw(st.integers(0, 300))
        calls.append((dice.integers(0, alphabet, count, np.uint8), dice.integers(0, contexts, count)))
    return make_tables(draw_counts(dice, contexts, alphabet)), calls, draw(st.integers(1, 70))


@given(draw_work())
@settings(max_examples=150)
def test_any_symbols_in_any_contexts_come_back_from_any_lanes(
    work: tuple[Tables, list[tuple[np.ndarray, np.ndarray]], int],
) -> None:
    tables, calls, lanes = work
    decoder = Decoder(memoryview(encode(calls, tables, lanes)), lanes)
    for symbols, contexts in calls:
        assert (decoder.take(contexts, tables) == symbols).all()
    decoder.require_end()


@pytest.mark.parametrize("lanes", [1, 8, 1000, MAX_LANES])
def test_symbols_take_about_as_many_bits_as_their_slots_say(lanes: int) -> None:
    dice = np.random.default_rng(3)
    tables = make_tables(draw_counts(dice, 4, 60))
    contexts = dice.integers(0, 4, 20_000)
    shares = tables.counts.astype(np.float64).reshape(4, 60) / TOTAL
    symbols = np.array([dice.choice(60, p=shares[each]) for each in contexts], np.uint8)
    encoder = Encoder()
    encoder.put(symbols, contexts, tables)
    bits = -np.log2(shares[contexts, symbols]).sum()
    assert encoder.get_size_bytes() == pytest.approx(bits / 8)
    # a state keeps 16 bits that a stream without lanes would not need, and a word at most
    assert abs(len(encoder.finish(lanes)) - bits / 8) < 4 * lanes + 40


def test_a_symbol_that_is_certain_takes_no_words() -> None:
    tables = make_tables(np.array([[TOTAL]]))
    coded = encode([(np.zeros(5000, np.uint8), np.zeros(5000, np.int64))], tables, 4)
    assert coded == STATE_LOW.to_bytes(4, "little") * 4


@pytest.mark.parametrize(
    ("stream", "lanes"),
    [(b"", 1), (bytes(3), 1), (bytes(4), 0), (bytes(4), 2), (bytes(5), 1), (bytes(4 * 5000), 5000), (bytes(8), -1)],
    ids=str,
)
def test_a_stream_that_does_not_hold_its_lanes_is_damage(stream: bytes, lanes: int) -> None:
    with pytest.raises(DeltaDamaged):
        Decoder(memoryview(stream), lanes)


@given(st.binary(min_size=4, max_size=400), st.integers(1, 20), st.integers(0, 1 << 32))
@settings(max_examples=150)
def test_any_bytes_give_symbols_of_the_alphabet_or_damage(data: bytes, lanes: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    tables, contexts = make_tables(draw_counts(dice, 3, 17)), dice.integers(0, 3, 500)
    try:
        found = Decoder(memoryview(data), lanes).take(contexts, tables)
    except DeltaDamaged:
        return
    assert found.max() < 17


@pytest.mark.parametrize("change", ["a word too many", "a word missing", "another state"])
def test_a_stream_that_does_not_end_where_it_should_is_damage(change: str) -> None:
    dice = np.random.default_rng(4)
    tables, contexts = make_tables(draw_counts(dice, 2, 30)), dice.integers(0, 2, 900)
    symbols = dice.integers(0, 30, 900, np.uint8)
    coded = encode([(symbols, contexts)], tables, 8)
    changed = {
        "a word too many": coded + b"\0\0",
        "a word missing": coded[:-2],
        "another state": bytes([coded[0] ^ 1]) + coded[1:],
    }[change]
    decoder = Decoder(memoryview(changed), 8)
    with pytest.raises(DeltaDamaged):
        decoder.take(contexts, tables)
        decoder.require_end()
