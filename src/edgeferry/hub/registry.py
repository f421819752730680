"""Who may connect: identities with their keys, and the answer to a CONNECT.

SQL stands in storage/hub_tables.py, tokens in wire/iothub_auth.py, the service REST in http_front.py.

Rules:
- A refusal does not say whether the identity exists: unknown, disabled and wrongly signed read alike from outside (the
  time that a signature takes is not hidden).
- Every write of an identity changes its etag; a new identity of an old name has another generation id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgeferry.errors import Conflict, HubRefused
from edgeferry.hub.configurations import apply_to_device
from edgeferry.hub.identity_records import make_etag
from edgeferry.storage.hub_db import HubDb
from edgeferry.storage.hub_events import IdentityChanged
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.document import make_twin
from edgeferry.wire.iothub_auth import make_client_id, parse_sas_token, parse_user_name, verify_sas_token
from edgeferry.wire.mqtt_packets import Connect
from edgeferry.wire.service_api import Identity, IdentityRecord


@dataclass(frozen=True, slots=True)
class Admission:
    """An identity that may stay connected until its token expires (Unix seconds)."""

    record: IdentityRecord
    expires_at: int


class Registry:
    """Identities of the hub. `clock` gives Unix seconds."""

    def __init__(self, db: HubDb, clock: Callable[[], float]) -> None:
        self._db = db
        self._clock = clock

    async def admit(self, connect: Connect) -> Admission:
        """Checks user name, client id and password of a CONNECT.

        Raises:
            HubRefused: unknown, disabled, expired, or not signed with a key of this identity.
        """
        user = parse_user_name(connect.user_name or "")
        if connect.client_id != make_client_id(user.device_id, user.module_id):
            raise HubRefused("the client id is not that of the user name")
        token = parse_sas_token((connect.password or b"").decode("utf-8", "replace"))
        identity = Identity(user.device_id, user.module_id)
        record = await self._db.read(lambda tables: _find_enabled(tables, identity))
        if record is None:
            raise HubRefused("no such identity is registered and enabled", identity=str(identity))
        verify_sas_token(token, resource=user.resource, keys=record.keys, now=self._clock())
        return Admission(record, token.expires_at)

    async def read(self, identity: Identity) -> IdentityRecord:
        """The record; raises NotFound."""
        return await self._db.read(lambda tables: tables.require_identity(identity))

    async def add(self, record: IdentityRecord) -> IdentityRecord:
        """Registers a new identity; raises Conflict, or NotFound for a module without its device."""
        now = self._clock()

        def work(tables: HubTables) -> IdentityRecord:
            tables.add_identity(record, make_twin(now))
            apply_to_device(tables, record.identity.device_id, now)
            return record

        return await self._db.write(work)

    async def change(
        self, identity: Identity, if_match: str | None, change: Callable[[IdentityRecord], IdentityRecord]
    ) -> IdentityRecord:
        """Writes a changed record under a new etag; raises NotFound, or Conflict when `if_match` is stale."""

        def work(tables: HubTables) -> IdentityRecord:
            changed = replace(change(_require_match(tables, identity, if_match)), etag=make_etag())
            tables.write_identity(changed)
            tables.tell(IdentityChanged(identity))
            return changed

        return await self._db.write(work)

    async def delete(self, identity: Identity, if_match: str | None) -> None:
        """Deletes an identity and all of it; raises NotFound, or Conflict when `if_match` is stale."""

        def work(tables: HubTables) -> None:
            _require_match(tables, identity, if_match)
            tables.delete_identity(identity)
            tables.tell(IdentityChanged(identity))

        await self._db.write(work)


def is_admissible(tables: HubTables, record: IdentityRecord | None) -> bool:
    """Whether it is registered and enabled, for a module its device too."""
    if record is None or not record.is_enabled:
        return False
    device = tables.find_identity(Identity(record.identity.device_id)) if record.identity.module_id else record
    return device is not None and device.is_enabled


def _find_enabled(tables: HubTables, identity: Identity) -> IdentityRecord | None:
    record = tables.find_identity(identity)
    return record if is_admissible(tables, record) else None


def _require_match(tables: HubTables, identity: Identity, if_match: str | None) -> IdentityRecord:
    record = tables.require_identity(identity)
    if if_match is not None and if_match != record.etag:
        raise Conflict(f"{identity} has changed since it was read", service_code="PreconditionFailed")
    return record
