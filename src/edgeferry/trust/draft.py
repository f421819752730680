"""A repository's metadata in the operator's hands: read from the store, verified, changed in memory.

Signing and writing it back are `signer.py`'s. The repository's format stands in docs/formats/repository.md.

Rules:
- What is read back from the store is verified against the root in the key folder before anything is signed on top of
  it: whoever can write to the store must not get a signature by way of us.
- Expiry does not matter here: an expired repository is refreshed with these very functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from edgeferry.errors import ConfigInvalid, MetadataUntrusted
from edgeferry.model.digest import Digest
from edgeferry.trust.keys import KeyFolder
from edgeferry.trust.verifier import MAX_ROOTS

METADATA_MAX_BYTES = 2 << 20


class ObjectReader(Protocol):
    """What reading metadata needs of a store."""

    def find(self, path: str, max_bytes: int) -> tuple[bytes, str] | None:
        """The object's bytes and tag."""


class ObjectStore(ObjectReader, Protocol):
    """What signing needs of `storage/blob_store.py`."""

    def put(self, path: str, data: bytes, sent: Callable[[int], None] | None = None) -> None:
        """Writes over; `sent` is told of bytes as they leave."""

    def put_blob(self, path: str, data: bytes, sent: Callable[[int], None]) -> None:
        """Writes what is named by its content, unless it is there."""

    def put_new(self, path: str, data: bytes) -> bool:
        """Creates only; tells whether it did."""

    def put_if(self, path: str, data: bytes, etag: str) -> None:
        """Replaces what has this tag; raises Conflict."""

    def list_paths(self, prefix: str) -> Iterator[str]:
        """Paths below a folder."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One version as the signed metadata lists it: its manifest, and the ZIP for classic devices.

    `created` is in Unix seconds, `classic_md5` base64 (empty where no ZIP was published).
    """

    model: str
    version: str
    digest: Digest
    size_bytes: int
    created: int
    classic_md5: str = ""


@dataclass(slots=True)
class Draft:
    """The metadata as it was read, verified, and since changed in memory; `commit` publishes it."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    timestamp_etag: str
    roots: dict[str, bytes]
    """Every root after the first, by path: what a bundle brings along."""
    roles: dict[str, Metadata[Targets]] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    manifests: dict[str, bytes] = field(default_factory=dict)
    """Manifests added by this draft, by path."""
    bundled: dict[str, frozenset[str]] = field(default_factory=dict)
    """By model: the versions whose manifests its bundle object shall bring along, where that was settled."""
    small: dict[str, dict[Digest, bytes]] = field(default_factory=dict)
    """By model: contents of the version added by this draft that its bundle object shall bring along."""

    def list_versions(self, model: str) -> tuple[Listed, ...]:
        """What is listed of `model`, oldest first."""
        role = self.roles.get(model)
        found = (_read_listed(target) for target in role.signed.targets.values()) if role else ()
        return tuple(sorted(found, key=lambda one: (one.created, one.version)))

    def find_version(self, model: str, version: str) -> Listed | None:
        """The version as listed, or None."""
        return next((one for one in self.list_versions(model) if one.version == version), None)


def open_draft(store: ObjectStore, keys: KeyFolder) -> Draft:
    """Reads the metadata on which the holder of `keys` wants to sign; see `read_draft`.

    Raises:
        ConfigInvalid: there is no repository, or no root in the key folder.
        MetadataUntrusted: something in the store is not signed as the root says.
    """
    return read_draft(store, keys.read_root())


def read_draft(store: ObjectReader, root_data: bytes) -> Draft:
    """Reads the metadata from timestamp down to every model's role, each verified from `root_data`, a root.json, on.

    Raises:
        ConfigInvalid: there is no repository.
        MetadataUntrusted: something in the store is not signed as the root says.
    """
    with _translate_tuf_errors():
        root, roots = _read_roots(store, root_data)
        found = store.find("metadata/timestamp.json", METADATA_MAX_BYTES)
        if found is None:
            raise ConfigInvalid("there is no repository at this place: run `edgeferry repo init --to URL` first")
        timestamp: Metadata[Timestamp] = _load(Timestamp, found[0])
        _verify(root, "timestamp", timestamp)
        snapshot_version = timestamp.signed.snapshot_meta.version
        snapshot: Metadata[Snapshot] = _load(
            Snapshot, require_object(store, f"metadata/{snapshot_version}.snapshot.json")
        )
        _verify(root, "snapshot", snapshot)
        targets = _read_role(store, root, snapshot, "targets")
        draft = Draft(root, targets, snapshot, timestamp, found[1], roots)
        for model in _get_models(targets):
            draft.roles[model] = _read_role(store, targets, snapshot, model)
    return draft


def _read_roots(store: ObjectReader, root_data: bytes) -> tuple[Metadata[Root], dict[str, bytes]]:
    """The newest root that this one leads to, and all roots after the first."""
    root: Metadata[Root] = _load(Root, root_data)
    _verify(root, "root", root)
    for version in range(root.signed.version + 1, MAX_ROOTS):
        found = store.find(f"metadata/{version}.root.json", METADATA_MAX_BYTES)
        if found is None:
            break
        newer: Metadata[Root] = _load(Root, found[0])
        _verify(root, "root", newer)
        _verify(newer, "root", newer)
        root = newer
    later = (f"metadata/{version}.root.json" for version in range(2, root.signed.version + 1))
    return root, {path: require_object(store, path) for path in later}


def _read_role(
    store: ObjectReader, delegator: Metadata[Any], snapshot: Metadata[Snapshot], role: str
) -> Metadata[Targets]:
    meta = snapshot.signed.meta.get(f"{role}.json")
    if meta is None:
        raise MetadataUntrusted(f"the snapshot does not list the role {role}")
    metadata: Metadata[Targets] = _load(Targets, require_object(store, f"metadata/{meta.version}.{role}.json"))
    _verify(delegator, role, metadata)
    if metadata.signed.version != meta.version:
        raise MetadataUntrusted(f"expected version {meta.version} of role {role}, found {metadata.signed.version}")
    return metadata


def _verify(delegator: Metadata[Any], role: str, metadata: Metadata[Any]) -> None:
    delegator.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def _load(kind: type[Any], data: bytes) -> Metadata[Any]:
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    if not isinstance(metadata.signed, kind):
        raise MetadataUntrusted(f"expected {kind.__name__} metadata, found {metadata.signed.type}")
    return metadata


def require_object(store: ObjectReader, path: str) -> bytes:
    """An object that the metadata names; raises MetadataUntrusted where it is missing."""
    found = store.find(path, METADATA_MAX_BYTES)
    if found is None:
        raise MetadataUntrusted(f"the repository lacks {path}, which its metadata names")
    return found[0]


def _get_models(targets: Metadata[Targets]) -> tuple[str, ...]:
    delegations = targets.signed.delegations
    return tuple(delegations.roles or ()) if delegations else ()


def _read_listed(target: TargetFile) -> Listed:
    model, version, _ = target.path.split("/")
    custom = target.custom or {}
    created, classic_md5 = int(custom.get("created", 0)), str(custom.get("classic_md5", ""))
    return Listed(model, version, Digest(target.hashes["sha256"]), target.length, created, classic_md5)


@contextmanager
def _translate_tuf_errors() -> Iterator[None]:
    try:
        yield
    except RepositoryError as error:
        raise MetadataUntrusted(f"the repository's metadata does not verify: {error!s:.300}") from error
