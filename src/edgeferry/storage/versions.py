"""A version's folder on disk, read: what is not whole is not a version.

Making folders is `repository.py`'s.

Rules:
- A folder counts when its manifest is the one that its identity vouches for, names this model and version, and every
  file is there with its size. Content is not hashed here: it was when it came, and is again before it is loaded.
- A signed version's identity is its manifest's digest. An unsigned one has a seal beside its identity: the digest of
  both.
- A link or a device in place of a file makes the version not whole.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path

from edgeferry.errors import ManifestInvalid, StorageError
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import MANIFEST_MAX_BYTES, Manifest, read_manifest_bytes
from edgeferry.model.stored import GoldenFile, StoredVersion
from edgeferry.storage.files import TEMP_PREFIX, read_bounded, translate_disk_errors

MANIFEST_FILE = "manifest.json"
IDENTITY_FILE = "identity:"
"""Holds a version's identity; a colon, so that no file of a bundle can be called like it."""
OTHER_SIGN = "~"
"""Joins version and identity in the folder name of a second content; no version may hold this sign."""
_IDENTITY_MAX_BYTES = 4096
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def read_version(model: str, folder: Path, blob_path: Callable[[Digest], Path]) -> StoredVersion | None:
    """The version in `folder`, or None when it is not a whole version of `model`; golden inputs lie at `blob_path`."""
    identity, *_ = _read_lines(folder)
    manifest = find_manifest(folder, identity)
    if manifest is None or (manifest.model, manifest.version) != (model, _get_named(folder)):
        return None
    golden = tuple(GoldenFile(one, blob_path(Digest.from_str(one.input))) for one in manifest.golden)
    sizes = [(folder / entry.path, entry.size) for entry in manifest.files]
    sizes += [(one.path, one.golden.size) for one in golden]
    if not all(_has_size(path, size) for path, size in sizes):
        return None
    return StoredVersion(model, manifest.version, identity, folder, manifest.spec, golden)


def list_content(manifest: Manifest) -> frozenset[Digest]:
    """All content that a version of `manifest` consists of."""
    texts = [entry.sha256 for entry in manifest.files] + [one.input for one in manifest.golden]
    return frozenset(map(Digest.from_str, texts))


def find_manifest(folder: Path, identity: str) -> Manifest | None:
    """The manifest in `folder`, as it was stored for `identity`; None when it is not that one any more."""
    data = find_manifest_bytes(folder, identity)
    return read_manifest_bytes(data) if data is not None else None


def find_manifest_bytes(folder: Path, identity: str) -> bytes | None:
    """The bytes of the manifest in `folder`, vouched for by `identity` itself or by the seal; None for any others."""
    try:
        data = read_bounded(folder / MANIFEST_FILE, MANIFEST_MAX_BYTES)
        read_manifest_bytes(data)
    except (StorageError, ManifestInvalid):
        return None
    is_vouched = str(Digest.of(data)) == identity or _make_seal(identity, data) in _read_lines(folder)[1:]
    return data if is_vouched else None


def make_identity_bytes(identity: str, manifest_bytes: bytes) -> bytes:
    """What the identity file of a version holds."""
    is_signed = str(Digest.of(manifest_bytes)) == identity
    return "\n".join([identity] if is_signed else [identity, _make_seal(identity, manifest_bytes)]).encode()


def list_identities(folder: Path) -> list[str]:
    """What the version in `folder` can be, damaged or not: what its identity file says, and what its manifest is."""
    written, *_ = _read_lines(folder)
    if _DIGEST.fullmatch(written) and find_manifest_bytes(folder, written) is not None:
        return [written]
    try:
        data = read_bounded(folder / MANIFEST_FILE, MANIFEST_MAX_BYTES)
        read_manifest_bytes(data)
    except (StorageError, ManifestInvalid):
        return [written] if _DIGEST.fullmatch(written) else []
    own = str(Digest.of(data))
    return [written, own] if _DIGEST.fullmatch(written) else [own]


def _make_seal(identity: str, manifest_bytes: bytes) -> str:
    return str(Digest.of(identity.encode() + b"\n" + manifest_bytes))


def iterate_folder(folder: Path, prefix: str = "") -> list[Path]:
    """Entries of `folder` that start with `prefix`, none when it is no folder; things in the making only on demand."""
    if not folder.is_dir():
        return []
    with translate_disk_errors(folder):
        entries = list(folder.iterdir())
    return [
        path for path in entries if path.name.startswith(prefix) and (prefix or not path.name.startswith(TEMP_PREFIX))
    ]


def _read_lines(folder: Path) -> list[str]:
    """The lines of the identity file; one empty line where there is none that can be read."""
    try:
        return read_bounded(folder / IDENTITY_FILE, _IDENTITY_MAX_BYTES).decode().split("\n")
    except (StorageError, UnicodeDecodeError):
        return [""]


def _get_named(folder: Path) -> str:
    return folder.name.partition(OTHER_SIGN)[0]


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        status = path.lstat()
    except OSError:  # gone or unreadable: either way not whole
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size_bytes
