"""The hub's state in SQLite: identities, twins, subscriptions, queues, messages, settings. Synchronous, one connection.

The schema stands in hub_schema.py, threads and group commit in hub_db.py; what a write means (versions, limits) in
twin/document.py. The `hub` commands open this file directly, beside a running hub.

Rules:
- The caller owns the transaction (`transaction()`), so that many writes can share one fsync (synchronous=FULL, WAL).
- Deleting an identity deletes everything of it; deleting a device deletes its modules.
- Stores of messages are bounded by rows and bytes, each module's queue and `$upstream`; the oldest go first. Rows of a
  queue are bounded at once, the rest whenever the hub's upkeep trims.
- sqlite3 errors are translated here: NoSpace, StorageBusy, StorageFailed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeferry.errors import Conflict, NoSpace, NotFound, StorageBusy, StorageError, StorageFailed
from edgeferry.storage.hub_schema import migrate
from edgeferry.twin.document import TwinDocument
from edgeferry.wire.service_api import Identity, IdentityRecord

Outcome = TypeVar("Outcome")
DB_NAME = "hub.db"
BUSY_TIMEOUT_S = 10.0
QUEUE_MAX_ROWS = 10_000  # for one module
QUEUE_MAX_BYTES = 64 * 1024 * 1024  # for one module
UPSTREAM_MAX_ROWS = 100_000
UPSTREAM_MAX_BYTES = 256 * 1024 * 1024
LIST_MAX_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message that waits for a module's input; `id` rises."""

    id: int
    input: str
    properties: dict[str, str | None]
    payload: bytes = field(repr=False)
    expires_at: float


@dataclass(frozen=True, slots=True)
class UpstreamMessage:
    """A message that a route sent `$upstream`; `id` rises and is never used twice."""

    id: int
    identity: Identity
    output: str | None
    properties: dict[str, str | None]
    payload: bytes = field(repr=False)
    received_at: float


