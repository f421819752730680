"""Full downloads: what was coded comes back, and nothing hostile costs more than stated."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta import codecs
from edgeferry.delta.apply import CODECS, decode_full, get_memory
from edgeferry.delta.codecs import METHODS, WITH_BASE, compress_zstd, decode_zstd
from edgeferry.delta.make import make_full
from edgeferry.errors import DeltaDamaged

VECTORS = Path(__file__).parent.parent / "vectors" / "coded"


def code(data: bytes, codec: str) -> bytes:
    return {"none": lambda: data, "zstd": lambda: compress_zstd(data), "efd1": lambda: make_full(data).data}[codec]()


def decode(coded: bytes, codec: str, size_bytes: int) -> bytes:
    target = bytearray(size_bytes)
    decode_full(coded, codec, memoryview(target))
    return bytes(target)


# --- full files -------------------------------------------------------------------------------------------------------
@given(st.binary(max_size=5000), st.sampled_from(CODECS))
@settings(max_examples=60, deadline=None)
def test_any_bytes_come_back(data: bytes, codec: str) -> None:
    coded = code(data, codec)
    assert decode(coded, codec, len(data)) == data
    assert get_memory(coded, codec) <= codecs.MEMORY_MAX_BYTES


@pytest.mark.parametrize("name", ["gauge-fp32.tflite", "gauge.onnx", "gauge-int8.tflite"])
def test_the_container_beats_the_frame_on_models(demo_models: Path, name: str) -> None:
    data = (demo_models / "gauge" / "1.0.0" / name).read_bytes()
    coded = code(data, "efd1")
    assert len(coded) < len(code(data, "zstd"))
    assert decode(coded, "efd1", len(data)) == data


def test_quantised_weights_take_the_level_that_makes_them_shortest(shared_models: Path) -> None:
    weights = (shared_models / "pairs/ssdv1_metadata_only/v1.tflite").read_bytes()[3_000_000:3_500_000]
    highest = zstandard.ZstdCompressor(level=22).compress(weights)
    assert len(compress_zstd(weights)) < 0.985 * len(highest)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("good-*")), ids=lambda path: path.name)
def test_every_good_vector_decodes_to_its_file(path: Path) -> None:
    codec = path.name.split(".")[1]
    target = VECTORS / "target.bin"
    assert decode(path.read_bytes(), codec, target.stat().st_size) == target.read_bytes()


@pytest.mark.parametrize("path", sorted(VECTORS.glob("bad-*")), ids=lambda path: path.name)
def test_every_bad_vector_is_refused(path: Path) -> None:
    codec = path.name.split(".")[1]
    with pytest.raises(DeltaDamaged):
        decode(path.read_bytes(), codec, (VECTORS / "target.bin").stat().st_size)


def test_the_vectors_are_there() -> None:
    assert len(list(VECTORS.glob("good-*"))) >= 4
    assert len(list(VECTORS.glob("bad-*"))) >= 8


def test_a_codec_that_nobody_knows_is_damage() -> None:
    with pytest.raises(DeltaDamaged, match="lzma"):
        decode(b"data", "lzma", 4)
    with pytest.raises(DeltaDamaged, match="lzma"):
        get_memory(b"data", "lzma")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_or_cut_frame_is_damage_or_another_file_but_never_another_error(draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from(("good-onnx", "good-with-checksum")))
    good = bytearray((VECTORS / f"{name}.zstd.bin").read_bytes())
    size_bytes = (VECTORS / "target.bin").stat().st_size
    if draw.draw(st.booleans()):
        del good[draw.draw(st.integers(0, len(good) - 1)) :]
    else:
        good[draw.draw(st.integers(0, min(len(good) - 1, 200)))] ^= draw.draw(st.integers(1, 255))
    with contextlib.suppress(DeltaDamaged):
        assert len(decode(bytes(good), "zstd", size_bytes)) == size_bytes


def test_a_window_over_the_limit_is_refused_before_memory_is_taken() -> None:
    size_bytes = 300 << 20
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, source_size=size_bytes)
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(size_bytes))
    assert get_memory(bomb, "zstd") > codecs.MEMORY_MAX_BYTES
    tracemalloc.start()
    with pytest.raises(DeltaDamaged):
        next(decode_zstd(memoryview(bomb), size_bytes))
    assert tracemalloc.get_traced_memory()[1] < 2 * codecs.BLOCK_BYTES
    tracemalloc.stop()


def test_blocks_stay_small_whatever_the_size() -> None:
    size_bytes = 64 << 20
    coded = zstandard.ZstdCompressor(level=1).compress(bytes(size_bytes))
    blocks = [len(block) for block in decode_zstd(memoryview(coded), size_bytes)]
    assert sum(blocks) == size_bytes
    assert max(blocks) <= codecs.BLOCK_BYTES


# --- methods of a piece -----------------------------------------------------------------------------------------------
@given(st.sampled_from(sorted(METHODS)), st.binary(max_size=2000), st.binary(max_size=2000), st.integers(0, 3))
@settings(max_examples=120, deadline=None)
def test_what_any_method_says_it_gives_again(method: int, base: bytes, data: bytes, copies: int) -> None:
    target = data + base * copies
    said = codecs.encode(method, base, target)
    assert codecs.decode(method, base, said, len(target)) == target
    assert codecs.get_memory(method, len(base), said, len(target)) >= len(target)


@given(st.sampled_from(sorted(METHODS)), st.integers(0, 5000), st.data())
@settings(max_examples=150, deadline=None)
def test_a_method_that_is_fed_with_something_else_is_damage_or_other_bytes_of_the_right_length(
    method: int, place: int, draw: st.DataObject
) -> None:
    rows = np.random.default_rng(3).integers(0, 40, 900, np.uint8).tobytes()
    base, target = rows, rows[:400] + b"something new" + rows[350:]
    said = bytearray(codecs.encode(method, base, target))
    if draw.draw(st.booleans()):
        del said[place % len(said) :]
    else:
        said[place % len(said)] ^= draw.draw(st.integers(1, 255))
    with contextlib.suppress(DeltaDamaged):
        assert len(codecs.decode(method, base, bytes(said), len(target))) == len(target)


@pytest.mark.parametrize("method", sorted(METHODS), ids=lambda method: METHODS[method])
def test_another_length_than_announced_is_damage(method: int) -> None:
    base, target = bytes(range(256)) * 8, bytes(range(256)) * 7
    said = codecs.encode(method, base, target)
    for size_bytes in (0, len(target) - 1, len(target) + 1):
        with pytest.raises(DeltaDamaged):
            codecs.decode(method, base, said, size_bytes)


@pytest.mark.parametrize("method", sorted(WITH_BASE), ids=lambda method: METHODS[method])
def test_a_base_of_another_length_is_damage_or_other_bytes(method: int) -> None:
    base, target = bytes(range(256)) * 8, bytes(range(256)) * 7
    said = codecs.encode(method, base, target)
    with contextlib.suppress(DeltaDamaged):
        assert codecs.decode(method, base[:-1], said, len(target)) != target
