"""Damage at rest: a version is read again before anything loads it, and made whole of what is here.

What this file leaves to others: fetching what is here no more (`agent/`), when to look (`agent/healing.py`).

Rules:
- Damaged content goes before anything else happens: it is neither served, nor a base, nor "here already".
- A blob, the file that a version links to, and the manifest kept by an update stand in for one another.
- Only bytes that have their digest, or that a seal vouches for, are believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeferry.errors import ManifestInvalid, StorageError, StorageFailed
from edgeferry.link.route import find_listed
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import MANIFEST_MAX_BYTES, FileEntry, read_manifest_bytes
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.files import read_bounded
from edgeferry.storage.partial import get_partial_path
from edgeferry.storage.refs import RefName
from edgeferry.storage.repository import Repository
from edgeferry.storage.versions import (
    OTHER_SIGN,
    find_manifest,
    find_manifest_bytes,
    iterate_folder,
    list_content,
    list_identities,
)

_ASIDE = re.compile(r"([0-9a-f]{64})-damaged")


def find_sound_ref(repository: Repository, model: str, name: RefName) -> StoredVersion | None:
    """The version that the ref points to, as `find_sound` finds it."""
    ref = repository.refs.read(model, name)
    return find_sound(repository, model, ref.version, identity=ref.identity) if ref is not None else None


def find_sound(repository: Repository, model: str, version: str, *, identity: str) -> StoredVersion | None:
    """The version once every byte of it has been read again and has its digest; None when something must be fetched.

    Raises:
        NoSpace, StorageFailed: something is damaged, and the disk does not let it be removed or mended.
    """
    with repository.lock:
        for _ in range(2):  # once more for what was mended
            stored = mend(repository, model, version, identity=identity)
            if stored is None or _check(repository, stored):
                return stored
    return None


def require_sound(repository: Repository, stored: StoredVersion) -> None:
    """Raises StorageFailed when a byte of the version is not what was stored; what is damaged goes."""
    if find_sound(repository, stored.model, stored.version, identity=stored.identity) is None:
        raise StorageFailed(f"the files of {stored} were damaged on the disk; what is missing is fetched again")


def mend(repository: Repository, model: str, version: str, *, identity: str) -> StoredVersion | None:
    """The version, made whole if it is not and all that it takes is here; what is whole is not read."""
    with repository.lock:
        stored = repository.find_version(model, version, identity)
        return stored if stored is not None else _store_again(repository, model, version, identity)


def _store_again(repository: Repository, model: str, version: str, identity: str) -> StoredVersion | None:
    data = _find_manifest_bytes(repository, model, version, identity=identity)
    if data is None:
        return None
    manifest = read_manifest_bytes(data)
    for entry in manifest.files:
        for folder in repository.get_folders(model, version, identity):
            link = folder / entry.path
            _check_file(repository, entry, link if link.is_file() else None)
    for golden in manifest.golden:
        repository.blobs.check(Digest.from_str(golden.input))
    if not all(map(repository.has_blob, list_content(manifest))):
        return None
    return repository.store_again(manifest, data, identity)


def _check(repository: Repository, stored: StoredVersion) -> bool:
    manifest = find_manifest(stored.folder, stored.identity)
    if manifest is None:
        return False
    verdicts = [_check_file(repository, one, stored.folder / one.path) for one in manifest.files]
    verdicts += [repository.blobs.check(Digest.from_str(one.input)) for one in manifest.golden]
    return all(verdicts)


def _check_file(repository: Repository, entry: FileEntry, link: Path | None) -> bool:
    """Of a file whose pieces are listed the sound ones are kept: only the others need be fetched."""
    digest = Digest.from_str(entry.sha256)
    aside = get_aside_path(repository, digest) if find_listed(entry) is not None else None
    return repository.blobs.check(digest, link, aside=aside)


# --- what is set aside ------------------------------------------------------------------------------------------------
def get_aside_path(repository: Repository, digest: Digest) -> Path:
    """Where damaged content waits for its repair, out of everybody's reach."""
    return get_partial_path(repository.partial_folder, f"{digest.hex}-damaged")


