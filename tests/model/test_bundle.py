from __future__ import annotations

import io
import stat
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import BundleIncomplete, BundleTooLarge, BundleUnsafe, NameInvalid
from edgeferry.model.bundle import (
    BundleLimits,
    Member,
    check_members,
    find_label_file,
    find_model_file,
    make_bundle_zip,
)

Tweak = Callable[[zipfile.ZipInfo], None]


def _zip(*names: str, data: bytes = b"x", tweak: Tweak | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            if tweak:
                tweak(info)
            archive.writestr(info, data)
    return buffer.getvalue()


def _check(data: bytes, limits: BundleLimits | None = None) -> tuple[Member, ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return check_members(archive.infolist(), limits)


def test_a_flat_bundle_of_plain_files_is_taken_in_its_order() -> None:
    members = _check(_zip("b.txt", "a.tflite", "sub-name v1 (2).json"))
    assert [member.name for member in members] == ["b.txt", "a.tflite", "sub-name v1 (2).json"]
    assert {member.size_bytes for member in members} == {1}


@pytest.mark.needs_shared
def test_the_guides_own_bundle_is_taken(shared_models: Path) -> None:
    data = (shared_models / "classic" / "tensorflow001.zip").read_bytes()
    names = [member.name for member in _check(data)]
    assert find_model_file(names) == "ssd_mobilenet_v1_1_metadata_1.tflite"
    assert find_label_file(names) == "labelmap.txt"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt",
        "../../etc/passwd",
        "a/../../b",
        "/etc/passwd",
        "//server/share",
        "C:\\x",
        "C:x",
        "..\\evil.txt",
        "a\\b.txt",
        "..",
        ".",
        "./a",
        "a//b",
        "a/",
        "folder/a.txt",
        "a\nb.txt",
        "a\x1b[2J.txt",
        "x" * 256,
    ],
)
def test_a_name_that_is_no_plain_file_at_the_top_is_refused(name: str) -> None:
    with pytest.raises(BundleUnsafe):
        _check(_zip("ok.txt", name))


def test_what_stands_after_a_nul_in_a_name_counts() -> None:
    data = _zip("labels.txtXXXX").replace(b"labels.txtXXXX", b"labels.txt\x00/..")
    with pytest.raises(BundleUnsafe):
        _check(data)


@pytest.mark.parametrize(
    "kind",
    [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK],
    ids=["link", "char", "block", "fifo", "socket"],
)
def test_links_and_devices_are_refused(kind: int) -> None:
    def tweak(info: zipfile.ZipInfo) -> None:
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16

    with pytest.raises(BundleUnsafe, match="link or device"):
        _check(_zip("labels.txt", tweak=tweak))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_no_classic_bundle_uses_are_refused(method: int) -> None:
    def tweak(info: zipfile.ZipInfo) -> None:
        info.compress_type = method

    with pytest.raises(BundleUnsafe, match="method"):
        _check(_zip("labels.txt", tweak=tweak))


def test_an_encrypted_member_is_refused() -> None:
    with zipfile.ZipFile(io.BytesIO(_zip("labels.txt"))) as archive:
        infos = archive.infolist()
    infos[0].flag_bits |= 0x1
    with pytest.raises(BundleUnsafe, match="encrypted"):
        check_members(infos)


@pytest.mark.parametrize(
    "pair", [("a.txt", "a.txt"), ("a.txt", "A.TXT"), ("é.txt", "e\u0301.txt"), ("ß.txt", "SS.txt")]
)
def test_two_members_that_meet_under_one_name_are_refused(pair: tuple[str, str]) -> None:
    with zipfile.ZipFile(io.BytesIO(_zip(pair[0]))) as first, zipfile.ZipFile(io.BytesIO(_zip(pair[1]))) as second:
        infos = first.infolist() + second.infolist()
    infos[1].header_offset = 1_000
    with pytest.raises(BundleUnsafe, match="different names"):
        check_members(infos)


def test_droppings_of_macos_are_left_out_but_checked() -> None:
    members = _check(_zip("labels.txt", "__MACOSX/._labels.txt", ".DS_Store"))
    assert [member.name for member in members] == ["labels.txt"]
    with pytest.raises(BundleUnsafe):
        _check(_zip("__MACOSX/../../evil"))


