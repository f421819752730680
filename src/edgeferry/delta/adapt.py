"""How contexts learn: counts of what was seen, and the tables that follow from them.

Encoder and decoder walk through the same steps: a piece is coded with the tables as they stand, then counted. So no
table travels. The first tables are a guess at the shape of residuals, which a context soon unlearns.

Rules:
- Integers only. A context that nothing was counted in is not built again.
- Pieces are short at first and grow with what was coded, up to PIECE_MAX.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeferry.delta.rans import I64, PROBABILITY_BITS, TOTAL, U8, Encoder, SymbolReader, Tables

PIECE_MIN, PIECE_MAX = 256, 8192
STEP = 32
"""What one symbol adds to its count; a guess weighs as much as a few symbols."""
COUNT_MAX = 1 << 22
"""Above this sum a context's counts are halved, so that old data fade."""


class Model:
    """Tables of all contexts, and the counts behind them."""

    def __init__(self, guess: NDArray[np.int64], allowed: NDArray[np.bool_]) -> None:
        """Begins from `guess` (int64 [contexts, alphabet]); in a context only what is `allowed` can be coded."""
        contexts, alphabet = guess.shape
        self._counts, self._allowed = guess * allowed, allowed
        self._coded = 0
        self.tables = Tables(
            np.empty(contexts * TOTAL, np.uint8),
            np.zeros(contexts * alphabet, np.uint64),
            np.zeros(contexts * alphabet, np.uint64),
            alphabet,
        )
        self._built = np.zeros(contexts, np.bool_)

    def cut(self, count: int) -> Iterator[tuple[int, int]]:
        """Cuts `count` symbols into pieces (start, end), as long as what was coded so far allows."""
        at = 0
        while at < count:
            end = min(count, at + max(PIECE_MIN, min(PIECE_MAX, self._coded // 4)))
            yield at, end
            self._coded += end - at
            at = end

    def require_built(self, contexts: I64) -> None:
        """Builds the tables of contexts that are used for the first time."""
        used = np.flatnonzero(np.bincount(contexts, minlength=len(self._built)))
        self._build(used[~self._built[used]])

    def count(self, symbols: U8, contexts: I64) -> None:
        """Learns what was coded, and builds the tables anew that it changes."""
        alphabet = self.tables.alphabet
        changed = np.flatnonzero(np.bincount(contexts, minlength=len(self._built)))
        rows = np.searchsorted(changed, contexts)
        seen = np.bincount(rows * alphabet + symbols, minlength=len(changed) * alphabet).reshape(-1, alphabet)
        counts = self._counts[changed] + seen * STEP
        large = counts.sum(1) > COUNT_MAX
        counts[large] = (counts[large] + 1) >> 1
        self._counts[changed] = counts
        self._build(changed)

    def _build(self, contexts: NDArray[np.intp]) -> None:
        if not len(contexts):
            return
        alphabet, allowed = self.tables.alphabet, self._allowed[contexts]
        counts = self._counts[contexts]
        spare = TOTAL - allowed.sum(1, keepdims=True)
        slots = allowed + counts * spare // np.maximum(counts.sum(1, keepdims=True), 1)
        slots[np.arange(len(contexts)), slots.argmax(1)] += TOTAL - slots.sum(1)
        index = contexts[:, None] * alphabet + np.arange(alphabet)
        self.tables.counts[index] = slots
        self.tables.starts[index] = np.cumsum(slots, 1) - slots
        letters = np.arange(alphabet, dtype=np.uint8)
        for context, row in zip(contexts, slots, strict=True):
            at = int(context) << PROBABILITY_BITS
            self.tables.symbols[at : at + TOTAL] = np.repeat(letters, row)
        self._built[contexts] = True


def take(decoder: SymbolReader, model: Model, contexts: I64) -> U8:
    """The next symbols, one for each of `contexts` [n], and learns them."""
    if not len(contexts):
        return np.empty(0, np.uint8)
    found = []
    for start, end in model.cut(len(contexts)):
        piece = contexts[start:end]
        model.require_built(piece)
        found.append(decoder.take(piece, model.tables))
        model.count(found[-1], piece)
    return np.concatenate(found)


def put(encoder: Encoder, model: Model, symbols: U8, contexts: I64) -> None:
    """The mirror of `take`."""
    for start, end in model.cut(len(contexts)):
        piece = contexts[start:end]
        model.require_built(piece)
        encoder.put(symbols[start:end], piece, model.tables)
        model.count(symbols[start:end], piece)
