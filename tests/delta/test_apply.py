"""Applying: pieces into gaps, records behind them, and nothing accepted that the digests do not vouch for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta.hostile_patches import make_samples, wrap
from edgeferry.delta import codecs
from edgeferry.delta.apply import COPY_BYTES, apply_patch, cut_ranges, decode_full, gather, get_memory
from edgeferry.delta.container import Container, Header, Piece, Streams, make_container
from edgeferry.delta.rans import STATE_LOW
from edgeferry.delta.record_bytes import make_records
from edgeferry.delta.records import Copy
from edgeferry.errors import DeltaBaseMismatch, DeltaDamaged
from edgeferry.model.digest import Digest

BASE, TARGET = b"the base of it all", b"the target of it all"
RANGES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=6)
EMPTY = STATE_LOW.to_bytes(4, "little")


def apply(base: bytes, patch: bytes, size_bytes: int) -> bytes:
    target = bytearray(size_bytes)
    apply_patch(base, patch, memoryview(target))
    return bytes(target)


def place(layout: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges apart from each other, in order."""
    found, at = [], 0
    for gap, length in layout:
        found.append((at + gap, at + gap + length))
        at = found[-1][1]
    return found


@given(RANGES, st.integers(0, 60), st.integers(0, 60))
def test_a_part_of_ranges_is_a_part_of_their_bytes(layout: list[tuple[int, int]], start: int, end: int) -> None:
    ranges, data = place(layout), bytes(range(100))
    whole = gather(memoryview(data), ranges)
    assert gather(memoryview(data), cut_ranges(ranges, start, end)) == whole[start : max(start, end)]


def make_copies(records: list[Copy], base: bytes, target: bytes, rest: bytes) -> bytes:
    """A patch of copies, with `rest` between them."""
    plain = make_records(records)
    digests = [bytes.fromhex(Digest.of(data).hex)[:12] for data in (base, target)]
    streams = Streams(codecs.RAW, len(plain), plain, 1, EMPTY, b"")
    piece = Piece(codecs.RAW, -1, rest, 0, -1)
    return make_container(Container(Header(True, *digests, len(target), 32 << 20), streams, (piece,)))


def test_copies_are_filled_in_the_order_of_the_map_behind_the_remainder() -> None:
    base = bytes(range(40))
    records = [Copy(0, 10, True, 20), Copy(20, 10, False, 2), Copy(30, 7, False, 10)]
    target = base[20:30] + b"between it" + base[22:30] + b"be" + b"between"
    assert apply(base, make_copies(records, base, target, b"between it"), 37) == target


def test_a_copy_of_what_is_not_filled_yet_is_zeros() -> None:
    records = [Copy(0, 4, False, 4), Copy(4, 4, True, 0)]
    assert apply(b"abcd", make_copies(records, b"abcd", b"\0\0\0\0abcd", b""), 8) == b"\0\0\0\0abcd"


def test_long_copies_are_whole() -> None:
    base = np.random.default_rng(1).bytes(2 * COPY_BYTES + 77)
    assert apply(base, make_copies([Copy(0, len(base), True, 0)], base, base, b""), len(base)) == base


@pytest.mark.parametrize("name", ["fine-tuned", "hdiffpatch", "in pieces"])
def test_another_base_or_size_is_refused_before_anything_is_written(name: str) -> None:
    sample = make_samples()[name]
    target = bytearray(len(sample.target))
    with pytest.raises(DeltaBaseMismatch):
        apply_patch(sample.base[:-1] + b"?", sample.patch, memoryview(target))
    assert not any(target)
    for change in (-1, 1):
        with pytest.raises(DeltaDamaged):
            apply(sample.base, sample.patch, len(sample.target) + change)


def test_a_target_of_another_digest_is_refused() -> None:
    good = wrap(BASE, TARGET, (Piece(codecs.RAW, len(TARGET), TARGET),))
    assert apply(BASE, good, len(TARGET)) == TARGET
    with pytest.raises(DeltaDamaged, match="the patch is damaged"):
        apply(BASE, good[:-1] + b"?", len(TARGET))


@pytest.mark.parametrize("sizes", [(3, 4), (30, 1), (0,), ()], ids=str)
def test_pieces_that_do_not_fill_the_remainder_exactly_are_damage(sizes: tuple[int, ...]) -> None:
    pieces = tuple(Piece(codecs.RAW, size, b"x" * size) for size in (*sizes, 0, 0))
    with pytest.raises(DeltaDamaged):
        apply(BASE, wrap(BASE, TARGET, pieces), len(TARGET))


@pytest.mark.parametrize("codec", ["none", "zstd", "efd1"])
def test_a_full_file_that_is_cut_is_damage(codec: str) -> None:
    sample = make_samples()["full, duplicates"]
    coded = {"none": TARGET, "zstd": codecs.compress_zstd(TARGET), "efd1": sample.patch}[codec]
    size_bytes = len(sample.target) if codec == "efd1" else len(TARGET)
    decode_full(coded, codec, memoryview(bytearray(size_bytes)))
    assert get_memory(coded, codec) > 0
    for cut in (coded[:-1], coded[:4], b""):
        with pytest.raises(DeltaDamaged):
            decode_full(cut, codec, memoryview(bytearray(size_bytes)))


@pytest.mark.parametrize("codec", ["planes-zstd", "efd2", ""])
def test_an_unknown_codec_is_damage(codec: str) -> None:
    for call in (lambda: decode_full(TARGET, codec, memoryview(bytearray(9))), lambda: get_memory(TARGET, codec)):
        with pytest.raises(DeltaDamaged):
            call()
