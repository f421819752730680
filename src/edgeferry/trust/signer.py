"""The operator's side of trust: changes a repository's metadata, signs it, writes it; readers never see half of it.

Keys are `keys.py`'s, reading it back is `draft.py`'s, what a manifest says is `publish/`'s. The repository's format
stands in docs/formats/repository.md.

Rules:
- Order of writing: manifests, roles, snapshot (all under new names), then the timestamp, in one step that fails if
  anybody else wrote it since: that step publishes. Bundle objects come last: they are copies for cheap fetching, and a
  reader who finds an old one falls back to the files themselves.
- Versioned names are only ever created. One that a crash left behind is skipped.
- Which manifests and files a bundle brings along is settled when its newest version is published, and stays: that
  version's patches were chosen by it.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from edgeferry.errors import ConfigInvalid, Conflict, MetadataUntrusted, NameInvalid
from edgeferry.model.digest import Digest
from edgeferry.names import require_model_name, require_version
from edgeferry.trust.bundle_object import (
    BUNDLE_MAX_BYTES,
    get_bundle_path,
    make_bundle_object,
    pick_small,
    read_bundle_object,
    read_small,
)
from edgeferry.trust.draft import METADATA_MAX_BYTES, Draft, Listed, ObjectStore, open_draft, require_object
from edgeferry.trust.keys import KeyFolder
from edgeferry.trust.verifier import get_manifest_path, get_target_path

SHORT_LIFE = dt.timedelta(days=45)
LIVES = {
    "root": dt.timedelta(days=730),
    "targets": dt.timedelta(days=365),
    "snapshot": SHORT_LIFE,
    "timestamp": SHORT_LIFE,
}
BUNDLE_WANTED_BYTES = 3072
"""A bundle takes older manifests along as long as it stays under this: a whole update shall stay under 4 KB."""
BUNDLE_MAX_MANIFESTS = 3
_SERIALIZER = JSONSerializer(compact=True)
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Desk:
    """What signing works with: where the repository lies, the keys to it, and the time."""

    store: ObjectStore
    keys: KeyFolder
    now: dt.datetime


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version to list: the manifest's bytes, and the base64 MD5 of its ZIP for classic devices (or empty).

    `contents`: of its files; the small ones come along in the bundle object.
    """

    model: str
    version: str
    manifest: bytes
    classic_md5: str = ""
    contents: tuple[bytes, ...] = field(default=(), repr=False)


def init_repository(desk: Desk) -> bytes:
    """Makes keys (those that are not there yet) and an empty repository; returns the root to pin on devices.

    Raises:
        Conflict: there is a repository already.
    """
    store, keys, now = desk.store, desk.keys, desk.now
    if store.find("metadata/1.root.json", METADATA_MAX_BYTES) is not None:
        raise Conflict("there is a repository at this place already; choose another, or use its keys")
    signers = {role: keys.make_signer(role) for role in ("root", "targets", "snapshot", "timestamp")}
    root = Metadata(Root(version=1, expires=_get_expiry("root", now), consistent_snapshot=True))
    for role, signer in signers.items():
        root.signed.add_key(signer.public_key, role)
    data = _sign(root, signers["root"])
    if not store.put_new("metadata/1.root.json", data):
        raise Conflict("somebody else makes a repository at this place at the same time")
    keys.write_root(data)
    targets = Metadata(Targets(version=1, expires=_get_expiry("targets", now), delegations=Delegations({}, {})))
    snapshot = Metadata(Snapshot(version=1, expires=_get_expiry("snapshot", now)))
    timestamp = Metadata(Timestamp(version=1, expires=_get_expiry("timestamp", now)))
    timestamp.signed.unrecognized_fields["signed_at"] = int(now.timestamp())
    store.put("metadata/1.targets.json", _sign(targets, signers["targets"]))
    store.put("metadata/1.snapshot.json", _sign(snapshot, signers["snapshot"]))
    store.put("metadata/timestamp.json", _sign(timestamp, signers["timestamp"]))
    return data


def add_manifest(draft: Draft, new: NewVersion, *, desk: Desk) -> bool:
    """Lists a manifest under its model's role, which is delegated first where it is new; nothing is written yet.

    Returns:
        False when the very same manifest is listed already.

    Raises:
        Conflict: the version is listed with other bytes.
    """
    require_publishable(new.model, new.version)
    listed, digest = draft.find_version(new.model, new.version), Digest.of(new.manifest)
    if listed is not None:
        if listed.digest != digest:
            raise Conflict(f"{new.model} {new.version} is published with other content; choose a new version")
        return False
    if new.model not in draft.roles:
        _delegate(draft, new.model, desk=desk)
    newest = max((one.created for one in draft.list_versions(new.model)), default=0)
    custom: dict[str, int | str] = {"created": max(int(desk.now.timestamp()), newest + 1)}
    if new.classic_md5:
        custom["classic_md5"] = new.classic_md5
    target_path = get_target_path(new.model, new.version)
    target = TargetFile.from_data(target_path, new.manifest, ["sha256"])
    target.unrecognized_fields["custom"] = custom
    draft.roles[new.model].signed.targets[target_path] = target
    draft.manifests[get_manifest_path(new.model, new.version, digest)] = new.manifest
    draft.small[new.model] = pick_small(new.contents)
    draft.changed.add(new.model)
    return True


