"""Where the parts of an update lie on disk, and the moves between those places.

What this file leaves to others: when to move what (`steps.py`), what a folder of loose files means (`loose.py`), how a
file survives a crash (`storage/`).

Rules:
- Blocking: called through a thread.
- Every move looks at what is there first, so that running it again after a crash is harmless.
- A download is named by what it is, not by where it comes from: the blob's digest, or the record's identity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from edgeferry.agent.loose import list_files, store_loose
from edgeferry.agent.machine import TERMINAL, State
from edgeferry.agent.record import Artifact, Target, UpdateRecord
from edgeferry.errors import DeltaBaseMismatch, StorageError, StorageFailed
from edgeferry.link.route import list_digests
from edgeferry.model.bundle import BundleLimits
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import MANIFEST_MAX_BYTES, Manifest, read_manifest_bytes
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.classic import get_zip_path, place_zip, remove_zip, unpack_classic
from edgeferry.storage.files import hash_file, read_bounded, remove_tree, rename_durably, write_atomically
from edgeferry.storage.mending import find_sound, get_aside_path, mend
from edgeferry.storage.partial import PartialFile, get_partial_path, open_partial
from edgeferry.storage.repository import Repository

_FETCHING = frozenset(
    {State.RESOLVING, State.DOWNLOADING, State.VERIFYING, State.PATCHING, State.STORING, State.WAITING}
)


# --- one artifact -----------------------------------------------------------------------------------------------------
def get_download_key(record: UpdateRecord, artifact: Artifact) -> str:
    """The name of the partial file."""
    return Digest.from_str(record.identity if artifact.kind == "classic" else artifact.blob).hex


def get_download_path(repository: Repository, record: UpdateRecord) -> Path:
    """Where the bytes of the record's artifact arrive."""
    return get_partial_path(repository.partial_folder, get_download_key(record, record.artifact))


def get_decoded_path(repository: Repository, artifact: Artifact) -> Path:
    """Where the file that a coded artifact stands for appears before it is adopted."""
    return get_partial_path(repository.partial_folder, f"{Digest.from_str(artifact.target).hex}-decoded")


def open_download(
    repository: Repository, record: UpdateRecord, limit_bytes: int
) -> AbstractContextManager[PartialFile]:
    """Opens the partial file of the record's artifact; `limit_bytes` bounds one whose size nobody announced."""
    artifact = record.artifact
    max_bytes = limit_bytes if artifact.kind == "classic" else artifact.size
    return open_partial(repository.partial_folder, get_download_key(record, artifact), max_bytes=max_bytes)


def read_chunk_list(repository: Repository, artifact: Artifact, size_bytes: int) -> bytes | None:
    """The list of the artifact's pieces as it was kept; None where it was not, or is damaged."""
    path = _get_chunks_path(repository, artifact)
    data = read_bounded(path, size_bytes) if path.is_file() else b""
    return data if Digest.of(data) == Digest.from_str(artifact.chunks) else None


def keep_chunk_list(repository: Repository, artifact: Artifact, data: bytes) -> None:
    """Keeps a verified list beside the download."""
    write_atomically(_get_chunks_path(repository, artifact), data)


def _get_chunks_path(repository: Repository, artifact: Artifact) -> Path:
    return get_partial_path(repository.partial_folder, f"{Digest.from_str(artifact.blob).hex}-chunks")


def take_aside(repository: Repository, artifacts: Iterable[Artifact], manifest: Manifest) -> None:
    """Damaged content that was set aside becomes the download of the very file, whose damaged pieces alone will come.

    Where another way is taken to a file of `manifest`, it goes.
    """
    for one in artifacts:
        path = get_partial_path(repository.partial_folder, Digest.from_str(one.blob).hex)
        aside = get_aside_path(repository, Digest.from_str(one.target))
        if one.blob == one.target and one.chunks and aside.is_file() and not path.exists():
            rename_durably(aside, path)
    for digest in list_digests(manifest):
        remove_tree(get_aside_path(repository, digest))


