"""A crash at any disk call leaves the old state or the new one, and nothing that `sweep` and `gc` do not remove.

The process under test is a forked child that kills itself at the n-th call; n runs over all of them.
"""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.storage.storage_samples import SPEC, add_version, list_names, list_tree

from edgeferry.model.bundle import BundleLimits
from edgeferry.storage.classic import publish_folder, unpack_classic
from edgeferry.storage.files import write_atomically
from edgeferry.storage.repository import Repository
from edgeferry.storage.tidying import gc, sweep

_CALLS = ("open", "fsync", "replace", "rename", "link", "mkdir", "unlink", "rmdir", "pwrite", "fchmod", "chmod")
OLD = {"model.onnx": b"old weights", "labels.txt": b"cat\n"}
NEW = {"model.onnx": b"new weights", "labels.txt": b"cat\n"}


def run_and_crash(work: Callable[[], object], *, at: int) -> bool:
    """Runs `work` in a child that dies at its `at`-th disk call; returns whether it got through alive."""
    child = os.fork()
    if child == 0:
        _arm(at)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status == 0


def _arm(at: int) -> None:
    left = [at]

    def wrap(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in _CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def crash_everywhere(work: Callable[[], object], check: Callable[[], None]) -> int:
    """Crashes `work` at each of its disk calls in turn, checking after each; returns how many there were."""
    for at in range(1000):
        alive = run_and_crash(work, at=at)
        check()
        if alive:
            return at
    raise AssertionError("the work never ends")


@pytest.fixture
def tidy(repository: Repository) -> list[str]:
    """An active version, and the tree that a repository with only it has."""
    repository.write_ref("detector", "active", add_version(repository, "1.0.0", OLD))
    return list_tree(repository.storage_root)


def test_a_crash_while_storing_leaves_the_active_version_and_no_half_one(
    repository: Repository, tidy: list[str]
) -> None:
    def check() -> None:
        active = repository.read_ref("detector", "active")
        assert active is not None and active.version == "1.0.0"
        for stored in repository.list_versions("detector"):
            assert {path.name: path.read_bytes() for path in stored.folder.iterdir() if path.name in NEW} in (OLD, NEW)
        sweep(repository, keep_partials=[])
        gc(repository)
        folders = {name for name in list_tree(repository.storage_root) if not _is_empty_blob_folder(repository, name)}
        assert folders == {name for name in tidy if not _is_empty_blob_folder(repository, name)}

    assert crash_everywhere(lambda: add_version(repository, "1.1.0", NEW), check) > 20


def _is_empty_blob_folder(repository: Repository, name: str) -> bool:
    path = repository.storage_root / name
    return path.is_dir() and path.parent.name == "sha256" and not any(path.iterdir())


def test_a_crash_while_a_ref_moves_leaves_the_old_version_or_the_new(repository: Repository, tidy: list[str]) -> None:
    new = add_version(repository, "1.1.0", NEW)
    seen = set()

    def check() -> None:
        active = repository.read_ref("detector", "active")
        assert active is not None
        seen.add(active.version)

    assert crash_everywhere(lambda: repository.write_ref("detector", "active", new), check) >= 4
    assert seen == {"1.0.0", "1.1.0"}
    sweep(repository)
    assert not [name for name in list_tree(repository.root) if ".edgeferry" in name]


def test_a_crash_while_a_classic_version_is_stored_leaves_none_or_all_of_it(
    repository: Repository, tidy: list[str]
) -> None:
    source = repository.storage_root / "source"
    source.write_bytes(b"weights")

    def store() -> object:
        files = {"model.onnx": source}
        return repository.store_classic("default", "v", identity="sha256:" + "1" * 64, files=files, spec=SPEC)

    def check() -> None:
        for stored in repository.list_versions("default"):
            assert (stored.folder / "model.onnx").read_bytes() == b"weights"
        sweep(repository, keep_partials=[])
        assert list_names(repository.partial_folder) == []

    assert crash_everywhere(store, check) > 15
    assert repository.find_version("default", "v") is not None


def test_a_crash_while_unpacking_never_shows_a_half_folder(repository: Repository) -> None:
    root = repository.storage_root
    zip_path = root / "bundle.zip"
    with zipfile.ZipFile(zip_path, "w") as archive:
        for name, data in NEW.items():
            archive.writestr(name, data)
    folder = root / "bundle"
    folder.mkdir()
    for name, data in OLD.items():
        (folder / name).write_bytes(data)

    def check() -> None:
        if folder.exists():
            assert {path.name: path.read_bytes() for path in folder.iterdir()} in (OLD, NEW)
        sweep(repository)
        assert set(list_names(root)) <= {"bundle", "bundle.zip", "edgeferry"}

    assert crash_everywhere(lambda: unpack_classic(root, zip_path, "bundle", limits=BundleLimits()), check) > 10
    assert (folder / "model.onnx").read_bytes() == b"new weights"


def test_a_crash_in_gc_takes_nothing_that_is_needed(repository: Repository, tidy: list[str]) -> None:
    add_version(repository, "1.1.0", NEW)

    def check() -> None:
        active = repository.read_ref("detector", "active")
        assert active is not None and (active.folder / "model.onnx").read_bytes() == b"old weights"

    assert crash_everywhere(lambda: gc(repository), check) > 3
    assert repository.list_blobs() == frozenset(_digests(OLD))


def _digests(files: dict[str, bytes]) -> list[object]:
    from edgeferry.model.digest import Digest

    return [Digest.of(data) for data in files.values()]


def test_the_harness_itself_does_crash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    assert not run_and_crash(lambda: write_atomically(path, b"new"), at=0)
    assert path.read_bytes() == b"old"
    assert run_and_crash(lambda: write_atomically(path, b"new"), at=1000)
    assert path.read_bytes() == b"new"


def test_nothing_gets_its_name_before_its_bytes_are_on_the_disk(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps only what was fsynced: at each rename the file, or the folder with all its files, has been."""
    synced: set[int] = set()
    renamed: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def check_replace(source: str | Path, target: str | Path) -> None:
        path = Path(source)
        for one in [path, *path.rglob("*")]:
            assert one.stat().st_ino in synced, f"{one} is not on the disk when it becomes {target}"
        renamed.append(Path(target).name)
        replace(source, target)
        synced.discard(Path(target).parent.stat().st_ino)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", check_replace)
    repository.write_ref("detector", "active", add_version(repository, "1.0.0", OLD))
    zip_path = repository.storage_root / "bundle.zip"
    with zipfile.ZipFile(zip_path, "w") as archive:
        archive.writestr("model.onnx", b"weights")
    folder = repository.unpack_classic(zip_path, "bundle")
    files = {"model.onnx": folder / "model.onnx"}
    repository.store_classic("default", "v", identity="i", files=files, spec=SPEC)
    publish_folder(repository.storage_root, "again", files)
    for name in ("1.0.0", "v", "active", "bundle", "again", "manifest.json"):
        assert name in renamed
    for last in (repository.root / "models" / "detector", repository.storage_root):
        assert last.stat().st_ino in synced, f"the new name in {last} is not on the disk at the end"
