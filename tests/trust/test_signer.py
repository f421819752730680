"""Publishing metadata: whole for readers, never lost between two publishers, never signed over something foreign."""

from __future__ import annotations

import datetime as dt
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trust.world import NOW, World, make_manifest

from edgeferry.errors import ConfigInvalid, Conflict, MetadataUntrusted, NameInvalid
from edgeferry.storage.blob_store import BlobStore
from edgeferry.trust.draft import open_draft
from edgeferry.trust.keys import KeyFolder
from edgeferry.trust.signer import Desk, NewVersion, add_manifest, commit, init_repository, refresh, rotate_key


def test_keys_are_for_their_owner_only_and_outside_the_repository(world: World) -> None:
    pems = sorted(world.keys.folder.glob("*.pem"))
    assert [path.stem for path in pems] == ["detector", "root", "snapshot", "targets", "timestamp"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in pems} == {0o600}
    published = b"".join(path.read_bytes() for path in (world.folder / "repo").rglob("*") if path.is_file())
    assert b"PRIVATE" not in published


def test_a_second_repository_at_the_same_place_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(Conflict):
        init_repository(Desk(world.store, KeyFolder(tmp_path / "other"), NOW))


def test_metadata_lives_as_long_as_promised(world: World) -> None:
    draft = open_draft(world.store, world.keys)
    lives = [one.signed.expires - NOW for one in (draft.root, draft.targets, draft.snapshot, draft.timestamp)]
    assert [life.days for life in lives] == [730, 365, 45, 45]


def test_versions_are_listed_oldest_first(world: World) -> None:
    for version in ("1.10.0", "1.9.0"):
        world.publish(version=version)
    draft = open_draft(world.store, world.keys)
    assert [one.version for one in draft.list_versions("detector")] == ["1.0.0", "1.10.0", "1.9.0"]
    assert draft.list_versions("nothing") == ()


def test_the_same_manifest_twice_changes_nothing(world: World) -> None:
    draft = open_draft(world.store, world.keys)
    assert not add_manifest(draft, NewVersion("detector", "1.0.0", make_manifest()), desk=world.desk)
    assert not draft.changed


def test_the_same_version_with_other_content_is_a_conflict(world: World) -> None:
    draft = open_draft(world.store, world.keys)
    with pytest.raises(Conflict):
        add_manifest(draft, NewVersion("detector", "1.0.0", make_manifest("detector", "1.0.1")), desk=world.desk)


@pytest.mark.parametrize("name", ["root", "targets", "snapshot", "timestamp", "../x", "A", ""])
def test_a_model_name_that_is_a_role_or_a_path_is_refused(world: World, name: str) -> None:
    with pytest.raises(NameInvalid):
        add_manifest(open_draft(world.store, world.keys), NewVersion(name, "1", make_manifest()), desk=world.desk)


def test_two_publishers_at_once_never_lose_a_version(world: World) -> None:
    first, second = (open_draft(world.store, world.keys) for _ in range(2))
    add_manifest(first, NewVersion("detector", "1.1.0", make_manifest(version="1.1.0")), desk=world.desk)
    add_manifest(second, NewVersion("detector", "1.2.0", make_manifest(version="1.2.0")), desk=world.desk)
    commit(first, world.desk)
    with pytest.raises(Conflict):
        commit(second, world.desk)
    assert world.fetch_manifest(version="1.1.0")
    world.publish(version="1.2.0")
    assert [one.version for one in open_draft(world.store, world.keys).list_versions("detector")] == [
        "1.0.0",
        "1.1.0",
        "1.2.0",
    ]
    assert world.fetch_manifest(version="1.2.0")


class DyingStore:
    """A store whose owner dies after a number of writes."""

    def __init__(self, store: BlobStore, writes: int) -> None:
        self._store, self._left = store, writes

    def _spend(self) -> None:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1

    def find(self, path: str, max_bytes: int) -> tuple[bytes, str] | None:
        return self._store.find(path, max_bytes)

    def list_paths(self, prefix: str) -> Iterator[str]:
        return self._store.list_paths(prefix)

    def put(self, path: str, data: bytes) -> None:
        self._spend()
        self._store.put(path, data)

    def put_new(self, path: str, data: bytes) -> bool:
        self._spend()
        return self._store.put_new(path, data)

    def put_if(self, path: str, data: bytes, etag: str) -> None:
        self._spend()
        self._store.put_if(path, data, etag)