def plan_bundle(draft: Draft, new: NewVersion, *, desk: Desk) -> frozenset[str]:
    """The versions whose manifests fit the model's bundle object once `new` is published; nothing is changed.

    `Draft.bundled` makes that so, should signing come out a few bytes longer than it did last time.
    """
    if new.model not in draft.roles:
        return frozenset({new.version})
    trial = copy.deepcopy(draft)
    add_manifest(trial, new, desk=desk)
    return _fill_bundle(trial, new.model, store=desk.store)[1]


def require_publishable(model: str, version: str) -> None:
    """Raises NameInvalid when a model or a version cannot be published under this name."""
    require_version(version)
    if require_model_name(model) in TOP_LEVEL_ROLE_NAMES:
        raise NameInvalid(f"a model cannot be called {model!r}: The Update Framework uses that name")


def commit(draft: Draft, desk: Desk) -> dict[str, int]:
    """Signs and writes everything, the timestamp last; then the bundle objects. Returns bundle sizes by model.

    Raises:
        Conflict: somebody else published in between; open a new draft and do it again.
        ConfigInvalid: a key is missing; nothing readers see has changed.
    """
    for path, data in draft.manifests.items():
        desk.store.put_new(path, data)
    for model in sorted(draft.changed & draft.roles.keys()):
        _write_version(draft, model, desk=desk)
    if "targets" in draft.changed:
        _write_version(draft, "targets", desk=desk)
    _write_snapshot(draft, desk)
    _write_timestamp(draft, desk)
    draft.changed.clear()
    return {model: _write_bundle(draft, model, store=desk.store) for model in draft.roles}


def refresh(desk: Desk) -> Draft:
    """Signs timestamp and snapshot anew, and the targets and model roles whose life is more than half over."""
    draft = open_draft(desk.store, desk.keys)
    for role, metadata in {"targets": draft.targets, **draft.roles}.items():
        if metadata.signed.expires - desk.now < LIVES["targets"] / 2 and desk.keys.has_key(role):
            draft.changed.add(role)
    commit(draft, desk)
    return draft


def rotate_key(desk: Desk, role: str) -> Draft:
    """Replaces the key of a role: for a model in `targets`, for the four others in a new root, which devices take over
    because the old root's key signs it.

    Raises:
        ConfigInvalid: there is no such role.
    """
    draft = open_draft(desk.store, desk.keys)
    if role not in TOP_LEVEL_ROLE_NAMES and role not in draft.roles:
        raise ConfigInvalid(
            f"the repository has no role {role!r}, only {sorted(TOP_LEVEL_ROLE_NAMES | draft.roles.keys())}"
        )
    signer = desk.keys.make_next_signer(role)
    if role in TOP_LEVEL_ROLE_NAMES:
        _rotate_in_root(draft, role, signer=signer, desk=desk)
        draft.changed |= {role} & {"targets"}
    else:
        _swap_key(draft.targets.signed, role, signer=signer)
        draft.changed |= {role, "targets"}
    commit(draft, desk)
    desk.keys.adopt_next(role)
    return draft


# --- changing ---------------------------------------------------------------------------------------------------------
def _delegate(draft: Draft, model: str, *, desk: Desk) -> None:
    """The model's role may sign the model's manifests and nothing else."""
    delegations = draft.targets.signed.delegations or Delegations({}, {})
    draft.targets.signed.delegations = delegations
    role = DelegatedRole(model, [], 1, terminating=True, paths=[f"{model}/*/manifest.json"])
    delegations.roles = {**(delegations.roles or {}), model: role}
    draft.targets.signed.add_key(desk.keys.make_signer(model).public_key, model)
    draft.roles[model] = Metadata(Targets(expires=_get_expiry("targets", desk.now)))
    draft.roles[model].signed.version = 0  # the first that is written is 1
    draft.changed |= {model, "targets"}


def _rotate_in_root(draft: Draft, role: str, *, signer: Signer, desk: Desk) -> None:
    old_signer = _load_signer(draft, "root", keys=desk.keys)
    _swap_key(draft.root.signed, role, signer=signer)
    draft.root.signed.version += 1
    draft.root.signed.expires = _get_expiry("root", desk.now)
    _sign(draft.root, old_signer)
    if role == "root":
        draft.root.sign(signer, append=True)
    data = draft.root.to_bytes(_SERIALIZER)
    path = f"metadata/{draft.root.signed.version}.root.json"
    if not desk.store.put_new(path, data):
        raise Conflict("somebody else replaced a key at the same time")
    draft.roots[path] = data


def _swap_key(delegator: Root | Targets, role: str, *, signer: Signer) -> None:
    for keyid in list(delegator.get_delegated_role(role).keyids):
        delegator.revoke_key(keyid, role)
    delegator.add_key(signer.public_key, role)


