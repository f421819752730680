"""The device believes a manifest only when everything holds; each attack of The Update Framework's list has a test."""

from __future__ import annotations

import datetime as dt
import functools
import http.server
import json
import threading
from pathlib import Path

import pytest
import zstandard
from tests.trust.world import NOW, World, make_manifest
from tuf.api.metadata import Metadata
from tuf.ngclient import Updater

from edgeferry.errors import (
    AccessDenied,
    DigestMismatch,
    EdgeferryError,
    LinkDown,
    LinkTimeout,
    ManifestInvalid,
    MetadataExpired,
    MetadataUntrusted,
    ObjectMissing,
)
from edgeferry.model.digest import Digest
from edgeferry.trust.bundle_object import get_bundle_path, make_bundle_object, read_bundle_object
from edgeferry.trust.draft import open_draft
from edgeferry.trust.keys import KeyFolder
from edgeferry.trust.signer import Desk, NewVersion, add_manifest, commit, init_repository, refresh, rotate_key

BUNDLE = get_bundle_path("detector")


def test_one_get_brings_a_trusted_manifest(world: World) -> None:
    assert world.fetch_manifest() == make_manifest()
    assert world.fetched == [BUNDLE]


def test_a_whole_updates_metadata_stays_under_4_kb(world: World) -> None:
    for minor in range(1, 10):
        world.publish(version=f"1.{minor}.0")
    world.publish("classifier")
    world.fetch_manifest(version="1.9.0")
    size_bytes = sum(len(world.read(path) or b"") for path in world.fetched)
    print(f"metadata of one update, ten versions published: {size_bytes} bytes in {len(world.fetched)} GET")
    assert world.fetched == [BUNDLE]
    assert size_bytes < 4096


def test_without_the_bundle_the_files_themselves_serve(world: World) -> None:
    world.replaced[BUNDLE] = None
    assert world.fetch_manifest() == make_manifest()
    assert len(world.fetched) == 7  # bundle, next root, timestamp, snapshot, targets, role, manifest


# --- other versions, which come along in the bundle -------------------------------------------------------------------
def fetch_all(world: World, version: str) -> tuple[bytes, ...]:
    found = world.open_verifier().fetch_manifests("detector", version, Digest.of(make_manifest(version=version)))
    return (found.manifest, *found.others)


def test_manifests_of_other_versions_come_along_and_cost_no_fetch(world: World) -> None:
    for version in ("1.1.0", "1.2.0"):
        world.publish(version=version)
    world.publish("classifier")
    for version, others in {"1.2.0": ("1.1.0", "1.0.0"), "1.1.0": ("1.2.0", "1.0.0")}.items():
        world.fetched.clear()
        wanted = tuple(make_manifest(version=one) for one in (version, *others))
        assert fetch_all(world, version) == wanted
        assert world.fetched == [BUNDLE]


def test_without_a_bundle_nothing_comes_along(world: World) -> None:
    world.publish(version="1.1.0")
    world.replaced[BUNDLE] = None
    assert fetch_all(world, "1.1.0") == (make_manifest(version="1.1.0"),)


@pytest.mark.parametrize("change", ["other bytes", "not listed", "another model's", "a name that leads nowhere"])
def test_another_version_that_is_not_signed_is_left_out_and_is_no_verdict_on_the_wanted_one(
    world: World, change: str
) -> None:
    world.publish(version="1.1.0")
    world.publish("classifier")
    files = read_bundle_object(world.read(BUNDLE) or b"")
    [old] = [path for path in files if path.startswith("targets/detector/1.0.0/")]
    data = files.pop(old)
    place, put = {
        "other bytes": (old, data.replace(b"worker", b"walker")),
        "not listed": (old.replace("1.0.0", "0.9.0"), make_manifest(version="0.9.0")),
        "another model's": (old.replace("detector", "classifier"), make_manifest("classifier")),
        "a name that leads nowhere": ("targets/detector/../1.0.0/x.manifest.json", data),
    }[change]
    world.replaced[BUNDLE] = make_bundle_object({**files, place: put})
    assert fetch_all(world, "1.1.0") == (make_manifest(version="1.1.0"),)


