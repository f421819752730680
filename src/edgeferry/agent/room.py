"""Room on the disk: what is kept gives way to what is wanted, and what is under way stays.

What this file leaves to others: deciding what goes (`storage/keeping.py`), removing it (`storage/tidying.py`).

Rules:
- What an update under way needs is told by the journal's records, each written before its step began.
- A step that found the disk full is run once more when something gave way to it; otherwise its update waits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import suppress

from edgeferry.agent.machine import TERMINAL
from edgeferry.agent.places import find_stored, list_needed
from edgeferry.agent.record import Target, UpdateRecord, read_record_bytes
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Outcome, Step, Tools
from edgeferry.errors import NoSpace, StorageError
from edgeferry.storage.journal import Journal
from edgeferry.storage.repository import Repository
from edgeferry.storage.tidying import Collected, gc


async def collect(tools: Tools, wanted_bytes: int = 0) -> Collected:
    """Tidies the repository; with `wanted_bytes` kept versions go where that makes enough room."""
    return await collect_in(tools.repository, tools.journal, wanted_bytes)


async def collect_in(repository: Repository, journal: Journal, wanted_bytes: int = 0) -> Collected:
    """As `collect`, on a folder whose journal is open."""
    records = []
    for _, body in await journal.load_records():
        with suppress(StorageError):  # a row that cannot be read is nobody's update
            records.append(read_record_bytes(body))
    return await in_thread(_collect, repository, records, wanted_bytes)


def _collect(repository: Repository, records: Iterable[UpdateRecord], wanted_bytes: int) -> Collected:
    under_way = [record for record in records if record.state not in TERMINAL]
    found = [find_stored(repository, record) for record in under_way]
    needed = [list_needed(repository, record) for record in under_way]
    keep = [stored for stored in found if stored is not None]
    return gc(repository, keep, keep_blobs=frozenset().union(*needed), wanted_bytes=wanted_bytes)


def making_room(step: Step) -> Step:
    """The step, run once more after a full disk when something gave way to it."""

    @functools.wraps(step)
    async def with_room(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
        try:
            return await step(tools, record, target)
        except NoSpace as error:
            needed = error.values.get("needed_bytes")
            if not (await collect(tools, needed if isinstance(needed, int) else 0)).freed_bytes:
                raise
        return await step(tools, record, target)

    return with_room