def has_target(repository: Repository, artifact: Artifact) -> bool:
    """Whether the file that the artifact stands for lies here, verified, already."""
    return bool(artifact.target) and repository.has_blob(Digest.from_str(artifact.target))


def adopt(repository: Repository, record: UpdateRecord) -> bool:
    """Moves the verified file to its place among the blobs; False when it is not there any more."""
    artifact = record.artifact
    partial = get_download_path(repository, record)
    source = partial if artifact.codec == "none" else get_decoded_path(repository, artifact)
    if not has_target(repository, artifact):
        if not source.is_file():
            return False
        repository.adopt_blob(Digest.from_str(artifact.target), source)
    remove_tree(source)
    remove_tree(partial)
    remove_tree(_get_chunks_path(repository, artifact))
    return True


def require_base(repository: Repository, artifact: Artifact) -> Path | None:
    """The file that a patch changes, None for other artifacts; raises DeltaBaseMismatch when it is gone."""
    if artifact.kind != "patch":
        return None
    base = Digest.from_str(artifact.base)
    if not repository.has_blob(base):
        raise DeltaBaseMismatch(f"the base {base} of a patch is not here any more")
    return repository.blob_path(base)


def remove_base(repository: Repository, record: UpdateRecord, others: Iterable[UpdateRecord]) -> None:
    """Lets go of the file between two patches once the second is applied; `gc` takes what a crash leaves.

    What some version of a model links to stays, and so does what this update needs again, or its version holds, or
    one of `others` counts on.
    """
    base, later = record.artifact.base, record.artifacts[record.index + 1 :]
    if base not in {one.target for one in record.artifacts[: record.index]} or any(one.base == base for one in later):
        return
    digest = Digest.from_str(base)
    needed = [list_needed(repository, one) for one in others if one.state not in TERMINAL]
    if not any(digest in one for one in (_list_kept_digests(repository, record), *needed)):
        repository.remove_loose_blob(digest)


# --- the manifest -----------------------------------------------------------------------------------------------------
def keep_manifest(repository: Repository, digest: Digest, data: bytes) -> None:
    """Keeps a verified manifest as a blob, so that storing needs no network."""
    _keep(repository, digest, data)


def keep_contents(repository: Repository, manifest: Manifest, contents: Mapping[Digest, bytes]) -> None:
    """Keeps those verified contents as blobs that are files of the version and not here yet."""
    for digest in {Digest.from_str(entry.sha256) for entry in manifest.files} & contents.keys():
        if not repository.has_blob(digest):
            _keep(repository, digest, contents[digest])


def _keep(repository: Repository, digest: Digest, data: bytes) -> None:
    temp = get_partial_path(repository.partial_folder, f"{digest.hex}-kept")
    write_atomically(temp, data)
    repository.adopt_blob(digest, temp)


def find_kept_manifest(repository: Repository, record: UpdateRecord) -> bytes | None:
    """The bytes that `keep_manifest` kept; None where they are gone or damaged, and then nothing is left of them."""
    digest = Digest.from_str(record.identity)
    data = _read_kept(repository, digest)
    if data is None:
        repository.blobs.check(digest)
    return data


def _read_kept(repository: Repository, digest: Digest) -> bytes | None:
    try:
        data = read_bounded(repository.blob_path(digest), MANIFEST_MAX_BYTES)
    except StorageError:
        return None
    return data if Digest.of(data) == digest else None


def list_needed(repository: Repository, record: UpdateRecord) -> frozenset[Digest]:
    """Content that an update under way still needs, fetched by itself or not: another's file may be all it takes.

    An active version holds what it needs, and needs no base any more.
    """
    identity = Digest.from_str(record.identity)
    if record.state is State.ACTIVE:
        return frozenset({identity})
    texts = {text for one in record.artifacts for text in (one.blob, one.target, one.base) if text}
    return frozenset({identity, *map(Digest.from_str, texts), *_list_kept_digests(repository, record)})


def _list_kept_digests(repository: Repository, record: UpdateRecord) -> frozenset[Digest]:
    data = _read_kept(repository, Digest.from_str(record.identity)) if record.kind == "signed" else None
    return list_digests(read_manifest_bytes(data)) if data is not None else frozenset()


