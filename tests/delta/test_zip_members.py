"""Files of ZIP archives: patched each by itself where zlib packs them again to the same bytes, else as bytes."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgeferry.delta.apply import apply_patch
from edgeferry.delta.container import Container, Header, Piece, make_container, read_container, read_header
from edgeferry.delta.explain import explain
from edgeferry.delta.make import make_full, make_patch
from edgeferry.delta.members import Member
from edgeferry.delta.varint import make_varint
from edgeferry.delta.zip_files import Packed, find_files, find_level, pack, unpack
from edgeferry.errors import DeltaBaseMismatch, DeltaDamaged, DeltaError
from edgeferry.model.digest import Digest

LABELS = b"".join(b"label %d\n" % at for at in range(40))
WORDS = b" ".join(b"word%d" % at for at in np.random.default_rng(3).zipf(1.3, 9_000) % 5_000)
"""What levels pack to different bytes."""
MAX_BYTES = 64 << 20
Packer = Callable[[Mapping[str, bytes]], bytes]


@cache
def make_model(step: float) -> bytes:
    """One matrix that moves a little with `step`."""
    draw = np.random.default_rng(7)
    weights = draw.normal(0, 0.1, (96, 128)) + step * draw.normal(0, 1e-5, (96, 128))
    stored = numpy_helper.from_array(weights.astype(np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [], [], [stored])
    return bytes(helper.make_model(graph).SerializeToString())


def make_zip(files: Mapping[str, bytes], level: int | None = 6) -> bytes:
    """An archive as Python's zipfile writes it; level None: stored."""
    stream = io.BytesIO()
    method = zipfile.ZIP_STORED if level is None else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(stream, "w", method, compresslevel=level) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method, level)
    return stream.getvalue()


