"""The device's side of trust: a manifest is believed only when the pinned root says so, by way of signed metadata.

python-tuf's Updater walks root -> timestamp -> snapshot -> targets -> the model's role over a fetch function that
`app/` gives; this file feeds it from the model's bundle object first, and puts its verdicts into our words. Blobs are
not its business: they are fetched by the digests that a verified manifest names.

Rules:
- The root is pinned (its bytes, or their SHA-256); it is never taken on first use.
- The twin and the repository must agree: the manifest's digest is compared with the twin's before anything is fetched.
- What fails with the bundle object is tried once more without it: an old or damaged bundle proves nothing.
- A failure of the link stays a LinkError or AccessError; it is no verdict.
- Synchronous and not for two threads at once: it runs in one worker thread. The folder is fsynced before it returns.
"""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgeferry.errors import (
    AccessDenied,
    DigestMismatch,
    ManifestInvalid,
    MetadataExpired,
    MetadataUntrusted,
    NoSpace,
    ObjectMissing,
    StorageFailed,
)
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import MANIFEST_MAX_BYTES, Delivery, read_manifest_bytes
from edgeferry.names import require_model_name, require_version
from edgeferry.trust.bundle_object import BUNDLE_MAX_BYTES, get_bundle_path, read_bundle_object, read_small

Fetch = Callable[[str, int], bytes]
"""`fetch(path, max_bytes)`: the object at `path` of the repository. Raises LinkError and AccessError leaves."""

METADATA_FOLDER = "metadata/"
MAX_ROOTS = 64
_LIMITS = UpdaterConfig(
    max_root_rotations=MAX_ROOTS,
    max_delegations=4,
    root_max_length=64 << 10,
    timestamp_max_length=16 << 10,
    snapshot_max_length=1 << 20,
    targets_max_length=2 << 20,
)


def get_target_path(model: str, version: str) -> str:
    """The name of a manifest as a TUF target."""
    return f"{model}/{version}/manifest.json"


def get_manifest_path(model: str, version: str, digest: Digest) -> str:
    """Where the manifest lies in the repository: the target under its hash-prefixed name."""
    return f"targets/{model}/{version}/{digest.hex}.manifest.json"


class Verifier:
    """Fetches manifests that the pinned root vouches for.

    Args:
        folder: `trust/` of the device's storage; made when missing. It remembers the newest metadata seen.
        root_pin: the bytes of a root.json, or their digest.
        fetch: reads an object of the repository, bounded.
        now: Unix seconds.
    """

    def __init__(self, folder: Path, root_pin: bytes | Digest, fetch: Fetch, now: Callable[[], float]) -> None:
        self._folder = folder
        self._root_pin = root_pin
        self._fetch = fetch
        self._now = now

    def fetch_manifests(self, model: str, version: str, digest: Digest) -> Delivery:
        """The manifest of `model` `version`, signed, unexpired, and with the digest that the twin names.

        Beside it stand those of other versions that the bundle object brought along, as far as they are signed and can
        be read: what patches lead over; and small files. They cost no further fetch.

        Raises:
            MetadataUntrusted: signatures, versions or sizes do not hold.
            MetadataExpired: all of it holds, but it is too old to be the newest.
            DigestMismatch: the repository has this version with another digest than the twin.
            ManifestInvalid: the manifest is signed, and still not one.
            ObjectMissing: the signed metadata does not list this version (yet).
            LinkError, AccessError: the link or the server's refusal, as `fetch` raised it.
            NoSpace, StorageFailed: the trust folder cannot be written.
        """
        require_model_name(model)
        require_version(version)
        root = self._read_root()
        bundle = self._fetch_bundle(model)
        try:
            data, *others = self._fetch_verified(root, bundle, model, version, digest)
        except (MetadataUntrusted, MetadataExpired, ObjectMissing, DigestMismatch):
            if not bundle:
                raise
            data, *others = self._fetch_verified(root, {}, model, version, digest)
        _require_manifest(data, model, version)
        return Delivery(data, tuple(others), read_small(bundle))

    def _fetch_bundle(self, model: str) -> dict[str, bytes]:
        try:
            return read_bundle_object(self._fetch(get_bundle_path(model), BUNDLE_MAX_BYTES))
        except (ObjectMissing, AccessDenied, MetadataUntrusted):
            return {}  # a public S3 bucket denies what it does not have; who is denied everything hears it next

    def _fetch_verified(
        self, root: bytes, bundle: Mapping[str, bytes], model: str, version: str, digest: Digest
    ) -> tuple[bytes, ...]:
        target_path = get_target_path(model, version)
        fetcher = _BundleFirst(bundle, self._fetch)
        with _translate_tuf_errors(self._folder):
            updater = Updater(
                str(self._folder),
                METADATA_FOLDER,
                fetcher=cast(FetcherInterface, fetcher),
                config=_LIMITS,
                bootstrap=root,
            )
            self._set_reference_time(updater)
            target = updater.get_targetinfo(target_path)
            _fsync_tree(self._folder)
            if target is None:
                raise ObjectMissing(f"the signed metadata does not list {target_path}")
            _require_same_digest(target, digest)
            data = fetcher.download_bytes(get_manifest_path(model, version, digest), MANIFEST_MAX_BYTES)
            target.verify_length_and_hashes(data)
            return (data, *_find_others(updater, bundle, model, version))

    def _set_reference_time(self, updater: Updater) -> None:
        """The one place where time enters: the later of the clock and the newest signed time this device has seen.

        A device without a battery wakes up in 1970 or at its last shutdown; old metadata must not look fresh to it. The
        signed time counts no further than its own metadata's expiry, so that one wrong clock at a signer cannot lock
        devices out of later metadata. python-tuf has no public setting for it.
        """
        seen = max(self._now(), _read_signed_time(self._folder / "timestamp.json"))
        updater._trusted_set.reference_time = dt.datetime.fromtimestamp(seen, dt.UTC)

    def _read_root(self) -> bytes:
        """The pinned root's bytes: given, kept from an earlier run, or fetched and compared with the pinned digest."""
        with _translate_tuf_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self._root_pin, bytes):
            return self._root_pin
        history = self._folder / "root_history"
        for path in sorted(history.glob("*.root.json")) if history.is_dir() else ():
            data = path.read_bytes()
            if Digest.of(data) == self._root_pin:
                return data
        for version in range(1, MAX_ROOTS):
            try:
                data = self._fetch(f"{METADATA_FOLDER}{version}.root.json", _LIMITS.root_max_length)
            except (ObjectMissing, AccessDenied):
                break
            if Digest.of(data) == self._root_pin:
                return data
        raise MetadataUntrusted(f"no root of the repository has the pinned digest {self._root_pin}")