def test_a_publisher_that_dies_anywhere_leaves_the_old_state_or_the_new(world: World) -> None:
    world.publish("classifier")
    died = 0
    for writes in range(40):
        version = f"2.{writes}.0"
        draft = open_draft(world.store, world.keys)
        add_manifest(draft, NewVersion("detector", version, make_manifest(version=version)), desk=world.desk)
        try:
            commit(draft, Desk(DyingStore(world.store, writes), world.keys, NOW))
        except KeyboardInterrupt:
            died += 1
        listed = [one.version for one in open_draft(world.store, world.keys).list_versions("detector")]
        assert world.fetch_manifest(version=listed[-1]) == make_manifest(version=listed[-1])
        assert world.fetch_manifest("classifier") == make_manifest("classifier")
        if died <= writes:
            break
    assert 5 < died < 30


def test_a_role_that_somebody_else_wrote_into_the_store_is_never_signed_over(world: World) -> None:
    path = world.path_of("detector")
    plain = json.loads(world.read(path) or b"{}")
    plain["signed"]["targets"]["detector/6.6.6/manifest.json"] = {"length": 1, "hashes": {"sha256": "0" * 64}}
    world.store.put(path, json.dumps(plain).encode())
    with pytest.raises(MetadataUntrusted):
        world.publish(version="1.1.0")


def test_without_the_root_nothing_is_signed(world: World) -> None:
    (world.keys.folder / "root.json").unlink()
    with pytest.raises(ConfigInvalid, match=r"root\.json"):
        world.publish(version="1.1.0")


def test_without_a_key_readers_see_no_change(world: World) -> None:
    before = world.read("metadata/timestamp.json")
    (world.keys.folder / "timestamp.pem").unlink()
    with pytest.raises(ConfigInvalid, match="timestamp"):
        world.publish(version="1.1.0")
    assert world.read("metadata/timestamp.json") == before


def test_a_key_that_others_can_read_is_refused(world: World) -> None:
    (world.keys.folder / "snapshot.pem").chmod(0o644)
    with pytest.raises(ConfigInvalid, match="chmod 600"):
        world.publish(version="1.1.0")


def test_a_signer_uri_takes_the_place_of_a_key_file(world: World) -> None:
    pem = world.keys.folder / "timestamp.pem"
    pem.replace(world.folder / "elsewhere.pem")
    (world.keys.folder / "timestamp.uri").write_text(f"file2:{world.folder / 'elsewhere.pem'}\n")
    world.publish(version="1.1.0")
    assert world.fetch_manifest(version="1.1.0")


def test_a_refresh_changes_timestamp_and_snapshot_only(world: World) -> None:
    before = open_draft(world.store, world.keys)
    after = refresh(Desk(world.store, world.keys, NOW + dt.timedelta(days=40)))
    versions = [
        (old.signed.version, new.signed.version)
        for old, new in [(before.targets, after.targets), (before.roles["detector"], after.roles["detector"])]
    ]
    assert all(old == new for old, new in versions)
    assert after.timestamp.signed.expires == NOW + dt.timedelta(days=85)
    assert after.snapshot.signed.version == before.snapshot.signed.version + 1


def test_a_late_refresh_renews_roles_whose_life_is_half_over(world: World) -> None:
    late = NOW + dt.timedelta(days=200)
    after = refresh(Desk(world.store, world.keys, late))
    assert after.targets.signed.expires == after.roles["detector"].signed.expires == late + dt.timedelta(days=365)


def test_a_key_is_replaced_and_the_old_one_gone(world: World) -> None:
    old = (world.keys.folder / "timestamp.pem").read_bytes()
    draft = rotate_key(world.desk, "timestamp")
    assert (world.keys.folder / "timestamp.pem").read_bytes() != old
    assert not list(world.keys.folder.glob("*.next.pem"))
    assert draft.root.signed.version == 2
    world.publish(version="1.1.0")


def test_an_unknown_role_has_no_key_to_replace(world: World) -> None:
    with pytest.raises(ConfigInvalid, match="detector"):
        rotate_key(world.desk, "nothing")
