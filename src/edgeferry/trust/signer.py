"""The operator's side of trust: changes a repository's metadata, signs it, writes it; readers never see half of it.

Keys are `keys.py`'s, reading it back is `draft.py`'s, what a manifest says is `publish/`'s. The repository's format
stands in docs/formats/repository.md.

Rules:
- Order of writing: manifests, roles, snapshot (all under new names), then the timestamp, in one step that fails if
  anybody else wrote it since: that step publishes. Bundle objects come last: they are copies for cheap fetching, and a
  reader who finds an old one falls back to the files themselves.
- Versioned names are only ever created. One that a crash left behind is skipped.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
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

from edgeferry.errors import ConfigInvalid, Conflict, NameInvalid
from edgeferry.model.digest import Digest
from edgeferry.names import require_model_name, require_version
from edgeferry.trust.bundle_object import get_bundle_path, make_bundle_object
from edgeferry.trust.draft import METADATA_MAX_BYTES, Draft, ObjectStore, open_draft, require_object
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


def init_repository(store: ObjectStore, keys: KeyFolder, now: dt.datetime) -> bytes:
    """Makes keys (those that are not there yet) and an empty repository; returns the root to pin on devices.

    Raises:
        Conflict: there is a repository already.
    """
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


def add_manifest(draft: Draft, keys: KeyFolder, model: str, version: str, *, data: bytes, now: dt.datetime) -> bool:
    """Lists a manifest under its model's role, which is delegated first where it is new; nothing is written yet.

    Returns:
        False when the very same manifest is listed already.

    Raises:
        Conflict: the version is listed with other bytes.
    """
    require_version(version)
    if require_model_name(model) in TOP_LEVEL_ROLE_NAMES:
        raise NameInvalid(f"a model cannot be called {model!r}: The Update Framework uses that name")
    listed = draft.find_version(model, version)
    if listed is not None:
        if listed.digest != Digest.of(data):
            raise Conflict(f"{model} {version} is published with other content; choose a new version")
        return False
    if model not in draft.roles:
        _delegate(draft, keys, model, now)
    target_path = get_target_path(model, version)
    target = TargetFile.from_data(target_path, data, ["sha256"])
    newest = max((one.created for one in draft.list_versions(model)), default=0)
    target.unrecognized_fields["custom"] = {"created": max(int(now.timestamp()), newest + 1)}
    draft.roles[model].signed.targets[target_path] = target
    draft.manifests[get_manifest_path(model, version, Digest.of(data))] = data
    draft.changed.add(model)
    return True


def commit(draft: Draft, store: ObjectStore, keys: KeyFolder, now: dt.datetime) -> dict[str, int]:
    """Signs and writes everything, the timestamp last; then the bundle objects. Returns bundle sizes by model.

    Raises:
        Conflict: somebody else published in between; open a new draft and do it again.
        ConfigInvalid: a key is missing; nothing readers see has changed.
    """
    for path, data in draft.manifests.items():
        store.put_new(path, data)
    for model in sorted(draft.changed & draft.roles.keys()):
        _write_version(draft, store, keys, model, now)
    if "targets" in draft.changed:
        _write_version(draft, store, keys, "targets", now)
    _write_snapshot(draft, store, keys, now)
    _write_timestamp(draft, store, keys, now)
    draft.changed.clear()
    return {model: _write_bundle(draft, store, model) for model in draft.roles}


def refresh(store: ObjectStore, keys: KeyFolder, now: dt.datetime) -> Draft:
    """Signs timestamp and snapshot anew, and the targets and model roles whose life is more than half over."""
    draft = open_draft(store, keys)
    for role, metadata in {"targets": draft.targets, **draft.roles}.items():
        if metadata.signed.expires - now < LIVES["targets"] / 2 and keys.has_key(role):
            draft.changed.add(role)
    commit(draft, store, keys, now)
    return draft


def rotate_key(store: ObjectStore, keys: KeyFolder, role: str, now: dt.datetime) -> Draft:
    """Replaces the key of a role: for a model in `targets`, for the four others in a new root, which devices take over
    because the old root's key signs it.

    Raises:
        ConfigInvalid: there is no such role.
    """
    draft = open_draft(store, keys)
    if role not in TOP_LEVEL_ROLE_NAMES and role not in draft.roles:
        raise ConfigInvalid(
            f"the repository has no role {role!r}, only {sorted(TOP_LEVEL_ROLE_NAMES | draft.roles.keys())}"
        )
    signer = keys.make_next_signer(role)
    if role in TOP_LEVEL_ROLE_NAMES:
        _rotate_in_root(draft, store, keys, role, signer=signer, now=now)
        draft.changed |= {role} & {"targets"}
    else:
        _swap_key(draft.targets.signed, role, signer)
        draft.changed |= {role, "targets"}
    commit(draft, store, keys, now)
    keys.adopt_next(role)
    return draft


# --- changing ---------------------------------------------------------------------------------------------------------
def _delegate(draft: Draft, keys: KeyFolder, model: str, now: dt.datetime) -> None:
    """The model's role may sign the model's manifests and nothing else."""
    delegations = draft.targets.signed.delegations or Delegations({}, {})
    draft.targets.signed.delegations = delegations
    role = DelegatedRole(model, [], 1, terminating=True, paths=[f"{model}/*/manifest.json"])
    delegations.roles = {**(delegations.roles or {}), model: role}
    draft.targets.signed.add_key(keys.make_signer(model).public_key, model)
    draft.roles[model] = Metadata(Targets(expires=_get_expiry("targets", now)))
    draft.roles[model].signed.version = 0  # the first that is written is 1
    draft.changed |= {model, "targets"}


def _rotate_in_root(
    draft: Draft, store: ObjectStore, keys: KeyFolder, role: str, *, signer: Signer, now: dt.datetime
) -> None:
    old_signer = _load_signer(draft, keys, "root")
    _swap_key(draft.root.signed, role, signer)
    draft.root.signed.version += 1
    draft.root.signed.expires = _get_expiry("root", now)
    _sign(draft.root, old_signer)
    if role == "root":
        draft.root.sign(signer, append=True)
    data = draft.root.to_bytes(_SERIALIZER)
    path = f"metadata/{draft.root.signed.version}.root.json"
    if not store.put_new(path, data):
        raise Conflict("somebody else replaced a key at the same time")
    draft.roots[path] = data


def _swap_key(delegator: Root | Targets, role: str, signer: Signer) -> None:
    for keyid in list(delegator.get_delegated_role(role).keyids):
        delegator.revoke_key(keyid, role)
    delegator.add_key(signer.public_key, role)


def _load_signer(draft: Draft, keys: KeyFolder, role: str) -> Signer:
    delegator = draft.root.signed if role in TOP_LEVEL_ROLE_NAMES else draft.targets.signed
    keyid = delegator.get_delegated_role(role).keyids[0]
    return keys.load_signer(role, delegator.get_key(keyid))


# --- writing ----------------------------------------------------------------------------------------------------------
def _write_version(draft: Draft, store: ObjectStore, keys: KeyFolder, role: str, now: dt.datetime) -> None:
    """Creates the role's next version, past those that a crash or another publisher left, and lists it."""
    metadata: Metadata[Any] = getattr(draft, role) if role in TOP_LEVEL_ROLE_NAMES else draft.roles[role]
    signer = _load_signer(draft, keys, role)
    metadata.signed.expires = _get_expiry(role, now)
    for _ in range(_TRIES):
        metadata.signed.version += 1
        if store.put_new(f"metadata/{metadata.signed.version}.{role}.json", _sign(metadata, signer)):
            break
        metadata.signed.version = max(_list_versions(store, role), default=metadata.signed.version)
    else:
        raise Conflict(f"versions of role {role} keep lying in the way: somebody else publishes all the time")
    if role != "snapshot":
        draft.snapshot.signed.meta[f"{role}.json"] = MetaFile(metadata.signed.version)


