"""A classic ZIP unpacks whole or not at all, and never where it should not."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.storage.storage_samples import list_names

from edgeferry.errors import BundleError, BundleTooLarge, BundleUnreadable, BundleUnsafe, NameInvalid, StorageFailed
from edgeferry.model.bundle import BundleLimits, make_bundle_zip
from edgeferry.storage.repository import Repository

FILES = {"model.tflite": b"weights" * 1000, "labels.txt": b"cat\ndog\n"}


def make_zip(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    """A ZIP of just these members, however bad."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def make_link(name: str, target: str) -> zipfile.ZipInfo:
    """A member that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    info.comment = target.encode()
    return info


def unpack(repository: Repository, data: bytes, stem: str = "bundle", limits: BundleLimits | None = None) -> Path:
    """Writes `data` as a ZIP and unpacks it."""
    path = repository.storage_root / f"{stem}.zip"
    path.write_bytes(data)
    try:
        return repository.unpack_classic(path, stem, limits)
    finally:
        path.unlink()


def test_a_good_bundle_lies_readable_for_other_modules(repository: Repository) -> None:
    old = os.umask(0o077)
    try:
        folder = unpack(repository, make_bundle_zip(FILES))
    finally:
        os.umask(old)
    assert folder == repository.storage_root / "bundle"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_the_guides_own_bundle_unpacks(repository: Repository, shared_models: Path) -> None:
    folder = repository.unpack_classic(shared_models / "classic" / "tensorflow001.zip", "tensorflow001")
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == {
        "labelmap.txt": 756,
        "ssd_mobilenet_v1_1_metadata_1.tflite": 4_185_003,
    }


def test_a_newer_bundle_replaces_the_folder_as_a_whole(repository: Repository) -> None:
    unpack(repository, make_bundle_zip({**FILES, "old.txt": b"1"}))
    folder = unpack(repository, make_bundle_zip(FILES))
    assert list_names(folder) == ["labels.txt", "model.tflite"]
    assert list_names(repository.storage_root) == ["bundle", "edgeferry"]


BAD = {
    "a member above the folder": make_zip(("../evil", b"1")),
    "an absolute member": make_zip(("/tmp/evil", b"1")),
    "a windows path": make_zip(("..\\evil", b"1")),
    "a drive letter": make_zip(("C:evil", b"1")),
    "a folder": make_zip(("folder/file", b"1")),
    "a link": make_zip((make_link("link", "/etc/passwd"), b"/etc/passwd")),
    "two names that are one": make_zip(("Model.onnx", b"1"), ("model.onnx", b"2")),
    "no zip at all": b"these are not the bytes of a zip" * 10,
    "nothing": b"",
    "half a zip": make_bundle_zip(FILES)[:-40],
    "a bomb by its directory": make_zip(("zeros", bytes(40 << 20))),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_bad_bundle_is_refused_and_leaves_nothing(repository: Repository, data: bytes) -> None:
    with pytest.raises((BundleUnsafe, BundleUnreadable, BundleTooLarge)):
        unpack(repository, data)
    assert list_names(repository.storage_root) == ["edgeferry"]


def test_a_bad_bundle_leaves_the_older_folder_alone(repository: Repository) -> None:
    folder = unpack(repository, make_bundle_zip(FILES))
    damaged = bytearray(make_zip(("model.tflite", os.urandom(5000)), ("labels.txt", b"1")))
    damaged[200] ^= 0xFF
    with pytest.raises(BundleUnreadable):
        unpack(repository, bytes(damaged))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_a_member_that_would_unpack_to_more_than_it_claims_stops_there(repository: Repository) -> None:
    """The directory says 10 bytes, with their CRC; 40 MB of zeros follow."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(40 << 20)) + packer.flush()
    crc = zlib.crc32(bytes(10))
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 33, crc, len(packed), 10, 4, 0) + b"bomb"
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, crc, len(packed), 10, 4, 0, 0, 0, 0, 0, 0)
    entry += b"bomb"
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local) + len(packed), 0)
    folder = unpack(repository, local + packed + entry + end)
    assert (folder / "bomb").read_bytes() == bytes(10)


def test_limits_hold(repository: Repository) -> None:
    with pytest.raises(BundleTooLarge):
        unpack(repository, make_bundle_zip(FILES), limits=BundleLimits(max_member_bytes=100))
    with pytest.raises(BundleTooLarge):
        unpack(repository, make_bundle_zip(FILES), limits=BundleLimits(max_members=1))
    with pytest.raises(StorageFailed):
        repository.unpack_classic(repository.storage_root / "none.zip", "none")


@pytest.mark.parametrize("name", ["edgeferry", "..", ".", "", "a/b", "/abs", "a\0b", ".edgeferry-x", "a\nb", "x" * 256])
def test_a_name_that_would_hit_something_else_is_refused(repository: Repository, name: str) -> None:
    source = repository.storage_root / "source"
    source.write_bytes(make_bundle_zip(FILES))
    with pytest.raises(NameInvalid):
        repository.unpack_classic(source, name)
    with pytest.raises(NameInvalid):
        repository.place_zip(name, source)
    with pytest.raises(NameInvalid):
        repository.remove_zip(name)
    assert list_names(repository.storage_root) == ["edgeferry", "source"]


def test_the_zip_lies_under_its_name_until_it_is_removed(repository: Repository) -> None:
    download = repository.partial_folder / "ab12"
    download.write_bytes(make_bundle_zip(FILES))
    path = repository.place_zip("tensorflow001.zip", download)
    assert path == repository.storage_root / "tensorflow001.zip"
    repository.unpack_classic(path, "tensorflow001")
    repository.remove_zip("tensorflow001.zip")
    repository.remove_zip("tensorflow001.zip")
    assert list_names(repository.storage_root) == ["edgeferry", "tensorflow001"]


def test_a_file_name_without_extension_is_zip_first_and_folder_then(repository: Repository) -> None:
    for _ in range(2):
        download = repository.partial_folder / "ab12"
        download.write_bytes(make_bundle_zip(FILES))
        path = repository.place_zip("bundle", download)
        folder = repository.unpack_classic(path, "bundle")
        repository.remove_zip("bundle")
        assert list_names(folder) == ["labels.txt", "model.tflite"]
    assert list_names(repository.storage_root) == ["bundle", "edgeferry"]


def test_a_link_in_place_of_the_folder_is_replaced_not_followed(repository: Repository, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"1")
    (repository.storage_root / "bundle").symlink_to(precious)
    folder = unpack(repository, make_bundle_zip(FILES))
    assert not folder.is_symlink()
    assert list_names(precious) == ["file"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_is_a_bundle_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    repository = Repository(tmp_path_factory.mktemp("fuzz"))
    repository.prepare()
    content = bytearray(make_bundle_zip(FILES))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(repository, bytes(content))
    except BundleError:
        assert list_names(repository.storage_root) == ["edgeferry"]
