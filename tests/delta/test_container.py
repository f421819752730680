"""The container: any comes back, and every number in it is bounded before it is used."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta import codecs
from edgeferry.delta.container import (
    MAX_BYTES,
    MAX_PIECES,
    MEMORY_UNIT,
    Container,
    Header,
    Piece,
    Streams,
    make_container,
    read_container,
    read_header,
)
from edgeferry.delta.varint import make_varint
from edgeferry.errors import DeltaBaseMismatch, DeltaDamaged
from edgeferry.model.digest import Digest

BASE, TARGET = Digest.of(b"base"), Digest.of(b"target")
PREFIXES = [bytes.fromhex(each.hex)[:12] for each in (BASE, TARGET)]
HEADER = Header(True, *PREFIXES, 1000, 3 * MEMORY_UNIT)
PLAIN = Container(HEADER, None, (Piece(codecs.RAW, -1, b"the rest", 0, -1),))
STREAMS = Streams(codecs.RAW, 3, b"map", 8, b"symbols!", b"bits")
PIECES = (Piece(codecs.RAW, 4, b"four"), Piece(codecs.FROM, 5, b"frame", 7, 9))


@st.composite
def draw_container(draw: st.DrawFn) -> Container:
    has_base, length = draw(st.booleans()), draw(st.sampled_from([12, 32]))
    digests = [draw(st.binary(min_size=length, max_size=length)) for _ in range(2)]
    memory = MEMORY_UNIT * draw(st.integers(0, 1000))
    header = Header(has_base, digests[0] * has_base, digests[1], draw(st.integers(0, MAX_BYTES)), memory)
    without = sorted(set(codecs.METHODS) - codecs.WITH_BASE)
    methods, data = st.sampled_from(sorted(codecs.METHODS) if has_base else without), st.binary(max_size=30)
    numbers = st.integers(0, (1 << 62) - 1)
    streams = draw(
        st.none() | st.builds(Streams, st.sampled_from(without), st.integers(0, 1 << 24), data, numbers, data, data)
    )
    pieces = []
    for _ in range(draw(st.integers(0, 4))):
        method = draw(methods)
        base = (draw(numbers), draw(numbers)) if method in codecs.WITH_BASE else ()
        pieces.append(Piece(method, draw(numbers), draw(data), *base))
    if len(pieces) == 1:  # it stands for all of both remainders
        pieces = [Piece(pieces[0].method, -1, pieces[0].data, 0, -1)]
    return Container(header, streams, tuple(pieces))


@given(draw_container())
@settings(max_examples=300)
def test_any_container_comes_back(container: Container) -> None:
    data = make_container(container)
    assert read_container(data, base_bytes=0) == container
    assert read_header(data) == container.header


@given(draw_container(), st.data())
@settings(max_examples=200)
def test_a_cut_container_is_damage_wherever_its_numbers_end(container: Container, data: st.DataObject) -> None:
    whole = make_container(container)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    if len(container.pieces) == 1:  # what is left is a shorter piece, or damage
        with contextlib.suppress(DeltaDamaged):
            read_container(cut, base_bytes=0)
        return
    with pytest.raises(DeltaDamaged):
        read_container(cut, base_bytes=0)


@given(st.binary(max_size=120), st.booleans())
@settings(max_examples=300)
def test_any_bytes_are_a_container_or_damage(data: bytes, magic: bool) -> None:
    with contextlib.suppress(DeltaDamaged):
        read_container(b"EFD\x01" * magic + data, base_bytes=0)


def test_a_header_is_short() -> None:
    header = make_container(replace(PLAIN, pieces=(Piece(codecs.RAW, -1, b""),)))
    assert len(header) == 5 + 24 + 2 + 1
    largest = replace(HEADER, target_bytes=MAX_BYTES, memory_bytes=MAX_BYTES)
    assert len(make_container(Container(largest, None, (Piece(codecs.RAW, -1, b""),)))) <= 40


@pytest.mark.parametrize("length", [12, 32])
def test_digests_are_checked_as_far_as_they_travel(length: int) -> None:
    header = replace(HEADER, base=bytes.fromhex(BASE.hex)[:length], target=bytes.fromhex(TARGET.hex)[:length])
    header.require_base(BASE)
    header.require_target(TARGET)
    with pytest.raises(DeltaBaseMismatch, match=BASE.hex[:24]):
        header.require_base(TARGET)
    with pytest.raises(DeltaDamaged, match=TARGET.hex[:24]):
        header.require_target(BASE)
    almost = Digest.of(b"almost").hex
    mixed = Digest(BASE.hex[: 2 * length - 2] + almost[2 * length - 2 :])
    with pytest.raises(DeltaBaseMismatch):
        header.require_base(mixed)


def test_a_full_file_wants_no_base() -> None:
    full = make_container(Container(replace(HEADER, has_base=False, base=b""), None, PLAIN.pieces))
    assert not read_container(full, base_bytes=0).header.has_base
    with pytest.raises(DeltaBaseMismatch):
        read_container(full, base_bytes=1)


# --- what is refused --------------------------------------------------------------------------------------------------
GOOD = make_container(PLAIN)
HEAD = GOOD[:29]  # up to the digests
IN_PIECES = make_container(Container(HEADER, STREAMS, PIECES))


def set_way(way: int, rest: bytes = b"") -> bytes:
    return GOOD[:4] + bytes([way]) + GOOD[5:32] + rest


def put_streams(*numbers: int, method: int = codecs.RAW) -> bytes:
    return set_way(codecs.RAW | 16 | 32, bytes([method]) + b"".join(map(make_varint, numbers)))


def put_pieces(count: int, *numbers: int, method: int = codecs.RAW) -> bytes:
    return set_way(15 | 32, make_varint(count) + bytes([method]) + b"".join(map(make_varint, numbers)))


BAD = {
    "nothing": b"",
    "another magic": b"EFX" + GOOD[3:],
    "an unknown version": GOOD[:3] + b"\x02" + GOOD[4:],
    "no way": GOOD[:4],
    "an unknown bit of the way": set_way(128 | 32),
    "an unknown method": set_way(8 | 32),
    "a method with a base and no base": GOOD[:4] + bytes([codecs.HDIFF]) + GOOD[17:],
    "cut in the base's digest": GOOD[:12],
    "cut in the target's digest": GOOD[:25],
    "no size": HEAD,
    "no memory": HEAD + make_varint(1000),
    "a size out of reach": HEAD + make_varint(MAX_BYTES + 1) + b"\x01",
    "memory out of reach": HEAD + make_varint(1000) + make_varint(MAX_BYTES // MEMORY_UNIT + 1),
    "an endless number": HEAD + b"\xff" * 20,
    "streams without a method": set_way(codecs.RAW | 16 | 32),
    "a map by an unknown method": put_streams(0, 0, 8, 0, 0, method=9),
    "a map by a method with a base": put_streams(0, 0, 8, 0, 0, method=codecs.FROM),
    "a map too large": put_streams((1 << 24) + 1, 0, 8, 0, 0),
    "a map longer than the patch": put_streams(9, 9, 8, 0, 0),
    "symbols longer than the patch": put_streams(0, 0, 8, 1 << 62, 0),
    "bits longer than the patch": put_streams(0, 0, 8, 0, 1),
    "no number of pieces": set_way(15 | 32),
    "too many pieces": put_pieces(MAX_PIECES + 1, 0, 0),
    "fewer pieces than said": put_pieces(2, 0, 0),
    "a piece by an unknown method": put_pieces(1, 0, 0, method=15),
    "a piece longer than the patch": put_pieces(1, 0, 1),
    "a piece without its base": put_pieces(1, 0, 0, method=codecs.FROM),
    "something behind the last piece": IN_PIECES + b"\0",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_container_is_damage(name: str) -> None:
    with pytest.raises(DeltaDamaged):
        read_container(BAD[name], base_bytes=0)


def test_the_bad_ones_are_bad_by_what_they_say_alone() -> None:
    """Beside each stands a good one that is made in the same way."""
    for good in (GOOD, IN_PIECES, set_way(codecs.RAW | 32), put_streams(0, 0, 8, 0, 0), put_pieces(1, 0, 0)):
        assert read_container(good, base_bytes=0).header == HEADER
    assert read_container(put_pieces(0, 0)[:-2], base_bytes=0).pieces == ()