def _list_versions(store: ObjectStore, role: str) -> Iterator[int]:
    for path in store.list_paths("metadata"):
        version, _, name = path.removeprefix("metadata/").partition(".")
        if name == f"{role}.json" and version.isdecimal():
            yield int(version)


def _write_snapshot(draft: Draft, store: ObjectStore, keys: KeyFolder, now: dt.datetime) -> None:
    _write_version(draft, store, keys, "snapshot", now)
    draft.timestamp.signed.snapshot_meta = MetaFile(draft.snapshot.signed.version)


def _write_timestamp(draft: Draft, store: ObjectStore, keys: KeyFolder, now: dt.datetime) -> None:
    """The one step that publishes. `signed_at` lets a device without a clock know how late it is at least."""
    signed = draft.timestamp.signed
    signed.version += 1
    signed.expires = _get_expiry("timestamp", now)
    signed.unrecognized_fields["signed_at"] = int(now.timestamp())
    data = _sign(draft.timestamp, _load_signer(draft, keys, "timestamp"))
    store.put_if("metadata/timestamp.json", data, draft.timestamp_etag)


def _write_bundle(draft: Draft, store: ObjectStore, model: str) -> int:
    files = {
        **draft.roots,
        "metadata/timestamp.json": draft.timestamp.to_bytes(_SERIALIZER),
        f"metadata/{draft.snapshot.signed.version}.snapshot.json": draft.snapshot.to_bytes(_SERIALIZER),
        f"metadata/{draft.targets.signed.version}.targets.json": draft.targets.to_bytes(_SERIALIZER),
        f"metadata/{draft.roles[model].signed.version}.{model}.json": draft.roles[model].to_bytes(_SERIALIZER),
    }
    data = b""
    for listed in draft.list_versions(model)[: -BUNDLE_MAX_MANIFESTS - 1 : -1]:
        path = get_manifest_path(model, listed.version, listed.digest)
        files[path] = draft.manifests.get(path) or require_object(store, path)
        larger = make_bundle_object(files)
        if data and len(larger) > BUNDLE_WANTED_BYTES:
            break
        data = larger
    store.put(get_bundle_path(model), data)
    return len(data)


def _sign(metadata: Metadata[Any], signer: Signer) -> bytes:
    metadata.sign(signer)
    return metadata.to_bytes(_SERIALIZER)


def _get_expiry(role: str, now: dt.datetime) -> dt.datetime:
    return (now + LIVES.get(role, LIVES["targets"])).replace(microsecond=0)