@pytest.mark.parametrize("bundle", [b"", b"not zstd", make_bundle_object({"metadata/timestamp.json": b"{}"})])
def test_a_damaged_bundle_costs_gets_and_nothing_else(world: World, bundle: bytes) -> None:
    world.replaced[BUNDLE] = bundle
    assert world.fetch_manifest() == make_manifest()


def test_an_old_bundle_of_another_moment_is_stepped_over(world: World) -> None:
    old = world.read(BUNDLE)
    world.publish(version="1.1.0")
    world.fetch_manifest(version="1.1.0")
    world.replaced[BUNDLE] = old
    world.publish(version="1.2.0")
    assert world.fetch_manifest(version="1.2.0") == make_manifest(version="1.2.0")


def test_a_second_model_costs_one_get_more(world: World) -> None:
    world.publish("classifier")
    world.fetch_manifest()
    world.fetch_manifest("classifier")
    assert world.fetched == [BUNDLE, get_bundle_path("classifier")]


# --- attacks ----------------------------------------------------------------------------------------------------------
def change(data: bytes | None, **fields: object) -> bytes:
    """Metadata with other content under its old signature."""
    plain = json.loads(data or b"{}")
    plain["signed"].update(fields)
    return json.dumps(plain).encode()


def strip_signatures(data: bytes | None) -> bytes:
    plain = json.loads(data or b"{}")
    plain["signatures"] = []
    return json.dumps(plain).encode()


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets", "detector"])
@pytest.mark.parametrize("tamper", [strip_signatures, functools.partial(change, expires="2099-01-01T00:00:00Z")])
def test_tampered_or_unsigned_metadata_is_refused(world: World, name: str, tamper: object) -> None:
    path = "metadata/timestamp.json" if name == "timestamp" else world.path_of(name)
    world.replaced |= {BUNDLE: None, path: tamper(world.read(path))}  # type: ignore[operator]
    with pytest.raises(MetadataUntrusted):
        world.fetch_manifest()


def test_tampered_metadata_inside_the_bundle_is_refused_too(world: World) -> None:
    files = read_bundle_object(world.read(BUNDLE) or b"")
    files["metadata/timestamp.json"] = change(files["metadata/timestamp.json"], version=99)
    world.replaced |= {BUNDLE: make_bundle_object(files), "metadata/timestamp.json": files["metadata/timestamp.json"]}
    with pytest.raises(MetadataUntrusted):
        world.fetch_manifest()


def test_a_repository_of_other_keys_is_refused(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    init_repository(other.desk)
    other.publish()
    with pytest.raises(MetadataUntrusted):
        world.open_verifier(pin=other.keys.read_root()).fetch_manifests("detector", "1.0.0", Digest.of(make_manifest()))


def test_a_models_key_cannot_sign_for_another_model(world: World) -> None:
    world.publish("classifier")
    draft = open_draft(world.store, world.keys)
    stolen = world.keys.load_signer(
        "detector", draft.targets.signed.get_key(draft.targets.signed.get_delegated_role("detector").keyids[0])
    )
    role = draft.roles["classifier"]
    role.sign(stolen)
    world.replaced |= {get_bundle_path("classifier"): None, world.path_of("classifier"): role.to_bytes()}
    with pytest.raises(MetadataUntrusted):
        world.fetch_manifest("classifier")


def test_a_models_key_cannot_list_another_models_manifest(world: World) -> None:
    data = make_manifest("classifier", "9.0.0")
    draft = open_draft(world.store, world.keys)
    add_manifest(draft, NewVersion("detector", "9.0.0", data), desk=world.desk)
    commit(draft, world.desk)
    with pytest.raises(ObjectMissing):
        world.fetch_manifest("classifier", "9.0.0")
    with pytest.raises(ManifestInvalid):
        world.fetch_manifest("detector", "9.0.0", Digest.of(data))


def test_older_metadata_than_seen_is_a_rollback(world: World) -> None:
    old = {path: world.read(path) for path in (BUNDLE, "metadata/timestamp.json")}
    world.publish(version="1.1.0")
    world.fetch_manifest(version="1.1.0")
    world.replaced |= old
    with pytest.raises(MetadataUntrusted):
        world.fetch_manifest()


def test_files_of_two_moments_do_not_mix(world: World) -> None:
    world.publish(version="1.1.0")
    newest = world.path_of("detector")
    world.replaced |= {BUNDLE: None, newest: world.read(newest.replace("/2.", "/1."))}
    with pytest.raises(MetadataUntrusted):
        world.fetch_manifest(version="1.1.0")


@pytest.mark.parametrize("path", ["metadata/timestamp.json", BUNDLE])
def test_endless_data_is_refused(world: World, path: str) -> None:
    world.replaced |= {BUNDLE: None, path: b"x" * (5 << 20)}
    if path == BUNDLE:
        assert world.fetch_manifest() == make_manifest()
        return
    with pytest.raises(MetadataUntrusted):
        world.fetch_manifest()


def test_a_bundle_that_claims_gigabytes_is_refused_before_it_is_unpacked(world: World) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(200 << 20))
    assert len(bomb) < 100_000
    with pytest.raises(MetadataUntrusted):
        read_bundle_object(bomb)


