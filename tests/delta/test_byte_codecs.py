"""Bytes in fewer bytes, method by method: round trips, and bounds that hold before a library is called."""

from __future__ import annotations

import bz2
import contextlib
import lzma
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta import codecs
from edgeferry.errors import DeltaDamaged

METHODS = sorted(codecs.METHODS)
PLAIN = sorted(set(codecs.METHODS) - codecs.WITH_BASE)
TEXT = b"".join(b"line %d of a file\n" % (at * at % 977) for at in range(400))
BASE, TARGET = TEXT, TEXT[:2000] + b"what is new " * 9 + TEXT[2100:] + np.random.default_rng(1).bytes(300)


def ids(method: int) -> str:
    return codecs.METHODS.get(method, str(method))


@pytest.mark.parametrize("method", METHODS, ids=ids)
@given(base=st.binary(max_size=400), target=st.binary(max_size=400), shared=st.binary(max_size=100))
@settings(max_examples=60)
def test_any_bytes_come_back(method: int, base: bytes, target: bytes, shared: bytes) -> None:
    base, target = base + shared * 3, shared * 2 + target
    assert codecs.decode(method, base, codecs.encode(method, base, target), len(target)) == target


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_any_kind_of_buffer_gives_the_same(method: int) -> None:
    coded = codecs.encode(method, BASE, TARGET)
    for wrap in (bytes, bytearray, memoryview):
        assert codecs.decode(method, wrap(BASE), wrap(coded), len(TARGET)) == TARGET


@pytest.mark.parametrize("method", sorted(codecs.WITH_BASE), ids=ids)
def test_a_base_helps(method: int) -> None:
    without = min(len(codecs.encode(each, b"", TARGET)) for each in PLAIN)
    assert len(codecs.encode(method, BASE, TARGET)) < 0.8 * without


def test_each_method_is_made_as_it_is_made_alone() -> None:
    together = dict(codecs.encode_each(METHODS, BASE, TARGET))
    assert together == {method: codecs.encode(method, BASE, TARGET) for method in METHODS}


@pytest.mark.parametrize("method", METHODS, ids=ids)
@pytest.mark.parametrize("change", [-1, 1, -len(TARGET), 1 << 20])
def test_another_size_is_damage(method: int, change: int) -> None:
    with pytest.raises(DeltaDamaged):
        codecs.decode(method, BASE, codecs.encode(method, BASE, TARGET), len(TARGET) + change)


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_what_is_cut_or_longer_is_damage(method: int) -> None:
    coded = codecs.encode(method, BASE, TARGET)
    for changed in (coded[:-1], coded[: len(coded) // 2], coded[:1], b"", coded + b"\0", coded + coded):
        with pytest.raises(DeltaDamaged):
            codecs.decode(method, BASE, changed, len(TARGET))


@pytest.mark.parametrize("method", METHODS, ids=ids)
@given(data=st.binary(max_size=200), base=st.binary(max_size=50), size_bytes=st.integers(0, 500))
@settings(max_examples=80)
def test_any_bytes_are_of_the_right_size_or_damage(method: int, data: bytes, base: bytes, size_bytes: int) -> None:
    with contextlib.suppress(DeltaDamaged):
        assert len(codecs.decode(method, base, data, size_bytes)) == size_bytes


@pytest.mark.parametrize("method", [-1, 8, 255])
def test_an_unknown_method_is_damage(method: int) -> None:
    with pytest.raises(DeltaDamaged):
        codecs.decode(method, b"", b"\0" * 20, 3)


# --- bombs ------------------------------------------------------------------------------------------------------------
BOMB_BYTES = 256 << 20


def make_bomb(method: int) -> bytes:
    """A few kB that would be 256 MB."""
    zeros = (bytes(1 << 20) for _ in range(BOMB_BYTES >> 20))
    if method in (codecs.ZSTD, codecs.FROM):
        return compress_parts(zstandard.ZstdCompressor(level=1).compressobj(size=BOMB_BYTES), zeros)
    if method in (codecs.BZ2, codecs.HDIFF_BZ2):
        return compress_parts(bz2.BZ2Compressor(9), zeros)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16}]
    return b"\0" + compress_parts(lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters), zeros)


def compress_parts(compressor: object, parts: Iterator[bytes]) -> bytes:
    return b"".join([*map(compressor.compress, parts), compressor.flush()])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "method", [codecs.ZSTD, codecs.LZMA, codecs.BZ2, codecs.FROM, codecs.HDIFF_LZMA, codecs.HDIFF_BZ2], ids=ids
)
def test_a_bomb_costs_no_more_than_what_was_asked_for(method: int) -> None:
    bomb = make_bomb(method)
    assert len(bomb) < BOMB_BYTES // 1000
    tracemalloc.start()
    try:
        with pytest.raises(DeltaDamaged):
            codecs.decode(method, BASE, bomb, 10_000)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [codecs.ZSTD, codecs.FROM], ids=ids)
