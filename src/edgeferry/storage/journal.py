"""Journal: what this device was doing, counted and still has to say, in one SQLite file that survives a power cut.

What a record means is the agent's; bodies are bytes here.

Rules:
- WAL, synchronous=FULL: a call that returned is on the disk. Locked for this process alone, which spares SQLite the
  file of shared memory: a device whose disk is full opens its journal all the same, and serves.
- Room for what comes next is reserved on the disk: that an update waits for space can be written when there is none.
- One thread touches the database; every method is a coroutine that waits for it.
- On a disk that is read-only the journal is read into memory: what is asked and done is known until the process ends.
- A row carries a checksum: one that has rotted is forgotten when the journal is opened.
- A journal that is damaged, or of a newer release, is moved aside and begun anew: refs tell what is true, records only
  what we were doing, so that a device without a journal serves on. `damage` and the log say that it happened.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import structlog

from edgeferry.errors import NoSpace, StorageBusy, StorageError, StorageFailed
from edgeferry.storage.files import fsync_folder, rename_durably, reserve, translate_disk_errors

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE record (key TEXT PRIMARY KEY, model TEXT NOT NULL, state TEXT NOT NULL, body BLOB NOT NULL,
    seal INTEGER NOT NULL);
CREATE TABLE ledger (day TEXT NOT NULL, kind TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (day, kind));
CREATE TABLE outbox (
    place INTEGER PRIMARY KEY AUTOINCREMENT, mid TEXT NOT NULL UNIQUE, output TEXT NOT NULL, body BLOB NOT NULL,
    seal INTEGER NOT NULL
);
CREATE TABLE value (key TEXT PRIMARY KEY, body BLOB NOT NULL, seal INTEGER NOT NULL);
"""
_SEALED = (
    ("SELECT rowid, seal, body, CAST(key || model || state AS BLOB) FROM record", "DELETE FROM record WHERE rowid = ?"),
    ("SELECT rowid, seal, body, CAST(mid || output AS BLOB) FROM outbox", "DELETE FROM outbox WHERE rowid = ?"),
    ("SELECT rowid, seal, body, CAST(key AS BLOB) FROM value", "DELETE FROM value WHERE rowid = ?"),
)
"""Rows carry a checksum, since SQLite keeps none and reads what has rotted: which rows there are, and to forget one."""
_NO_DAY = """
DELETE FROM ledger WHERE typeof(bytes) != 'integer' OR kind GLOB '*[^a-z0-9_:-]*'
    OR day NOT GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]'
"""
_NO_DEBT = "UPDATE ledger SET bytes = 0 WHERE bytes < 0"
_NOT_ITS_FAULT = tuple(
    f"SQLITE_{name}" for name in ("BUSY", "CANTOPEN", "FULL", "IOERR", "LOCKED", "NOMEM", "PERM", "READONLY")
)
"""What the machine may answer; anything else that is said when a journal is opened, its damage says."""
_BUSY_TIMEOUT_S = 5.0
_WAL_PAGES = 64
"""Written back when it holds so many pages of 4 KiB: within the room that is reserved for it."""
_ROOM_BYTES = 512 << 10
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A message that must reach the hub at least once; `mid` is the stable id by which a receiver knows it again."""

    mid: str
    output: str
    body: bytes


class Journal:
    """An open journal; made by `open_journal`. All methods raise NoSpace, StorageBusy or StorageFailed."""

    def __init__(
        self, connection: sqlite3.Connection, writer: ThreadPoolExecutor, damage: StorageFailed | None
    ) -> None:
        self._connection = connection
        self._writer = writer
        self.damage = damage
        """Why the journal before this one was moved aside; None when it was not."""

    # --- records ------------------------------------------------------------------------------------------------------
    async def save_record(self, key: str, *, model: str, state: str, body: bytes) -> None:
        """Writes the record of one update; when this returns, it is on the disk."""
        sql = "INSERT OR REPLACE INTO record (key, model, state, body, seal) VALUES (?, ?, ?, ?, ?)"
        await self._write(sql, key, model, state, body, _make_seal(body, key, model, state))

    async def load_records(self) -> list[tuple[str, bytes]]:
        """Key and body of every record."""
        return [(key, body) for key, body in await self._read("SELECT key, body FROM record ORDER BY rowid")]

    async def delete_record(self, key: str) -> None:
        """Forgets a record; none there is fine."""
        await self._write("DELETE FROM record WHERE key = ?", key)

    # --- ledger -------------------------------------------------------------------------------------------------------
    async def add_bytes(self, day: str, kind: str, size_bytes: int) -> None:
        """Counts bytes of one kind (`http`, `mqtt`, ...) to one day (`2026-11-23`)."""
        sql = "INSERT INTO ledger VALUES (?, ?, ?) ON CONFLICT (day, kind) DO UPDATE SET bytes = bytes + excluded.bytes"
        await self._write(sql, day, kind, size_bytes)

    async def get_ledger(self) -> dict[str, dict[str, int]]:
        """Bytes by day and kind."""
        ledger: dict[str, dict[str, int]] = {}
        for day, kind, size in await self._read("SELECT day, kind, bytes FROM ledger ORDER BY day, kind"):
            ledger.setdefault(day, {})[kind] = size
        return ledger

    # --- outbox -------------------------------------------------------------------------------------------------------
    async def put_message(self, mid: str, *, output: str, body: bytes) -> None:
        """Keeps a message until `drop_message`; the same `mid` again changes nothing."""
        sql = "INSERT OR IGNORE INTO outbox (mid, output, body, seal) VALUES (?, ?, ?, ?)"
        await self._write(sql, mid, output, body, _make_seal(body, mid, output))

    async def list_messages(self) -> list[OutboxMessage]:
        """Messages not yet dropped, oldest first."""
        return [OutboxMessage(*row) for row in await self._read("SELECT mid, output, body FROM outbox ORDER BY place")]

    async def drop_message(self, mid: str) -> None:
        """The hub has it."""
        await self._write("DELETE FROM outbox WHERE mid = ?", mid)

    # --- single values ------------------------------------------------------------------------------------------------
    async def get_value(self, key: str) -> bytes | None:
        """A value kept under `key`, or None."""
        rows = await self._read("SELECT body FROM value WHERE key = ?", key)
        return rows[0][0] if rows else None

    async def set_value(self, key: str, body: bytes) -> None:
        """Keeps `body` under `key`."""
        await self._write("INSERT OR REPLACE INTO value VALUES (?, ?, ?)", key, body, _make_seal(body, key))

    # --- the one thread -----------------------------------------------------------------------------------------------
    async def _write(self, sql: str, *values: str | int | bytes) -> None:
        await self._run(lambda: self._connection.execute(sql, values).close())

    async def _read(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        return await self._run(lambda: self._connection.execute(sql, values).fetchall())

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await _run_in(self._writer, work)


@asynccontextmanager
async def open_journal(path: Path) -> AsyncIterator[Journal]:
    """Opens the journal at `path`, made where missing, replaced where damaged.

    Raises:
        NoSpace, StorageBusy, StorageFailed: the disk does not do as asked.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="journal") as writer:
        connection, damage = await _run_in(writer, lambda: _open_or_replace(path))
        if damage is not None:
            _log.warning(damage.message, code=damage.code)
        try:
            yield Journal(connection, writer, damage)
        finally:
            await asyncio.shield(_run_in(writer, connection.close))


