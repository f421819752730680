"""Messages of the hub in SQL: a durable queue for each module's inputs, and the store of `$upstream`.

Rules:
- Both are bounded by rows and bytes; the oldest go first. Rows of a queue are bounded at once, the rest whenever the
  hub's upkeep trims.
- `packet_id` is written before a QoS 1 delivery is sent: sent again, by whichever process, it carries the same id and
  DUP [MQTT-4.4.0-1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from edgeferry.storage.hub_sql import Sql
from edgeferry.wire.service_api import Identity

QUEUE_MAX_ROWS = 10_000  # for one module
QUEUE_MAX_BYTES = 64 * 1024 * 1024  # for one module
UPSTREAM_MAX_ROWS = 100_000
UPSTREAM_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message that waits for a module's input; `id` rises. `packet_id`: it was sent at QoS 1 with this id."""

    id: int
    input: str
    properties: dict[str, str | None]
    payload: bytes = field(repr=False)
    expires_at: float
    packet_id: int | None = None


@dataclass(frozen=True, slots=True)
class UpstreamMessage:
    """A message that a route sent `$upstream`; `id` rises and is never used twice."""

    id: int
    identity: Identity
    output: str | None
    properties: dict[str, str | None]
    payload: bytes = field(repr=False)
    received_at: float


class QueueTables:
    """Reads and writes of messages, inside the caller's transaction."""

    def __init__(self, sql: Sql) -> None:
        self._sql = sql

    # --- queues of inputs ---------------------------------------------------------------------------------------------
    def push(self, identity: Identity, message: QueuedMessage) -> None:
        """Queues for a registered module; `message.id` and `packet_id` are ignored."""
        key = get_key(identity)
        fields = (message.input, to_text(message.properties), message.payload, message.expires_at)
        self._sql.execute(
            "INSERT INTO queue (device_id, module_id, input, properties, payload, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*key, *fields),
        )
        self._sql.execute(
            "DELETE FROM queue WHERE id <= (SELECT id FROM queue WHERE device_id=? AND module_id=?"
            " ORDER BY id DESC LIMIT 1 OFFSET ?) AND device_id=? AND module_id=?",
            (*key, QUEUE_MAX_ROWS, *key),
        )

    def read(self, identity: Identity, *, after: int, limit: int) -> list[QueuedMessage]:
        """Waiting messages with an id above `after`, oldest first."""
        rows = self._sql.execute(
            "SELECT id, input, properties, payload, expires_at, packet_id FROM queue"
            " WHERE device_id=? AND module_id=? AND id>? ORDER BY id LIMIT ?",
            (*get_key(identity), after, limit),
        )
        return [QueuedMessage(row[0], row[1], _to_bag(row[2]), row[3], row[4], row[5]) for row in rows]

    def read_sent(self, identity: Identity, *, now: float) -> dict[int, int]:
        """Message id -> packet id of what was sent, not acknowledged and is not over, oldest first."""
        rows = self._sql.execute(
            "SELECT id, packet_id FROM queue WHERE device_id=? AND module_id=? AND packet_id IS NOT NULL"
            " AND expires_at>? ORDER BY id",
            (*get_key(identity), now),
        )
        return {row[0]: row[1] for row in rows}

    def mark_sent(self, packet_ids: Mapping[int, int]) -> None:
        """Notes the packet ids of messages that are about to be sent."""
        for message_id, packet_id in packet_ids.items():
            self._sql.execute("UPDATE queue SET packet_id=? WHERE id=?", (packet_id, message_id))

    def forget_sent(self, identity: Identity) -> None:
        """A session has ended: its packet ids mean nothing any more; the messages stay."""
        self._sql.execute(
            "UPDATE queue SET packet_id=NULL WHERE device_id=? AND module_id=? AND packet_id IS NOT NULL",
            get_key(identity),
        )

    def drop(self, ids: Sequence[int]) -> None:
        """Deletes delivered messages."""
        for one in ids:
            self._sql.execute("DELETE FROM queue WHERE id=?", (one,))

    def drop_expired(self, now: float) -> int:
        """Deletes messages whose time to live is over; returns how many."""
        return self._sql.execute("DELETE FROM queue WHERE expires_at <= ?", (now,)).rowcount

    def trim(self, *, max_bytes: int = QUEUE_MAX_BYTES) -> int:
        """Deletes the oldest messages of each queue beyond its bound; returns how many."""
        return self._sql.execute(
            "DELETE FROM queue WHERE id IN (SELECT id FROM (SELECT id, sum(length(payload) + length(properties))"
            " OVER (PARTITION BY device_id, module_id ORDER BY id DESC) AS total FROM queue) AS sized WHERE total > ?)",
            (max_bytes,),
        ).rowcount

    def count(self) -> int:
        """How many messages wait in all queues."""
        return int(self._sql.execute("SELECT count(*) FROM queue").fetchone()[0])

    # --- $upstream ----------------------------------------------------------------------------------------------------
    def append_upstream(self, message: UpstreamMessage) -> None:
        """Stores a message (`message.id` is ignored)."""
        fields = (message.output, to_text(message.properties), message.payload, message.received_at)
        self._sql.execute(
            "INSERT INTO upstream (device_id, module_id, output, properties, payload, received_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*get_key(message.identity), *fields),
        )

    def read_upstream(self, *, after: int = 0, limit: int = 1000) -> list[UpstreamMessage]:
        """Messages with an id above `after`, oldest first."""
        rows = self._sql.execute(
            "SELECT id, device_id, module_id, output, properties, payload, received_at FROM upstream WHERE id>?"
            " ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [UpstreamMessage(r[0], Identity(r[1], r[2] or None), r[3], _to_bag(r[4]), r[5], r[6]) for r in rows]

    def trim_upstream(self, *, max_rows: int = UPSTREAM_MAX_ROWS, max_bytes: int = UPSTREAM_MAX_BYTES) -> int:
        """Deletes the oldest messages beyond either bound; returns how many."""
        return self._sql.execute(
            "DELETE FROM upstream WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER newest AS n,"
            " sum(length(payload) + length(properties)) OVER newest AS total FROM upstream"
            " WINDOW newest AS (ORDER BY id DESC)) AS sized WHERE n > ? OR total > ?)",
            (max_rows, max_bytes),
        ).rowcount


def get_key(identity: Identity) -> tuple[str, str]:
    """An identity as its two columns: a device's own row has an empty module."""
    return identity.device_id, identity.module_id or ""


def to_text(value: object) -> str:
    """JSON as text."""
    return msgspec.json.encode(value).decode("utf-8")


def _to_bag(text: str) -> dict[str, str | None]:
    return msgspec.json.decode(text, type=dict[str, str | None])