class HubTables:
    """All reads and writes, as plain calls on one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    # --- transactions -------------------------------------------------------------------------------------------------
    @contextmanager
    def transaction(self, *, writes: bool = True) -> Iterator[None]:
        """Commits on the way out, rolls back on an error.

        Raises:
            NoSpace, StorageBusy, StorageFailed: the disk did not do as asked.
        """
        with translated():
            self._db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def run_apart(self, work: Callable[[HubTables], Outcome]) -> Outcome:
        """Runs `work` so that its failure undoes its own writes only, not those that share the transaction."""
        with translated():
            self._db.execute("SAVEPOINT one")
            try:
                return work(self)
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK TO one")
                raise
            finally:
                if self._db.in_transaction:
                    self._db.execute("RELEASE one")

    def is_in_transaction(self) -> bool:
        """False after SQLite itself rolled back (a full disk)."""
        return self._db.in_transaction

    def get_data_version(self) -> int:
        """Changes when another connection has written."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def write_backup(self, target: Path) -> None:
        """A consistent copy of the whole database, taken while others write."""
        with translated():
            target.touch(mode=0o600)
            copy = sqlite3.connect(target)
            try:
                self._db.backup(copy)
            finally:
                copy.close()

    # --- identities ---------------------------------------------------------------------------------------------------
    def add_identity(self, record: IdentityRecord, twin: TwinDocument) -> None:
        """Raises Conflict when it exists, NotFound when the device of a module does not."""
        device_id, module_id = record.identity
        if self.find_identity(record.identity):
            code = "ModuleAlreadyExistsOnDevice" if module_id else "DeviceAlreadyExists"
            raise Conflict(f"{record.identity} exists already", service_code=code)
        if module_id:
            self.require_identity(Identity(device_id))
        self._db.execute(
            "INSERT INTO identities VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*_get_columns(record), _encode(twin))
        )

    def write_identity(self, record: IdentityRecord) -> None:
        """Replaces keys, status and etag; raises NotFound."""
        self.require_identity(record.identity)
        device_id, module_id, generation_id, *rest = _get_columns(record)
        self._db.execute(
            "UPDATE identities SET primary_key=?, secondary_key=?, etag=?, is_enabled=?, managed_by=?, created_at=?,"
            " generation_id=? WHERE device_id=? AND module_id=?",
            (*rest, generation_id, device_id, module_id),
        )

    def find_identity(self, identity: Identity) -> IdentityRecord | None:
        """The record, or None."""
        row = self._db.execute(f"{_SELECT_IDENTITY} WHERE device_id=? AND module_id=?", _get_key(identity)).fetchone()
        return _make_record(row) if row else None

    def require_identity(self, identity: Identity) -> IdentityRecord:
        """The record; raises NotFound with the code of a device or of a module."""
        record = self.find_identity(identity)
        if record is None:
            code = "ModuleNotFound" if identity.module_id else "DeviceNotFound"
            raise NotFound(f"{identity} is not registered", service_code=code)
        return record

    def list_devices(self, limit: int = LIST_MAX_ROWS) -> list[IdentityRecord]:
        """Devices without their modules, by id."""
        rows = self._db.execute(f"{_SELECT_IDENTITY} WHERE module_id='' ORDER BY device_id LIMIT ?", (limit,))
        return [_make_record(row) for row in rows]

    def list_modules(self, device_id: str | None = None, limit: int = LIST_MAX_ROWS) -> list[IdentityRecord]:
        """Modules of one device (raises NotFound without it) or of all."""
        if device_id is not None:
            self.require_identity(Identity(device_id))
        rows = self._db.execute(
            f"{_SELECT_IDENTITY} WHERE module_id<>'' AND (?1 IS NULL OR device_id=?1) ORDER BY device_id, module_id"
            " LIMIT ?2",
            (device_id, limit),
        )
        return [_make_record(row) for row in rows]

    def delete_identity(self, identity: Identity) -> None:
        """Deletes it with twin, subscriptions and queue, a device with its modules; raises NotFound."""
        self.require_identity(identity)
        if identity.module_id:
            self._db.execute("DELETE FROM identities WHERE device_id=? AND module_id=?", _get_key(identity))
        else:
            self._db.execute("DELETE FROM identities WHERE device_id=?", (identity.device_id,))

    # --- twins --------------------------------------------------------------------------------------------------------
    def read_twin(self, identity: Identity) -> TwinDocument:
        """The twin; raises NotFound."""
        row = self._db.execute("SELECT twin FROM identities WHERE device_id=? AND module_id=?", _get_key(identity))
        found = row.fetchone()
        if found is None:
            self.require_identity(identity)
            raise StorageFailed(f"the twin of {identity} is not there")
        return msgspec.json.decode(found[0], type=TwinDocument)

    def change_twin(
        self, identity: Identity, change: Callable[[TwinDocument], tuple[TwinDocument, Outcome]]
    ) -> Outcome:
        """Reads, changes and writes in one go; returns what `change` says beside the new twin. Raises NotFound."""
        twin, outcome = change(self.read_twin(identity))
        self._db.execute(
            "UPDATE identities SET twin=? WHERE device_id=? AND module_id=?", (_encode(twin), *_get_key(identity))
        )
        return outcome

    # --- sessions -----------------------------------------------------------------------------------------------------
    def read_subscriptions(self, identity: Identity) -> dict[str, int] | None:
        """Filter -> granted QoS of a stored session, None when there is none."""
        row = self._db.execute(
            "SELECT filters FROM subscriptions WHERE device_id=? AND module_id=?", _get_key(identity)
        ).fetchone()
        return msgspec.json.decode(row[0], type=dict[str, int]) if row else None

    def write_subscriptions(self, identity: Identity, filters: dict[str, int] | None) -> None:
        """Stores a session's subscriptions; None forgets the session."""
        self._db.execute("DELETE FROM subscriptions WHERE device_id=? AND module_id=?", _get_key(identity))
        if filters is not None:
            self._db.execute("INSERT INTO subscriptions VALUES (?, ?, ?)", (*_get_key(identity), _to_text(filters)))

    # --- queues of inputs ---------------------------------------------------------------------------------------------
    def push_message(self, identity: Identity, message: QueuedMessage) -> bool:
        """Queues for a module (`message.id` is ignored); False when no such module is registered."""
        if self.find_identity(identity) is None:
            return False
        fields = (message.input, _to_text(message.properties), message.payload, message.expires_at)
        self._db.execute(
            "INSERT INTO queue (device_id, module_id, input, properties, payload, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*_get_key(identity), *fields),
        )
        self._db.execute(
            "DELETE FROM queue WHERE id <= (SELECT id FROM queue WHERE device_id=?1 AND module_id=?2"
            " ORDER BY id DESC LIMIT 1 OFFSET ?3) AND device_id=?1 AND module_id=?2",
            (*_get_key(identity), QUEUE_MAX_ROWS),
        )
        return True

    def read_queue(self, identity: Identity, *, after: int, limit: int) -> list[QueuedMessage]:
        """Waiting messages with an id above `after`, oldest first."""
        rows = self._db.execute(
            "SELECT id, input, properties, payload, expires_at FROM queue WHERE device_id=? AND module_id=? AND id>?"
            " ORDER BY id LIMIT ?",
            (*_get_key(identity), after, limit),
        )
        return [QueuedMessage(row[0], row[1], _to_bag(row[2]), row[3], row[4]) for row in rows]

    def read_queued_ids(self, identity: Identity) -> set[int]:
        """Ids of everything that waits for a module."""
        rows = self._db.execute("SELECT id FROM queue WHERE device_id=? AND module_id=?", _get_key(identity))
        return {row[0] for row in rows}

    def drop_queued(self, ids: Sequence[int]) -> None:
        """Deletes delivered messages."""
        self._db.executemany("DELETE FROM queue WHERE id=?", [(one,) for one in ids])

    def drop_expired(self, now: float) -> int:
        """Deletes messages whose time to live is over; returns how many."""
        return self._db.execute("DELETE FROM queue WHERE expires_at <= ?", (now,)).rowcount

    def trim_queues(self, *, max_bytes: int = QUEUE_MAX_BYTES) -> int:
        """Deletes the oldest messages of each queue beyond its bound; returns how many."""
        return self._db.execute(
            "DELETE FROM queue WHERE id IN (SELECT id FROM (SELECT id, sum(length(payload) + length(properties))"
            " OVER (PARTITION BY device_id, module_id ORDER BY id DESC) AS total FROM queue) WHERE total > ?)",
            (max_bytes,),
        ).rowcount

    # --- $upstream ----------------------------------------------------------------------------------------------------
    def append_upstream(self, message: UpstreamMessage) -> None:
        """Stores a message (`message.id` is ignored)."""
        fields = (message.output, _to_text(message.properties), message.payload, message.received_at)
        self._db.execute(
            "INSERT INTO upstream (device_id, module_id, output, properties, payload, received_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*_get_key(message.identity), *fields),
        )

    def read_upstream(self, *, after: int = 0, limit: int = 1000) -> list[UpstreamMessage]:
        """Messages with an id above `after`, oldest first."""
        rows = self._db.execute(
            "SELECT id, device_id, module_id, output, properties, payload, received_at FROM upstream WHERE id>?"
            " ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [UpstreamMessage(r[0], Identity(r[1], r[2] or None), r[3], _to_bag(r[4]), r[5], r[6]) for r in rows]

    def trim_upstream(self, *, max_rows: int = UPSTREAM_MAX_ROWS, max_bytes: int = UPSTREAM_MAX_BYTES) -> int:
        """Deletes the oldest messages beyond either bound; returns how many."""
        return self._db.execute(
            "DELETE FROM upstream WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER newest AS n,"
            " sum(length(payload) + length(properties)) OVER newest AS total FROM upstream"
            " WINDOW newest AS (ORDER BY id DESC)) WHERE n > ? OR total > ?)",
            (max_rows, max_bytes),
        ).rowcount

    # --- settings -----------------------------------------------------------------------------------------------------
    def find_setting(self, name: str) -> str | None:
        """A setting's text, or None."""
        row = self._db.execute("SELECT value FROM settings WHERE name=?", (name,)).fetchone()
        return row[0] if row else None

    def write_setting(self, name: str, value: str) -> None:
        """Stores a setting."""
        self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))


