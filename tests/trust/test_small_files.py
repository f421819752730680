"""Small files come along in the bundle object: which, how they are told from what is wrong, and how long they stay."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.trust.world import NOW, World, make_manifest

from edgeferry.model.digest import Digest
from edgeferry.trust.bundle_object import (
    SMALL_MAX_BYTES,
    SMALL_SUM_MAX_BYTES,
    get_bundle_path,
    make_bundle_object,
    pick_small,
    read_bundle_object,
    read_small,
)
from edgeferry.trust.signer import Desk, refresh

BUNDLE = get_bundle_path("detector")
LABELS = "worker\nhjelm på\nfire\n".encode()
LARGEST = bytes(ord("a") + at % 26 for at in range(SMALL_MAX_BYTES))


def fetch_contents(world: World, version: str = "1.0.0") -> Mapping[Digest, bytes]:
    wanted = Digest.of(make_manifest(version=version))
    return world.open_verifier().fetch_manifests("detector", version, wanted).contents


def put_entry(world: World, path: str, data: bytes) -> None:
    """What stands in a bundle that somebody changed."""
    files = read_bundle_object(world.read(BUNDLE) or b"")
    world.replaced[BUNDLE] = make_bundle_object({**files, path: data})


def test_small_files_come_along_in_the_one_get(empty_world: World) -> None:
    empty_world.publish("detector", "1.0.0", LABELS, bytes(range(256)), LARGEST + b".", LARGEST)
    contents = fetch_contents(empty_world)
    assert contents == {Digest.of(LABELS): LABELS, Digest.of(LARGEST): LARGEST}
    assert empty_world.fetched == [BUNDLE]


def test_they_are_those_of_the_newest_version(empty_world: World) -> None:
    empty_world.publish("detector", "1.0.0", LABELS)
    empty_world.publish("detector", "1.1.0", b"worker\n")
    assert list(fetch_contents(empty_world, "1.1.0").values()) == [b"worker\n"]


def test_signing_again_and_other_models_leave_them_where_they_are(empty_world: World) -> None:
    empty_world.publish("detector", "1.0.0", LABELS)
    empty_world.publish("classifier")
    refresh(Desk(empty_world.store, empty_world.keys, NOW + dt.timedelta(days=1)))
    assert list(fetch_contents(empty_world).values()) == [LABELS]


def test_what_somebody_put_into_the_bundle_in_the_store_is_not_taken_over(empty_world: World) -> None:
    empty_world.publish("detector", "1.0.0", LABELS)
    put_entry(empty_world, Digest.of(LABELS).blob_path, b"another\n")
    empty_world.store.put(BUNDLE, empty_world.replaced.pop(BUNDLE) or b"")  # type: ignore[arg-type]
    refresh(empty_world.desk)
    assert not any(path.startswith("blobs/") for path in read_bundle_object(empty_world.read(BUNDLE) or b""))


def test_a_bundle_of_an_older_publisher_brings_none(world: World) -> None:
    assert fetch_contents(world) == {}


@pytest.mark.parametrize(
    ("path", "data"),
    [
        pytest.param(Digest.of(LABELS).blob_path, b"another\n", id="other bytes than its name says"),
        pytest.param(Digest.of(LARGEST + b".").blob_path, LARGEST + b".", id="too large"),
        pytest.param(
            Digest.of(b"x").blob_path.replace("blobs/", "blobs/../blobs/"), b"x", id="a path that is no blob's"
        ),
        pytest.param(f"blobs/sha256/{Digest.of(b'x').hex}", b"x", id="in the wrong folder"),
    ],
)
def test_an_entry_that_is_wrong_is_passed_over_and_no_verdict_on_the_rest(
    empty_world: World, path: str, data: bytes
) -> None:
    empty_world.publish("detector", "1.0.0", b"worker\n")
    put_entry(empty_world, path, data)
    assert list(fetch_contents(empty_world).values()) == [b"worker\n"]
    assert empty_world.fetched == [BUNDLE]


def test_of_too_many_entries_the_first_are_taken(world: World) -> None:
    many = [bytes([ord("a") + number]) * SMALL_MAX_BYTES for number in range(20)]
    for data in many:
        put_entry(world, Digest.of(data).blob_path, data)
        world.store.put(BUNDLE, world.replaced.pop(BUNDLE) or b"")  # type: ignore[arg-type]
    assert list(fetch_contents(world).values()) == many[: SMALL_SUM_MAX_BYTES // SMALL_MAX_BYTES]


@given(st.lists(st.binary(max_size=SMALL_MAX_BYTES + 9) | st.text(max_size=SMALL_MAX_BYTES).map(str.encode)))
def test_whatever_is_picked_is_small_and_comes_back(contents: list[bytes]) -> None:
    picked = pick_small(contents)
    assert sum(map(len, picked.values())) <= SMALL_SUM_MAX_BYTES
    assert all(len(data) <= SMALL_MAX_BYTES and data in contents for data in picked.values())
    packed = make_bundle_object({digest.blob_path: data for digest, data in picked.items()})
    assert read_small(read_bundle_object(packed)) == picked
