"""The small seam between the hub's SQL and a database: SQLite (hub_sqlite.py) or PostgreSQL (hub_postgres.py).

Statements stand in hub_tables.py, hub_queues.py and hub_sessions.py, once for both, with `?` for parameters.

Rules:
- One connection, one thread at a time. Whoever may write runs alone: SQLite by its lock, PostgreSQL by an advisory lock
  that every writing transaction takes. So rows get their ids in the order of commits, and nobody waits crosswise.
- What a database raises is ours when it leaves an adapter: NoSpace, StorageBusy, StorageFailed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Rows(Protocol):
    """The outcome of a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def __iter__(self) -> Iterator[Any]:
        """The rows that are left."""


class Sql(Protocol):
    """A connection. `is_shared`: other processes write too, so events travel through the database.

    `clock` is an SQL expression of the database's own clock in Unix seconds.
    """

    is_shared: bool
    clock: str

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Rows:
        """Runs one statement."""

    def begin(self, *, writes: bool) -> None:
        """Begins a transaction, alone among those that write."""

    @property
    def in_transaction(self) -> bool:
        """False after the database itself rolled back (a full disk, a lost connection)."""

    def get_data_version(self) -> int:
        """Changes when another connection has written past our events."""

    def notify(self) -> None:
        """Rings the other processes when this transaction commits."""

    def translated(self) -> AbstractContextManager[None]:
        """The database's errors as ours."""

    def close(self) -> None:
        """Closes the connection."""
