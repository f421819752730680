"""What the hub does by itself, again and again: notice commands of other processes, forget what is over.

Rules:
- `hub device` commands write the database beside the running hub. SQLite says that somebody else wrote; then every
  connected identity is looked at again, and one that was deleted, disabled (or whose device was) or given other keys is
  dropped. The service REST, whose writes are our own, asks for that look itself.
- The store of `$upstream` and the queues are trimmed to their bounds.
"""

from __future__ import annotations

import asyncio

import structlog

from edgeferry.errors import StorageError
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.registry import is_admissible
from edgeferry.storage.hub_tables import HubTables
from edgeferry.wire.service_api import IdentityRecord

LOOK_EVERY_S = 0.5
TRIM_EVERY_S = 30.0
_log = structlog.get_logger(__name__)


async def run_upkeep(rooms: HubRooms) -> None:
    """Runs as long as the hub."""
    loop = asyncio.get_running_loop()
    seen, trim_at = -1, loop.time()
    while True:
        try:
            version = await rooms.db.read(lambda tables: tables.get_data_version())
            if version != seen:
                seen = version
                await drop_changed(rooms)
            if loop.time() >= trim_at:
                trim_at = loop.time() + TRIM_EVERY_S
                await trim(rooms)
        except StorageError as error:
            _log.warning("upkeep put off", code=error.code, reason=error.message)
        await asyncio.sleep(LOOK_EVERY_S)


async def drop_changed(rooms: HubRooms) -> None:
    """Drops every link whose identity is not any more what it was at the CONNECT."""
    links = list(rooms.presence.get_links())

    def work(tables: HubTables) -> list[tuple[IdentityRecord | None, bool]]:
        records = [tables.find_identity(link.record.identity) for link in links]
        return [(record, is_admissible(tables, record)) for record in records]

    for link, (record, is_enabled) in zip(links, await rooms.db.read(work), strict=True):
        was = link.record
        if record is None or record.generation_id != was.generation_id:
            rooms.presence.forget(was.identity)
        elif not is_enabled or record.keys != was.keys:
            link.close("its keys or its status changed")


async def trim(rooms: HubRooms) -> None:
    """Deletes expired and surplus messages."""
    now = rooms.clock()

    def work(tables: HubTables) -> tuple[int, int]:
        return tables.drop_expired(now), tables.trim_queues() + tables.trim_upstream()

    expired, surplus = await rooms.db.write(work)
    if expired or surplus:
        _log.info("messages trimmed", expired=expired, surplus=surplus)
