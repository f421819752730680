"""A full disk at any write is NoSpace, and everything that was there is there still.

As root on a tmpfs of 1 MB in a mount namespace of its own; elsewhere with the longest file limited to 200 KB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import asyncio, json, pathlib, resource, sys
from edgeferry.errors import NoSpace, StorageError
from edgeferry.storage.journal import open_journal
from edgeferry.storage.partial import open_partial
from edgeferry.storage.repository import Repository
from tests.storage.storage_samples import SPEC, add_version, list_names, list_tree

root, outside = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
if sys.argv[3] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
repository = Repository(root, reserve_bytes=0)
repository.prepare()
active = add_version(repository, "1.0.0", {"model.onnx": b"weights"})
repository.write_ref("detector", "active", active)

def attempt(work):
    try:
        work()
    except StorageError as error:
        return type(error).__name__
    return "nothing"

def download():
    with open_partial(repository.partial_folder, "ab12", max_bytes=1 << 30) as partial:
        try:
            while True:
                partial.append(bytes(65_536))
        finally:
            said.append(partial.length_bytes)

async def journal(size):
    async with open_journal(repository.journal_path) as journal:
        await journal.set_value("big", bytes(size))

said = []
found = {"download": attempt(download), "kept": said == [(repository.partial_folder / "ab12").stat().st_size]}
files = {"model.onnx": outside}
store = lambda: repository.store_classic("default", "v", identity="i", files=files, spec=SPEC)
before = list_tree(root)
found["classic"] = attempt(store)
found["left"] = sorted(set(list_tree(root)) - set(before))
found["journal"] = attempt(lambda: asyncio.run(journal(2_000_000)))
found["active"] = str(repository.read_ref("detector", "active"))
(repository.partial_folder / "ab12").unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
found["classic with room"] = attempt(store)
found["journal with room"] = attempt(lambda: asyncio.run(journal(1000)))
print(json.dumps(found))
"""


def _may_mount(folder: Path) -> bool:
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def test_a_full_disk_leaves_everything_intact(tmp_path: Path) -> None:
    folder, source = tmp_path / "small", tmp_path / "source"
    folder.mkdir()
    source.write_bytes(bytes(300_000))
    is_small = _may_mount(folder)
    mode = "disk" if is_small else "limit"
    command = [sys.executable, "-c", _SCRIPT, str(folder), str(source), mode]
    if is_small:
        command = [
            "unshare",
            "-m",
            "sh",
            "-c",
            'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"',
            str(folder),
            *command,
        ]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("journal") in (["NoSpace"] if is_small else ["NoSpace", "StorageFailed"])
    assert found == {
        "download": "NoSpace",
        "kept": True,
        "classic": "NoSpace",
        "left": [],
        "active": "detector@1.0.0",
        "classic with room": "nothing",
        "journal with room": "nothing",
    }


def test_a_read_only_disk_is_said_and_still_read(tmp_path: Path) -> None:
    """Root writes past permissions: the read-only mount needs a namespace; others get their folder made read-only."""
    folder = tmp_path / "storage"
    script = """
import pathlib, sys
from edgeferry.errors import StorageFailed
from edgeferry.storage.repository import Repository
repository = Repository(pathlib.Path(sys.argv[1]))
active = repository.read_ref("detector", "active")
assert (active.folder / "model.onnx").read_bytes() == b"weights"
try:
    repository.write_ref("detector", "previous", active)
except StorageFailed as error:
    print(error.message)
"""
    from tests.storage.storage_samples import add_version

    from edgeferry.storage.repository import Repository

    repository = Repository(folder)
    repository.prepare()
    repository.write_ref("detector", "active", add_version(repository, "1.0.0", {"model.onnx": b"weights"}))
    command = [sys.executable, "-c", script, str(folder)]
    if _may_mount(folder):
        remount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", remount, str(folder), *command]
    else:
        for path in (folder / "edgeferry" / "models" / "detector", folder):
            path.chmod(0o500)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "cannot use 'previous'" in done.stdout


@pytest.fixture(autouse=True)
def writable_again(tmp_path: Path) -> object:
    """Lets pytest remove what a test made read-only."""
    yield
    for path in tmp_path.rglob("*"):
        if path.is_dir():
            path.chmod(0o700)