def make_foreign_zip(files: Mapping[str, bytes]) -> bytes:
    """An archive of a packer that zlib cannot imitate: its deflate chooses other matches."""
    out, directory = bytearray(), bytearray()
    for name, data in files.items():
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_FILTERED)
        packed = packer.compress(data[: len(data) // 2]) + packer.flush(zlib.Z_FULL_FLUSH)
        packed += packer.compress(data[len(data) // 2 :]) + packer.flush()
        sizes = (zlib.crc32(data), len(packed), len(data), len(name), 0)
        directory += struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 33, *sizes, 0, 0, 0, 0, len(out))
        directory += name.encode()
        out += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 33, *sizes) + name.encode() + packed
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(files), len(files), len(directory), len(out), 0)
    return bytes(out + directory + end)


def apply(base: bytes, patch: bytes) -> bytes:
    target = memoryview(bytearray(read_header(patch).target_bytes))
    apply_patch(base, patch, target)
    return bytes(target)


def list_members(patch: bytes, base: bytes) -> tuple[Member, ...]:
    return read_container(patch, base_bytes=len(base)).members


OLD, NEW = (
    {"labelmap.txt": LABELS, "m.onnx": make_model(0)},
    {"labelmap.txt": LABELS + b"more\n", "m.onnx": make_model(1)},
)
PLAIN_BYTES = len(make_patch(OLD["m.onnx"], NEW["m.onnx"]).data)


# --- what is patched by files -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", [None, 1, 4, 6, 9])
def test_a_model_in_an_archive_costs_what_it_costs_alone(level: int | None) -> None:
    base, target = make_zip(OLD), make_zip(NEW, level)
    patch = make_patch(base, target)
    assert patch.way == "members"
    assert apply(base, patch.data) == target
    assert len(patch.data) < PLAIN_BYTES + 250
    assert len(patch.data) < 0.75 * min(size for way, size in patch.sizes_by_way.items() if way != "members")
    (member,) = [each for each in list_members(patch.data, base) if each.packed_bytes > 10_000]
    assert bool(member.level) == (level is not None)


def test_a_plain_model_and_an_archive_are_patched_into_each_other() -> None:
    for base, target in ((OLD["m.onnx"], make_zip(NEW)), (make_zip(OLD), NEW["m.onnx"])):
        patch = make_patch(base, target)
        assert patch.way == "members"
        assert apply(base, patch.data) == target
        assert len(patch.data) < PLAIN_BYTES + 450


def test_a_file_of_another_name_finds_the_one_of_its_kind() -> None:
    base, target = make_zip(OLD), make_zip({"v2.onnx": NEW["m.onnx"], "labels.txt": LABELS})
    patch = make_patch(base, target)
    assert apply(base, patch.data) == target
    assert len(patch.data) < PLAIN_BYTES + 250


@pytest.mark.parametrize("level", [6, 9])
def test_a_file_that_stays_costs_a_few_bytes_though_packed_anew(level: int) -> None:
    base, target = make_zip({"a": WORDS, "b": LABELS}), make_zip({"a": WORDS, "b": LABELS[:-9]}, level)
    patch = make_patch(base, target)
    assert apply(base, patch.data) == target
    assert len(patch.data) < 220
    if level == 9:  # packed anew: bytes alone are no help
        assert any(not each.body and each.level == 9 for each in list_members(patch.data, base))


def test_an_archive_travels_without_a_base_by_files_too() -> None:
    target = make_zip(NEW)
    full = make_full(target)
    assert full.way == "members"
    assert apply(b"", full.data) == target
    assert len(full.data) < 0.97 * len(target)


def test_the_patch_is_the_same_on_every_run() -> None:
    assert make_patch(make_zip(OLD), make_zip(NEW)).data == make_patch(make_zip(OLD), make_zip(NEW)).data


FILES = st.dictionaries(
    st.sampled_from(("a.txt", "b.txt", "c.bin", "m.onnx")),
    st.one_of(
        st.binary(max_size=400), st.text("ab\n", max_size=600).map(str.encode), st.sampled_from((OLD["m.onnx"], LABELS))
    ),
    min_size=1,
)


PACKERS = st.sampled_from(
    (make_zip, make_foreign_zip, lambda files: make_zip(files, 9), lambda files: make_zip(files, None))
)


@given(FILES, FILES, PACKERS, PACKERS, st.binary(max_size=20))
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_any_archive_becomes_any_other(
    old: dict[str, bytes], new: dict[str, bytes], pack_old: Packer, pack_new: Packer, behind: bytes
) -> None:
    base, target = pack_old(old), pack_new(new) + behind
    assert apply(base, make_patch(base, target).data) == target


# --- what is not ------------------------------------------------------------------------------------------------------
def test_what_zlib_does_not_pack_again_is_patched_as_bytes() -> None:
    base, target = make_zip(OLD), make_foreign_zip(NEW)
    with zipfile.ZipFile(io.BytesIO(target)) as archive:  # it is a sound archive
        assert archive.read("m.onnx") == NEW["m.onnx"]
    for file in find_files(target, max_bytes=MAX_BYTES):
        assert find_level(unpack(file, memoryview(target)), memoryview(target)[file.start : file.end]) is None
    patch = make_patch(base, target)
    assert patch.way != "members"
    assert apply(base, patch.data) == target


def test_a_foreign_archive_is_still_a_base() -> None:
    base, target = make_foreign_zip(OLD), make_zip(NEW)
    patch = make_patch(base, target)
    assert patch.way == "members"
    assert len(patch.data) < PLAIN_BYTES + 450
    assert apply(base, patch.data) == target


def test_a_model_with_an_archive_behind_it_is_no_archive() -> None:
    assert find_files(make_model(0) + make_zip(OLD), max_bytes=MAX_BYTES) == ()


def test_files_that_unpack_to_too_much_or_lie_about_it_are_left_alone() -> None:
    bomb = make_zip({"zeros": bytes(8 << 20)}, 9)
    assert find_files(bomb, max_bytes=4 << 20) == ()
    liar = bytearray(make_zip({"m.onnx": OLD["m.onnx"]}))
    at = liar.rindex(b"PK\x01\x02") + 24
    for size in (1, len(OLD["m.onnx"]) + 1, 0xFFFFFF00):
        liar[at : at + 4] = struct.pack("<L", size)
        found = find_files(bytes(liar), max_bytes=1 << 40)
        tracemalloc.start()
        for file in found:
            with pytest.raises(DeltaDamaged):
                unpack(file, memoryview(liar))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
        patch = make_patch(bytes(liar), make_zip(NEW))
        assert apply(bytes(liar), patch.data) == make_zip(NEW)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 300))
