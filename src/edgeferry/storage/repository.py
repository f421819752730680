"""Repository: the model versions that lie on this device, and which of them is active.

Which version to take is for the agent; whether bytes are right was decided before they came here. Content is
`blobs.py`'s, refs and pins are `refs.py`'s, what may go is `keeping.py`'s to say.

Rules:
- Content lies once under its digest (read-only); a version's files are hard links to it. Both appear whole, by rename.
- Refs say what is true: `active` and `previous` are two small files per model, replaced atomically.
- Names are checked on the way in and on the way out: what another hand put here is not a version.
- A ref names content, not only a version: the same version published anew with other content gets a folder of its own.
- A version that is damaged is none, until what is missing has come back.

Layout (docs/formats/storage.md)::

    <storage>/edgeferry/  models/<name>/versions/<version>/     manifest.json, files: hard links into blobs/
                          models/<name>/active, previous        refs; history, pins/
                          blobs/sha256/<2 hex>/<hex>            0444
                          partial/  trust/  journal.db  agent.sock  lock
    <storage>/<FileName without extension>/                     classic updates only (storage/classic.py)
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from edgeferry.errors import InvariantBroken, NameInvalid, NoSpace
from edgeferry.model.bundle import BundleLimits
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import (
    FileEntry,
    Manifest,
    check_manifest,
    make_manifest_bytes,
)
from edgeferry.model.spec import ModelSpec
from edgeferry.model.stored import StoredVersion
from edgeferry.names import require_file_name, require_model_name, require_version
from edgeferry.storage import classic
from edgeferry.storage.blobs import Blobs
from edgeferry.storage.files import (
    FOLDER_NAME,
    copy_file,
    get_disk_bytes,
    get_free_bytes,
    hash_file,
    make_folder,
    make_temp_folder,
    remove_tree,
    rename_durably,
    translate_disk_errors,
    write_atomically,
)
from edgeferry.storage.keeping import Disk, DiskLimits, count_shortage
from edgeferry.storage.refs import Ref, RefName, Refs
from edgeferry.storage.versions import (
    IDENTITY_FILE,
    MANIFEST_FILE,
    OTHER_SIGN,
    iterate_folder,
    make_identity_bytes,
    read_version,
)


class Repository:
    """The versions under `<storage_root>/edgeferry`. Construction does no I/O; `prepare` makes the folders.

    Args:
        storage_root: the folder shared with other modules.
        reserve_bytes, quota_bytes, low_water_bytes: see `keeping.DiskLimits`.
    """

    def __init__(
        self,
        storage_root: Path,
        *,
        reserve_bytes: int = 4 << 20,
        quota_bytes: int = 0,
        low_water_bytes: int | None = None,
    ) -> None:
        self.storage_root = storage_root
        self.root = storage_root / FOLDER_NAME
        self.partial_folder = self.root / "partial"
        self.trust_folder = self.root / "trust"
        self.journal_path = self.root / "journal.db"
        self.socket_path = self.root / "agent.sock"
        self.limits = DiskLimits(quota_bytes, low_water_bytes, reserve_bytes)
        self._models = self.root / "models"
        self.refs = Refs(self._models)
        self.blobs = Blobs(self.root)
        self.lock = threading.RLock()
        """Held while versions are stored, mended or tidied away: agent and serving come from several threads."""

    def prepare(self) -> None:
        """Makes the folders where missing; the root is for this user only."""
        make_folder(self.storage_root)
        make_folder(self.root, mode=0o700)
        for folder in (self.partial_folder, self.trust_folder, self._models, self.blobs.folder):
            make_folder(folder)

    def read_disk(self) -> Disk:
        """The disk as it is now; content and downloads are ours, the rest is small."""
        partials = [path for path in iterate_folder(self.partial_folder) if path.is_file()]
        with translate_disk_errors(self.partial_folder):
            taken = [max(status.st_size, 512 * status.st_blocks) for status in (path.stat() for path in partials)]
        used = sum(self.blobs.list_sizes().values()) + sum(taken)
        return Disk(used, get_free_bytes(self.root), get_disk_bytes(self.root))

    def require_space(self, size_bytes: int) -> None:
        """Raises NoSpace when `size_bytes` more would leave less than the reserve free, or be over the quota."""
        disk = self.read_disk()
        if count_shortage(disk, self.limits, size_bytes):
            quota = f", and {disk.used_bytes} of the quota of {self.limits.quota_bytes} taken"
            raise NoSpace(
                f"expected {size_bytes} bytes free beside a reserve of {self.limits.reserve_bytes}, found "
                f"{disk.free_bytes}{quota if self.limits.quota_bytes else ''}",
                needed_bytes=size_bytes,
                free_bytes=disk.free_bytes,
            )

    # --- blobs (blobs.py) ---------------------------------------------------------------------------------------------
    def blob_path(self, digest: Digest) -> Path:
        """Where the content of `digest` lies, or would lie."""
        return self.blobs.get_path(digest)

    def has_blob(self, digest: Digest) -> bool:
        """Whether the content of `digest` lies here."""
        return self.blobs.has(digest)

    def list_blobs(self) -> frozenset[Digest]:
        """All content here: what a route may build on."""
        return self.blobs.list_digests()

    def adopt_blob(self, digest: Digest, temp_path: Path) -> Path:
        """Moves a file, whose digest the caller has just verified, to its place; see `Blobs.adopt`."""
        with self.lock:  # who mends removes what was damaged there, and must not remove this
            return self.blobs.adopt(digest, temp_path)

    def remove_loose_blob(self, digest: Digest) -> None:
        """Removes content that no version links to; other content stays."""
        self.blobs.remove_loose(digest)

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

    def store_again(self, manifest: Manifest, manifest_bytes: bytes, identity: str) -> StoredVersion:
        """Makes a damaged version whole of blobs that are all here; the caller vouches for manifest and identity."""
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
        for folder in self.get_folders(require_model_name(model), version, identity):
            stored = self.read_folder(model, folder)
            if stored is not None and identity in (None, stored.identity):
                return stored
        return None

    def list_versions(self, model: str) -> list[StoredVersion]:
        """All whole versions of `model`, by folder name."""
        return [
            stored for folder in self.list_folders(model) if (stored := self.read_folder(model, folder)) is not None
        ]

    def read_folder(self, model: str, folder: Path) -> StoredVersion | None:
        """The version in one of the folders, or None when it is not whole."""
        return read_version(model, folder, self.blob_path)

    def list_folders(self, model: str) -> list[Path]:
        """The folders of all versions of `model`, whole or not, by name."""
        return sorted(iterate_folder(self._get_versions_folder(model)))

    def get_folders(self, model: str, version: str, identity: str | None) -> list[Path]:
        """Where the version may lie: with `identity` one of two places, else all that are there."""
        versions = self._get_versions_folder(model)
        if identity is not None:
            return [versions / version, versions / f"{version}{OTHER_SIGN}{Digest.of(identity.encode()).hex[:16]}"]
        return [versions / version, *sorted(iterate_folder(versions, version + OTHER_SIGN))]

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

    # --- refs (refs.py) -----------------------------------------------------------------------------------------------
    def read_ref(self, model: str, name: RefName) -> StoredVersion | None:
        """The version that the ref points to; None when there is no ref, or what it names is not whole any more."""
        ref = self.refs.read(model, name)
        return self.find_version(model, ref.version, ref.identity) if ref is not None else None

    def write_ref(self, model: str, name: RefName, version: StoredVersion | None) -> None:
        """Points the ref at `version`, or at nothing; whoever reads sees the old or the new."""
        self.refs.write(model, name, Ref(version.version, version.identity) if version is not None else None)

    def list_workplaces(self) -> list[Path]:
        """Folders in which a crash may have left something in the making."""
        models = [self._models / name for name in self.list_models()]
        versions = [folder / "versions" for folder in models]
        inside = [path for folder in versions for path in iterate_folder(folder)]
        own = [self.storage_root, self.root, self.partial_folder, self.trust_folder]
        return [*own, *models, *versions, *inside, *self.blobs.list_workplaces()]

    # --- inside -------------------------------------------------------------------------------------------------------
    def _store(self, manifest: Manifest, manifest_bytes: bytes, identity: str) -> StoredVersion:
        with self.lock:
            return self._store_locked(manifest, manifest_bytes, identity)

    def _store_locked(self, manifest: Manifest, manifest_bytes: bytes, identity: str) -> StoredVersion:
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
        stored = self.read_folder(manifest.model, target)
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
        write_atomically(folder / IDENTITY_FILE, make_identity_bytes(identity, manifest_bytes), mode=0o444)

    def _find_place(self, manifest: Manifest, identity: str) -> Path:
        """The folder for this content: the version's own name, unless other whole content has it."""
        for folder in self.get_folders(manifest.model, manifest.version, identity):
            if not folder.exists():
                return folder
            stored = self.read_folder(manifest.model, folder)
            if stored is None or stored.identity == identity:
                remove_tree(folder)  # damaged: nothing can serve from it
                return folder
        raise InvariantBroken(f"two contents of {manifest.model}@{manifest.version} share the start of a digest")

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


def _is_model_name(name: str) -> bool:
    try:
        return bool(require_model_name(name))
    except NameInvalid:
        return False
