"""The hub's database as one SQLite file in its folder: WAL, synchronous=FULL, readable by its owner only.

Rules:
- One hub process (a lock file says so) and short-lived commands beside it; the hub notices their writes by
  `get_data_version`.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeferry.errors import NoSpace, StorageBusy, StorageError, StorageFailed
from edgeferry.storage.hub_schema import SCHEMA_VERSION, get_statements

DB_NAME = "hub.db"
BUSY_TIMEOUT_S = 10.0


class SqliteConnection:
    """`Sql` over one sqlite3 connection."""

    is_shared = False
    clock = "((julianday('now') - 2440587.5) * 86400.0)"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Runs one statement."""
        return self._connection.execute(statement, parameters)

    def begin(self, *, writes: bool) -> None:
        """BEGIN; a writer takes the lock at once."""
        self._connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._connection.in_transaction

    def get_data_version(self) -> int:
        """Changes when another connection has written."""
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def notify(self) -> None:
        """Nobody else listens."""

    @contextmanager
    def translated(self) -> Iterator[None]:
        """sqlite3 and OS errors as ours."""
        with _translated():
            yield

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()


def open_sqlite(folder: Path) -> SqliteConnection:
    """The database of a hub's folder, made and migrated when needed.

    Raises:
        StorageFailed: the folder or the file cannot be used, or a newer release wrote it.
        NoSpace, StorageBusy: as the names say.
    """
    with _translated():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / DB_NAME
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    try:
        with _translated():
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return SqliteConnection(connection)


def _migrate(connection: sqlite3.Connection) -> None:
    """Brings a database, new or old, to the newest schema; all or nothing."""
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in get_statements(connection.execute("PRAGMA user_version").fetchone()[0]):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _translate(error) from error


def _translate(error: sqlite3.Error | OSError) -> StorageError:
    text = str(error)
    if "disk is full" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return NoSpace("the hub's disk is full")
    if "locked" in text or "busy" in text:
        return StorageBusy("another process holds the hub's database")
    return StorageFailed(f"the hub's database failed: {text:.200}")