@settings(max_examples=200)
def test_a_damaged_archive_has_fewer_files_but_is_no_error(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(make_zip({"a": LABELS, "b": LABELS[::-1]}))
    for at, value in changes:
        data[at % len(data)] = value
    for file in find_files(bytes(data[: len(data) - cut]), max_bytes=1 << 20):
        with contextlib.suppress(DeltaDamaged):
            assert len(unpack(file, memoryview(data))) == file.size_bytes


# --- hostile patches --------------------------------------------------------------------------------------------------
BASE = make_zip(OLD)
GOOD = make_patch(BASE, make_zip(NEW)).data


def wrap(*members: Member, target_bytes: int = 4000, memory_bytes: int = 32 << 20) -> bytes:
    digest = bytes.fromhex(Digest.of(BASE).hex)[:12]
    header = Header(has_base=True, base=digest, target=bytes(12), target_bytes=target_bytes, memory_bytes=memory_bytes)
    left = max(0, target_bytes - sum(each.packed_bytes for each in members))
    return make_container(Container(header, None, (Piece(0, -1, bytes(left)),), members))


def get_body() -> bytes:
    """A body that is in order: of the good patch's model."""
    return max((bytes(each.body) for each in list_members(GOOD, BASE)), key=len)


STORED = Packed(0, 100, 100, is_deflated=False)
HOSTILE = {
    "a member without base and body": Member(0, 100, 0, None, b""),
    "a member outside the target": Member(3_950, 100, 0, STORED, b""),
    "a base outside the base": Member(0, 100, 0, Packed(len(BASE), 100, 100, is_deflated=False), b""),
    "a base of another size": Member(0, 99, 0, STORED, b""),
    "a bomb in the base": Member(0, 100, 6, Packed(0, 100, 1 << 40, is_deflated=True), b""),
    "more memory than the patch states": Member(0, 4_000, 6, Packed(0, 50_000, 33 << 20, is_deflated=True), b""),
    "a base that does not unpack": Member(0, 100, 0, Packed(0, 90, 100, is_deflated=True), b""),
    "a file that packs to another size": Member(0, 100, 6, STORED, b""),
    "a member inside a member": Member(0, 100, 0, STORED, bytes([128 | 32, 100, 1])),
    "a body that holds digests": Member(0, 100, 0, STORED, bytes([64 | 32, 100, 1])),
    "a body without a base that it has": Member(0, 100, 0, STORED, bytes([0, 100, 1]) + bytes(100)),
    "a body of another size": Member(0, 100, 0, STORED, bytes([32, 99, 1]) + bytes(99)),
    "a body that takes more memory": Member(0, 100, 0, STORED, bytes([32, 100, 33]) + bytes(100)),
    "an empty header": Member(0, 100, 0, STORED, bytes([32])),
}


@pytest.mark.parametrize("member", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_member_is_damage_before_it_costs_memory(member: Member) -> None:
    tracemalloc.start()
    with pytest.raises(DeltaDamaged, match=r"expected|damaged|cut"):
        apply(BASE, wrap(member))
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
    with pytest.raises(DeltaDamaged):
        explain(wrap(member), BASE)


def test_members_in_order_are_refused_only_by_the_digest() -> None:
    good = wrap(Member(0, 100, 0, STORED, b""), Member(200, 100, 0, STORED, bytes([32, 100, 1]) + bytes(100)))
    with pytest.raises(DeltaDamaged, match="the target"):
        apply(BASE, good)


def test_another_level_than_that_of_the_target_is_found_by_its_size_or_digest() -> None:
    base, target = make_zip({"a": WORDS}), make_zip({"a": WORDS[100:]})
    data = bytearray(make_patch(base, target).data)
    header = read_header(data)
    way = 5 + 24 + len(make_varint(header.target_bytes)) + len(make_varint(header.memory_bytes >> 20)) + 1
    assert data[way] == 6 | 2 << 4
    for level in (1, 9):
        data[way] = level | 2 << 4
        with pytest.raises(DeltaDamaged):
            apply(base, bytes(data))


@pytest.mark.parametrize("cut", [*range(0, 90, 3), -300, -50, -1])
def test_a_cut_patch_is_refused(cut: int) -> None:
    with pytest.raises(DeltaDamaged):
        apply(BASE, GOOD[:cut])


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=3), st.booleans())
@settings(max_examples=150)
def test_a_changed_patch_is_refused_or_gives_the_target(changes: list[tuple[int, int]], early: bool) -> None:
    data = bytearray(GOOD)
    for at, value in changes:
        data[at % 120 if early else at] = value
    with contextlib.suppress(DeltaError):
        if read_header(bytes(data)).target_bytes < 1 << 24:
            assert apply(BASE, bytes(data)) == make_zip(NEW)


