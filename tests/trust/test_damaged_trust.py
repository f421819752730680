"""The folder `trust/`, damaged at rest: what is believed afterwards is what was signed, or nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trust.world import World, make_manifest

from edgeferry.model.digest import Digest
from edgeferry.trust.bundle_object import get_bundle_path
from edgeferry.trust.verifier import Verifier


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
        return verifier.fetch_manifests("detector", "1.0.0", Digest.of(make_manifest()))[0]

    assert fetch() == make_manifest()
    whole = {str(path.relative_to(world.trust)) for path in world.trust.rglob("*") if path.is_file()}
    assert whole == set(FILES), "each file has its row"
    HARMS[harm](world.trust / name)
    world.fetched.clear()
    assert fetch() == make_manifest()
    assert set(world.fetched) <= {get_bundle_path("detector"), "metadata/1.root.json"}