class _BundleFirst:
    """What python-tuf downloads through: the bundle's files, then the repository. Our errors pass through untouched."""

    def __init__(self, files: Mapping[str, bytes], fetch: Fetch) -> None:
        self._files = files
        self._fetch = fetch

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """The object at `url`, which is a path in the repository because the base is."""
        data = self._find(url, max_length)
        if len(data) > max_length:
            raise tuf_errors.DownloadLengthMismatchError(f"{url} is longer than {max_length} bytes")
        return data

    def _find(self, path: str, max_length: int) -> bytes:
        if path in self._files:
            return self._files[path]
        asks_next_root = path.endswith(".root.json")
        if asks_next_root and self._files:
            # a bundle holds every root after the first; who could hide one from it could answer 404 as well
            raise tuf_errors.DownloadHTTPError("no newer root in the bundle", 404)
        try:
            return self._fetch(path, max_length)
        except (ObjectMissing, AccessDenied) as error:
            if asks_next_root:
                raise tuf_errors.DownloadHTTPError("no newer root", 404) from error
            raise


def _find_others(updater: Updater, bundle: Mapping[str, bytes], model: str, version: str) -> Iterator[bytes]:
    """What the bundle holds of the model's other versions; what is wrong with one of them is no verdict on ours."""
    for path, data in bundle.items():
        folder, _, other = path.rpartition("/")[0].rpartition("/")
        if folder == f"targets/{model}" and other != version:
            target = updater.get_targetinfo(get_target_path(model, other))
            with suppress(tuf_errors.LengthOrHashMismatchError, ManifestInvalid):
                if target is not None:
                    target.verify_length_and_hashes(data)
                    _require_manifest(data, model, other)
                    yield data


def _require_manifest(data: bytes, model: str, version: str) -> None:
    manifest = read_manifest_bytes(data)
    if (manifest.model, manifest.version) != (model, version):
        raise ManifestInvalid(f"expected {model} {version}, found {manifest.model} {manifest.version}")


def _require_same_digest(target: TargetFile, digest: Digest) -> None:
    signed = target.hashes.get("sha256", "")
    if signed != digest.hex:
        raise DigestMismatch(f"the twin names {digest} for {target.path}, the repository signed sha256:{signed:.64}")


def _read_signed_time(path: Path) -> float:
    """`signed_at` of the timestamp last trusted, before its expiry in any case; 0 when there is none."""
    try:
        signed = json.loads(path.read_bytes())["signed"]
        expires = dt.datetime.fromisoformat(signed["expires"]).timestamp()
        return min(float(signed["signed_at"]), expires - 1)
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0


@contextmanager
def _translate_tuf_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise MetadataExpired(f"the repository's metadata is too old: {error}") from error
    except (tuf_errors.RepositoryError, tuf_errors.DownloadError) as error:
        raise MetadataUntrusted(f"the repository's metadata does not verify: {error!s:.300}") from error
    except OSError as error:
        kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageFailed
        raise kind(f"cannot write the trust folder: {error.strerror}", path=str(folder)) from error


def _fsync_tree(folder: Path) -> None:
    """Makes what python-tuf wrote durable: a rollback of trust by a power cut would be a rollback all the same."""
    for path in (*folder.iterdir(), *(folder / "root_history").iterdir(), folder / "root_history", folder):
        if path.is_symlink():
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
