"""The rooms of a hub without sockets, a clock that a test moves, and links that only remember."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from edgeferry.app.hub import HubSettings, make_rooms
from edgeferry.hub.bus import run_bus
from edgeferry.hub.device_link import HubRooms
from edgeferry.storage.hub_db import open_hub_db
from edgeferry.storage.hub_events import Attached
from edgeferry.storage.hub_store import HubStore
from edgeferry.storage.hub_tables import HubTables
from edgeferry.wire.service_api import Identity, IdentityRecord

D, A, B = Identity("d"), Identity("d", "a"), Identity("d", "b")
ROUTES = (
    'FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint("/modules/b/inputs/i")',
    'FROM /messages/modules/a/* INTO BrokeredEndpoint("/modules/b/inputs/i")',
    'FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint("/modules/gone/inputs/i")',
    "FROM /messages/modules/a/outputs/* INTO $upstream",
)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def until(holds: Callable[[], bool]) -> None:
    """Waits for what the bus brings."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.002)


class FakeLink:
    """Remembers what it was told."""

    def __init__(self, record: IdentityRecord, number: int, takes_methods: bool = True) -> None:
        self.record, self.number, self.takes_methods = record, number, takes_methods
        self.patches: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str, bytes]] = []
        self.closed: list[str] = []
        self.bells = 0

    def send_desired(self, patch: dict[str, Any]) -> None:
        self.patches.append(patch)

    def send_method(self, name: str, rid: str, payload: bytes) -> bool:
        self.calls.append((name, rid, payload))
        return self.takes_methods

    def wake(self) -> None:
        self.bells += 1

    def close(self, why: str) -> None:
        self.closed.append(why)


@asynccontextmanager
async def open_rooms(store: HubStore, clock: Clock) -> AsyncIterator[HubRooms]:
    """The rooms of one process, its bus running."""
    async with open_hub_db(store.folder, store.url) as db:
        settings = HubSettings(store.folder, routes=ROUTES, time_to_live_s=60.0, clock=clock)
        made = make_rooms(settings, db)
        bus = asyncio.create_task(run_bus(made))
        yield made
        bus.cancel()


async def attach(rooms: HubRooms, identity: Identity, **more: Any) -> FakeLink:
    """A link as device_link.py makes it: noted in the store, told, taken in."""

    def work(tables: HubTables) -> int:
        number = tables.sessions.connect(identity, hub=rooms.hub_id, now=rooms.clock())
        tables.tell(Attached(identity, number))
        return number

    number = await rooms.db.write(work)
    link = FakeLink(await rooms.registry.read(identity), number, **more)
    rooms.presence.attach(link)
    return link
