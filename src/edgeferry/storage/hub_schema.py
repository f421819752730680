"""The schema of the hub's database, and how an older one becomes the newest. Reads and writes stand in hub_tables.py.

Rules:
- A migration, once released, is never changed: a new one is added behind it. `user_version` counts them.
"""

from __future__ import annotations

import sqlite3

from edgeferry.errors import StorageFailed

_MIGRATIONS = (
    """
    CREATE TABLE identities (
        device_id TEXT NOT NULL, module_id TEXT NOT NULL, generation_id TEXT NOT NULL, primary_key TEXT NOT NULL,
        secondary_key TEXT NOT NULL, etag TEXT NOT NULL, is_enabled INTEGER NOT NULL, managed_by TEXT,
        created_at REAL NOT NULL, twin BLOB NOT NULL, PRIMARY KEY (device_id, module_id)) WITHOUT ROWID;
    CREATE TABLE subscriptions (
        device_id TEXT NOT NULL, module_id TEXT NOT NULL, filters TEXT NOT NULL, PRIMARY KEY (device_id, module_id),
        FOREIGN KEY (device_id, module_id) REFERENCES identities ON DELETE CASCADE) WITHOUT ROWID;
    CREATE TABLE queue (
        id INTEGER PRIMARY KEY AUTOINCREMENT, device_id TEXT NOT NULL, module_id TEXT NOT NULL, input TEXT NOT NULL,
        properties TEXT NOT NULL, payload BLOB NOT NULL, expires_at REAL NOT NULL,
        FOREIGN KEY (device_id, module_id) REFERENCES identities ON DELETE CASCADE);
    CREATE INDEX queue_by_module ON queue (device_id, module_id, id);
    CREATE INDEX queue_by_expiry ON queue (expires_at);
    CREATE TABLE upstream (
        id INTEGER PRIMARY KEY AUTOINCREMENT, device_id TEXT NOT NULL, module_id TEXT NOT NULL, output TEXT,
        properties TEXT NOT NULL, payload BLOB NOT NULL, received_at REAL NOT NULL);
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
)


def migrate(connection: sqlite3.Connection) -> None:
    """Brings a database, new or old, to the newest schema; all or nothing.

    Raises:
        StorageFailed: a newer release wrote it.
        sqlite3.Error: as SQLite says.
    """
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(_MIGRATIONS):
        connection.execute("ROLLBACK")
        raise StorageFailed(f"the hub's database has schema {version}, this release knows {len(_MIGRATIONS)}")
    for script in _MIGRATIONS[version:]:
        for statement in filter(str.strip, script.split(";")):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version={len(_MIGRATIONS)}")
    connection.execute("COMMIT")
