"""Whole patches: every way a tensor can be expected, every kind of file, the same bytes on every run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta.model_pairs import (
    PAIRS,
    Pair,
    draw,
    find_peaks,
    get_full,
    get_pair,
    get_patch,
    make_bfloat,
    make_onnx,
    make_quantised,
    read_records_of,
)
from edgeferry.delta.apply import apply_patch, decode_full
from edgeferry.delta.container import PREFIX_BYTES, read_header
from edgeferry.delta.kinds import KINDS
from edgeferry.delta.make import Patch, make_full, make_patch
from edgeferry.delta.records import Copy, Record
from edgeferry.errors import DeltaBaseMismatch
from edgeferry.model.digest import Digest

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

HEADER_MAX_BYTES = 40
MODEL = get_pair("fine-tuned")
RANDOM = np.random.default_rng(99).bytes(5000)
FILES = {
    "nothing": b"",
    "one byte": b"\x00",
    "another byte": b"\xff",
    "random": RANDOM,
    "random with a change": RANDOM[:2000] + b"change" + RANDOM[2000:],
    "zeros": bytes(70_000),
    "a model": MODEL.base,
    "a model that is cut": MODEL.base[:-100],
    "a model whose head is damaged": b"\xff\xff" + MODEL.base[2:],
    "the next model": MODEL.target,
    "text": b"no model, but a text with words and words. " * 40,
}


def apply(base: bytes, patch: bytes, size_bytes: int) -> bytes:
    target = bytearray(size_bytes)
    apply_patch(base, patch, memoryview(target))
    return bytes(target)


def require_round_trip(base: bytes, target: bytes) -> Patch:
    patch = make_patch(base, target)
    assert apply(base, patch.data, len(target)) == target
    assert len(patch.data) <= len(target) + HEADER_MAX_BYTES
    return patch


# --- every way --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_comes_back_by_the_way_it_was_made_for(name: str) -> None:
    pair, patch = get_pair(name), get_patch(name)
    assert patch.way == "tensors"
    assert any(map(pair.uses, read_records_of(pair, patch.data)))
    assert apply(pair.base, patch.data, len(pair.target)) == pair.target
    assert len(patch.data) == min(patch.sizes_by_way.values())


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_comes_back_the_other_way_round(name: str) -> None:
    pair = get_pair(name)
    require_round_trip(pair.target, pair.base)


@pytest.mark.parametrize("name", PAIRS)
def test_a_target_comes_back_without_a_base(name: str) -> None:
    pair, full = get_pair(name), get_full(name)
    target = bytearray(len(pair.target))
    decode_full(full.data, full.codec, memoryview(target))
    assert target == pair.target
    assert len(full.data) <= len(pair.target) + HEADER_MAX_BYTES


@pytest.mark.parametrize("name", ["cast to float16", "quantised in float64", "rows multiplied", "pruned", "bfloat16"])
def test_what_is_known_of_a_change_costs_little(name: str) -> None:
    plain = [size for way, size in get_patch(name).sizes_by_way.items() if way != "tensors"]
    assert len(get_patch(name).data) < 0.6 * min(plain)


def test_all_kinds_of_numbers_come_back() -> None:
    dice, weights = np.random.default_rng(41), draw(42)
    kinds = [kind for kind in KINDS if kind.name != "bf2"]
    before: dict[str, Any] = {kind.name: (1000 * weights.clip(0.001, 0.1)).astype(kind.dtype) for kind in kinds}
    after: dict[str, Any] = {
        name: values + dice.integers(0, 3, weights.shape).astype(values.dtype) for name, values in before.items()
    }
    before["bf2"], after["bf2"] = (make_bfloat("bf2", each) for each in (weights, weights * np.float32(1.01)))
    pair = Pair(make_onnx(before), make_onnx(after), lambda record: isinstance(record, Record))
    records = read_records_of(pair, require_round_trip(pair.base, pair.target).data)
    assert {record.kind for record in records if isinstance(record, Record)} == set(KINDS)


def test_several_tensors_with_one_vector_of_scales_come_back() -> None:
    """Equal scales of two tensors are found in the same place, whichever of them they belong to."""
    weights = [draw(50 + at) for at in range(3)]
    scales = find_peaks(weights[0], 0, 127)
    arrays = {}
    for at, each in enumerate(weights):
        arrays |= {name.replace("w", f"w{at}"): value for name, value in make_quantised(each, scales, 0).items()}
    target = make_onnx(arrays, scales={f"w{at}": 0 for at in range(3)})
    base = make_onnx({f"w{at}": each for at, each in enumerate(weights)})
    require_round_trip(base, target)
    require_round_trip(b"", target)


def test_equal_scales_of_tensors_of_other_sizes_come_back() -> None:
    arrays, axes = {}, {}
    for at, rows in enumerate((48, 32, 40, 64)):
        quantised = make_quantised(draw(60 + at, rows, 20), np.full(rows, 0.003, np.float32), 0)
        arrays |= {name.replace("w", f"w{at}"): value for name, value in quantised.items()}
        axes[f"w{at}"] = 0
    base = make_onnx({f"w{at}": draw(60 + at, rows, 20) for at, rows in enumerate((48, 32, 40, 64))})
    require_round_trip(base, make_onnx(arrays, scales=axes))


@pytest.mark.parametrize("odd", [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38], ids=str)
def test_a_scale_that_is_no_sane_number_is_patched_all_the_same(odd: float) -> None:
    weights = draw(70)
    scales = find_peaks(weights, 0, 127)
    good = make_quantised(weights, scales, 0)
    bad = scales.copy()
    bad[::5] = odd
    for some in (bad, np.full_like(bad, odd)):
        target = make_onnx(good | {"w_scale": some}, scales={"w": 0})
        require_round_trip(make_onnx({"w": weights}), target)
        require_round_trip(target, make_onnx({"w": weights}))
        require_round_trip(target, make_onnx(make_quantised(weights, scales * 2, 0), scales={"w": 0}))


@pytest.mark.parametrize("kind", ["f4", "f2"])
@pytest.mark.parametrize("pattern", ["all", "some", "other places"])
def test_numbers_that_are_none_come_back_with_their_payloads(kind: str, pattern: str) -> None:
    width = int(kind[1])
    dice = np.random.default_rng(71)
    words = dice.integers(0, 1 << (8 * width), 3000, np.uint64)
    exponent = {"f4": 0x7F800000, "f2": 0x7C00}[kind]
    odd = (words | exponent).astype(f"<u{width}").view(kind)
    base, target = (draw(72 + at, 3000).astype(kind) for at in range(2))
    if pattern == "all":
        base, target = odd[::-1], odd
    else:
        base = np.where(dice.random(3000) < 0.2, odd, base)
        target = np.where(np.isnan(base) if pattern == "some" else dice.random(3000) < 0.2, odd, target)
    require_round_trip(make_onnx({"w": base}), make_onnx({"w": target}))


@pytest.mark.parametrize("largest", [3.4e38, 1e-44, 65504.0], ids=str)
def test_numbers_at_the_ends_of_the_line_come_back(largest: float) -> None:
    base = (draw(80).astype(np.float64) * (largest * 20)).clip(-largest, largest).astype(np.float32)
    target = (draw(81).astype(np.float64) * (largest * 20)).clip(-largest, largest).astype(np.float32)
    require_round_trip(make_onnx({"w": base}), make_onnx({"w": target}))
    require_round_trip(make_onnx({"w": base}), make_onnx({"w": np.zeros_like(base)}))
    require_round_trip(make_onnx({"w": np.zeros_like(base)}), make_onnx({"w": target}))


# --- every file -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", FILES)
@pytest.mark.parametrize("base", FILES)
def test_any_file_is_patched_to_any_other(base: str, target: str) -> None:
    patch = require_round_trip(FILES[base], FILES[target])
    if base == target:
        assert len(patch.data) < HEADER_MAX_BYTES + 40


@pytest.mark.parametrize("name", FILES)
def test_any_file_travels_without_a_base(name: str) -> None:
    full, target = make_full(FILES[name]), bytearray(len(FILES[name]))
    decode_full(full.data, full.codec, memoryview(target))
    assert target == FILES[name]
    assert len(full.data) <= len(target) + HEADER_MAX_BYTES
    assert not read_header(full.data).has_base


@given(st.binary(max_size=300), st.binary(max_size=300))
@settings(max_examples=60)
def test_any_bytes_are_patched_to_any_others(base: bytes, target: bytes) -> None:
    require_round_trip(base, target)


@st.composite
def draw_models(draw_: st.DrawFn) -> tuple[bytes, bytes]:
    """Two models whose tensors share names, some of them with bits that no training makes."""
    arrays: list[dict[str, np.ndarray]] = [{}, {}]
    for at in range(draw_(st.integers(1, 3))):
        kind = draw_(st.sampled_from(["f4", "f2", "i1", "u1", "i4"]))
        rows, columns = draw_(st.integers(1, 9)), draw_(st.integers(4, 30))
        dice = np.random.default_rng(draw_(st.integers(0, 1 << 32)))
        values = (
            (dice.normal(size=(rows, columns)) * 50).astype(kind)
            if kind[0] != "u"
            else dice.integers(0, 255, (rows, columns), kind)
        )
        changed = values.copy()
        if draw_(st.booleans()):
            changed = np.frombuffer(dice.bytes(changed.nbytes), kind).reshape(changed.shape).copy()
        for _ in range(draw_(st.integers(0, 9))):
            changed.reshape(-1)[draw_(st.integers(0, changed.size - 1))] = draw_(st.sampled_from([0, 1, 100]))
        arrays[0][f"w{at}"], arrays[1][f"w{at}"] = values, changed
    return make_onnx(arrays[0]), make_onnx(arrays[1])


@given(draw_models())
@settings(max_examples=60)
def test_any_model_is_patched_to_any_other(pair: tuple[bytes, bytes]) -> None:
    require_round_trip(*pair)
    require_round_trip(pair[1], pair[0])


# --- the header -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("full_digests", [False, True])
def test_the_header_names_both_files_and_the_memory(full_digests: bool) -> None:
    patch = make_patch(MODEL.base, MODEL.target, full_digests=full_digests)
    header = read_header(patch.data)
    length = 32 if full_digests else PREFIX_BYTES
    assert header.base == bytes.fromhex(Digest.of(MODEL.base).hex)[:length]
    assert header.target == bytes.fromhex(Digest.of(MODEL.target).hex)[:length]
    assert header.target_bytes == len(MODEL.target)
    assert header.memory_bytes == patch.memory_bytes > 0
    with pytest.raises(DeltaBaseMismatch):
        apply(MODEL.target, patch.data, len(MODEL.target))


def test_progress_only_grows_and_ends_with_all() -> None:
    seen: list[tuple[int, int]] = []
    make_patch(MODEL.base, MODEL.target, progress=lambda done, total: seen.append((done, total)))
    shares = [done / total for done, total in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(seen) > 2


# --- the same bytes ---------------------------------------------------------------------------------------------------
_MAKE_ALL = """
import hashlib, sys
from delta.model_pairs import get_full, get_patch
for name in sys.argv[1:]:
    print(hashlib.sha256(get_patch(name).data + get_full(name).data).hexdigest())