def list_aside(repository: Repository) -> frozenset[Digest]:
    """The digests that what is set aside should have."""
    found = [_ASIDE.fullmatch(path.name) for path in iterate_folder(repository.partial_folder)]
    return frozenset(Digest(match[1]) for match in found if match is not None)


def _find_manifest_bytes(repository: Repository, model: str, version: str, *, identity: str) -> bytes | None:
    """The manifest that `identity` vouches for, out of the version's folder or as an update has kept it."""
    for folder in repository.get_folders(model, version, identity):
        data = find_manifest_bytes(folder, identity)
        if data is not None:
            return data
    try:
        data = read_bounded(repository.blob_path(Digest.from_str(identity)), MANIFEST_MAX_BYTES)
        manifest = read_manifest_bytes(data)
    except (StorageError, ManifestInvalid):
        return None
    is_it = str(Digest.of(data)) == identity and (manifest.model, manifest.version) == (model, version)
    return data if is_it else None


def find_content(repository: Repository, model: str, folder: Path, *, identity: str) -> frozenset[Digest]:
    """All content that the version in `folder` refers to, even while its manifest there is damaged; else nothing."""
    version = folder.name.partition(OTHER_SIGN)[0]
    data = _find_manifest_bytes(repository, model, version, identity=identity)
    return list_content(read_manifest_bytes(data)) if data is not None else frozenset()


# --- looking at everything --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Piece:
    """One stored file, and the digest that its bytes must have."""

    path: Path
    digest: Digest


def list_pieces(repository: Repository) -> list[Piece]:
    """Every file that has a digest: all content, and what versions hold of it under another inode."""
    blobs = [Piece(repository.blob_path(digest), digest) for digest in sorted(repository.list_blobs())]
    links = [piece for model in repository.list_models() for piece in _iterate_links(repository, model)]
    return [*blobs, *(one for one in links if not _is_blob(repository, one))]


def _iterate_links(repository: Repository, model: str) -> Iterator[Piece]:
    for stored in repository.list_versions(model):
        manifest = find_manifest(stored.folder, stored.identity)
        for entry in manifest.files if manifest is not None else ():
            yield Piece(stored.folder / entry.path, Digest.from_str(entry.sha256))


def _is_blob(repository: Repository, piece: Piece) -> bool:
    try:
        return piece.path.samefile(repository.blob_path(piece.digest))
    except OSError:
        return False


def find_hurt(repository: Repository, damaged: frozenset[Digest]) -> list[Named]:
    """Removes damaged content and mends what can be; returns what refs and pins name and is not whole.

    Args:
        repository: where to look.
        damaged: digests of content that was found not to have them.
    """
    for model in repository.list_models():
        for stored in repository.list_versions(model):
            manifest = find_manifest(stored.folder, stored.identity)
            if manifest is not None and damaged & list_content(manifest):
                find_sound(repository, model, stored.version, identity=stored.identity)
    for digest in damaged:
        if repository.has_blob(digest):
            repository.blobs.check(digest)
    return list_hurt(repository)


@dataclass(frozen=True, slots=True)
class Named:
    """A version that a ref or a pin names."""

    model: str
    version: str
    identity: str


def list_hurt(repository: Repository) -> list[Named]:
    """Mends what can be of what is here, without reading content; returns what refs and pins name and is not whole."""
    named = [one for model in repository.list_models() for one in _iterate_named(repository, model)]
    return [
        one for one in dict.fromkeys(named) if mend(repository, one.model, one.version, identity=one.identity) is None
    ]


def _iterate_named(repository: Repository, model: str) -> Iterator[Named]:
    for ref in repository.refs.list_refs(model):
        yield Named(model, ref.version, ref.identity)
    pins = repository.refs.list_pins(model)
    for folder in repository.list_folders(model):
        identity = find_pinned(repository, model, folder) if folder.name in pins else ""
        if identity:
            yield Named(model, folder.name.partition(OTHER_SIGN)[0], identity)


def find_pinned(repository: Repository, model: str, folder: Path) -> str:
    """The identity of what lies in a pinned `folder`, or lay there before it was damaged; '' where nobody can say."""
    refs = {ref.identity for ref in repository.refs.list_refs(model) if ref.version == folder.name}
    known = {*refs, *repository.refs.read_history(model)}
    found = list_identities(folder)
    return next((one for one in found if one in known), next(iter(found), ""))
