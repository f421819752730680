"""Which database a hub keeps its state in, and opening it: SQLite in its folder, or PostgreSQL for several processes.

Rules:
- psycopg is imported when a store of PostgreSQL is opened, so that a hub on SQLite runs without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgeferry.errors import ConfigInvalid, StorageFailed, ToolMissing
from edgeferry.storage.hub_sql import Sql
from edgeferry.storage.hub_sqlite import DB_NAME, open_sqlite
from edgeferry.storage.hub_tables import HubTables

_COPIED = ("identities", "subscriptions", "queue", "upstream", "settings", "configurations")
_COUNTED = ("queue", "upstream")


@dataclass(frozen=True, slots=True)
class HubStore:
    """A hub's folder, and the URL of a PostgreSQL database when its state lies there (it may hold a password)."""

    folder: Path
    url: str | None = field(default=None, repr=False)

    @property
    def exists(self) -> bool:
        """Whether a hub was here before; a database elsewhere is believed to be."""
        return self.url is not None or (self.folder / DB_NAME).is_file()


@contextmanager
def open_tables(folder: Path, url: str | None = None) -> Iterator[HubTables]:
    """The tables of a hub, made and migrated when needed.

    Raises:
        StorageError: the folder, the file or the database cannot be used, or a newer release wrote it.
        ConfigInvalid, ToolMissing: the URL cannot be read, or psycopg is not installed.
    """
    sql = open_sql(folder, url)
    try:
        yield HubTables(sql)
    finally:
        sql.close()


def open_sql(folder: Path, url: str | None) -> Sql:
    """The connection itself; raises as `open_tables`."""
    if url is None:
        return open_sqlite(folder)
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigInvalid("expected a database URL like 'postgresql://user@host/name'")
    try:
        from edgeferry.storage.hub_postgres import open_postgres
    except ImportError as error:
        raise ToolMissing("a hub on PostgreSQL needs psycopg: install edgeferry[hub]") from error
    return open_postgres(url)


def copy_store(source: HubStore, target: HubStore) -> None:
    """Copies a store, as it stands at one moment, into a new one of either kind; the source may be in use.

    Raises:
        StorageFailed: something is registered in the target already.
        StorageError: as the databases say.
    """
    reader, writer = open_sql(source.folder, source.url), open_sql(target.folder, target.url)
    try:
        with HubTables(reader).transaction(writes=False), HubTables(writer).transaction():
            if writer.execute("SELECT count(*) FROM identities").fetchone()[0]:
                raise StorageFailed("expected an empty store to copy into, found identities in it")
            for table in _COPIED:
                _copy_table(reader, writer, table)
    finally:
        reader.close()
        writer.close()


def _copy_table(reader: Sql, writer: Sql, table: str) -> None:
    columns = _COLUMNS[table]
    names = ", ".join(columns)
    places = ", ".join("?" * len(columns))
    order = columns[0] if table in _COUNTED else ", ".join(columns[:1])
    for row in reader.execute(f"SELECT {names} FROM {table} ORDER BY {order}"):
        writer.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", tuple(row))
    if table in _COUNTED and writer.is_shared:
        writer.execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'id'),"
            f" (SELECT coalesce(max(id), 0) + 1 FROM {table}), false)"
        )


_COLUMNS = {
    "identities": (
        "device_id",
        "module_id",
        "generation_id",
        "primary_key",
        "secondary_key",
        "etag",
        "is_enabled",
        "managed_by",
        "created_at",
        "status_reason",
        "is_edge",
        "twin",
    ),
    "subscriptions": ("device_id", "module_id", "filters"),
    "queue": ("id", "device_id", "module_id", "input", "properties", "payload", "expires_at", "packet_id"),
    "upstream": ("id", "device_id", "module_id", "output", "properties", "payload", "received_at"),
    "settings": ("name", "value"),
    "configurations": ("id", "body"),
}