def test_metadata_that_has_expired_is_refused(world: World) -> None:
    world.now = NOW + dt.timedelta(days=46)
    with pytest.raises(MetadataExpired):
        world.fetch_manifest()


def test_a_refresh_makes_expired_metadata_valid_again(world: World) -> None:
    world.now = NOW + dt.timedelta(days=46)
    refresh(Desk(world.store, world.keys, world.now))
    assert world.fetch_manifest() == make_manifest()


def test_a_clock_that_fell_back_does_not_make_old_metadata_fresh(world: World) -> None:
    world.fetch_manifest()
    late = NOW + dt.timedelta(days=400)
    refresh(Desk(world.store, world.keys, late))
    world.now = late
    world.fetch_manifest()
    refresh(Desk(world.store, world.keys, NOW + dt.timedelta(days=1)))  # a higher version, of an earlier time
    with pytest.raises(MetadataExpired):
        world.open_verifier(now=lambda: 0.0).fetch_manifests("detector", "1.0.0", Digest.of(make_manifest()))


def test_a_device_in_1970_still_takes_fresh_metadata(world: World) -> None:
    assert world.open_verifier(now=lambda: 0.0).fetch_manifests("detector", "1.0.0", Digest.of(make_manifest()))


def test_a_signers_clock_far_ahead_locks_nobody_out(world: World) -> None:
    draft = open_draft(world.store, world.keys)
    commit(draft, world.desk)
    draft.timestamp.signed.unrecognized_fields["signed_at"] = 9_999_999_999
    (world.trust / "root_history").mkdir(parents=True)
    (world.trust / "timestamp.json").write_bytes(draft.timestamp.to_bytes())
    assert world.fetch_manifest() == make_manifest()


# --- twin and repository must agree -----------------------------------------------------------------------------------
def test_another_digest_than_the_twins_is_refused(world: World) -> None:
    with pytest.raises(DigestMismatch):
        world.fetch_manifest(digest=Digest.of(b"something else"))


def test_a_tampered_manifest_is_refused(world: World) -> None:
    path = next(path for path in world.store.list_paths("targets") if path.endswith("manifest.json"))
    world.replaced |= {BUNDLE: None, path: make_manifest() + b" "}
    with pytest.raises(MetadataUntrusted):
        world.fetch_manifest()


def test_a_version_that_is_not_published_yet_is_missing(world: World) -> None:
    with pytest.raises(ObjectMissing):
        world.fetch_manifest(version="2.0.0")


@pytest.mark.parametrize(("model", "version"), [("../x", "1"), ("detector", "../1"), ("", "1")])
def test_names_with_separators_are_refused_before_anything_is_fetched(world: World, model: str, version: str) -> None:
    with pytest.raises(EdgeferryError):
        world.fetch_manifest(model, version, Digest.of(b""))
    assert world.fetched == []


