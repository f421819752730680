"""The hub's state in SQL: transactions, events, identities, twins, configurations, settings. Synchronous.

Messages stand in hub_queues.py, sessions and connections in hub_sessions.py, the schema in hub_schema.py, databases in
hub_sqlite.py and hub_postgres.py, threads and group commit in hub_db.py; what a write means (versions, limits) in
twin/document.py. The `hub` commands open a store directly, beside a running hub.

Rules:
- The caller owns the transaction (`transaction()`), so that many writes can share one fsync.
- Deleting an identity deletes everything of it; deleting a device deletes its modules.
- An event that is told in a transaction is delivered after its commit, or never.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from edgeferry.errors import Conflict, NotFound, StorageFailed
from edgeferry.storage.hub_events import Event, decode_event, encode_event
from edgeferry.storage.hub_queues import QueueTables, get_key
from edgeferry.storage.hub_sessions import SessionTables
from edgeferry.storage.hub_sql import Sql
from edgeferry.twin.document import TwinDocument
from edgeferry.wire.service_api import ConnectionFacts, Identity, IdentityRecord

Outcome = TypeVar("Outcome")
EVENTS_KEPT_S = 600.0


@dataclass(frozen=True, slots=True)
class IdentityView:
    """An identity as the service sees it: registration, twin, connection."""

    record: IdentityRecord
    twin: TwinDocument
    facts: ConnectionFacts


class HubTables:
    """All reads and writes, as plain calls on one connection."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql
        self._told: list[Event] = []
        self.queues = QueueTables(sql)
        self.sessions = SessionTables(sql)

    # --- transactions -------------------------------------------------------------------------------------------------
    @property
    def is_shared(self) -> bool:
        """Whether other hub processes serve from the same store."""
        return self._sql.is_shared

    @contextmanager
    def transaction(self, *, writes: bool = True) -> Iterator[None]:
        """Commits on the way out, rolls back on an error.

        Raises:
            NoSpace, StorageBusy, StorageFailed: the database did not do as asked.
        """
        self._told.clear()
        with self._sql.translated():
            self._sql.begin(writes=writes)
            try:
                yield
                if self._told:
                    self._sql.notify()
                self._sql.execute("COMMIT")
            except BaseException:
                self._told.clear()
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")
                raise

    def run_apart(self, work: Callable[[HubTables], Outcome]) -> Outcome:
        """Runs `work` so that its failure undoes its own writes only, not those that share the transaction."""
        told = len(self._told)
        with self._sql.translated():
            self._sql.execute("SAVEPOINT one")
            try:
                return work(self)
            except BaseException:
                del self._told[told:]
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK TO SAVEPOINT one")
                raise
            finally:
                if self._sql.in_transaction:
                    self._sql.execute("RELEASE SAVEPOINT one")

    def is_in_transaction(self) -> bool:
        """False after the database itself rolled back (a full disk)."""
        return self._sql.in_transaction

    def get_data_version(self) -> int:
        """Changes when another connection has written past our events."""
        return self._sql.get_data_version()

    # --- events -------------------------------------------------------------------------------------------------------
    def tell(self, event: Event) -> None:
        """Tells every hub process after the commit."""
        self._told.append(event)
        if self._sql.is_shared:
            self._sql.execute(
                f"INSERT INTO events (body, told_at) VALUES (?, {self._sql.clock})", (encode_event(event),)
            )

    def take_told(self) -> list[Event]:
        """What the last transaction told, when only this process is to hear it; a shared store brings it itself."""
        told = [] if self._sql.is_shared else self._told[:]
        self._told.clear()
        return told

    def read_events(self, *, after: int, limit: int) -> list[tuple[int, Event]]:
        """Events of a shared store with an id above `after`, oldest first."""
        rows = self._sql.execute("SELECT id, body FROM events WHERE id>? ORDER BY id LIMIT ?", (after, limit))
        return [(row[0], decode_event(row[1])) for row in rows]

    def get_last_event_id(self) -> int:
        """The id of the newest event, 0 when there is none."""
        return int(self._sql.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])

    def trim_events(self) -> int:
        """Deletes events that every process has seen or never will; returns how many."""
        return self._sql.execute(f"DELETE FROM events WHERE told_at < {self._sql.clock} - ?", (EVENTS_KEPT_S,)).rowcount

    # --- identities ---------------------------------------------------------------------------------------------------
    def add_identity(self, record: IdentityRecord, twin: TwinDocument) -> None:
        """Raises Conflict when it exists, NotFound when the device of a module does not."""
        device_id, module_id = record.identity
        if self.find_identity(record.identity):
            code = "ModuleAlreadyExistsOnDevice" if module_id else "DeviceAlreadyExists"
            raise Conflict(f"{record.identity} exists already", service_code=code)
        if module_id:
            self.require_identity(Identity(device_id))
        self._sql.execute(
            "INSERT INTO identities (device_id, module_id, generation_id, primary_key, secondary_key, etag, is_enabled,"
            " managed_by, created_at, status_reason, is_edge, twin) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*_get_columns(record), _encode(twin)),
        )

    def write_identity(self, record: IdentityRecord) -> None:
        """Replaces keys, status and etag; raises NotFound."""
        self.require_identity(record.identity)
        device_id, module_id, generation_id, *rest = _get_columns(record)
        self._sql.execute(
            "UPDATE identities SET primary_key=?, secondary_key=?, etag=?, is_enabled=?, managed_by=?, created_at=?,"
            " status_reason=?, is_edge=?, generation_id=? WHERE device_id=? AND module_id=?",
            (*rest, generation_id, device_id, module_id),
        )

    def find_identity(self, identity: Identity) -> IdentityRecord | None:
        """The record, or None."""
        row = self._sql.execute(
            f"SELECT {_IDENTITY} FROM identities AS i WHERE i.device_id=? AND i.module_id=?", get_key(identity)
        ).fetchone()
        return _make_record(row) if row else None

    def require_identity(self, identity: Identity) -> IdentityRecord:
        """The record; raises NotFound with the code of a device or of a module."""
        record = self.find_identity(identity)
        if record is None:
            code = "ModuleNotFound" if identity.module_id else "DeviceNotFound"
            raise NotFound(f"{identity} is not registered", service_code=code)
        return record

    def count_devices(self) -> tuple[int, int]:
        """How many devices are registered, and how many of them are enabled."""
        row = self._sql.execute(
            "SELECT count(*), coalesce(sum(is_enabled), 0) FROM identities WHERE module_id=''"
        ).fetchone()
        return int(row[0]), int(row[1])

    def delete_identity(self, identity: Identity) -> None:
        """Deletes it with twin, subscriptions and queue, a device with its modules; raises NotFound."""
        self.require_identity(identity)
        if identity.module_id:
            self._sql.execute("DELETE FROM identities WHERE device_id=? AND module_id=?", get_key(identity))
        else:
            self._sql.execute("DELETE FROM identities WHERE device_id=?", (identity.device_id,))

    # --- views: an identity with its twin and connection --------------------------------------------------------------
    def require_view(self, identity: Identity) -> IdentityView:
        """One identity as the service sees it; raises NotFound."""
        row = self._sql.execute(f"{_SELECT_VIEW} WHERE i.device_id=? AND i.module_id=?", get_key(identity)).fetchone()
        if row is None:
            self.require_identity(identity)
            raise StorageFailed(f"the twin of {identity} is not there")
        return _make_view(row)

    def read_views(self, *, modules: bool, after: Identity | None, limit: int) -> list[IdentityView]:
        """Devices, or modules of all devices, behind `after` in the order of their ids."""
        kind = "i.module_id<>''" if modules else "i.module_id=''"
        rows = self._sql.execute(
            f"{_SELECT_VIEW} WHERE {kind} AND (i.device_id, i.module_id) > (?, ?)"
            " ORDER BY i.device_id, i.module_id LIMIT ?",
            (*(get_key(after) if after else ("", "")), limit),
        )
        return [_make_view(row) for row in rows]

    def read_modules(self, device_id: str) -> list[IdentityView]:
        """A device's modules, by id."""
        rows = self._sql.execute(
            f"{_SELECT_VIEW} WHERE i.device_id=? AND i.module_id<>'' ORDER BY i.module_id", (device_id,)
        )
        return [_make_view(row) for row in rows]

    # --- twins --------------------------------------------------------------------------------------------------------
    def find_twin(self, identity: Identity) -> TwinDocument | None:
        """The twin, or None when no such identity is registered."""
        row = self._sql.execute(
            "SELECT twin FROM identities WHERE device_id=? AND module_id=?", get_key(identity)
        ).fetchone()
        return _decode(row[0]) if row else None

    def read_twin(self, identity: Identity) -> TwinDocument:
        """The twin; raises NotFound."""
        twin = self.find_twin(identity)
        if twin is None:
            self.require_identity(identity)
            raise StorageFailed(f"the twin of {identity} is not there")
        return twin

    def change_twin(
        self, identity: Identity, change: Callable[[TwinDocument], tuple[TwinDocument, Outcome]]
    ) -> Outcome:
        """Reads, changes and writes in one go; returns what `change` says beside the new twin. Raises NotFound."""
        twin, outcome = change(self.read_twin(identity))
        self._sql.execute(
            "UPDATE identities SET twin=? WHERE device_id=? AND module_id=?", (_encode(twin), *get_key(identity))
        )
        return outcome

    # --- configurations and settings ----------------------------------------------------------------------------------
    def list_configurations(self) -> list[tuple[str, bytes]]:
        """Every configuration's id and stored bytes, by id."""
        return [(row[0], row[1]) for row in self._sql.execute("SELECT id, body FROM configurations ORDER BY id")]

    def find_configuration(self, name: str) -> bytes | None:
        """A configuration's stored bytes, or None."""
        row = self._sql.execute("SELECT body FROM configurations WHERE id=?", (name,)).fetchone()
        return row[0] if row else None

    def write_configuration(self, name: str, body: bytes) -> None:
        """Stores a configuration, new or changed."""
        self._sql.execute(
            "INSERT INTO configurations (id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body=excluded.body",
            (name, body),
        )

    def delete_configuration(self, name: str) -> bool:
        """Deletes one; False when there is none."""
        return self._sql.execute("DELETE FROM configurations WHERE id=?", (name,)).rowcount == 1

    def find_setting(self, name: str) -> str | None:
        """A setting's text, or None."""
        row = self._sql.execute("SELECT value FROM settings WHERE name=?", (name,)).fetchone()
        return row[0] if row else None

    def write_setting(self, name: str, value: str) -> None:
        """Stores a setting."""
        self._sql.execute(
            "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value=excluded.value",
            (name, value),
        )