def test_a_window_over_the_limit_is_damage(method: int) -> None:
    size_bytes = 300 << 20
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, source_size=size_bytes)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(size_bytes))
    with pytest.raises(DeltaDamaged):
        codecs.decode(method, b"", frame, size_bytes)


# --- zstd frames ------------------------------------------------------------------------------------------------------
def compress(data: bytes, **settings_: object) -> bytes:
    return zstandard.ZstdCompressor(**settings_).compress(data)  # type: ignore[arg-type]


FRAMES = {
    "size not stated": compress(TARGET, write_content_size=False),
    "another size stated": compress(TARGET + b"\0"),
    "two frames": compress(TARGET[:500]) + compress(TARGET[500:]),
    "a frame that is skipped before it": b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + compress(TARGET),
    "only a frame that is skipped": b"\x50\x2a\x4d\x18" + len(TARGET).to_bytes(4, "little") + TARGET,
    "a checksum that is wrong": compress(TARGET, write_checksum=True)[:-1] + b"\x99",
    "no frame": TARGET[:300],
    "a reserved block": compress(TARGET)[:8] + b"\x07\0\0" + compress(TARGET)[11:],
}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("method", [codecs.ZSTD, codecs.FROM], ids=ids)
def test_a_frame_that_is_not_as_it_must_be_is_damage(method: int, name: str) -> None:
    with pytest.raises(DeltaDamaged):
        codecs.decode(method, b"", FRAMES[name], len(TARGET))


def test_a_frame_with_its_checksum_is_as_good() -> None:
    assert codecs.decode(codecs.ZSTD, b"", compress(TARGET, write_checksum=True), len(TARGET)) == TARGET


# --- hdiffpatch's header ----------------------------------------------------------------------------------------------
def make_number(number: int) -> bytes:
    """Seven bits to a byte, the highest first."""
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)][::-1]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def read_number(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    while True:
        number, at = number << 7 | data[at] & 0x7F, at + 1
        if data[at - 1] < 0x80:
            return number, at


def change_hdiff(place: int, number: int) -> bytes:
    """A good patch of hdiffpatch with one of the eleven numbers of its header changed."""
    good = codecs.encode(codecs.HDIFF, BASE, TARGET)
    end = good.index(b"\0") + 1
    numbers, at = [], end
    for _ in range(11):
        value, at = read_number(good, at)
        numbers.append(value)
    assert good[:end] + b"".join(map(make_number, numbers)) + good[at:] == good
    numbers[place] = number
    return good[:end] + b"".join(map(make_number, numbers)) + good[at:]


@pytest.mark.parametrize("place", range(11))
@pytest.mark.parametrize("number", [1 << 20, 1 << 31, (1 << 62) + 1])
def test_a_size_in_hdiffpatchs_header_that_lies_is_damage_before_it_is_called(
    place: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*_: object) -> bytes:
        raise AssertionError("hdiffpatch was called")

    monkeypatch.setattr(codecs.hdiffpatch, "apply", call)
    with pytest.raises(DeltaDamaged):
        codecs.decode(codecs.HDIFF, BASE, change_hdiff(place, number), len(TARGET))


@pytest.mark.parametrize("name", [b"zlib", b"lzma", b"zstd", b"lzma2x", b"\xff\xff"])
def test_a_patch_of_hdiffpatch_by_another_compressor_is_damage(name: bytes) -> None:
    good = codecs.encode(codecs.HDIFF, BASE, TARGET)
    with pytest.raises(DeltaDamaged, match="expected a patch of hdiffpatch"):
        codecs.decode(codecs.HDIFF, BASE, good.replace(b"&lzma2\0", b"&" + name + b"\0", 1), len(TARGET))


def test_a_patch_of_hdiffpatch_for_another_base_is_damage() -> None:
    good = codecs.encode(codecs.HDIFF, BASE, TARGET)
    with pytest.raises(DeltaDamaged):
        codecs.decode(codecs.HDIFF, BASE + b"\0", good, len(TARGET))


# --- memory -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_the_memory_that_is_stated_covers_the_result_and_the_bases_copy(method: int) -> None:
    coded = codecs.encode(method, BASE, TARGET)
    stated = codecs.get_memory(method, len(BASE), coded, len(TARGET))
    assert stated >= len(TARGET) + len(BASE) * (method in codecs.WITH_BASE)


@pytest.mark.parametrize("method", [codecs.ZSTD, codecs.LZMA, codecs.HDIFF_LZMA], ids=ids)
def test_memory_of_what_has_no_head_is_damage(method: int) -> None:
    with pytest.raises(DeltaDamaged):
        codecs.get_memory(method, 10, b"\xff" * 20, 10)
    with pytest.raises(DeltaDamaged):
        codecs.get_memory(method, 10, b"", 10)