# --- classic bundles --------------------------------------------------------------------------------------------------
def take_zip(repository: Repository, record: UpdateRecord, md5: str) -> bool:
    """The verified ZIP to `<storage>/<FileName>`; after a crash it lies there already and is verified once more.

    Returns:
        False when it has to be fetched again.
    """
    partial = get_download_path(repository, record)
    if partial.is_file():
        place_zip(repository.storage_root, record.file_name, partial)
        return True
    path = get_zip_path(repository.storage_root, record.file_name)
    return path.is_file() and bool(md5) and hash_file(path).get_md5_base64() == md5


def unpack_and_store(repository: Repository, record: UpdateRecord, limits: BundleLimits) -> StoredVersion:
    """Unpacks out of sight: other modules see the folder only when its model is proven (a loader: stored)."""
    hidden = f"{Digest.from_str(record.identity).hex}-unpacked"
    zip_path = get_zip_path(repository.storage_root, record.file_name)
    folder = unpack_classic(repository.partial_folder, zip_path, hidden, limits=limits)
    try:
        return store_loose(repository, record, list_files(folder))
    finally:
        remove_tree(folder)


def store_local(repository: Repository, record: UpdateRecord, target: Target, shared_root: Path) -> StoredVersion:
    """Makes a version of the files that another module announced."""
    paths = [shared_root / name for name in (target.model_path, target.label_path) if name]
    return store_loose(repository, record, {path.name: path for path in paths})


# --- versions and refs ------------------------------------------------------------------------------------------------
def find_stored(repository: Repository, record: UpdateRecord) -> StoredVersion | None:
    """The record's version as it lies here, whole, or None."""
    return repository.find_version(record.model, record.version, record.identity)


def find_mended(repository: Repository, record: UpdateRecord) -> StoredVersion | None:
    """The record's version, made whole first where all that it takes is here."""
    return mend(repository, record.model, record.version, identity=record.identity)


def find_verified(repository: Repository, record: UpdateRecord) -> StoredVersion | None:
    """The record's version after every byte of it was read again; what is damaged goes."""
    return find_sound(repository, record.model, record.version, identity=record.identity)


def require_stored(repository: Repository, record: UpdateRecord) -> StoredVersion:
    """The record's version; raises StorageFailed when it is not here or not whole."""
    stored = find_stored(repository, record)
    if stored is None:
        raise StorageFailed(f"{record.model}@{record.version} is not whole on the disk any more")
    return stored


def point_refs(repository: Repository, stored: StoredVersion) -> None:
    """Ref `active` to `stored`, and `previous` to what was active."""
    active = repository.read_ref(stored.model, "active")
    if active is not None and active.identity != stored.identity:
        repository.write_ref(stored.model, "previous", active)
    if active is None or active.identity != stored.identity:
        repository.write_ref(stored.model, "active", stored)


# --- tidying ----------------------------------------------------------------------------------------------------------
def list_download_keys(records: Iterable[UpdateRecord]) -> list[str]:
    """Names in the partial folder that updates still need; what a power cut brought back of others is none of them."""
    fetching = [record for record in records if record.state in _FETCHING]
    return [key for record in fetching for key in _list_keys(record, record.artifacts[record.index :])]


def _list_keys(record: UpdateRecord, artifacts: Collection[Artifact]) -> list[str]:
    downloads = [get_download_key(record, one) for one in artifacts]
    decoded = [f"{Digest.from_str(one.target).hex}-decoded" for one in artifacts if one.target]
    chunks = [f"{Digest.from_str(one.blob).hex}-chunks" for one in artifacts if one.chunks]
    return [*downloads, *decoded, *chunks]


def remove_traces(repository: Repository, record: UpdateRecord, *, owns_zip: bool) -> None:
    """Removes what an update that ended left: partial files, the ZIP. Versions and blobs are `storage/tidying.py`'s."""
    for key in _list_keys(record, record.artifacts):
        remove_tree(get_partial_path(repository.partial_folder, key))
    if owns_zip:
        remove_zip(repository.storage_root, record.file_name)
