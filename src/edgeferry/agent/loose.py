"""Versions that carry no manifest: an unpacked classic bundle, or files that another module points to.

What this file leaves to others: getting and unpacking the files (`steps.py`, `storage/classic.py`), what model bytes
tell (`model/inspect.py`).

Rules:
- What serves is a copy of our own; what other modules read, or write, is never served from.
- What the model file does not tell comes from the bundle's `spec.toml`; what nobody tells is SpecIncomplete.
- Blocking: called through a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeferry.agent.record import UpdateRecord
from edgeferry.errors import BundleIncomplete
from edgeferry.model.bundle import SPEC_FILE, find_label_file, find_model_file
from edgeferry.model.inspect import inspect_model, make_spec
from edgeferry.model.labels import LABELS_MAX_BYTES, read_labels
from edgeferry.model.spec import ModelSpec, read_spec_toml
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.files import open_mapped, read_bounded
from edgeferry.storage.repository import Repository

_SPEC_MAX_BYTES = 1 << 20


def list_files(folder: Path) -> dict[str, Path]:
    """Name -> path of the plain files of an unpacked bundle."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()}


def store_loose(repository: Repository, record: UpdateRecord, files: Mapping[str, Path]) -> StoredVersion:
    """Makes the record's version of `files`; raises BundleError, ModelUnreadable or SpecIncomplete leaves."""
    spec = make_loose_spec(files)
    return repository.store_classic(record.model, record.version, identity=record.identity, files=files, spec=spec)


def make_loose_spec(files: Mapping[str, Path]) -> ModelSpec:
    """The spec of the one model among `files`, from its bytes, its label file and a `spec.toml`."""
    if not files:
        raise BundleIncomplete("expected a model file in the bundle, found nothing at all")
    model_file, label_file = find_model_file(files), find_label_file(files)
    labels = read_labels(read_bounded(files[label_file], LABELS_MAX_BYTES)) if label_file else None
    overrides = _read_overrides(files)
    with open_mapped(files[model_file]) as data:
        inspection = inspect_model(model_file, data)
        return make_spec(inspection, labels=labels, labels_file=label_file or "", overrides=overrides)


def _read_overrides(files: Mapping[str, Path]) -> dict[str, object] | None:
    if SPEC_FILE not in files:
        return None
    return read_spec_toml(read_bounded(files[SPEC_FILE], _SPEC_MAX_BYTES).decode("utf-8", "replace"))
