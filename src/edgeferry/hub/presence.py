"""Who is connected to this process: one link for each identity, and what the store is told when links end.

What a link does stands in device_link.py; who is connected to which process, for all to see, in
storage/hub_sessions.py.

Rules:
- A newer connection of an identity drops the older one, whichever process holds it: connections are numbered.
- An orderly disconnect is not "offline" for some seconds: SDKs renew their token by disconnecting and connecting again.
- Ends are written together and tried again: a full disk delays them, it loses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from edgeferry.storage.hub_db import HubDb
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.document import Json
from edgeferry.wire.service_api import Identity, IdentityRecord

RENEWAL_GRACE_S = 10.0


class Link(Protocol):
    """One live connection of an identity."""

    @property
    def record(self) -> IdentityRecord:
        """Who is connected, as registered at the CONNECT."""

    @property
    def number(self) -> int:
        """The number of this connection among those of its identity."""

    def send_desired(self, patch: Json) -> None:
        """Tells of a write of desired properties, if subscribed."""

    def send_method(self, name: str, rid: str, payload: bytes) -> bool:
        """Calls a direct method; False when not subscribed."""

    def wake(self) -> None:
        """Something waits in the queue of inputs."""

    def close(self, why: str) -> None:
        """Ends the connection."""


class Presence:
    """Links of the process `hub_id`. `clock` gives Unix seconds."""

    def __init__(self, hub_id: str, db: HubDb, clock: Callable[[], float]) -> None:
        self._hub_id = hub_id
        self._db = db
        self._clock = clock
        self._links: dict[Identity, Link] = {}
        self._ended: dict[Identity, tuple[int, float]] = {}
        self._ghosts: set[tuple[Identity, int]] = set()
        self._waiters: dict[Identity, list[asyncio.Future[None]]] = {}

    def attach(self, link: Link) -> None:
        """Takes a new link in; an older one of the same identity is closed, be it this one."""
        identity = link.record.identity
        present = self._links.get(identity)
        if present is not None and _is_newer(present, link):
            link.close("a newer connection of the same identity")
            return
        self._links[identity] = link
        self._ended.pop(identity, None)
        if present is not None:
            present.close("a newer connection of the same identity")

    def detach(self, link: Link, *, orderly: bool) -> None:
        """Takes a link out; does nothing when a newer one has taken its place."""
        identity = link.record.identity
        if self._links.get(identity) is link:
            del self._links[identity]
            self._ended[identity] = (link.number, self._clock() + (RENEWAL_GRACE_S if orderly else 0.0))

    def take_attached(self, identity: Identity, number: int) -> None:
        """An identity has connected, here or at another process."""
        link = self._links.get(identity)
        if link is not None and link.number < number:
            link.close("a newer connection of the same identity")
        for waiter in self._waiters.pop(identity, []):
            if not waiter.done():
                waiter.set_result(None)

    def find(self, identity: Identity) -> Link | None:
        """The live link, or None."""
        return self._links.get(identity)

    def get_links(self) -> list[Link]:
        """Every live link."""
        return list(self._links.values())

    async def wait_for(self, identity: Identity, timeout_s: float) -> bool:
        """Waits for an identity to connect, wherever; False when it did not in time."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(identity, []).append(waiter)
        try:
            await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            return False
        finally:
            left = [one for one in self._waiters.pop(identity, []) if one is not waiter]
            if left:
                self._waiters[identity] = left
        return True

    async def write_ended(self) -> None:
        """Tells the store of connections that are over, their grace included; raises StorageError, and keeps them."""
        now = self._clock()
        due = [(identity, number) for identity, (number, due_at) in self._ended.items() if due_at <= now]
        if not due:
            return
        await self._db.write(lambda tables: tables.sessions.disconnect(due, hub=self._hub_id, now=now))
        for identity, number in due:
            if self._ended.get(identity, (0, 0.0))[0] == number:
                del self._ended[identity]

    async def end_ghosts(self) -> None:
        """Ends connections of ours that only the store knows: their CONNECT was committed, but we were never told.

        One that is on its way here looks the same for a moment: it must look so twice.
        """
        now, hub_id = self._clock(), self._hub_id
        noted = await self._db.read(lambda tables: tables.sessions.read_connected(hub_id))
        unknown = {(identity, number) for identity, number in noted if not self._is_known(identity, number)}
        ghosts = unknown & self._ghosts
        self._ghosts = unknown - ghosts
        if ghosts:
            await self._db.write(lambda tables: tables.sessions.disconnect(ghosts, hub=hub_id, now=now))

    def _is_known(self, identity: Identity, number: int) -> bool:
        link = self._links.get(identity)
        return (link is not None and link.number == number) or self._ended.get(identity, (0, 0.0))[0] == number

    async def beat(self) -> None:
        """Tells the others of a shared store that this process lives, and ends the connections of those that do not.

        Raises:
            StorageError: the store was not reached.
        """
        now, hub_id = self._clock(), self._hub_id
        live = [(identity, link.number) for identity, link in self._links.items()]
        live += [(identity, number) for identity, (number, due_at) in self._ended.items() if due_at > now]

        def work(tables: HubTables) -> None:
            if tables.sessions.beat(hub_id):
                tables.sessions.drop_silent_hubs(now=now)
            else:
                tables.sessions.restore(live, hub=hub_id)

        await self._db.write(work)


def _is_newer(present: Link, link: Link) -> bool:
    """Whether a link is followed by the present one. Numbers of an identity that was made again begin anew."""
    return present.record.generation_id == link.record.generation_id and present.number > link.number