def _load_signer(draft: Draft, role: str, *, keys: KeyFolder) -> Signer:
    delegator = draft.root.signed if role in TOP_LEVEL_ROLE_NAMES else draft.targets.signed
    keyid = delegator.get_delegated_role(role).keyids[0]
    return keys.load_signer(role, delegator.get_key(keyid))


# --- writing ----------------------------------------------------------------------------------------------------------
def _write_version(draft: Draft, role: str, *, desk: Desk) -> None:
    """Creates the role's next version, past those that a crash or another publisher left, and lists it."""
    metadata: Metadata[Any] = getattr(draft, role) if role in TOP_LEVEL_ROLE_NAMES else draft.roles[role]
    signer = _load_signer(draft, role, keys=desk.keys)
    metadata.signed.expires = _get_expiry(role, desk.now)
    for _ in range(_TRIES):
        metadata.signed.version += 1
        if desk.store.put_new(f"metadata/{metadata.signed.version}.{role}.json", _sign(metadata, signer)):
            break
        metadata.signed.version = max(_list_versions(desk.store, role), default=metadata.signed.version)
    else:
        raise Conflict(f"versions of role {role} keep lying in the way: somebody else publishes all the time")
    if role != "snapshot":
        draft.snapshot.signed.meta[f"{role}.json"] = MetaFile(metadata.signed.version)


def _list_versions(store: ObjectStore, role: str) -> Iterator[int]:
    for path in store.list_paths("metadata"):
        version, _, name = path.removeprefix("metadata/").partition(".")
        if name == f"{role}.json" and version.isdecimal():
            yield int(version)


def _write_snapshot(draft: Draft, desk: Desk) -> None:
    _write_version(draft, "snapshot", desk=desk)
    draft.timestamp.signed.snapshot_meta = MetaFile(draft.snapshot.signed.version)


def _write_timestamp(draft: Draft, desk: Desk) -> None:
    """The one step that publishes. `signed_at` lets a device without a clock know how late it is at least."""
    signed = draft.timestamp.signed
    signed.version += 1
    signed.expires = _get_expiry("timestamp", desk.now)
    signed.unrecognized_fields["signed_at"] = int(desk.now.timestamp())
    data = _sign(draft.timestamp, _load_signer(draft, "timestamp", keys=desk.keys))
    desk.store.put_if("metadata/timestamp.json", data, draft.timestamp_etag)


def _write_bundle(draft: Draft, model: str, *, store: ObjectStore) -> int:
    data, _ = _fill_bundle(draft, model, store=store)
    store.put(get_bundle_path(model), data)
    return len(data)


def _fill_bundle(draft: Draft, model: str, *, store: ObjectStore) -> tuple[bytes, frozenset[str]]:
    """The bundle object, and the versions whose manifests it brings along: the newest, and what is settled or fits."""
    newest = draft.list_versions(model)[: -BUNDLE_MAX_MANIFESTS - 1 : -1]
    standing = _read_standing(newest, store)
    small = draft.small[model] if model in draft.small else read_small(standing)
    settled = draft.bundled.get(model) or frozenset(one.version for one in newest if _get_path(one) in standing)
    files = _list_role_files(draft, model) | {digest.blob_path: content for digest, content in small.items()}
    data, versions = b"", list[str]()
    for listed in newest:
        path = _get_path(listed)
        files[path] = draft.manifests.get(path) or require_object(store, path)
        larger = make_bundle_object(files)
        if data and not _is_wanted(listed.version, len(larger), settled):
            break
        data = larger
        versions.append(listed.version)
    return data, frozenset(versions)


def _is_wanted(version: str, size_bytes: int, settled: frozenset[str]) -> bool:
    return version in settled if settled else size_bytes <= BUNDLE_WANTED_BYTES


def _read_standing(newest: Sequence[Listed], store: ObjectStore) -> dict[str, bytes]:
    """What the bundle in the store holds, if it is one of the newest version; else nothing."""
    found = store.find(get_bundle_path(newest[0].model), BUNDLE_MAX_BYTES) if newest else None
    try:
        files = read_bundle_object(found[0]) if found else {}
    except MetadataUntrusted:
        return {}
    return files if newest and _get_path(newest[0]) in files else {}


def _get_path(listed: Listed) -> str:
    return get_manifest_path(listed.model, listed.version, listed.digest)


def _list_role_files(draft: Draft, model: str) -> dict[str, bytes]:
    return {
        **draft.roots,
        "metadata/timestamp.json": draft.timestamp.to_bytes(_SERIALIZER),
        f"metadata/{draft.snapshot.signed.version}.snapshot.json": draft.snapshot.to_bytes(_SERIALIZER),
        f"metadata/{draft.targets.signed.version}.targets.json": draft.targets.to_bytes(_SERIALIZER),
        f"metadata/{draft.roles[model].signed.version}.{model}.json": draft.roles[model].to_bytes(_SERIALIZER),
    }


def _sign(metadata: Metadata[Any], signer: Signer) -> bytes:
    metadata.sign(signer)
    return metadata.to_bytes(_SERIALIZER)


def _get_expiry(role: str, now: dt.datetime) -> dt.datetime:
    return (now + LIVES.get(role, LIVES["targets"])).replace(microsecond=0)
