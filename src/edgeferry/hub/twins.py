"""Twins: what the service and the devices may do to them, and who is told.

Merging, versions and limits stand in twin/document.py; this file stores the outcome and wakes the device.

Rules:
- Each write reads, changes and stores in one transaction: two writers never lose each other's change.
- A twin patch is told after the write is on disk, in the order of `$version` (bus.py brings it to the device).
"""

from __future__ import annotations

from collections.abc import Callable

from edgeferry.errors import Conflict
from edgeferry.hub.configurations import apply_to_device
from edgeferry.storage.hub_db import HubDb
from edgeferry.storage.hub_events import DesiredWritten
from edgeferry.storage.hub_tables import HubTables, IdentityView
from edgeferry.twin.document import Json, TwinDocument, patch_reported, write_twin
from edgeferry.wire.service_api import Identity, parse_twin_write


class Twins:
    """Reads and writes of twins. `clock` gives Unix seconds."""

    def __init__(self, db: HubDb, clock: Callable[[], float]) -> None:
        self._db = db
        self._clock = clock

    async def read(self, identity: Identity) -> IdentityView:
        """The twin with its identity and connection; raises NotFound."""
        return await self._db.read(lambda tables: tables.require_view(identity))

    async def write(self, identity: Identity, body: Json, *, if_match: str | None, replace_all: bool) -> IdentityView:
        """A PATCH or PUT of the service; configurations that match then are applied with it.

        Raises:
            NotFound: no such identity.
            Conflict: `if_match` is stale (code PreconditionFailed).
            RequestInvalid, LimitExceeded: what it says cannot stand in a twin.
        """
        tags, desired = parse_twin_write(body)
        now = self._clock()

        def change(twin: TwinDocument) -> tuple[TwinDocument, Json | None]:
            if if_match is not None and if_match != twin.etag:
                raise Conflict(
                    f"the twin of {identity} has changed since it was read", service_code="PreconditionFailed"
                )
            return write_twin(twin, tags=tags, desired=desired, now=now, replace_all=replace_all)

        def work(tables: HubTables) -> IdentityView:
            patch = tables.change_twin(identity, change)
            if patch is not None:
                tables.tell(DesiredWritten(identity, patch))
            apply_to_device(tables, identity.device_id, now)
            return tables.require_view(identity)

        return await self._db.write(work)

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
