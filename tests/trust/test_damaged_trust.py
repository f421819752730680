"""The folder `trust/`, damaged at rest or on a full disk: what is believed is what was signed, or nothing is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trust.world import World, make_manifest

from edgeferry.model.digest import Digest
from edgeferry.trust.bundle_object import get_bundle_path
from edgeferry.trust.verifier import Verifier
from small_disk import may_mount, on_small_disk


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


HARMS: dict[str, Callable[[Path], object]] = {
    "a byte is flipped": flip,
    "it is cut short": cut,
    "it is empty": lambda path: path.write_bytes(b""),
    "it is rubbish": lambda path: path.write_bytes(b"\xff\x00 rubbish"),
    "it is gone": lambda path: path.unlink(),
}
FILES = ["root.json", "timestamp.json", "snapshot.json", "targets.json", "detector.json", "root_history/1.root.json"]


@pytest.mark.parametrize("by_digest", [False, True], ids=["the root is pinned", "its digest is pinned"])
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_the_trust_folder_costs_a_fetch_and_no_trust(
    world: World, name: str, harm: str, by_digest: bool
) -> None:
    root = world.read("metadata/1.root.json")
    assert root is not None
    pin = Digest.of(root) if by_digest else root

    def fetch() -> bytes:
        verifier = Verifier(world.trust, pin, world.fetch, world.now.timestamp)
        return verifier.fetch_manifests("detector", "1.0.0", Digest.of(make_manifest())).manifest

    assert fetch() == make_manifest()
    whole = {str(path.relative_to(world.trust)) for path in world.trust.rglob("*") if path.is_file()}
    assert whole == set(FILES), "each file has its row"
    HARMS[harm](world.trust / name)
    world.fetched.clear()
    assert fetch() == make_manifest()
    assert set(world.fetched) <= {get_bundle_path("detector"), "metadata/1.root.json"}


_ON_A_FULL_DISK = """
import contextlib, pathlib, sys
from tests.trust.world import World, make_manifest
from edgeferry.errors import NoSpace
from edgeferry.model.digest import Digest
world = World(pathlib.Path(sys.argv[1]))
filler = world.trust / "filler"
with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
    while True:
        file.write(bytes(4096))
try:
    world.fetch_manifest()
except NoSpace as error:
    print(error.code)
filler.unlink()
print(world.fetch_manifest() == make_manifest())
"""


def test_a_full_disk_is_no_verdict_on_metadata_and_it_is_believed_once_there_is_room(world: World) -> None:
    if not may_mount(world.folder):
        pytest.skip("a small disk needs a mount namespace: run the tests as root, or in a container")
    command = [*on_small_disk(world.trust, os.geteuid()), sys.executable, "-c", _ON_A_FULL_DISK, str(world.folder)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, timeout=60)
    assert done.stdout.split() == ["no_space", "True"], done.stderr