async def _run_in(writer: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    with _translate_database_errors():
        return await asyncio.get_running_loop().run_in_executor(writer, work)


@contextmanager
def _translate_database_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        kinds: dict[str, type[StorageError]] = {"SQLITE_FULL": NoSpace, "SQLITE_BUSY": StorageBusy}
        raise kinds.get(name, StorageFailed)(f"the journal cannot be used: {error}", reason=name) from error


class _Damaged(Exception):
    """The file at hand is not a journal that this release can go on with."""


def _open_or_replace(path: Path) -> tuple[sqlite3.Connection, StorageFailed | None]:
    try:
        return _open(path), None
    except _ReadOnly:
        return _open_in_memory(path), StorageFailed("the disk is read-only: what happens now is not kept")
    except _Damaged as reason:
        aside = _move_aside(path)
        damage = StorageFailed(f"the journal was not usable ({reason}); it lies at {aside.name}, a new one was begun")
        return _open(path), damage


class _ReadOnly(Exception):
    """The journal's folder can be read and not be written."""


def _open(path: Path) -> sqlite3.Connection:
    with translate_disk_errors(path):
        _touch(path)
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _set_up(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        if not getattr(error, "sqlite_errorname", "").startswith(_NOT_ITS_FAULT):
            raise _Damaged(str(error)) from error
        raise
    except _Damaged:
        connection.close()
        raise
    _reserve_room(path)
    fsync_folder(path.parent)
    return connection


def _touch(path: Path) -> None:
    try:
        path.touch(0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        raise _ReadOnly from error


def _open_in_memory(path: Path) -> sqlite3.Connection:
    """As much of the journal as can be read; what a crash left in its write-ahead log cannot."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        source = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
        with closing(source):
            source.backup(connection)
        _set_up(connection)
    except (sqlite3.DatabaseError, _Damaged):
        connection.close()
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        _set_up(connection)
    return connection


def _reserve_room(path: Path) -> None:
    """A full disk gives none, and takes none away."""
    for tail in ("", "-wal"):
        with suppress(OSError), path.with_name(path.name + tail).open("r+b") as file:
            reserve(file.fileno(), os.fstat(file.fileno()).st_size + _ROOM_BYTES)


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE").close()
    connection.execute("PRAGMA journal_mode = WAL").close()
    connection.execute("PRAGMA synchronous = FULL").close()
    connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}").close()
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if verdict != "ok":
        raise _Damaged(str(verdict)[:200])
    if version not in (0, SCHEMA_VERSION):
        raise _Damaged(f"schema {version}, expected {SCHEMA_VERSION}")
    if version == 0:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    if _read_schema(connection) != _make_schema():
        raise _Damaged("its tables are not those of this release")
    _forget_damaged(connection)


def _read_schema(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    sql = "SELECT type, CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_master WHERE name NOT LIKE 'sqlite_seq%'"
    return sorted(connection.execute(sql).fetchall(), key=repr)


def _make_schema() -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA)
        return _read_schema(connection)


def _forget_damaged(connection: sqlite3.Connection) -> None:
    """A row that is not what was written is nobody's word: what was under way is found out again."""
    for select, delete in _SEALED:
        rows = connection.execute(select).fetchall()
        for row in [row for row, seal, body, texts in rows if zlib.crc32(body, zlib.crc32(texts)) != seal]:
            _log.warning("journal_row_damaged", forgotten=delete.split()[2])
            connection.execute(delete, (row,)).close()
    connection.execute(_NO_DAY).close()
    connection.execute(_NO_DEBT).close()


def _make_seal(body: bytes, *texts: str) -> int:
    return zlib.crc32(body, zlib.crc32("".join(texts).encode()))


def _move_aside(path: Path) -> Path:
    """One damaged journal is kept for people to look at; an older one gives way."""
    aside = path.with_name(path.name + ".damaged")
    rename_durably(path, aside)
    for tail in ("-wal", "-shm"):
        with translate_disk_errors(path), suppress(FileNotFoundError):
            path.with_name(path.name + tail).unlink()
    return aside