_SELECT_IDENTITY = (
    "SELECT device_id, module_id, generation_id, primary_key, secondary_key, etag, is_enabled, managed_by, created_at"
    " FROM identities"
)


@contextmanager
def open_tables(folder: Path) -> Iterator[HubTables]:
    """The tables of a hub's folder, made and migrated when needed; the file is readable by its owner only.

    Raises:
        StorageFailed: the folder or the file cannot be used, or a newer release wrote it.
    """
    with translated():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / DB_NAME
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    try:
        with translated():
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            migrate(connection)
        yield HubTables(connection)
    finally:
        connection.close()


@contextmanager
def translated() -> Iterator[None]:
    """sqlite3 and OS errors as ours, at the call that meets them."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _translate(error) from error


def _translate(error: sqlite3.Error | OSError) -> StorageError:
    text = str(error)
    if "disk is full" in text or getattr(error, "errno", None) == 28:
        return NoSpace("the hub's disk is full")
    if "locked" in text or "busy" in text:
        return StorageBusy("another process holds the hub's database")
    return StorageFailed(f"the hub's database failed: {text:.200}")


def _get_key(identity: Identity) -> tuple[str, str]:
    return identity.device_id, identity.module_id or ""


def _get_columns(record: IdentityRecord) -> tuple[str | int | float | None, ...]:
    keys = (record.primary_key, record.secondary_key, record.etag)
    return (
        *_get_key(record.identity),
        record.generation_id,
        *keys,
        record.is_enabled,
        record.managed_by,
        record.created_at,
    )


def _make_record(row: tuple[str, ...]) -> IdentityRecord:
    identity = Identity(row[0], row[1] or None)
    return IdentityRecord(identity, row[2], row[3], row[4], row[5], bool(row[6]), row[7], float(row[8]))


def _encode(twin: TwinDocument) -> bytes:
    return msgspec.json.encode(twin)


def _to_text(value: object) -> str:
    return msgspec.json.encode(value).decode("utf-8")


def _to_bag(text: str) -> dict[str, str | None]:
    return msgspec.json.decode(text, type=dict[str, str | None])