def test_a_bomb_is_refused_by_its_ratio_and_a_small_file_of_zeros_is_not() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bin", bytes(20 << 20))
    with pytest.raises(BundleTooLarge, match="ratio"):
        _check(buffer.getvalue())
    assert len(_check(make_bundle_zip({"zeros.bin": bytes(1 << 20)}))) == 1


@pytest.mark.parametrize(
    "limits", [BundleLimits(max_members=2), BundleLimits(max_member_bytes=9), BundleLimits(max_total_bytes=29)]
)
def test_too_many_and_too_large_members_are_refused(limits: BundleLimits) -> None:
    data = _zip("a", "b", "c", data=b"0123456789")
    with pytest.raises(BundleTooLarge):
        _check(data, limits)
    assert len(_check(data, BundleLimits(max_members=3, max_member_bytes=10, max_total_bytes=30))) == 3


def test_members_that_share_their_bytes_are_refused() -> None:
    with zipfile.ZipFile(io.BytesIO(_zip("a", "b", data=b"0123456789"))) as archive:
        infos = archive.infolist()
    infos[1].header_offset = infos[0].header_offset + 5
    with pytest.raises(BundleUnsafe, match="inside another"):
        check_members(infos)


def test_the_zip_for_classic_devices_is_the_same_every_time() -> None:
    files = {"m.tflite": b"model" * 100, "labels.txt": b"cat\n"}
    first = make_bundle_zip(files)
    time.sleep(0.01)
    assert make_bundle_zip(dict(reversed(files.items()))) == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.namelist() == ["labels.txt", "m.tflite"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None


def test_a_name_that_a_device_would_refuse_never_enters_a_zip() -> None:
    with pytest.raises(NameInvalid):
        make_bundle_zip({"../x": b""})


_names = st.text(st.characters(codec="utf-8", exclude_characters="/\\:\x7f", min_codepoint=32), min_size=1, max_size=20)


@settings(max_examples=40)
@given(st.dictionaries(_names.filter(lambda name: name not in (".", "..")), st.binary(max_size=300), max_size=5))
def test_what_goes_into_a_zip_comes_out(files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(io.BytesIO(make_bundle_zip(files))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_zip_never_shows_a_harmful_member(data: st.DataObject) -> None:
    raw = bytearray(make_bundle_zip({"m.tflite": b"model" * 20, "labels.txt": b"cat\ndog\n"}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        members = _check(bytes(raw))
    except (BundleUnsafe, BundleTooLarge, zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError):
        return
    for member in members:
        assert not set("/\\:\x00") & set(member.name) and member.name not in ("", ".", "..")


@pytest.mark.parametrize("name", ["m.tflite", "M.ONNX", "a.b.onnx"])
def test_the_model_is_found_by_its_extension(name: str) -> None:
    assert find_model_file(["labels.txt", name, "notes.md"]) == name


@pytest.mark.parametrize("names", [[], ["labels.txt"], ["a.onnx", "b.tflite"], ["a.tflite.txt"]])
def test_no_model_or_several_are_refused_by_name(names: list[str]) -> None:
    with pytest.raises(BundleIncomplete, match="one model file"):
        find_model_file(names)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["m.onnx"], None),
        (["m.onnx", "coco80.names"], "coco80.names"),
        (["README.txt", "labelmap.txt"], "labelmap.txt"),
        (["LICENSE.txt", "m.onnx"], None),
        (["classes.txt", "my_labels.csv"], "my_labels.csv"),
        (["l.labels"], "l.labels"),
        (["spec.toml", "x.json"], None),
    ],
)
def test_the_label_file_is_found_by_its_name(names: list[str], found: str | None) -> None:
    assert find_label_file(names) == found


@pytest.mark.parametrize("names", [["a.txt", "b.names"], ["labels_en.txt", "labels_de.txt"]])
def test_several_label_files_are_an_error_that_names_them(names: list[str]) -> None:
    with pytest.raises(BundleIncomplete, match=names[0]):
        find_label_file(names)
