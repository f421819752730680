"""Interleaved rANS, vectorised over lanes: symbols of many contexts in one stream, both ways.

This file knows symbols and contexts; what they mean is `cells.py`, how contexts learn is `adapt.py`, where the stream
lies is `container.py`. Method: J. Duda, asymmetric numeral systems (2013), with 32-bit states and 16-bit words.

Rules:
- Integers only: the same bytes on every machine.
- A decoder never reads outside its words: what would is DeltaDamaged. On damaged words it yields symbols of the
  alphabet, never an error of another kind; digests decide.
- A step takes one symbol in each lane; a last step that is not full takes the first lanes. The lanes go on from call to
  call, so that a patch pays for their states once.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeferry.errors import DeltaDamaged

PROBABILITY_BITS = 14
TOTAL = 1 << PROBABILITY_BITS
STATE_LOW = 1 << 16
WORD_BITS = 16
MAX_LANES = 4096

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_SLOT_MASK, _SLOT_BITS = np.uint64(TOTAL - 1), np.uint64(PROBABILITY_BITS)
_WORD, _LOW = np.uint64(WORD_BITS), np.uint64(STATE_LOW)
_WORD_MASK = np.uint64(0xFFFF)
_EMIT_SHIFT = np.uint64(32 - PROBABILITY_BITS)


class Tables(NamedTuple):
    """How symbols of each context are coded.

    Attributes:
        symbols: uint8 [contexts x TOTAL], the symbol of each slot.
        starts: uint64 [contexts x alphabet], its first slot.
        counts: uint64 [contexts x alphabet], how many slots it has; a context's sum is TOTAL.
        alphabet: symbols per context.
    """

    symbols: U8
    starts: U64
    counts: U64
    alphabet: int


class SymbolReader(Protocol):
    """Where symbols come from: a `Decoder`, or one that is watched (`explain.py`)."""

    def take(self, contexts: I64, tables: Tables) -> U8:
        """The next symbols, one for each of `contexts`."""

    def require_end(self) -> None:
        """Raises DeltaDamaged when something is left over."""


class Decoder:
    """Takes symbols out of a stream of 16-bit words, forwards."""

    def __init__(self, stream: memoryview, lanes: int) -> None:
        """Reads the first state of each lane: two words, low one first.

        Raises:
            DeltaDamaged: the stream is shorter than its states.
        """
        if not 0 < lanes <= MAX_LANES or len(stream) < 4 * lanes or len(stream) % 2:
            raise DeltaDamaged(f"expected a stream of {lanes} lanes, found {len(stream)} bytes")
        self._states = np.frombuffer(stream[: 4 * lanes], "<u4").astype(np.uint64)
        self._words = np.frombuffer(stream[4 * lanes :], "<u2")
        self._at = 0
        self._lanes = lanes

    def take(self, contexts: I64, tables: Tables) -> U8:
        """The next symbols, one for each of `contexts` (int64 [n]): uint8 [n]."""
        count, lanes = len(contexts), self._lanes
        found = np.empty(count, np.uint8)
        rows, firsts = contexts << PROBABILITY_BITS, contexts * tables.alphabet
        for at in range(0, count, lanes):
            end = min(at + lanes, count)
            states = self._states[: end - at]
            slots = states & _SLOT_MASK
            symbols = tables.symbols.take(rows[at:end] + slots.view(np.int64))
            found[at:end] = symbols
            index = firsts[at:end] + symbols
            states >>= _SLOT_BITS
            states *= tables.counts.take(index)
            states += slots
            states -= tables.starts.take(index)
            low = np.flatnonzero(states < _LOW)
            if len(low):
                self._refill(states, low)
        return found

    def _refill(self, states: U64, low: NDArray[np.intp]) -> None:
        words = self._words[self._at : self._at + len(low)]
        if len(words) != len(low):
            raise DeltaDamaged("the stream of symbols ends early")
        self._at += len(low)
        states[low] = (states[low] << _WORD) | words

    def require_end(self) -> None:
        """Raises DeltaDamaged unless every word is used and each state is the one that encoding began with."""
        if self._at != len(self._words) or bool((self._states != _LOW).any()):
            raise DeltaDamaged("the stream of symbols does not end where it should")


class Encoder:
    """Collects symbols forwards, as a decoder will take them; `finish` codes them backwards."""

    def __init__(self) -> None:
        self._starts: list[NDArray[np.uint16]] = []
        self._counts: list[NDArray[np.uint16]] = []

    def put(self, symbols: U8, contexts: I64, tables: Tables) -> None:
        """Symbols uint8 [n] in their contexts [n]: one call for each call of `Decoder.take`."""
        index = contexts * tables.alphabet + symbols
        self._starts.append(tables.starts.take(index).astype(np.uint16))
        self._counts.append(tables.counts.take(index).astype(np.uint16))

    def get_size_bytes(self) -> float:
        """About how many bytes the stream will have, without its states."""
        bits = sum(float((PROBABILITY_BITS - np.log2(counts.astype(np.float64))).sum()) for counts in self._counts)
        return bits / 8

    def finish(self, lanes: int) -> bytes:
        """The stream: first states, then words."""
        states = np.full(lanes, STATE_LOW, np.uint64)
        words: list[NDArray[np.uint16]] = []
        for starts, counts in zip(reversed(self._starts), reversed(self._counts), strict=True):
            for at in range((len(starts) - 1) // lanes * lanes, -1, -lanes):
                _encode_step(states, starts[at : at + lanes], counts[at : at + lanes], words)
        head = states.astype("<u4").tobytes()
        return head + (np.concatenate(words[::-1]).astype("<u2").tobytes() if words else b"")


def _encode_step(
    states: U64, starts: NDArray[np.uint16], counts: NDArray[np.uint16], words: list[NDArray[np.uint16]]
) -> None:
    used, wide = states[: len(starts)], counts.astype(np.uint64)
    full = np.flatnonzero(used >= (wide << _EMIT_SHIFT))
    if len(full):
        words.append((used[full] & _WORD_MASK).astype(np.uint16))
        used[full] >>= _WORD
    whole, part = np.divmod(used, wide)
    used[:] = (whole << _SLOT_BITS) + part + starts
