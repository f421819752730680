"""Sessions and connections of the hub in SQL: subscriptions that outlive connections, and who is connected to which
process.

Rules:
- Connections of an identity are numbered: an older one that ends late changes nothing of a newer one. The numbers of
  an identity that was deleted and made again begin anew: a number counts together with its process.
- Each process of a shared store beats (`beat`); of one that stopped beating, the others end its connections.
- When the store comes back after it was away, nobody has beaten: whoever was silent itself gives nobody up yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from edgeferry.errors import Conflict
from edgeferry.storage.hub_queues import get_key, to_text
from edgeferry.storage.hub_sql import Sql
from edgeferry.wire.service_api import Identity

HUB_SILENT_S = 20.0  # a process that has not beaten for so long is gone


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """The last connection of an identity; `number` rises with each. Times are Unix seconds."""

    number: int
    is_connected: bool
    hub: str
    changed_at: float
    active_at: float


class SessionTables:
    """Reads and writes of sessions, inside the caller's transaction."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    def read_subscriptions(self, identity: Identity) -> dict[str, int] | None:
        """Filter -> granted QoS of a stored session, None when there is none."""
        row = self._sql.execute(
            "SELECT filters FROM subscriptions WHERE device_id=? AND module_id=?", get_key(identity)
        ).fetchone()
        return msgspec.json.decode(row[0], type=dict[str, int]) if row else None

    def write_subscriptions(self, identity: Identity, filters: dict[str, int] | None) -> None:
        """Stores a session's subscriptions; None forgets the session."""
        if filters is None:
            self._sql.execute("DELETE FROM subscriptions WHERE device_id=? AND module_id=?", get_key(identity))
            return
        self._sql.execute(
            "INSERT INTO subscriptions (device_id, module_id, filters) VALUES (?, ?, ?)"
            " ON CONFLICT (device_id, module_id) DO UPDATE SET filters=excluded.filters",
            (*get_key(identity), to_text(filters)),
        )

    def find_connection(self, identity: Identity) -> ConnectionRow | None:
        """The last connection, None when there never was one."""
        row = self._sql.execute(
            "SELECT number, is_connected, hub, changed_at, active_at FROM connections"
            " WHERE device_id=? AND module_id=?",
            get_key(identity),
        ).fetchone()
        return ConnectionRow(row[0], bool(row[1]), *row[2:]) if row else None

    def require_newest(self, identity: Identity, number: int) -> None:
        """Raises Conflict when a newer connection of the identity has taken the place of this one."""
        row = self.find_connection(identity)
        if row is None or row.number != number:
            raise Conflict(f"a newer connection of {identity} has taken the place of this one")

    def connect(self, identity: Identity, *, hub: str, now: float) -> int:
        """An identity is connected now; returns the connection's number. One that was connected has not changed."""
        row = self._sql.execute(
            "INSERT INTO connections (device_id, module_id, number, is_connected, hub, changed_at, active_at)"
            " VALUES (?, ?, 1, 1, ?, ?, ?) ON CONFLICT (device_id, module_id) DO UPDATE SET"
            " changed_at=CASE WHEN connections.is_connected=1 THEN connections.changed_at ELSE excluded.changed_at END,"
            " number=connections.number + 1, is_connected=1, hub=excluded.hub, active_at=excluded.active_at"
            " RETURNING number",
            (*get_key(identity), hub, now, now),
        ).fetchone()
        return int(row[0])

    def disconnect(self, ended: Iterable[tuple[Identity, int]], *, hub: str, now: float) -> None:
        """These connections of a process are over, where no newer one has taken their place."""
        for identity, number in ended:
            self._sql.execute(
                "UPDATE connections SET is_connected=0, changed_at=?, active_at=?"
                " WHERE device_id=? AND module_id=? AND number=? AND hub=?",
                (now, now, *get_key(identity), number, hub),
            )

    def restore(self, connected: Iterable[tuple[Identity, int]], *, hub: str) -> None:
        """These connections of a process live after all, where no newer one has taken their place."""
        for identity, number in connected:
            self._sql.execute(
                "UPDATE connections SET is_connected=1 WHERE device_id=? AND module_id=? AND number=? AND hub=?",
                (*get_key(identity), number, hub),
            )

    def read_connected(self, hub: str) -> list[tuple[Identity, int]]:
        """Identities that are connected to a process, with the numbers of their connections."""
        rows = self._sql.execute(
            "SELECT device_id, module_id, number FROM connections WHERE is_connected=1 AND hub=?", (hub,)
        )
        return [(Identity(row[0], row[1] or None), row[2]) for row in rows]

    def end_connections(self, *, now: float, hub: str | None = None) -> int:
        """Ends all connections of a process, or with None all; returns how many."""
        where, more = ("", ()) if hub is None else (" AND hub=?", (hub,))
        return self._sql.execute(
            f"UPDATE connections SET is_connected=0, changed_at=?, active_at=? WHERE is_connected=1{where}",
            (now, now, *more),
        ).rowcount

    def count_connected_devices(self) -> int:
        """How many devices are connected, themselves or by a module."""
        row = self._sql.execute("SELECT count(DISTINCT device_id) FROM connections WHERE is_connected=1")
        return int(row.fetchone()[0])

    # --- processes of a shared store ----------------------------------------------------------------------------------
    def beat(self, hub: str) -> bool:
        """This process lives; False when it was silent itself: it is new, was given up, or the store was away."""
        now = self._sql.clock
        in_time = self._sql.execute(
            f"UPDATE hubs SET seen_at={now} WHERE hub=? AND seen_at >= {now} - ?", (hub, HUB_SILENT_S)
        ).rowcount
        if not in_time:
            self._sql.execute(
                f"INSERT INTO hubs (hub, seen_at) VALUES (?, {now})"
                " ON CONFLICT (hub) DO UPDATE SET seen_at=excluded.seen_at",
                (hub,),
            )
        return in_time == 1

    def drop_silent_hubs(self, *, now: float) -> list[str]:
        """Ends the connections of processes that stopped beating; returns their ids."""
        rows = self._sql.execute(f"SELECT hub FROM hubs WHERE seen_at < {self._sql.clock} - ?", (HUB_SILENT_S,))
        silent = [row[0] for row in rows]
        for hub in silent:
            self.drop_hub(hub, now=now)
        return silent

    def drop_hub(self, hub: str, *, now: float) -> None:
        """A process has stopped: its connections are over."""
        self.end_connections(now=now, hub=hub)
        self._sql.execute("DELETE FROM hubs WHERE hub=?", (hub,))
