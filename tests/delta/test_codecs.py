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
from edgeferry.delta.codecs import (
    CODECS,
    Codec,
    decode_blocks,
    decode_full,
    encode_all,
    encode_full,
    encode_smallest,
    find_smallest,
)
from edgeferry.delta.tensors import FloatRange
from edgeferry.errors import DeltaDamaged

VECTORS = Path(__file__).parent.parent / "vectors" / "coded"


@given(st.binary(max_size=5000), st.sampled_from(CODECS))
@settings(max_examples=60, deadline=None)
def test_any_bytes_come_back(data: bytes, codec: Codec) -> None:
    coded = encode_full(data, codec)
    assert decode_full(coded.data, codec, len(data)) == data
    assert coded.memory_bytes <= codecs.MEMORY_MAX_BYTES


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 700), st.sampled_from((2, 4, 8))), max_size=8), st.data())
@settings(max_examples=40, deadline=None)
def test_planes_of_any_ranges_come_back(layout: list[tuple[int, int, int]], draw: st.DataObject) -> None:
    ranges, at = [], 0
    for gap, elements, width in layout:
        ranges.append(FloatRange(at + gap, elements, width))
        at = ranges[-1].end
    data = np.random.default_rng(at).bytes(at + draw.draw(st.integers(0, 9)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "find_float_ranges", lambda _: tuple(ranges))
        patch.setattr(codecs, "BLOCK_COUNT", 100)
        assert decode_full(encode_full(data, "planes-zstd").data, "planes-zstd", len(data)) == data


def check_planes_are_the_smallest(data: bytes) -> None:
    candidates = {coded.codec: coded for coded in encode_all(data)}
    coded = find_smallest(tuple(candidates.values()))
    assert coded.codec == "planes-zstd"
    assert len(coded.data) < 0.95 * len(candidates["zstd"].data)
    assert decode_full(coded.data, coded.codec, len(data)) == data


def test_planes_are_the_smallest_for_a_float_onnx_model(shared_models: Path) -> None:
    check_planes_are_the_smallest((shared_models / "image2image" / "super_resolution.onnx").read_bytes())


def test_planes_are_the_smallest_for_a_float_tflite_model(demo_models: Path) -> None:
    check_planes_are_the_smallest((demo_models / "gauge" / "1.0.0" / "gauge-fp32.tflite").read_bytes())


def test_incompressible_bytes_travel_as_they_are() -> None:
    assert encode_smallest(np.random.default_rng(1).bytes(4000)).codec == "none"


def test_a_quantised_model_needs_no_planes(shared_models: Path) -> None:
    data = (shared_models / "classification/mobilenet_v1_0.25_128_quant.tflite").read_bytes()
    candidates = encode_all(data)
    assert [coded.codec for coded in candidates] == ["none", "zstd"]
    assert find_smallest(candidates).codec == "zstd"


def test_quantised_weights_take_the_level_that_makes_them_shortest(shared_models: Path) -> None:
    weights = (shared_models / "pairs/ssdv1_metadata_only/v1.tflite").read_bytes()[3_000_000:3_500_000]
    highest = zstandard.ZstdCompressor(level=22).compress(weights)
    assert len(encode_full(weights, "zstd").data) < 0.985 * len(highest)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("good-*")), ids=lambda path: path.name)
def test_every_good_vector_decodes_to_its_file(path: Path) -> None:
    codec = path.name.split(".")[1]
    target = VECTORS / "target.bin"
    assert decode_full(path.read_bytes(), codec, target.stat().st_size) == target.read_bytes()


@pytest.mark.parametrize("path", sorted(VECTORS.glob("bad-*")), ids=lambda path: path.name)
def test_every_bad_vector_is_refused(path: Path) -> None:
    codec = path.name.split(".")[1]
    with pytest.raises(DeltaDamaged):
        decode_full(path.read_bytes(), codec, (VECTORS / "target.bin").stat().st_size)


def test_the_vectors_are_there() -> None:
    assert len(list(VECTORS.glob("good-*"))) >= 4
    assert len(list(VECTORS.glob("bad-*"))) >= 8


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_or_cut_file_is_damage_or_another_file_but_never_another_error(draw: st.DataObject) -> None:
    codec = draw.draw(st.sampled_from(("zstd", "planes-zstd")))
    good = bytearray((VECTORS / f"good-onnx.{codec}.bin").read_bytes())
    size_bytes = (VECTORS / "target.bin").stat().st_size
    if draw.draw(st.booleans()):
        del good[draw.draw(st.integers(0, len(good) - 1)) :]
    else:
        good[draw.draw(st.integers(0, min(len(good) - 1, 200)))] ^= draw.draw(st.integers(1, 255))
    with contextlib.suppress(DeltaDamaged):
        assert len(decode_full(bytes(good), codec, size_bytes)) == size_bytes


def test_a_window_over_the_limit_is_refused_before_memory_is_taken() -> None:
    size_bytes = 300 << 20
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, source_size=size_bytes)
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(size_bytes))
    tracemalloc.start()
    with pytest.raises(DeltaDamaged, match="memory"):
        decode_blocks(bomb, "zstd", size_bytes)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_blocks_stay_small_whatever_the_size() -> None:
    size_bytes = 64 << 20
    coded = encode_full(bytes(size_bytes), "zstd")
    blocks = [len(block) for block in decode_blocks(coded.data, "zstd", size_bytes, memory_bytes=coded.memory_bytes)]
    assert sum(blocks) == size_bytes
    assert max(blocks) <= codecs.BLOCK_BYTES


def test_a_map_of_too_many_ranges_is_refused() -> None:
    head = codecs.MAGIC + codecs._make_varint(codecs.MAX_RANGES + 1)
    with pytest.raises(DeltaDamaged, match="ranges"):
        decode_full(head + bytes(100), "planes-zstd", 1000)
