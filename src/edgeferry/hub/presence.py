"""Who is connected now: one link for each identity, and the sessions that outlive links.

What a link does stands in device_link.py; here it is only found, replaced and counted.

Rules:
- A newer connection of an identity drops the older one.
- An orderly disconnect is not "offline" for some seconds: SDKs renew their token by disconnecting and connecting again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from edgeferry.twin.document import Json
from edgeferry.wire.mqtt_session import Session
from edgeferry.wire.service_api import ConnectionFacts, Identity, IdentityRecord

RENEWAL_GRACE_S = 10.0


class Link(Protocol):
    """One live connection of an identity."""

    @property
    def record(self) -> IdentityRecord:
        """Who is connected, as registered at the CONNECT."""

    def send_desired(self, patch: Json) -> None:
        """Tells of a write of desired properties, if subscribed."""

    def send_method(self, name: str, rid: str, payload: bytes) -> bool:
        """Calls a direct method; False when not subscribed."""

    def wake(self) -> None:
        """Something waits in the queue of inputs."""

    def close(self, why: str) -> None:
        """Ends the connection."""


@dataclass(slots=True)
class _Place:
    link: Link | None = None
    session: Session | None = None
    changed_at: float | None = None
    active_at: float | None = None
    left_orderly: bool = False
    waiters: list[asyncio.Future[Link]] = field(default_factory=list)


class Presence:
    """Links and sessions by identity. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places: dict[Identity, _Place] = {}

    def attach(self, link: Link, session: Session) -> None:
        """Takes a new link in; an older one of the same identity is closed."""
        place = self._places.setdefault(link.record.identity, _Place())
        older, place.link, place.session = place.link, link, session
        place.changed_at = place.active_at = self._clock()
        if older is not None:
            older.close("a newer connection of the same identity")
        for waiter in place.waiters:
            if not waiter.done():
                waiter.set_result(link)
        place.waiters.clear()

    def detach(self, link: Link, *, orderly: bool, keeps_session: bool) -> None:
        """Takes a link out; does nothing when a newer one has taken its place."""
        place = self._places.get(link.record.identity)
        if place is None or place.link is not link:
            return
        place.link, place.left_orderly = None, orderly
        place.changed_at = place.active_at = self._clock()
        if not keeps_session:
            place.session = None

    def forget(self, identity: Identity) -> None:
        """Drops everything of a deleted identity, its link included."""
        place = self._places.pop(identity, None)
        if place is not None and place.link is not None:
            place.link.close("the identity is no longer registered")

    def find(self, identity: Identity) -> Link | None:
        """The live link, or None."""
        place = self._places.get(identity)
        return place.link if place else None

    def find_session(self, identity: Identity) -> Session | None:
        """The session that this process remembers, or None."""
        place = self._places.get(identity)
        return place.session if place else None

    async def wait_for(self, identity: Identity, timeout_s: float) -> Link | None:
        """The link, waiting for it to come; None when it did not in time."""
        link = self.find(identity)
        if link is not None or timeout_s <= 0:
            return link
        place = self._places.setdefault(identity, _Place())
        waiter: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        place.waiters.append(waiter)
        try:
            return await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            return None
        finally:
            if waiter in place.waiters:
                place.waiters.remove(waiter)

    def get_facts(self, identity: Identity) -> ConnectionFacts:
        """What the service may know of the connection."""
        place = self._places.get(identity)
        if place is None:
            return ConnectionFacts()
        renewing = place.left_orderly and self._clock() - (place.changed_at or 0.0) < RENEWAL_GRACE_S
        return ConnectionFacts(place.link is not None or renewing, place.changed_at, place.active_at)

    def get_links(self) -> Iterator[Link]:
        """Every live link."""
        return iter([place.link for place in self._places.values() if place.link is not None])
