"""Contexts that learn: both sides take the same steps, and slots always add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta import adapt
from edgeferry.delta.adapt import COUNT_MAX, PIECE_MAX, PIECE_MIN, Model
from edgeferry.delta.rans import TOTAL, Decoder, Encoder

CONTEXTS, ALPHABET = 5, 40


def make_model(seed: int) -> Model:
    """Random guesses; each context allows some symbols, the first always."""
    dice = np.random.default_rng(seed)
    allowed = dice.random((CONTEXTS, ALPHABET)) < 0.6
    allowed[:, 0] = True
    allowed[0, 1:] = False
    return Model(dice.integers(1, 300, (CONTEXTS, ALPHABET)), allowed)


def draw_symbols(model: Model, contexts: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Symbols that are allowed, some far more often than others."""
    choices = [np.flatnonzero(row) for row in model._allowed]
    return np.array([choices[each][int(len(choices[each]) * dice.random() ** 3)] for each in contexts], np.uint8)


def require_sound(model: Model) -> None:
    """Slots of each context that was built add up, and only allowed symbols have some."""
    counts = model.tables.counts.reshape(CONTEXTS, ALPHABET).astype(np.int64)
    for at in np.flatnonzero(model._built):
        assert counts[at].sum() == TOTAL
        assert ((counts[at] > 0) == model._allowed[at]).all()
        assert (
            np.bincount(model.tables.symbols[at * TOTAL : (at + 1) * TOTAL], minlength=ALPHABET) == counts[at]
        ).all()


@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 3000), max_size=5), st.integers(1, 40))
@settings(max_examples=40)
def test_what_is_put_is_taken_and_both_sides_learn_the_same(seed: int, calls: list[int], lanes: int) -> None:
    dice, encoder, writing = np.random.default_rng(seed), Encoder(), make_model(seed)
    work = []
    for count in calls:
        contexts = dice.integers(0, CONTEXTS, count)
        work.append((contexts, draw_symbols(writing, contexts, dice)))
        adapt.put(encoder, writing, work[-1][1], contexts)
        require_sound(writing)
    decoder, reading = Decoder(memoryview(encoder.finish(lanes)), lanes), make_model(seed)
    for contexts, symbols in work:
        assert (adapt.take(decoder, reading, contexts) == symbols).all()
    decoder.require_end()
    assert (reading.tables.counts == writing.tables.counts).all()


def test_a_context_learns_what_comes_often() -> None:
    model, encoder = make_model(1), Encoder()
    often = int(np.flatnonzero(model._allowed[3])[-1])
    sizes = [0.0]
    for _ in range(2):
        adapt.put(encoder, model, np.full(4000, often, np.uint8), np.full(4000, 3, np.int64))
        sizes.append(encoder.get_size_bytes())
    assert sizes[2] - sizes[1] < (sizes[1] - sizes[0]) / 2


def test_counts_fade_before_they_grow_without_end() -> None:
    model = make_model(2)
    for _ in range(40):
        model.count(np.zeros(8192, np.uint8), np.full(8192, 3, np.int64))
    assert model._counts[3].sum() <= COUNT_MAX
    require_sound(model)


def test_pieces_grow_with_what_was_coded() -> None:
    model = make_model(3)
    sizes = [end - start for start, end in model.cut(100_000)]
    assert sum(sizes) == 100_000
    assert sizes[0] == PIECE_MIN and max(sizes) == PIECE_MAX
    assert sizes[:-1] == sorted(sizes[:-1])


def test_only_contexts_in_use_are_built() -> None:
    model = make_model(4)
    model.require_built(np.array([1, 1, 4]))
    assert np.flatnonzero(model._built).tolist() == [1, 4]
    with pytest.raises(AssertionError):
        model._built[2] = True
        require_sound(model)
