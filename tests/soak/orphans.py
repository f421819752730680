"""What lies in a device's storage and belongs to nothing, once no update is under way."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgeferry.agent.machine import TERMINAL
from edgeferry.agent.places import list_needed
from edgeferry.agent.record import UpdateRecord
from edgeferry.storage.repository import REF_NAMES, Repository
from edgeferry.storage.versions import list_digests


def list_orphans(repository: Repository, rows: Collection[UpdateRecord]) -> list[str]:
    """Paths below the storage root: half downloads, things in the making, versions and content that nobody refers to.

    Args:
        repository: of the device.
        rows: its journal's records.
    """
    refs = [repository.read_ref(model, name) for model in repository.list_models() for name in REF_NAMES]
    kept = [stored for stored in refs if stored is not None]
    used = {digest for stored in kept for digest in list_digests(stored.folder)}
    used = used.union(*(list_needed(repository, row) for row in rows if row.state not in TERMINAL))
    folders = {stored.folder for stored in kept}
    shared = {row.file_name.removesuffix(".zip") for row in rows if row.identity in {one.identity for one in kept}}
    root = repository.storage_root
    found: list[Path] = [path for path in repository.root.glob("models/*/versions/*") if path not in folders]
    found += repository.partial_folder.iterdir()
    found += [path for path in root.rglob("*") if path.name.startswith((".edgeferry", "tmp"))]
    found += [repository.blob_path(digest) for digest in repository.list_blobs() - used]
    found += [path for path in root.iterdir() if path.name not in {"edgeferry", *shared}]
    return sorted(str(path.relative_to(root)) for path in found)
