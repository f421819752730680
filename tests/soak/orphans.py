"""What lies in a device's storage and belongs to nothing, once no update is under way."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgeferry.agent.machine import TERMINAL
from edgeferry.agent.places import list_needed
from edgeferry.agent.record import UpdateRecord
from edgeferry.storage.repository import Repository
from edgeferry.storage.versions import find_manifest, list_content


def list_orphans(repository: Repository, rows: Collection[UpdateRecord]) -> list[str]:
    """Paths in the storage: half downloads, things in the making, versions that never served, nobody's content.

    Args:
        repository: of the device.
        rows: its journal's records.
    """
    models = repository.list_models()
    was_active = {identity for model in models for identity in repository.refs.read_history(model)}
    kept = [one for model in models for one in repository.list_versions(model) if one.identity in was_active]
    manifests = [find_manifest(stored.folder, stored.identity) for stored in kept]
    used = {digest for manifest in manifests if manifest is not None for digest in list_content(manifest)}
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