# --- the link ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [LinkDown("no route"), LinkTimeout("slow"), AccessDenied("SAS expired")])
@pytest.mark.parametrize("path", [BUNDLE, "metadata/timestamp.json", "metadata/1.snapshot.json"])
def test_a_failure_of_the_link_stays_one(world: World, error: EdgeferryError, path: str) -> None:
    wanted = world.path_of("snapshot") if "snapshot" in path else path
    world.replaced |= {BUNDLE: None, wanted: error}
    if path == BUNDLE and isinstance(error, AccessDenied):  # so a public bucket says "missing": see the next test
        world.replaced["metadata/timestamp.json"] = error
    with pytest.raises(type(error)):
        world.fetch_manifest()


def test_a_bundle_that_is_denied_may_be_missing_only_and_the_files_are_asked_for(world: World) -> None:
    world.replaced[BUNDLE] = AccessDenied("a public bucket that nobody may list denies what it does not have")
    assert world.fetch_manifest() == make_manifest()


def test_what_was_cut_goes_on_the_next_time(world: World) -> None:
    world.replaced[BUNDLE] = LinkDown("cut")
    with pytest.raises(LinkDown):
        world.fetch_manifest()
    world.replaced.clear()
    assert world.fetch_manifest() == make_manifest()


# --- the root ---------------------------------------------------------------------------------------------------------
def test_a_root_pinned_by_its_digest_is_fetched_once(world: World) -> None:
    pin = Digest.of(world.keys.read_root())
    for _ in range(2):
        world.open_verifier(pin=pin).fetch_manifests("detector", "1.0.0", Digest.of(make_manifest()))
    assert world.fetched == ["metadata/1.root.json", BUNDLE, BUNDLE]


def test_a_pinned_digest_that_no_root_has_is_refused(world: World) -> None:
    with pytest.raises(MetadataUntrusted):
        world.open_verifier(pin=Digest.of(b"")).fetch_manifests("detector", "1.0.0", Digest.of(make_manifest()))


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "detector"])
def test_devices_follow_a_new_key_of_any_role(world: World, role: str) -> None:
    pin = world.keys.read_root()
    world.fetch_manifest()
    world.fetched.clear()
    rotate_key(world.desk, role)
    world.publish(version="1.1.0")
    found = world.open_verifier(pin=pin).fetch_manifests("detector", "1.1.0", Digest.of(make_manifest(version="1.1.0")))
    assert found.manifest == make_manifest(version="1.1.0")
    assert world.fetched == [BUNDLE]


def test_a_new_root_that_the_old_one_did_not_sign_is_refused(world: World, tmp_path: Path) -> None:
    thief = KeyFolder(tmp_path / "thief")
    draft = open_draft(world.store, world.keys)
    draft.root.signed.version = 2
    draft.root.sign(thief.make_signer("root"))
    world.replaced |= {BUNDLE: None, "metadata/2.root.json": draft.root.to_bytes()}
    with pytest.raises(MetadataUntrusted):
        world.fetch_manifest()


def test_a_truncated_trust_folder_is_made_anew(world: World) -> None:
    world.fetch_manifest()
    for path in world.trust.glob("*.json"):
        if not path.is_symlink():
            path.write_bytes(path.read_bytes()[:50])
    assert world.fetch_manifest() == make_manifest()


def test_another_tuf_client_reads_the_repository(world: World, tmp_path: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(world.folder / "repo"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    world.store.put("metadata/timestamp.json", refreshed_timestamp(world))
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "client").mkdir()
        client = Updater(
            str(tmp_path / "client"),
            f"{url}/metadata",
            str(tmp_path),
            f"{url}/targets",
            bootstrap=world.keys.read_root(),
        )
        client.refresh()
        target = client.get_targetinfo("detector/1.0.0/manifest.json")
        assert target is not None
        assert Path(client.download_target(target, str(tmp_path / "got"))).read_bytes() == make_manifest()
    finally:
        server.shutdown()
        server.server_close()


def refreshed_timestamp(world: World) -> bytes:
    """A plain client reads the real clock: its metadata must be fresh today."""
    refresh(Desk(world.store, world.keys, dt.datetime.now(dt.UTC)))
    data = world.read("metadata/timestamp.json")
    assert data is not None
    assert Metadata.from_bytes(data).signed.expires > dt.datetime.now(dt.UTC)
    return data
