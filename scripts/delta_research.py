"""The two research baselines, written simply and fairly: FM-Delta-like and BitX-like, each with its decoder.

Both are given the map of tensors and which base tensor each target tensor is coded against; both send what lies
outside the tensors as one zstd frame with the whole base as its dictionary. So they differ from each other, and from
ours, only in how they code a pair of tensors.

- FM-Delta-like (W. Ning et al., "FM-Delta", NeurIPS 2024): floats as integers in their own order, the difference at
  the same position, its sign and bit length entropy-coded, the bits below as they are. The paper's coder adapts; here
  each tensor takes a table of its own or the shared one, whichever is cheaper.
- BitX-like (Z. Su et al., "ZipLLM", 2025): XOR at the same position, byte planes, zstd.

Rules:
- Lossless on any input of any pairing inside the two files: a decoder stands beside each coder.
- A baseline is no peer of the fleet: nothing of it is imported by edgeferry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import zstandard
from delta_rans import Array, decode_symbols, encode_symbols, make_frequencies

LEVEL, WINDOW_LOG = 19, 27
SYMBOLS = 2 * 65
"""Bit lengths 0 to 64 with either sign."""
SAMPLE = 256


class TensorPair(NamedTuple):
    """`elements` of `width` bytes at `target`, to be coded against those at `base` (byte offsets in the two files)."""

    base: int
    target: int
    elements: int
    width: int

    @property
    def size_bytes(self) -> int:
        """Bytes of either tensor."""
        return self.elements * self.width


class Tensor(NamedTuple):
    """Where a tensor lies in a file, and what it holds; `name` is empty where the format gives none."""

    start: int
    elements: int
    width: int
    name: str = ""


def pair_tensors(base: bytes, target: bytes, tensors: tuple[Iterable[Tensor], Iterable[Tensor]]) -> list[TensorPair]:
    """For each target tensor the base tensor of its shape with its name, else the one whose values lie nearest."""
    shapes: dict[tuple[int, int], list[Tensor]] = {}
    for one in tensors[0]:
        shapes.setdefault((one.elements, one.width), []).append(one)
    return [
        TensorPair(_find_nearest(base, target, one, found).start, one.start, one.elements, one.width)
        for one in tensors[1]
        if (found := shapes.get((one.elements, one.width)))
    ]


def _find_nearest(base: bytes, target: bytes, wanted: Tensor, found: list[Tensor]) -> Tensor:
    named = [one for one in found if one.name and one.name == wanted.name]
    if named:
        return named[0]
    values = _sample(target, wanted)
    return min(found, key=lambda one: float(np.abs(_sample(base, one) - values).mean()))


def _sample(data: bytes, one: Tensor) -> Array:
    values = _read_ordered(data, one.start, one.elements, one.width)
    return values[:: max(1, one.elements // SAMPLE)].astype(np.float64)


# --- FM-Delta-like ----------------------------------------------------------------------------------------------------
def encode_fm_delta(base: bytes, target: bytes, pairs: Sequence[TensorPair]) -> bytes:
    """Codes `target` against `base`; `decode_fm_delta` gives it again."""
    each = [_split_difference(base, target, pair) for pair in pairs]
    counts = np.array([np.bincount(symbols, minlength=SYMBOLS) for symbols, _ in each]).reshape(-1, SYMBOLS)
    choice, frequencies = _choose_tables(counts)
    symbols = _join([symbols for symbols, _ in each], np.uint8)
    raw = _pack_raw(symbols >> 1, _join([raw for _, raw in each], np.uint64))
    coded = encode_symbols(symbols, np.repeat(choice, [pair.elements for pair in pairs]), frequencies)
    tables = _compress(choice.astype("<u2").tobytes() + frequencies.astype("<u2").tobytes())
    return _join_parts(_make_map(pairs), _make_rest(base, target, pairs), tables, *coded, raw)


def decode_fm_delta(base: bytes, coded: bytes) -> bytes:
    """The target again."""
    head, rest, packed_tables, states, words, raw = _split_parts(coded)
    pairs = _read_map(head)
    tables = np.frombuffer(_decompress(packed_tables), "<u2")
    choice, frequencies = tables[: len(pairs)], tables[len(pairs) :].reshape(-1, SYMBOLS)
    symbols = decode_symbols(states, words, np.repeat(choice, [pair.elements for pair in pairs]), frequencies)
    low = _unpack_raw(symbols >> 1, raw)
    bodies, at = [], 0
    for pair in pairs:
        part = slice(at, at + pair.elements)
        bodies.append(_add_difference(base, pair, symbols[part], low[part]))
        at += pair.elements
    return _fill(_read_rest(base, rest), pairs, bodies)


def _split_difference(base: bytes, target: bytes, pair: TensorPair) -> tuple[Array, Array]:
    """(2 x bit length + sign, bits below the highest) of each ordered difference, modulo the width."""
    one = _read_ordered(base, pair.base, pair.elements, pair.width)
    two = _read_ordered(target, pair.target, pair.elements, pair.width)
    difference = two - one  # wraps around in the tensor's own width
    negative = difference >> difference.dtype.type(8 * pair.width - 1) != 0
    size = np.where(negative, -difference, difference).astype(np.uint64)
    length = np.searchsorted(1 << np.arange(64, dtype=np.uint64), size, side="right")
    top = np.where(size > 0, np.uint64(1) << np.maximum(length - 1, 0).astype(np.uint64), np.uint64(0))
    return (2 * length + negative).astype(np.uint8), size - top


def _add_difference(base: bytes, pair: TensorPair, symbols: Array, low: Array) -> bytes:
    length = (symbols >> 1).astype(np.uint64)
    top = np.where(length > 0, np.uint64(1) << np.maximum(length, 1) - np.uint64(1), np.uint64(0))
    one = _read_ordered(base, pair.base, pair.elements, pair.width)
    size = (top + low).astype(one.dtype)
    return _from_ordered(one + np.where(symbols & 1, -size, size)).tobytes()


def _choose_tables(counts: Array) -> tuple[Array, Array]:
    """For each tensor the shared table (0) or one of its own, where that saves more than its 2 bytes a symbol."""
    mean = counts.sum(axis=0)
    own = np.array([_get_bits(row, mean) - _get_bits(row, row) > 16 * np.count_nonzero(row) for row in counts], bool)
    tables = (counts[~own].sum(axis=0), *counts[own])
    return np.where(own, np.cumsum(own), 0), np.stack([make_frequencies(row) for row in tables])


def _get_bits(counts: Array, model: Array) -> float:
    used = counts > 0
    return float((counts[used] * np.log2(model.sum() / model[used])).sum())


def _pack_raw(lengths: Array, low: Array) -> bytes:
    """The raw bits, grouped by their number."""
    groups = []
    for bits in range(1, 64):
        values = low[lengths == bits + 1]
        planes = values[:, None] >> np.arange(bits, dtype=np.uint64) & np.uint64(1)
        groups.append(np.packbits(planes.astype(np.uint8).reshape(-1)).tobytes())
    return b"".join(groups)


def _unpack_raw(lengths: Array, raw: bytes) -> Array:
    low, at = np.zeros(len(lengths), np.uint64), 0
    for bits in range(1, 64):
        places = np.flatnonzero(lengths == bits + 1)
        size = (len(places) * bits + 7) // 8
        planes = np.unpackbits(np.frombuffer(raw, np.uint8, size, at))[: len(places) * bits].reshape(-1, bits)
        low[places] = (planes.astype(np.uint64) << np.arange(bits, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
        at += size
    return low


def _read_ordered(data: bytes, start: int, elements: int, width: int) -> Array:
    """The tensor as unsigned integers in the order of its floats; bytes as they are, whose order wraps anyway."""
    bits = np.frombuffer(data, f"<u{width}", elements, start)
    if width == 1:
        return bits
    sign = bits.dtype.type(1 << 8 * width - 1)
    return np.where(bits & sign, ~bits, bits | sign)


def _from_ordered(ordered: Array) -> Array:
    if ordered.dtype.itemsize == 1:
        return ordered
    sign = ordered.dtype.type(1 << 8 * ordered.dtype.itemsize - 1)
    return np.where(ordered & sign, ordered ^ sign, ~ordered)


# --- BitX-like --------------------------------------------------------------------------------------------------------
def encode_bitx(base: bytes, target: bytes, pairs: Sequence[TensorPair]) -> bytes:
    """Codes `target` against `base`; `decode_bitx` gives it again."""
    planes: dict[tuple[int, int], list[bytes]] = {}
    for pair in pairs:
        for plane, row in enumerate(_xor(base, target, pair).reshape(-1, pair.width).T):
            planes.setdefault((pair.width, plane), []).append(row.tobytes())
    frames = [_compress(b"".join(planes[key])) for key in sorted(planes)]
    return _join_parts(_make_map(pairs), _make_rest(base, target, pairs), *frames)


def decode_bitx(base: bytes, coded: bytes) -> bytes:
    """The target again."""
    head, rest, *frames = _split_parts(coded)
    pairs = _read_map(head)
    keys = sorted({(pair.width, plane) for pair in pairs for plane in range(pair.width)})
    planes = {key: _decompress(frame) for key, frame in zip(keys, frames, strict=True)}
    bodies, taken = [], dict.fromkeys(keys, 0)
    for pair in pairs:
        rows = []
        for key in ((pair.width, plane) for plane in range(pair.width)):
            rows.append(np.frombuffer(planes[key], np.uint8, pair.elements, taken[key]))
            taken[key] += pair.elements
        both = np.stack(rows, axis=1).reshape(-1)
        bodies.append((both ^ np.frombuffer(base, np.uint8, pair.size_bytes, pair.base)).tobytes())
    return _fill(_read_rest(base, rest), pairs, bodies)


def _xor(base: bytes, target: bytes, pair: TensorPair) -> Array:
    one = np.frombuffer(base, np.uint8, pair.size_bytes, pair.base)
    return one ^ np.frombuffer(target, np.uint8, pair.size_bytes, pair.target)


# --- what both share: the map, the rest, parts with their lengths -----------------------------------------------------
def _make_map(pairs: Sequence[TensorPair]) -> bytes:
    """The pairs, each number as its step from the pair before, column by column."""
    table = np.array(pairs, np.int64).reshape(-1, 4)
    return _compress(np.diff(table, axis=0, prepend=np.zeros((1, 4), np.int64)).T.astype("<i8").tobytes())


def _read_map(head: bytes) -> list[TensorPair]:
    steps = np.frombuffer(_decompress(head), "<i8").reshape(4, -1)
    return [TensorPair(*map(int, row)) for row in np.cumsum(steps, axis=1).T]


def _make_rest(base: bytes, target: bytes, pairs: Sequence[TensorPair]) -> bytes:
    at, gaps = 0, []
    for pair in pairs:
        gaps.append(target[at : pair.target])
        at = pair.target + pair.size_bytes
    return compress_against(base, b"".join((*gaps, target[at:])))


def _read_rest(base: bytes, rest: bytes) -> bytes:
    return decompress_against(base, rest)


def _fill(rest: bytes, pairs: Sequence[TensorPair], bodies: Sequence[bytes]) -> bytes:
    return b"".join(_interleave(rest, pairs, bodies))


def _interleave(rest: bytes, pairs: Sequence[TensorPair], bodies: Sequence[bytes]) -> Iterator[bytes]:
    at, taken = 0, 0
    for pair, body in zip(pairs, bodies, strict=True):
        gap = pair.target - at
        yield rest[taken : taken + gap]
        yield body
        at, taken = pair.target + pair.size_bytes, taken + gap
    yield rest[taken:]


def _join(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _join_parts(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def _split_parts(coded: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(coded):
        (size,) = struct.unpack_from("<I", coded, at)
        parts.append(coded[at + 4 : at + 4 + size])
        at += 4 + size
    return parts


def compress_against(base: bytes, data: bytes) -> bytes:
    """`data` as a zstd frame with `base` as its dictionary of raw content, window over both."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, window_log=WINDOW_LOG, enable_ldm=True, source_size=len(data), dict_size=len(base)
    )
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=_make_dictionary(base)).compress(data)


def decompress_against(base: bytes, frame: bytes) -> bytes:
    """What `compress_against` coded."""
    decoder = zstandard.ZstdDecompressor(dict_data=_make_dictionary(base), max_window_size=1 << WINDOW_LOG)
    return decoder.decompress(frame)


def _make_dictionary(base: bytes) -> zstandard.ZstdCompressionDict | None:
    raw = zstandard.DICT_TYPE_RAWCONTENT
    return zstandard.ZstdCompressionDict(base, dict_type=raw) if len(base) >= 8 else None


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL).compress(data)


def _decompress(frame: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(frame)
