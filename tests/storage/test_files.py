"""Files are whole or not there, bounded, and their errors are ours."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.storage.storage_samples import list_names

from edgeferry.errors import NoSpace, StorageBusy, StorageFailed
from edgeferry.storage.files import (
    copy_file,
    get_free_bytes,
    hash_file,
    make_folder,
    open_folder_lock,
    read_bounded,
    remove_tree,
    rename_durably,
    translate_disk_errors,
    write_atomically,
)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EFBIG, NoSpace),
        (errno.EROFS, StorageFailed),
        (errno.EIO, StorageFailed),
        (errno.EACCES, StorageFailed),
        (errno.ENOENT, StorageFailed),
    ],
)
def test_what_the_disk_says_becomes_a_leaf_of_ours(number: int, expected: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(expected, match="model") as caught, translate_disk_errors(tmp_path / "model"):
        raise OSError(number, os.strerror(number))
    assert isinstance(caught.value.__cause__, OSError)


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "ref"
    write_atomically(path, b"old")
    write_atomically(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list_names(tmp_path) == ["ref"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ref"
    write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NoSpace):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list_names(tmp_path) == ["ref"]


def test_the_file_is_on_disk_before_its_name_is_and_its_name_before_we_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append(_kind(handle)), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("rename"), replace(*names))[1])
    write_atomically(tmp_path / "ref", b"new")
    assert steps == ["fsync file", "rename", "fsync folder"]


def _kind(handle: int) -> str:
    return "fsync folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "fsync file"


def test_a_longer_file_than_allowed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(StorageFailed, match="at most 4"):
        read_bounded(path, 4)
    with pytest.raises(StorageFailed):
        read_bounded(tmp_path / "none", 4)


def test_a_copy_does_not_follow_later_writes_to_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 3_000_000)
    copy_file(source, target, mode=0o444)
    source.write_bytes(b"y")
    assert target.read_bytes() == b"x" * 3_000_000
    assert target.stat().st_mode & 0o777 == 0o444
    assert hash_file(target).size_bytes == 3_000_000
    with pytest.raises(StorageFailed):
        copy_file(source, target, mode=0o444)


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    precious = make_folder(tmp_path / "precious")
    (precious / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to(precious)
    folder = make_folder(tmp_path / "a" / "b")
    (folder / "inner").symlink_to(precious)
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "a")
    remove_tree(tmp_path / "never-there")
    assert list_names(tmp_path) == ["precious"]
    assert (precious / "file").read_bytes() == b"1"


def test_a_rename_replaces_and_a_missing_source_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    rename_durably(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"a"
    with pytest.raises(StorageFailed):
        rename_durably(tmp_path / "a", tmp_path / "b")


def test_free_bytes_are_those_of_the_file_system(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert abs(get_free_bytes(tmp_path) - status.f_bavail * status.f_frsize) < 1 << 30
    with pytest.raises(StorageFailed):
        get_free_bytes(tmp_path / "none")


_HOLDER = """
import sys, pathlib
from edgeferry.storage.files import open_folder_lock
with open_folder_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(StorageBusy, match=str(holder.pid)), open_folder_lock(tmp_path):
        raise AssertionError("two processes in one folder")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert holder.stdin is not None
    holder.stdin.close()
    with open_folder_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
