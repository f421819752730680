"""Where versions are published: a folder, an Azure Blob container (or Azurite), or an S3 bucket, behind one interface.

What is published, and in which order, is for `publish/` and `trust/`. Containers and buckets exist beforehand.

Rules:
- `put` replaces, `put_new` creates only, `put_if` replaces only what was read: two writers never lose a write.
- Paths are relative, `/`-separated and plain; everything read is bounded.
- Credentials come from the environment or the URL's SAS; no message shows a key or a query.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import AzureStore, LocalStore, S3Store

from edgeferry.errors import ConfigInvalid, Conflict, LinkDown, NameInvalid, StorageFailed, StoreRefused

_PATH = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]*(/[0-9A-Za-z][0-9A-Za-z._+-]*)*")
Sent = Callable[[int], None]
"""Is told of bytes as they leave."""
EMULATOR_ACCOUNT = "devstoreaccount1"
_S3_SETTINGS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL")
PART_BYTES = 5 << 20
"""Blobs that are larger travel in parts of this size, the least that S3 takes."""
_RETRY: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_TYPES = {".json": "application/json", ".zip": "application/zip", ".zst": "application/zstd"}
_REFUSALS = (obstore_errors.PermissionDeniedError, obstore_errors.UnauthenticatedError)


class Found(NamedTuple):
    """An object as it was read: its bytes, and the tag that `put_if` compares."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class AzurePlace:
    """An Azure Blob container named by a URL. `endpoint` is the account's, without the container."""

    account: str
    container: str
    prefix: str
    endpoint: str
    key: str = ""
    sas: str = ""

    def __repr__(self) -> str:
        return f"AzurePlace({self.account}/{self.container}/{self.prefix})"


