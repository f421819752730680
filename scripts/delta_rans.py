"""A plain static entropy coder for the research baselines: interleaved rANS over numpy lanes.

Written for the benches and apart from ours, so that the baselines owe our coder nothing and a change there moves no
bar. Speed is no aim. Source: J. Duda, "Asymmetric numeral systems" (2013), in its range form.

Rules:
- Symbol i belongs to lane i % LANES; a lane's state lies in [2^16, 2^32) and gives off words of 16 bits.
- Frequencies of a table sum to 2^SCALE; a symbol that occurs has at least 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LANES, SCALE = 32, 14
_LOW = 1 << 16


def make_frequencies(counts: Array) -> Array:
    """Counts of symbols as frequencies that sum to 2^SCALE; all zero when nothing occurs."""
    total = int(counts.sum())
    if not total:
        return np.zeros(len(counts), np.uint16)
    scaled = np.where(counts > 0, np.maximum(1, (counts << SCALE) // total), 0)
    scaled[int(scaled.argmax())] += (1 << SCALE) - int(scaled.sum())
    return scaled.astype(np.uint16)


def encode_symbols(symbols: Array, tables: Array, frequencies: Array) -> tuple[bytes, bytes]:
    """Codes `symbols[i]` by row `tables[i]` of `frequencies`; returns (final states, words)."""
    freq, start = _gather(symbols, tables, frequencies)
    states, words = np.full(LANES, _LOW, np.uint64), []
    for at in reversed(range(0, len(symbols), LANES)):
        f, c = freq[at : at + LANES], start[at : at + LANES]
        lanes = states[: len(f)]
        full = lanes >= f << np.uint64(32 - SCALE)
        words.append((lanes[full] & np.uint64(0xFFFF)).astype("<u2"))
        lanes = np.where(full, lanes >> np.uint64(16), lanes)
        states[: len(f)] = (lanes // f << np.uint64(SCALE)) + lanes % f + c
    return states.astype("<u4").tobytes(), b"".join(word.tobytes() for word in reversed(words))


def decode_symbols(states: bytes, words: bytes, tables: Array, frequencies: Array) -> Array:
    """The symbols that `encode_symbols` coded; as many as `tables` has entries."""
    lookup = np.stack([_make_lookup(row) for row in frequencies])
    frequencies, starts = frequencies.astype(np.uint64), _make_starts(frequencies)
    lanes_all, stream, at_word = np.frombuffer(states, "<u4").astype(np.uint64), np.frombuffer(words, "<u2"), 0
    out = np.empty(len(tables), np.uint8)
    for at in range(0, len(tables), LANES):
        table = tables[at : at + LANES]
        lanes = lanes_all[: len(table)]
        slot = lanes & np.uint64((1 << SCALE) - 1)
        symbol = lookup[table, slot]
        lanes = frequencies[table, symbol] * (lanes >> np.uint64(SCALE)) + slot - starts[table, symbol]
        low = np.flatnonzero(lanes < _LOW)
        lanes[low] = lanes[low] << np.uint64(16) | stream[at_word : at_word + len(low)]
        at_word += len(low)
        lanes_all[: len(table)] = lanes
        out[at : at + LANES] = symbol
    return out


def _gather(symbols: Array, tables: Array, frequencies: Array) -> tuple[Array, Array]:
    return frequencies[tables, symbols].astype(np.uint64), _make_starts(frequencies)[tables, symbols]


def _make_starts(frequencies: Array) -> Array:
    wide = frequencies.astype(np.uint64)
    return np.cumsum(wide, axis=1) - wide


def _make_lookup(row: Array) -> Array:
    symbols = np.repeat(np.arange(len(row), dtype=np.uint8), row.astype(np.int64))
    return symbols if len(symbols) else np.zeros(1 << SCALE, np.uint8)
