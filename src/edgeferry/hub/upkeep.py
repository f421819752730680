"""What the hub does by itself, again and again: note who has left, notice commands, forget what is over.

Rules:
- `hub device` commands write an SQLite store beside the running hub. SQLite says that somebody else wrote; then every
  connected identity is looked at again, and one that was deleted, disabled (or whose device was) or given other keys is
  dropped. Writes of our own, and those to a shared store, tell so themselves (bus.py).
- The store of `$upstream`, the queues and the events of a shared store are trimmed to their bounds.
- Trouble is logged when it begins and when it ends, and what was put off is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from edgeferry.errors import EdgeferryError
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.registry import is_admissible
from edgeferry.storage.hub_tables import HubTables
from edgeferry.wire.service_api import IdentityRecord

WRITE_ENDED_EVERY_S = 0.25
LOOK_EVERY_S = 0.5
BEAT_EVERY_S = 5.0
TRIM_EVERY_S = 30.0
APPLY_EVERY_S = 30.0
_log = structlog.get_logger(__name__)


async def run_upkeep(rooms: HubRooms) -> None:
    """Runs as long as the hub."""
    is_shared = await rooms.db.read(lambda tables: tables.is_shared)
    async with asyncio.TaskGroup() as group:
        group.create_task(_repeat(WRITE_ENDED_EVERY_S, rooms.presence.write_ended))
        group.create_task(_repeat(TRIM_EVERY_S, lambda: trim(rooms)))
        group.create_task(_repeat(TRIM_EVERY_S, rooms.presence.end_ghosts))
        group.create_task(_repeat(APPLY_EVERY_S, rooms.configurations.apply_all))
        if is_shared:
            group.create_task(_repeat(BEAT_EVERY_S, rooms.presence.beat))
        else:
            group.create_task(_repeat(LOOK_EVERY_S, _Watch(rooms).look))


async def _repeat(every_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Trouble is told when it begins and when it is over, not each time: the log may lie on the disk that is full."""
    trouble: str | None = None
    while True:
        found = await _try(work, trouble)
        if trouble and not found:
            _log.info("upkeep goes on")
        trouble = found
        await asyncio.sleep(every_s)


async def _try(work: Callable[[], Awaitable[None]], told: str | None) -> str | None:
    """The code of what went wrong, None when nothing did."""
    try:
        await work()
    except EdgeferryError as error:
        if error.code != told:
            _log.warning("upkeep put off", code=error.code, reason=error.message)
        return error.code
    except Exception:  # noqa: BLE001 - the edge of a task: a defect met by one kind of upkeep must not end the others
        _log.exception("upkeep failed")
        return "defect"
    return None


class _Watch:
    """Notices writes of other processes to an SQLite store."""

    def __init__(self, rooms: HubRooms) -> None:
        self._rooms = rooms
        self._seen = -1

    async def look(self) -> None:
        version = await self._rooms.db.read(lambda tables: tables.get_data_version())
        if version != self._seen:
            self._seen = version
            await drop_changed(self._rooms)


async def drop_changed(rooms: HubRooms, *, device_id: str | None = None) -> None:
    """Drops every link, or every one of a device, whose identity is not any more what it was at the CONNECT."""
    links = [link for link in rooms.presence.get_links() if device_id in (None, link.record.identity.device_id)]
    if not links:
        return

    def work(tables: HubTables) -> list[tuple[IdentityRecord | None, bool]]:
        records = [tables.find_identity(link.record.identity) for link in links]
        return [(record, is_admissible(tables, record)) for record in records]

    for link, (record, is_enabled) in zip(links, await rooms.db.read(work), strict=True):
        was = link.record
        if record is None or record.generation_id != was.generation_id:
            link.close("the identity is no longer registered")
        elif not is_enabled or record.keys != was.keys:
            link.close("its keys or its status changed")


async def trim(rooms: HubRooms) -> None:
    """Deletes expired and surplus messages, and events that are old."""
    now = rooms.clock()

    def work(tables: HubTables) -> tuple[int, int]:
        if tables.is_shared:
            tables.trim_events()
        return tables.queues.drop_expired(now), tables.queues.trim() + tables.queues.trim_upstream()

    expired, surplus = await rooms.db.write(work)
    if expired or surplus:
        _log.info("messages trimmed", expired=expired, surplus=surplus)
    await drop_changed(rooms)  # a change may have been told in the very moment in which a link was taken in