"""
REPRODUCED = ["fine-tuned", "of low rank", "quantised in float32", "rows multiplied", "lattice by rows", "duplicates"]


def make_elsewhere(threads: int, seed: int) -> list[str]:
    """The digests of patches that another process makes."""
    tests = Path(__file__).resolve().parents[1]
    environment = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": str(seed),
        "PYTHONPATH": os.pathsep.join([str(tests.parent / "src"), str(tests)]),
    }
    words = [sys.executable, "-c", _MAKE_ALL, *REPRODUCED]
    return subprocess.run(
        words, env=environment, check=True, capture_output=True, text=True, timeout=300
    ).stdout.split()


def test_another_process_with_other_threads_makes_the_same_patches() -> None:
    one = make_elsewhere(1, 1)
    assert len(set(one)) == len(REPRODUCED)
    assert make_elsewhere(2, 2) == one


def test_a_second_patch_is_the_same() -> None:
    for name in ("odd numbers", "bfloat16"):
        pair = get_pair(name)
        assert make_patch(pair.base, pair.target).data == get_patch(name).data


def test_copies_inside_the_target_stand_behind_what_they_copy() -> None:
    records = read_records_of(get_pair("duplicates"), get_patch("duplicates").data)
    done: list[tuple[int, int]] = []
    for record in records:
        if isinstance(record, Copy) and not record.in_base:
            assert any(start <= record.source < end for start, end in done)
        done.append((record.start, record.end))
