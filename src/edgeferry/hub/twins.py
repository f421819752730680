"""Twins: what the service and the devices may do to them, and who is told.

Merging, versions and limits stand in twin/document.py; this file stores the outcome and wakes the device.

Rules:
- Each write reads, changes and stores in one transaction: two writers never lose each other's change.
- A twin patch goes to a connected device after the write is on disk, in the order of `$version`.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeferry.errors import Conflict
from edgeferry.hub.presence import Presence
from edgeferry.storage.hub_db import HubDb
from edgeferry.twin.document import Json, TwinDocument, patch_reported, write_twin
from edgeferry.wire.service_api import Identity, IdentityRecord, parse_twin_write


class Twins:
    """Reads and writes of twins. `clock` gives Unix seconds."""

    def __init__(self, db: HubDb, presence: Presence, clock: Callable[[], float]) -> None:
        self._db = db
        self._presence = presence
        self._clock = clock

    async def read(self, identity: Identity) -> tuple[IdentityRecord, TwinDocument]:
        """The twin with its identity; raises NotFound."""
        return await self._db.read(lambda tables: (tables.require_identity(identity), tables.read_twin(identity)))

    async def write(self, identity: Identity, body: Json, *, if_match: str | None, replace_all: bool) -> TwinDocument:
        """A PATCH or PUT of the service.

        Raises:
            NotFound: no such identity.
            Conflict: `if_match` is stale (code PreconditionFailed).
            RequestInvalid, LimitExceeded: what it says cannot stand in a twin.
        """
        tags, desired = parse_twin_write(body)
        now = self._clock()

        def change(twin: TwinDocument) -> tuple[TwinDocument, tuple[TwinDocument, Json | None]]:
            if if_match is not None and if_match != twin.etag:
                raise Conflict(
                    f"the twin of {identity} has changed since it was read", service_code="PreconditionFailed"
                )
            written, patch = write_twin(twin, tags=tags, desired=desired, now=now, replace_all=replace_all)
            return written, (written, patch)

        written, patch = await self._db.write(lambda tables: tables.change_twin(identity, change))
        link = self._presence.find(identity)
        if patch is not None and link is not None:
            link.send_desired(patch)
        return written

    async def report(self, identity: Identity, patch: Json) -> int:
        """Merges reported properties; returns the new `$version`.

        Raises:
            NotFound: no such identity.
            RequestInvalid, LimitExceeded: what it says cannot stand in a twin.
        """
        now = self._clock()

        def change(twin: TwinDocument) -> tuple[TwinDocument, int]:
            written = patch_reported(twin, patch, now=now)
            return written, written.reported.version

        return await self._db.write(lambda tables: tables.change_twin(identity, change))