class BlobStore:
    """One published repository; made by `open_blob_store`."""

    def __init__(self, store: AzureStore | S3Store | LocalStore, *, name: str, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder
        self.name = name

    def find(self, path: str, max_bytes: int) -> Found | None:
        """The object at `path`, or None where there is none.

        Raises:
            StorageFailed: it is longer than `max_bytes`, or the disk failed.
            StoreRefused, LinkDown: the store says no, or nothing.
        """
        try:
            with self._translated(path):
                reply = obstore.get(self._store, _require_path(path))
                if reply.meta["size"] > max_bytes:
                    raise StorageFailed(f"expected at most {max_bytes} bytes in {path}, found {reply.meta['size']}")
                return Found(bytes(reply.bytes()), reply.meta["e_tag"] or "")
        except (FileNotFoundError, obstore_errors.NotFoundError):
            return None

    def put(self, path: str, data: bytes, sent: Sent | None = None) -> None:
        """Writes the object, over any that is there; large ones in parts, each with retries and a time limit."""
        sent = sent or _tell_nobody
        if len(data) > PART_BYTES:
            self._put(path, _iterate_parts(data, sent), None)
        else:
            self._put(path, data, None)
            sent(len(data))

    def put_new(self, path: str, data: bytes) -> bool:
        """Writes the object unless one is there; tells whether it was written."""
        try:
            self._put(path, data, "create")
        except obstore_errors.AlreadyExistsError:
            return False
        return True

    def put_blob(self, path: str, data: bytes, sent: Sent) -> None:
        """Writes what is named by its own content, unless it is there; `sent` is told of all its bytes either way.

        Parts cannot be sent "create only". Nothing is lost by that: whoever writes this name writes these bytes.
        """
        if len(data) > PART_BYTES and not self._is_there(path):
            self.put(path, data, sent)
            return
        if len(data) <= PART_BYTES:
            self.put_new(path, data)
        sent(len(data))

    def put_if(self, path: str, data: bytes, etag: str) -> None:
        """Writes the object if what is there still has `etag`.

        Raises:
            Conflict: somebody else has written it since.
        """
        try:
            if self._folder is not None:
                self._put_if_locked(self._folder, path, data, etag)
            else:
                self._put(path, data, {"e_tag": etag})
        except obstore_errors.PreconditionError as error:
            raise Conflict(f"{path} was changed by somebody else at the same time") from error

    def list_paths(self, prefix: str) -> Iterator[str]:
        """Yields the paths below the folder `prefix`."""
        with self._translated(prefix):
            for page in obstore.list(self._store, _require_path(prefix)):
                yield from (entry["path"] for entry in page)

    def _is_there(self, path: str) -> bool:
        try:
            with self._translated(path):
                obstore.head(self._store, _require_path(path))
        except (FileNotFoundError, obstore_errors.NotFoundError):
            return False
        return True

    def _put(self, path: str, data: bytes | Iterator[bytes], mode: Any) -> None:
        options: dict[str, Any] = {"chunk_size": PART_BYTES, "max_concurrency": 2} if mode is None else {"mode": mode}
        if self._folder is None:
            options["attributes"] = _make_attributes(path)
        try:
            with self._translated(path):
                obstore.put(self._store, _require_path(path), data, **options)
        except (FileNotFoundError, obstore_errors.NotFoundError) as error:
            raise StoreRefused(f"{self.name} does not exist: create the container or bucket first") from error

    def _put_if_locked(self, folder: Path, path: str, data: bytes, etag: str) -> None:
        """obstore cannot compare and swap on a disk: a lock on the folder makes read, compare and write one step."""
        with self._translated(path):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            found = self.find(path, 1 << 30)
            if found is None or found.etag != etag:
                raise Conflict(f"{path} was changed by somebody else at the same time")
            self._put(path, data, None)
        finally:
            os.close(handle)

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        passing = (obstore_errors.AlreadyExistsError, obstore_errors.PreconditionError, obstore_errors.NotFoundError)
        try:
            yield
        except (*passing, FileNotFoundError):
            raise
        except (*_REFUSALS, PermissionError) as error:
            raise StoreRefused(f"{self.name} refuses access to {path}") from error
        except (obstore_errors.BaseError, OSError) as error:
            kind = LinkDown if self._folder is None else StorageFailed
            raise kind(f"{self.name} failed at {path}: {_get_reason(error)}") from error


def open_blob_store(url: str, environ: Mapping[str, str]) -> BlobStore:
    """Opens what `--to URL` names.

    Args:
        url: a folder's path or `file://` URL; `https://<account>.blob.core.windows.net/<container>[/<prefix>][?<SAS>]`;
            `http(s)://<host>/<account>/<container>[/<prefix>]` (Azurite and other path-style servers); or
            `s3://<bucket>[/<prefix>]`.
        environ: AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN; or
            AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (without keys: the role of the machine),
            AWS_REGION and, for other servers that speak S3, AWS_ENDPOINT_URL.

    Raises:
        ConfigInvalid: the URL names no such place.
    """
    scheme = urlsplit(url).scheme if "://" in url else "file"
    try:
        if scheme == "file":
            folder = Path(unquote(urlsplit(url).path) if "://" in url else url).expanduser().absolute()
            return BlobStore(LocalStore(folder, mkdir=True), name=str(folder), folder=folder)
        if scheme in ("http", "https"):
            return _open_azure(parse_azure_url(url, environ), allow_http=scheme == "http")
        if scheme == "s3":
            return _open_s3(url, environ)
    except (obstore_errors.BaseError, OSError, ValueError) as error:
        raise ConfigInvalid(f"cannot open {_hide_query(url)}: {_get_reason(error)}") from error
    raise ConfigInvalid(f"expected a folder, an Azure container's https:// URL or s3://bucket, found {scheme}://")


def is_azure_url(url: str, environ: Mapping[str, str]) -> bool:
    """Whether a device's URL is one of Azure Blob: by its host, or by an account that the environment names."""
    parts = urlsplit(url)
    known = _read_connection_string(environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    accounts = {known.get("AccountName"), environ.get("AZURE_STORAGE_ACCOUNT_NAME"), EMULATOR_ACCOUNT}
    return ".blob." in (parts.hostname or "") or parts.path.strip("/").partition("/")[0] in accounts


def parse_azure_url(url: str, environ: Mapping[str, str]) -> AzurePlace:
    """Reads an Azure container's URL, and the credentials for it; raises ConfigInvalid."""
    parts = urlsplit(url)
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    own_host = ".blob." in (parts.hostname or "")
    account = (parts.hostname or "").partition(".")[0] if own_host else "".join(segments[:1])
    rest = segments if own_host else segments[1:]
    if not account or not rest:
        raise ConfigInvalid(f"expected the URL of a container, found {_hide_query(url)}")
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    known = _read_connection_string(environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    key = known.get("AccountKey", "") if known.get("AccountName") == account else ""
    return AzurePlace(
        account=account,
        container=rest[0],
        prefix="/".join(rest[1:]),
        endpoint=origin if own_host else f"{origin}/{account}",
        key=key or environ.get("AZURE_STORAGE_ACCOUNT_KEY", ""),
        sas=parts.query or environ.get("AZURE_STORAGE_SAS_TOKEN", "").lstrip("?"),
    )


def _open_azure(place: AzurePlace, *, allow_http: bool) -> BlobStore:
    config: dict[str, Any] = {"account_name": place.account, "endpoint": place.endpoint}
    if place.sas:
        config["sas_key"] = place.sas
    elif place.key:
        config["account_key"] = place.key
    store = AzureStore(
        place.container,
        prefix=place.prefix or None,
        client_options=_make_client(allow_http=allow_http),
        retry_config=_RETRY,
        **config,
    )
    return BlobStore(store, name=f"the container {place.container!r} of {place.account!r}")


def _open_s3(url: str, environ: Mapping[str, str]) -> BlobStore:
    parts = urlsplit(url)
    if not parts.hostname:
        raise ConfigInvalid(f"expected s3://bucket[/prefix], found {_hide_query(url)}")
    allow_http = environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    config: Any = {name.lower(): environ[name] for name in _S3_SETTINGS if environ.get(name)}
    store = S3Store(
        parts.netloc,
        prefix=unquote(parts.path.strip("/")) or None,
        client_options=_make_client(allow_http=allow_http),
        retry_config=_RETRY,
        **config,
    )
    return BlobStore(store, name=f"the bucket {parts.netloc!r}")


def _make_client(*, allow_http: bool) -> Any:
    return {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=300), "allow_http": allow_http}


def _read_connection_string(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";") if part)
    return {name: value for name, _, value in pairs}


def _make_attributes(path: str) -> dict[str, str]:
    """Objects named by their content may be kept for ever, the others must be asked for again."""
    suffix = path[path.rfind(".") :] if "." in path else ""
    lasting = path.startswith(("blobs/", "targets/"))
    return {
        "Content-Type": _TYPES.get(suffix, "application/octet-stream"),
        "Cache-Control": "public, max-age=31536000, immutable" if lasting else "no-cache",
    }


def _tell_nobody(_: int) -> None:
    """Nobody counts."""


def _iterate_parts(data: bytes, sent: Sent) -> Iterator[bytes]:
    for start in range(0, len(data), PART_BYTES):
        part = data[start : start + PART_BYTES]
        yield part
        sent(len(part))


def _require_path(path: str) -> str:
    if not _PATH.fullmatch(path) or ".." in path:
        raise NameInvalid(f"expected a plain path below the repository, found {path!r:.120}")
    return path


def _hide_query(url: str) -> str:
    return url.partition("?")[0][:200]


def _get_reason(error: Exception) -> str:
    """The first line of the library's message, cut before any query: it may hold a signature."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].partition("?")[0][:200]
