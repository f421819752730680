"""What lies in a device's storage and belongs to nothing, once no update is under way."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgeferry.agent.machine import TERMINAL
from edgeferry.agent.places import list_needed
from edgeferry.agent.record import UpdateRecord
from edgeferry.model.digest import Digest
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.mending import find_content
from edgeferry.storage.repository import Repository


def list_orphans(repository: Repository, rows: Collection[UpdateRecord]) -> list[str]:
    """Paths below the storage root: half downloads, things in the making, versions and content that nobody refers to.

    Args:
        repository: of the device.
        rows: its journal's records.
    """
    kept = [stored for model in repository.list_models() for stored in _list_kept(repository, model)]
    found_content = [find_content(repository, one.model, one.folder, identity=one.identity) for one in kept]
    used = frozenset[Digest]().union(*found_content)
    used = used.union(*(list_needed(repository, row) for row in rows if row.state not in TERMINAL))
    folders, identities = {stored.folder for stored in kept}, {stored.identity for stored in kept}
    shared = {row.file_name.removesuffix(".zip") for row in rows if row.identity in identities}
    root = repository.storage_root
    found: list[Path] = [path for path in repository.root.glob("models/*/versions/*") if path not in folders]
    found += repository.partial_folder.iterdir()
    found += [path for path in root.rglob("*") if path.name.startswith((".edgeferry", "tmp"))]
    found += [repository.blobs.get_path(digest) for digest in repository.blobs.list_digests() - used]
    found += [path for path in root.iterdir() if path.name not in {"edgeferry", *shared}]
    return sorted(str(path.relative_to(root)) for path in found)


def _list_kept(repository: Repository, model: str) -> list[StoredVersion]:
    """Whole versions that are, or were, active: these stay while there is room."""
    history = set(repository.refs.read_history(model))
    return [stored for stored in repository.list_versions(model) if stored.identity in history]
