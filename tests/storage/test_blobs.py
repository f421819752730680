"""Content that is read again: what is damaged goes, what is sound stands in for it, under either of its names."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.storage.storage_samples import add_blob, add_version, list_names

from edgeferry.model.digest import Digest
from edgeferry.storage.blobs import is_sound
from edgeferry.storage.mending import find_hurt, find_sound, list_pieces, mend
from edgeferry.storage.repository import Repository

DATA = b"weights"
DIGEST = Digest.of(DATA)
FILES = {"sound": DATA, "damaged": b"weightz", "short": b"w", "gone": None}


def put(path: Path, state: str) -> None:
    path.unlink(missing_ok=True)
    data = FILES[state]
    if data is not None:
        path.write_bytes(data)


@pytest.mark.parametrize(("link", "blob"), list(itertools.product(FILES, FILES)))
def test_of_two_names_the_sound_one_counts_and_the_other_goes_or_comes_back(
    repository: Repository, link: str, blob: str
) -> None:
    stored = add_version(repository, "1.0.0", {"model.onnx": DATA})
    file, path = stored.folder / "model.onnx", repository.blob_path(DIGEST)
    put(file, link)
    put(path, blob)
    assert repository.blobs.check(DIGEST, file) is (link == "sound")
    assert not file.exists() or is_sound(file, DIGEST)
    assert repository.has_blob(DIGEST) is ("sound" in (link, blob))
    assert not path.exists() or is_sound(path, DIGEST)
    found = find_sound(repository, "detector", "1.0.0", identity=stored.identity)
    assert found == (stored if "sound" in (link, blob) else None)


def test_a_symbolic_link_to_the_right_bytes_is_not_our_file(repository: Repository, tmp_path: Path) -> None:
    stored = add_version(repository, "1.0.0", {"model.onnx": DATA})
    other = tmp_path / "other"
    other.write_bytes(DATA)
    path = repository.blob_path(DIGEST)
    path.unlink()
    path.symlink_to(other)
    assert find_sound(repository, "detector", "1.0.0", identity=stored.identity) == stored
    assert not path.is_symlink()
    assert other.read_bytes() == DATA


def test_damage_in_what_two_versions_share_is_no_content_of_either(repository: Repository) -> None:
    versions = [add_version(repository, name, {"model.onnx": DATA, "n.txt": name.encode()}) for name in ("1", "2")]
    repository.write_ref("detector", "active", versions[1])
    repository.write_ref("detector", "previous", versions[0])
    path = repository.blob_path(DIGEST)
    path.chmod(0o644)
    path.write_bytes(FILES["damaged"] or b"")
    damaged = frozenset(one.digest for one in list_pieces(repository) if not is_sound(one.path, one.digest))
    assert damaged == {DIGEST}
    assert {one.identity for one in find_hurt(repository, damaged)} == {one.identity for one in versions}
    assert "model.onnx" not in {name for one in versions for name in list_names(one.folder)}
    add_blob(repository, DATA)
    assert [mend(repository, "detector", one.version, identity=one.identity) for one in versions] == versions


def test_damaged_content_of_no_version_just_goes(repository: Repository) -> None:
    digest = add_blob(repository, b"loose")
    repository.blob_path(digest).chmod(0o644)
    repository.blob_path(digest).write_bytes(b"l00se")
    assert find_hurt(repository, frozenset({digest})) == []
    assert not repository.has_blob(digest)
