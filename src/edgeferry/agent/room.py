"""Room on the disk: what is kept gives way to what is wanted, and what is under way stays.

What this file leaves to others: deciding what goes (`storage/keeping.py`), removing it (`storage/tidying.py`).

Rules:
- What an update under way needs is told by the journal's records, each written before its step began.
- A step that found the disk full is run once more when something gave way to it; otherwise its update waits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from edgeferry.agent.machine import TERMINAL
from edgeferry.agent.places import find_stored, list_needed
from edgeferry.agent.record import Target, UpdateRecord, read_record_bytes, write_record_bytes
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Outcome, Step, Tools
from edgeferry.errors import ModelNotFound, NameInvalid, NoSpace, RequestInvalid, StorageError
from edgeferry.storage.journal import Journal
from edgeferry.storage.repository import Repository
from edgeferry.storage.tidying import Collected, gc, pin_version

_KEPT_KEY = "kept"


async def collect(
    repository: Repository, journal: Journal, *, wanted_bytes: int = 0, everything: bool = False
) -> Collected:
    """Tidies up: with `wanted_bytes` kept versions go where that makes enough room, with `everything` all that may."""
    records = await load_kept(journal)
    for _, body in await journal.load_records():
        with suppress(StorageError):  # a row that cannot be read is nobody's update
            records.append(read_record_bytes(body))
    return await in_thread(_collect, repository, records, wanted_bytes=wanted_bytes, everything=everything)


def _collect(
    repository: Repository, records: Iterable[UpdateRecord], *, wanted_bytes: int, everything: bool
) -> Collected:
    under_way = [record for record in records if record.state not in TERMINAL]
    with repository.lock:  # nothing is stored between looking and removing
        found = [find_stored(repository, record) for record in under_way]
        needed = [list_needed(repository, record) for record in under_way]
        keep = [stored for stored in found if stored is not None]
        blobs = frozenset().union(*needed)
        return gc(repository, keep, keep_blobs=blobs, wanted_bytes=wanted_bytes, everything=everything)


async def load_kept(journal: Journal) -> list[UpdateRecord]:
    """The records with which kept versions are made whole (`kept.py`); none where they cannot be read."""
    try:
        bodies = msgspec.json.decode(await journal.get_value(_KEPT_KEY) or b"[]", type=list[msgspec.Raw])
        return [read_record_bytes(bytes(body)) for body in bodies]
    except (msgspec.MsgspecError, UnicodeDecodeError, StorageError):
        return []


async def save_kept(journal: Journal, records: Iterable[UpdateRecord]) -> None:
    """Writes them in the place of those before."""
    bodies = [msgspec.Raw(write_record_bytes(record)) for record in records]
    await journal.set_value(_KEPT_KEY, msgspec.json.encode(bodies))


def making_room(step: Step) -> Step:
    """The step, run once more after a full disk when something gave way to it."""

    @functools.wraps(step)
    async def with_room(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
        try:
            return await step(tools, record, target)
        except NoSpace as error:
            needed = error.values.get("needed_bytes")
            wanted = needed if isinstance(needed, int) else 0
            if not (await collect(tools.repository, tools.journal, wanted_bytes=wanted)).freed_bytes:
                raise
        return await step(tools, record, target)

    return with_room


# --- what people ask for ----------------------------------------------------------------------------------------------
async def run_gc(repository: Repository, journal: Journal) -> tuple[int, dict[str, Any]]:
    """Lets go of all that may go; status like HTTP's, and what went."""
    try:
        gone = await collect(repository, journal, everything=True)
    except StorageError as error:
        return 507, {"error": error.to_dict()}
    return 200, {"ok": True, "versions": list(gone.versions), "freed_bytes": gone.freed_bytes}


async def run_pin(repository: Repository, payload: object) -> tuple[int, dict[str, Any]]:
    """Pins the version that `{"model", "version", "remove"}` names, or lets go of it."""
    asked = payload if isinstance(payload, Mapping) else {}
    model, version, remove = asked.get("model"), asked.get("version"), asked.get("remove") is True
    try:
        if not isinstance(model, str) or not isinstance(version, str):
            raise RequestInvalid("expected model and version")
        found = await in_thread(pin_version, repository, model, version, remove=remove)
    except (RequestInvalid, NameInvalid) as error:
        return 400, {"error": error.to_dict()}
    except StorageError as error:
        return 507, {"error": error.to_dict()}
    if not found:
        return 404, {"error": {"code": ModelNotFound.code, "message": f"{model}@{version} is not stored here"}}
    return 200, {"ok": True, "model": model, "version": version, "pinned": not remove}
