"""Telling other modules of this host which model to use: the message on DLModelOutput.

What this file leaves to others: sending it (`hub_link.py` empties the outbox), routing it (the hub).

Rules:
- At least once: the message is durable before the update goes on, and carries a stable id by which it is known again.
- Paths are relative to the storage root. A classic version's folder appears whole before it is spoken of.
- The message has room for one model file: of several stages the first is named, and its folder holds all.
"""

from __future__ import annotations

import msgspec

from edgeferry.agent.record import UpdateRecord
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Tools
from edgeferry.model.digest import Digest
from edgeferry.model.stored import StoredVersion
from edgeferry.names import get_stem
from edgeferry.storage.classic import get_classic_folder, publish_folder, remove_zip
from edgeferry.storage.repository import Repository

OUTPUT = "DLModelOutput"
INPUT = "AIMessageInput"
_NOT_SHARED = frozenset({"manifest.json", "identity:"})


async def announce(tools: Tools, record: UpdateRecord, stored: StoredVersion) -> None:
    """Puts the message for `stored` into the outbox; a version that another module announced is not announced again."""
    mid = f"{Digest.of(record.key.encode('utf-8', 'surrogatepass')).hex[:24]}-{int(record.began_at * 1000)}"
    if record.kind == "local" or mid in tools.announced:
        return
    if record.kind == "classic":
        await in_thread(_publish, tools.repository, record, stored)
    body = msgspec.json.encode(_make_paths(tools.repository, record, stored))
    await tools.journal.put_message(mid, output=OUTPUT, body=body)
    tools.posted()
    if record.kind == "classic":
        await in_thread(remove_zip, tools.repository.storage_root, record.file_name)
    tools.announced.add(mid)


def _make_paths(repository: Repository, record: UpdateRecord, stored: StoredVersion) -> dict[str, str]:
    root = repository.storage_root
    folder = get_classic_folder(root, record.file_name) if record.kind == "classic" else stored.folder
    base = folder.relative_to(root)
    stage = stored.spec.stages[0]
    labels = stage.labels.file
    return {
        "local_model_path": str(base / stage.file),
        "local_labelmap_path": str(base / labels) if labels else "",
    }


def _publish(repository: Repository, record: UpdateRecord, stored: StoredVersion) -> None:
    files = {path.name: path for path in sorted(stored.folder.iterdir()) if path.name not in _NOT_SHARED}
    publish_folder(repository.storage_root, get_stem(record.file_name), files)