_IDENTITY = (
    "i.device_id, i.module_id, i.generation_id, i.primary_key, i.secondary_key, i.etag, i.is_enabled, i.managed_by,"
    " i.created_at, i.status_reason, i.is_edge"
)
_SELECT_VIEW = (
    f"SELECT {_IDENTITY}, i.twin, c.is_connected, c.changed_at, c.active_at FROM identities AS i"
    " LEFT JOIN connections AS c ON c.device_id=i.device_id AND c.module_id=i.module_id"
)


def _get_columns(record: IdentityRecord) -> tuple[str | int | float | None, ...]:
    keys = (record.primary_key, record.secondary_key, record.etag)
    tail = (int(record.is_enabled), record.managed_by, record.created_at, record.status_reason, int(record.is_edge))
    return (*get_key(record.identity), record.generation_id, *keys, *tail)


def _make_record(row: tuple[str, ...]) -> IdentityRecord:
    identity = Identity(row[0], row[1] or None)
    is_enabled, managed_by, created_at, status_reason, is_edge = row[6:11]
    tail = (bool(is_enabled), managed_by, float(created_at), status_reason, bool(is_edge))
    return IdentityRecord(identity, row[2], row[3], row[4], row[5], *tail)


def _make_view(row: tuple[str, ...]) -> IdentityView:
    is_connected, changed_at, active_at = row[12:]
    facts = ConnectionFacts(bool(is_connected), changed_at, active_at)  # type: ignore[arg-type] # columns of floats
    return IdentityView(_make_record(row), _decode(row[11]), facts)


def _encode(twin: TwinDocument) -> bytes:
    return msgspec.json.encode(twin)


def _decode(data: bytes | str) -> TwinDocument:
    return msgspec.json.decode(data, type=TwinDocument)
