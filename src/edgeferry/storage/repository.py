"""Repository: the model versions that lie on this device, and which of them is active.

Which version to take is for the agent; whether bytes are right was decided before they came here.

Rules:
- Content lies once under its digest (read-only); a version's files are hard links to it. Both appear whole, by rename.
- Refs say what is true: `active` and `previous` are two small files per model, replaced atomically.
- Names are checked on the way in and on the way out: what another hand put here is not a version.
- A ref names content, not only a version: the same version published anew with other content gets a folder of its own.

Layout (docs/formats/storage.md)::

    <storage>/edgeferry/  models/<name>/versions/<version>/     manifest.json, files: hard links into blobs/
                          models/<name>/active, previous        refs
                          blobs/sha256/<2 hex>/<hex>            0444
                          partial/  trust/  journal.db  agent.sock  lock
    <storage>/<FileName without extension>/                     classic updates only (storage/classic.py)
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edgeferry.errors import InvariantBroken, NameInvalid, NoSpace
from edgeferry.model.bundle import BundleLimits
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import FileEntry, Manifest, check_manifest, make_manifest_bytes
from edgeferry.model.spec import ModelSpec
from edgeferry.model.stored import StoredVersion
from edgeferry.names import require_file_name, require_model_name, require_version
from edgeferry.storage import classic
from edgeferry.storage.files import (
    FOLDER_NAME,
    TEMP_PREFIX,
    copy_file,
    fsync_folder,
    get_free_bytes,
    hash_file,
    make_folder,
    make_temp_folder,
    read_bounded,
    remove_tree,
    rename_durably,
    translate_disk_errors,
    write_atomically,
)
from edgeferry.storage.partial import get_partial_path
from edgeferry.storage.versions import (
    IDENTITY_FILE,
    MANIFEST_FILE,
    OTHER_SIGN,
    iterate_folder,
    list_digests,
    read_version,
)

RefName = Literal["active", "previous"]
REF_NAMES: tuple[RefName, ...] = ("active", "previous")
_REF_MAX_BYTES = 4096


class Ref(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ref file holds: the version's name for people, its identity for us."""

    version: str
    identity: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What one `gc` removed."""

    versions: tuple[str, ...]
    blobs: int
    freed_bytes: int


class Repository:
    """The versions under `<storage_root>/edgeferry`. Construction does no I/O; `prepare` makes the folders.

    Args:
        storage_root: the folder shared with other modules.
        reserve_bytes: what `require_space` leaves free for the journal, metadata and everybody else.
    """

    def __init__(self, storage_root: Path, *, reserve_bytes: int = 4 << 20) -> None:
        self.storage_root = storage_root
        self.root = storage_root / FOLDER_NAME
        self.partial_folder = self.root / "partial"
        self.trust_folder = self.root / "trust"
        self.journal_path = self.root / "journal.db"
        self.socket_path = self.root / "agent.sock"
        self._models = self.root / "models"
        self._blobs = self.root / "blobs" / "sha256"
        self._reserve_bytes = reserve_bytes

    def prepare(self) -> None:
        """Makes the folders where missing; the root is for this user only."""
        make_folder(self.storage_root)
        make_folder(self.root, mode=0o700)
        for folder in (self.partial_folder, self.trust_folder, self._models, self._blobs):
            make_folder(folder)

    def require_space(self, size_bytes: int) -> None:
        """Raises NoSpace when `size_bytes` more would leave less than the reserve free."""
        free = get_free_bytes(self.root)
        if free < size_bytes + self._reserve_bytes:
            raise NoSpace(
                f"expected {size_bytes} bytes free beside a reserve of {self._reserve_bytes}, found {free}",
                needed_bytes=size_bytes,
                free_bytes=free,
            )

    # --- blobs --------------------------------------------------------------------------------------------------------
    def blob_path(self, digest: Digest) -> Path:
        """Where the content of `digest` lies, or would lie."""
        return self.root / digest.blob_path

    def has_blob(self, digest: Digest) -> bool:
        """Whether the content of `digest` lies here."""
        return self.blob_path(digest).is_file()

    def list_blobs(self) -> frozenset[Digest]:
        """All content here: what a route may build on."""
        return frozenset(Digest(path.name) for path in self._iterate_blobs())

    def adopt_blob(self, digest: Digest, temp_path: Path) -> Path:
        """Moves a file, whose digest the caller has just verified, to its place; returns that place.

        The file is made read-only and fsynced before it is renamed. Content that is here already stays; `temp_path`
        goes.
        """
        path = self.blob_path(digest)
        if path.is_file():
            remove_tree(temp_path)
            return path
        make_folder(path.parent)
        with translate_disk_errors(temp_path), temp_path.open("rb") as file:
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        rename_durably(temp_path, path)
        return path

    def remove_loose_blob(self, digest: Digest) -> None:
        """Removes content that no version links to; other content stays."""
        path = self.blob_path(digest)
        with translate_disk_errors(path):
            is_loose = path.is_file() and path.stat().st_nlink == 1
        if is_loose:
            remove_tree(path)

    # --- versions -----------------------------------------------------------------------------------------------------
    def store_version(self, manifest: Manifest, manifest_bytes: bytes, identity: str) -> StoredVersion:
        """Makes a version of blobs that are all here: its folder appears whole. Storing it again is fine.

        Raises:
            InvariantBroken: a blob is missing, or `identity` is not the digest of `manifest_bytes`.
            NoSpace, StorageFailed: nothing has changed.
        """
        if identity != str(Digest.of(manifest_bytes)):
            raise InvariantBroken(f"expected the digest of the manifest as identity of {manifest.model}")
        return self._store(manifest, manifest_bytes, identity)

    def store_classic(
        self, model: str, version: str, *, identity: str, files: Mapping[str, Path], spec: ModelSpec
    ) -> StoredVersion:
        """Makes a version of loose files: copies of our own, so that nobody's later write changes what serves.

        Raises:
            NameInvalid, ManifestInvalid: a name is not plain, or `spec` names a file that is not among `files`.
            NoSpace, StorageFailed: nothing has changed but for blobs that the next `gc` takes.
        """
        entries = tuple(self._copy_in(require_file_name(name), path) for name, path in sorted(files.items()))
        manifest = check_manifest(Manifest(model=model, version=version, spec=spec, files=entries))
        return self._store(manifest, make_manifest_bytes(manifest), identity)

    def find_version(self, model: str, version: str, identity: str | None = None) -> StoredVersion | None:
        """The version as stored and whole (every file, of its size), or None; with `identity` that very content."""
        require_version(version)
        for folder in self._get_folders(require_model_name(model), version, identity):
            stored = read_version(model, folder, self.blob_path)
            if stored is not None and identity in (None, stored.identity):
                return stored
        return None

    def list_versions(self, model: str) -> list[StoredVersion]:
        """All whole versions of `model`, by folder name."""
        folders = sorted(iterate_folder(self._get_versions_folder(model)))
        return [stored for folder in folders if (stored := read_version(model, folder, self.blob_path)) is not None]

    def list_models(self) -> list[str]:
        """Names of all models that have a folder here."""
        return sorted(path.name for path in iterate_folder(self._models) if _is_model_name(path.name))

    # --- the shared side of classic updates ---------------------------------------------------------------------------
    def place_zip(self, file_name: str, temp_path: Path) -> Path:
        """Moves a verified download to `<storage>/<FileName>`; see `classic.place_zip`."""
        return classic.place_zip(self.storage_root, file_name, temp_path)

    def unpack_classic(self, zip_path: Path, stem: str, limits: BundleLimits | None = None) -> Path:
        """Unpacks a ZIP to `<storage>/<stem>`, whole or not at all; see `classic.unpack_classic`."""
        return classic.unpack_classic(self.storage_root, zip_path, stem, limits=limits or BundleLimits())

    def remove_zip(self, file_name: str) -> None:
        """Removes the ZIP once it is unpacked and announced; see `classic.remove_zip`."""
        classic.remove_zip(self.storage_root, file_name)

    # --- refs ---------------------------------------------------------------------------------------------------------
    def read_ref(self, model: str, name: RefName) -> StoredVersion | None:
        """The version that the ref points to; None when there is no ref, or what it names is not whole any more."""
        path = self._get_ref_path(model, name)
        if not path.is_file():
            return None
        try:
            ref = msgspec.json.decode(read_bounded(path, _REF_MAX_BYTES), type=Ref)
            return self.find_version(model, ref.version, ref.identity)
        except (msgspec.MsgspecError, UnicodeDecodeError, NameInvalid):
            return None

    def write_ref(self, model: str, name: RefName, version: StoredVersion | None) -> None:
        """Points the ref at `version`, or at nothing; whoever reads sees the old or the new."""
        path = self._get_ref_path(model, name)
        if version is None:
            remove_tree(path)
            fsync_folder(make_folder(path.parent))
            return
        make_folder(path.parent)
        write_atomically(path, msgspec.json.encode(Ref(version.version, version.identity)))

    # --- tidying ------------------------------------------------------------------------------------------------------
    def sweep(self, keep_partials: Collection[str] | None = None) -> int:
        """Removes what a crash left in the making; call it at start, under the lock. Returns how many things went.

        Args:
            keep_partials: keys of downloads that go on; others are removed. None keeps all.
        """
        leftovers = [path for folder in self._list_workplaces() for path in iterate_folder(folder, TEMP_PREFIX)]
        leftovers += [path for path in iterate_folder(self.trust_folder, "tmp") if not path.suffix]  # python-tuf's
        if keep_partials is not None:
            kept = {get_partial_path(self.partial_folder, key).name for key in keep_partials}
            leftovers += [path for path in iterate_folder(self.partial_folder) if path.name not in kept]
        for path in set(leftovers):
            remove_tree(path)
        return len(set(leftovers))

    def gc(self, keep: Collection[StoredVersion] = (), *, keep_blobs: Collection[Digest] = ()) -> Collected:
        """Removes versions that are neither active, previous nor in `keep`, then content that nothing refers to.

        Args:
            keep: versions on their way (the target).
            keep_blobs: content that has come for a version which is not stored yet.
        """
        removed: list[str] = []
        used = set(keep_blobs)
        for model in self.list_models():
            kept = {stored.folder for name in REF_NAMES if (stored := self.read_ref(model, name)) is not None}
            kept |= {stored.folder for stored in keep if stored.model == model}
            for folder in sorted(iterate_folder(self._get_versions_folder(model))):
                if folder in kept:
                    used |= list_digests(folder)
                else:
                    remove_tree(folder)
                    removed.append(f"{model}@{folder.name}")
        blobs = [path for path in self._iterate_blobs() if Digest(path.name) not in used]
        freed = sum(_remove_counted(path) for path in blobs)
        return Collected(tuple(removed), len(blobs), freed)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _store(self, manifest: Manifest, manifest_bytes: bytes, identity: str) -> StoredVersion:
        existing = self.find_version(manifest.model, manifest.version, identity)
        if existing is not None:
            return existing
        versions = make_folder(self._get_versions_folder(manifest.model))
        temp = make_temp_folder(versions)
        try:
            self._fill_folder(temp, manifest, manifest_bytes, identity)
            target = self._find_place(manifest, identity)
            rename_durably(temp, target)
        finally:
            remove_tree(temp)
        stored = read_version(manifest.model, target, self.blob_path)
        if stored is None:
            raise InvariantBroken(f"the version {manifest.model}@{manifest.version} is not whole after it was stored")
        return stored

    def _fill_folder(self, folder: Path, manifest: Manifest, manifest_bytes: bytes, identity: str) -> None:
        needed = [(entry.sha256, entry.path) for entry in manifest.files]
        missing = [text for text, _ in needed if not self.has_blob(Digest.from_str(text))]
        missing += [one.input for one in manifest.golden if not self.has_blob(Digest.from_str(one.input))]
        if missing:
            raise InvariantBroken(f"expected all blobs of {manifest.model}@{manifest.version}, {missing[0]} is missing")
        with translate_disk_errors(folder):
            folder.chmod(0o755)
            for text, name in needed:
                (folder / require_file_name(name)).hardlink_to(self.blob_path(Digest.from_str(text)))
        write_atomically(folder / MANIFEST_FILE, manifest_bytes, mode=0o444)
        write_atomically(folder / IDENTITY_FILE, identity.encode(), mode=0o444)

    def _find_place(self, manifest: Manifest, identity: str) -> Path:
        """The folder for this content: the version's own name, unless other whole content has it."""
        for folder in self._get_folders(manifest.model, manifest.version, identity):
            if not folder.exists():
                return folder
            stored = read_version(manifest.model, folder, self.blob_path)
            if stored is None or stored.identity == identity:
                remove_tree(folder)  # damaged: nothing can serve from it
                return folder
        raise InvariantBroken(f"two contents of {manifest.model}@{manifest.version} share the start of a digest")

    def _get_folders(self, model: str, version: str, identity: str | None) -> list[Path]:
        versions = self._get_versions_folder(model)
        if identity is not None:
            return [versions / version, versions / f"{version}{OTHER_SIGN}{Digest.of(identity.encode()).hex[:16]}"]
        return [versions / version, *sorted(iterate_folder(versions, version + OTHER_SIGN))]

    def _copy_in(self, name: str, source: Path) -> FileEntry:
        temp_folder = make_temp_folder(self.partial_folder)
        try:
            copy = temp_folder / "copy"
            copy_file(source, copy, mode=0o600)
            hasher = hash_file(copy)
            digest = hasher.get_digest()
            self.adopt_blob(digest, copy)
        finally:
            remove_tree(temp_folder)
        return FileEntry(path=name, sha256=str(digest), md5=hasher.get_md5_base64(), size=hasher.size_bytes)

    def _get_versions_folder(self, model: str) -> Path:
        return self._models / require_model_name(model) / "versions"

    def _get_ref_path(self, model: str, name: RefName) -> Path:
        if name not in REF_NAMES:
            raise InvariantBroken(f"expected a ref called active or previous, found {name!r:.40}")
        return self._models / require_model_name(model) / name

    def _iterate_blobs(self) -> Iterator[Path]:
        for folder in iterate_folder(self._blobs):
            yield from (path for path in iterate_folder(folder) if _is_blob_name(path))

    def _list_workplaces(self) -> list[Path]:
        models = [self._models / name for name in self.list_models()]
        versions = [folder / "versions" for folder in models]
        inside = [path for folder in versions for path in iterate_folder(folder)]
        blobs = [self._blobs, *iterate_folder(self._blobs)]
        return [
            self.storage_root,
            self.root,
            self.partial_folder,
            self.trust_folder,
            *models,
            *versions,
            *inside,
            *blobs,
        ]


def _is_model_name(name: str) -> bool:
    try:
        return bool(require_model_name(name))
    except NameInvalid:
        return False


def _is_blob_name(path: Path) -> bool:
    name = path.name
    return len(name) == 64 and path.parent.name == name[:2] and not name.strip("0123456789abcdef")


def _remove_counted(path: Path) -> int:
    with translate_disk_errors(path):
        size = path.stat().st_size
    remove_tree(path)
    return size
