"""Versions that carry no manifest: an unpacked classic bundle, or files that another module points to.

What this file leaves to others: getting and unpacking the files (`steps.py`, `storage/classic.py`), what model bytes
tell (`model/inspect.py`, `model/bundle_spec.py`).

Rules:
- What serves is a copy of our own; what other modules read, or write, is never served from.
- What the model file does not tell comes from the bundle's `spec.toml`; what nobody tells is SpecIncomplete.
- Paths from another module's message are confined to the storage root, links included.
- Blocking: called through a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeferry.agent.record import Target, UpdateRecord, make_local_version
from edgeferry.errors import BundleIncomplete, RequestInvalid
from edgeferry.model.bundle_spec import make_bundle_spec
from edgeferry.model.digest import Digest
from edgeferry.model.spec import ModelSpec
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.classic import read_part
from edgeferry.storage.files import translate_disk_errors
from edgeferry.storage.repository import Repository
from edgeferry.twin.contract import CLASSIC_MODEL

_PATH_MAX_CHARS = 1024


def list_files(folder: Path) -> dict[str, Path]:
    """Name -> path of the plain files of an unpacked bundle."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()}


def store_loose(repository: Repository, record: UpdateRecord, files: Mapping[str, Path]) -> StoredVersion:
    """Makes the record's version of `files`; raises BundleError, ModelUnreadable or SpecIncomplete leaves."""
    spec = make_loose_spec(files)
    return repository.store_classic(record.model, record.version, identity=record.identity, files=files, spec=spec)


def make_loose_spec(files: Mapping[str, Path]) -> ModelSpec:
    """The spec of the models among `files`, from their bytes, label files and a `spec.toml`."""
    if not files:
        raise BundleIncomplete("expected a model file in the bundle, found nothing at all")
    return make_bundle_spec(files, lambda name: read_part(files[name]))


def make_local_target(message: Mapping[str, Any], storage: Path) -> Target:
    """The target that another module's message `{"local_model_path", "local_labelmap_path"}` names; reads the disk.

    Args:
        message: the parsed body.
        storage: the storage root that both modules share.

    Raises:
        RequestInvalid: a path is missing, leads out of `storage`, or is no file.
        StorageFailed: the disk does not do as asked.
    """
    with translate_disk_errors(storage):
        return _make_local_target(message, storage)


def _make_local_target(message: Mapping[str, Any], storage: Path) -> Target:
    model = _confine(message.get("local_model_path"), storage, "local_model_path")
    given = message.get("local_labelmap_path")
    label = _confine(given, storage, "local_labelmap_path") if given not in (None, "") else ""
    status = (storage / model).stat()
    key = f"local|{model}|{label}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
    identity = Digest.of(key.encode("utf-8", "surrogatepass"))
    return Target(
        kind="local",
        model=CLASSIC_MODEL,
        version=make_local_version(Path(model).parent.name + ".d", identity),
        key=key,
        identity=str(identity),
        model_path=model,
        label_path=label,
    )


def _confine(value: object, storage: Path, what: str) -> str:
    """`value` relative to `storage`, every link in it followed."""
    if not isinstance(value, str) or not value or len(value) > _PATH_MAX_CHARS or "\x00" in value:
        raise RequestInvalid(f"expected {what} as a path below the storage root")
    root = storage.resolve()
    path = (root / value).resolve()
    if Path(value).is_absolute() or ".." in Path(value).parts or not path.is_relative_to(root):
        raise RequestInvalid(f"expected {what} to stay below the storage root, found {value!r:.80}")
    if not path.is_file():
        raise RequestInvalid(f"expected a file at {what}, found none at {value!r:.80}")
    return str(path.relative_to(root))