def test_another_base_is_refused() -> None:
    with pytest.raises(DeltaBaseMismatch):
        apply(make_zip(NEW), GOOD)


def test_packing_stops_where_the_target_ends() -> None:
    target = memoryview(bytearray(100))
    with pytest.raises(DeltaDamaged):
        pack(memoryview(np.random.default_rng(1).bytes(100_000)), 6, target)


# --- what it takes, and what is told ----------------------------------------------------------------------------------
def test_the_header_states_the_memory_of_unpacked_files() -> None:
    zeros = make_zip({"z": bytes(6 << 20), "m.onnx": OLD["m.onnx"]}, 9)
    other = make_zip({"z": bytes(5 << 20) + b"x" + bytes(1 << 20), "m.onnx": NEW["m.onnx"]}, 9)
    patch = make_patch(zeros, other)
    assert patch.way == "members"
    out = memoryview(bytearray(len(other)))
    tracemalloc.start()
    apply_patch(zeros, patch.data, out)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 12 << 20 < taken <= patch.memory_bytes


def test_files_and_their_tensors_are_explained() -> None:
    found = explain(GOOD, BASE)
    (model,) = [each for each in found.members if each.name == "m.onnx"]
    assert model.explanation is not None
    assert [part.name for part in model.explanation.parts] == ["w"]
    assert sum(section.size_bytes for section in found.sections) == len(GOOD)
    assert sum(each.patch_bytes or 0 for each in found.causes) == pytest.approx(len(GOOD), abs=1e-6)
    unknown = explain(GOOD)
    assert [each.patch_bytes for each in unknown.members] == [each.patch_bytes for each in found.members]


# --- the guide's bundle -----------------------------------------------------------------------------------------------
@pytest.mark.needs_shared
def test_the_guides_bundle_is_a_base_though_zlib_does_not_pack_it_again(shared_models: Path) -> None:
    base = (shared_models / "classic/tensorflow001.zip").read_bytes()
    model = (shared_models / "pairs/ssdv1_metadata_only/v1.tflite").read_bytes()
    with zipfile.ZipFile(io.BytesIO(base)) as archive:
        labels = archive.read("labelmap.txt")
    target = make_zip({"labelmap.txt": labels, "ssd_mobilenet_v1_1_metadata_1.tflite": model})
    patch = make_patch(base, target)
    assert patch.way == "members"
    assert apply(base, patch.data) == target
    assert 100 * len(patch.data) < len(target)
    assert {file.is_deflated for file in find_files(base, max_bytes=MAX_BYTES)} == {True}
