"""The repository keeps versions whole, refs true, and content no longer than it is needed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.storage.storage_samples import SPEC, add_blob, add_version, list_names, list_tree, make_entry

from edgeferry.errors import InvariantBroken, ManifestInvalid, NameInvalid, NoSpace, StorageFailed
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest, make_manifest_bytes
from edgeferry.storage.blobs import is_sound
from edgeferry.storage.mending import find_sound
from edgeferry.storage.repository import Repository
from edgeferry.storage.tidying import gc, sweep

MODEL = {"model.onnx": b"weights 1", "labels.txt": b"cat\ndog\n"}


def test_a_version_lies_as_the_contract_says(repository: Repository) -> None:
    stored = add_version(repository, "1.0.0", MODEL, golden=(b"picture",))
    folder = repository.root / "models" / "detector" / "versions" / "1.0.0"
    blob = repository.root / "blobs" / "sha256" / Digest.of(b"weights 1").hex[:2] / Digest.of(b"weights 1").hex
    assert stored.folder == folder
    assert (folder / "model.onnx").samefile(blob)
    assert blob.stat().st_mode & 0o777 == 0o444
    assert (folder / "labels.txt").read_bytes() == b"cat\ndog\n"
    assert Digest.of((folder / "manifest.json").read_bytes()) == Digest.from_str(stored.identity)
    assert [one.path.read_bytes() for one in stored.golden] == [b"picture"]
    assert str(stored) == "detector@1.0.0"


def test_a_stored_version_is_found_again_with_all_it_says(repository: Repository) -> None:
    stored = add_version(repository, "1.0.0", MODEL, golden=(b"picture",))
    again = Repository(repository.storage_root)
    assert again.find_version("detector", "1.0.0") == stored
    assert again.find_version("detector", "1.0.0", stored.identity) == stored
    assert again.find_version("detector", "1.0.0", "sha256:" + "0" * 64) is None
    assert again.find_version("detector", "1.0.1") is None
    assert again.list_versions("detector") == [stored]
    assert again.list_models() == ["detector"]


def test_storing_a_version_twice_changes_nothing(repository: Repository) -> None:
    stored = add_version(repository, "1.0.0", MODEL)
    before = list_tree(repository.root)
    assert add_version(repository, "1.0.0", MODEL) == stored
    assert list_tree(repository.root) == before


def test_versions_share_the_bytes_they_have_in_common(repository: Repository) -> None:
    first = add_version(repository, "1.0.0", MODEL)
    second = add_version(repository, "1.1.0", {**MODEL, "labels.txt": b"cat\n"})
    assert (first.folder / "model.onnx").samefile(second.folder / "model.onnx")
    assert len(repository.list_blobs()) == 3


def test_a_version_without_its_content_is_not_stored(repository: Repository) -> None:
    manifest = Manifest(model="detector", version="1.0.0", spec=SPEC, files=(make_entry("model.onnx", b"absent"),))
    data = make_manifest_bytes(manifest)
    with pytest.raises(InvariantBroken, match="missing"):
        repository.store_version(manifest, data, str(Digest.of(data)))
    with pytest.raises(InvariantBroken, match="identity"):
        repository.store_version(manifest, data, "sha256:" + "0" * 64)
    assert repository.list_versions("detector") == []
    assert not [name for name in list_tree(repository.root) if ".edgeferry" in name]


def test_the_same_version_with_other_content_stands_beside_the_first(repository: Repository) -> None:
    first = add_version(repository, "1.0.0", MODEL)
    repository.write_ref("detector", "active", first)
    second = add_version(repository, "1.0.0", {"model.onnx": b"other weights"})
    assert second.folder != first.folder
    assert repository.read_ref("detector", "active") == first
    repository.write_ref("detector", "previous", first)
    repository.write_ref("detector", "active", second)
    assert repository.read_ref("detector", "active") == second
    assert repository.read_ref("detector", "previous") == first
    assert len(repository.list_versions("detector")) == 2


@pytest.mark.parametrize("damage", ["remove", "shorten", "link", "manifest", "garbage", "identity", "moved"])
def test_a_damaged_version_is_not_a_version_and_is_stored_anew(repository: Repository, damage: str) -> None:
    stored = add_version(repository, "1.0.0", MODEL)
    repository.write_ref("detector", "active", stored)
    file, manifest = stored.folder / "model.onnx", stored.folder / "manifest.json"
    match damage:
        case "remove":
            file.unlink()
        case "shorten":
            file.unlink()
            file.write_bytes(b"short")
        case "link":
            file.rename(stored.folder.parent / "elsewhere")
            file.symlink_to(stored.folder.parent / "elsewhere")
        case "manifest":
            manifest.unlink()
        case "garbage":
            manifest.unlink()
            manifest.write_bytes(b"\xff{")
        case "identity":
            (stored.folder / "identity:").unlink()
        case "moved":
            stored.folder.rename(stored.folder.parent / "2.0.0")
    assert repository.list_versions("detector") == []
    assert repository.read_ref("detector", "active") is None
    assert add_version(repository, "1.0.0", MODEL) == stored
    assert repository.read_ref("detector", "active") == stored


def test_a_version_whose_golden_picture_is_gone_is_not_whole(repository: Repository) -> None:
    stored = add_version(repository, "1.0.0", MODEL, golden=(b"picture",))
    stored.golden[0].path.unlink()
    assert repository.find_version("detector", "1.0.0") is None


# --- refs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"version":"../x","identity":"y"}', b"x" * 9000])
def test_a_ref_that_cannot_be_read_points_to_nothing(repository: Repository, content: bytes) -> None:
    stored = add_version(repository, "1.0.0", MODEL)
    repository.write_ref("detector", "active", stored)
    (repository.root / "models" / "detector" / "active").write_bytes(content)
    assert repository.read_ref("detector", "active") is None


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["active", "previous"]), st.integers(-1, 2)), max_size=10))
def test_refs_hold_what_was_written_last(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    repository = Repository(tmp_path_factory.mktemp("refs"))
    repository.prepare()
    versions = [add_version(repository, f"1.{n}.0", {"model.onnx": bytes([n])}) for n in range(3)]
    expected: dict[str, object] = {"active": None, "previous": None}
    for name, index in steps:
        expected[name] = versions[index] if index >= 0 else None
        repository.write_ref("detector", name, versions[index] if index >= 0 else None)  # type: ignore[arg-type]
        assert {one: repository.read_ref("detector", one) for one in ("active", "previous")} == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "..", "Upper", "a/b", "a" * 64, "ä", "-x"])
def test_names_that_are_no_names_never_become_paths(repository: Repository, name: str) -> None:
    stored = add_version(repository, "1.0.0", MODEL)
    with pytest.raises(NameInvalid):
        repository.find_version(name, "1.0.0")
    with pytest.raises(NameInvalid):
        repository.write_ref(name, "active", stored)
    with pytest.raises(NameInvalid):
        repository.list_versions(name)
    with pytest.raises(NameInvalid):
        repository.find_version("detector", f"../{name}")
    with pytest.raises(InvariantBroken):
        repository.write_ref("detector", "../active", stored)  # type: ignore[arg-type]


def test_what_another_hand_put_there_is_no_model_and_no_content(repository: Repository) -> None:
    (repository.root / "models" / "Not A Model").mkdir()
    (repository.root / "blobs" / "sha256" / "ab").mkdir()
    (repository.root / "blobs" / "sha256" / "ab" / "note.txt").write_bytes(b"1")
    (repository.root / "blobs" / "sha256" / "note").write_bytes(b"1")
    assert repository.list_models() == []
    assert repository.list_blobs() == frozenset()
    assert gc(repository).blobs == 0


# --- classic ----------------------------------------------------------------------------------------------------------
def test_a_classic_version_is_a_copy_that_no_later_write_changes(repository: Repository) -> None:
    shared = repository.storage_root / "bundle"
    shared.mkdir()
    for name, data in MODEL.items():
        (shared / name).write_bytes(data)
    files = {name: shared / name for name in MODEL}
    stored = repository.store_classic("default", "bundle", identity="sha256:" + "1" * 64, files=files, spec=SPEC)
    with (shared / "model.onnx").open("r+b") as file:
        file.write(b"EVIL")
    assert (stored.folder / "model.onnx").read_bytes() == b"weights 1"
    assert repository.find_version("default", "bundle", stored.identity) == stored
    assert stored.spec == SPEC
    assert list_names(repository.partial_folder) == []


def test_a_classic_version_with_bad_names_or_without_its_model_is_refused(repository: Repository) -> None:
    file = repository.storage_root / "file"
    file.write_bytes(b"1")
    with pytest.raises(NameInvalid):
        repository.store_classic("default", "v", identity="i", files={"../model.onnx": file}, spec=SPEC)
    with pytest.raises(ManifestInvalid):
        repository.store_classic("default", "v", identity="i", files={"other.onnx": file}, spec=SPEC)
    with pytest.raises(StorageFailed):
        repository.store_classic("default", "v", identity="i", files={"model.onnx": file.with_name("no")}, spec=SPEC)
    assert repository.list_versions("default") == []


# --- tidying ----------------------------------------------------------------------------------------------------------
def test_gc_keeps_active_previous_and_target_and_all_they_need(repository: Repository) -> None:
    versions = [
        add_version(
            repository, f"1.{n}.0", {"model.onnx": b"weights %d" % n, "labels.txt": b"same"}, golden=(b"%d" % n,)
        )
        for n in range(5)
    ]
    repository.write_ref("detector", "active", versions[1])
    repository.write_ref("detector", "previous", versions[0])
    fetched = add_blob(repository, b"on its way")
    collected = gc(repository, [versions[4]], keep_blobs=[fetched])
    assert collected.versions == ("detector@1.2.0", "detector@1.3.0")
    assert (collected.blobs, collected.freed_bytes) == (4, 2 * (len(b"weights 2") + 1))
    assert repository.list_versions("detector") == [versions[0], versions[1], versions[4]]
    assert len(repository.list_blobs()) == 3 + 1 + 3 + 1
    assert gc(repository, [versions[4]], keep_blobs=[fetched]).blobs == 0
    assert gc(repository).versions == ("detector@1.4.0",)


def test_loose_content_is_removed_and_what_a_version_links_to_stays(repository: Repository) -> None:
    stored = add_version(repository, "1.0.0", {"model.onnx": b"weights"})
    linked, loose = Digest.of(b"weights"), add_blob(repository, b"between two patches")
    for digest in (linked, loose, Digest.of(b"never here")):
        repository.remove_loose_blob(digest)
    assert repository.list_blobs() == {linked}
    assert repository.find_version("detector", "1.0.0", stored.identity) == stored


def test_content_that_comes_while_its_damaged_place_is_cleared_stays(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add_version(repository, "1.0.0", {"model.onnx": b"weights"})
    blob = repository.blob_path(Digest.of(b"weights"))
    blob.chmod(0o644)
    blob.write_bytes(b"rubbish")  # the version's file as well: it is the same one
    comes = threading.Thread(target=add_blob, args=(repository, b"weights"))

    def read_slowly(path: Path, digest: Digest) -> bool:
        sound = is_sound(path, digest)
        if not comes.ident:
            blob.unlink()  # another version that shares it has cleared its place, and fetched it again
            comes.start()
            comes.join(0.1)
        return sound

    monkeypatch.setattr("edgeferry.storage.blobs.is_sound", read_slowly)
    assert find_sound(repository, "detector", "1.0.0", identity=stored.identity) is None
    comes.join()
    assert is_sound(blob, Digest.of(b"weights"))


def test_sweep_removes_what_a_crash_left_and_nothing_else(repository: Repository) -> None:
    stored = add_version(repository, "1.0.0", MODEL)
    (repository.partial_folder / "ab12").write_bytes(b"half")
    other = repository.storage_root / ".other-module"
    other.write_bytes(b"1")
    before = list_tree(repository.storage_root)
    for folder in (
        repository.storage_root,
        repository.root,
        repository.partial_folder,
        stored.folder,
        stored.folder.parent,
        stored.folder.parent.parent,
        repository.blob_path(Digest.of(b"weights 1")).parent,
    ):
        (folder / ".edgeferry-half").mkdir()
        (folder / ".edgeferry-half" / "file").write_bytes(b"1")
    assert sweep(repository) == 7
    assert list_tree(repository.storage_root) == before
    assert sweep(repository, keep_partials=["ab12"]) == 0
    assert sweep(repository, keep_partials=[]) == 1
    assert repository.find_version("detector", "1.0.0") == stored


def test_space_is_asked_for_before_it_is_used(tmp_path: Path) -> None:
    repository = Repository(tmp_path, reserve_bytes=1 << 20)
    repository.prepare()
    repository.require_space(1)
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(NoSpace) as caught:
        repository.require_space(2 * free)
    assert caught.value.values["needed_bytes"] == 2 * free


def test_the_repository_is_for_its_own_user_only(repository: Repository) -> None:
    assert repository.root.stat().st_mode & 0o777 == 0o700
