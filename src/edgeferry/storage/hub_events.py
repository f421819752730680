"""What a write of the hub's state tells every process that serves this fleet: values, and their bytes in a database.

They are told inside the transaction that makes them true (hub_tables.py) and delivered after its commit, in the order
of commits, to every hub process, the one that wrote included (hub_db.py, hub_postgres.py).

Rules:
- An event is a bell or a letter, never the truth: who missed one reads the tables.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgeferry.wire.service_api import Identity


class DesiredWritten(msgspec.Struct, frozen=True, tag="desired"):
    """Desired properties were written; `patch` is what a connected device is sent, nulls and `$version` included."""

    identity: Identity
    patch: dict[str, Any]


class IdentityChanged(msgspec.Struct, frozen=True, tag="identity"):
    """An identity was deleted, disabled or given other keys: who is connected as it, or as a module of it, may go."""

    identity: Identity


class InputQueued(msgspec.Struct, frozen=True, tag="input"):
    """A message waits for a module's input."""

    identity: Identity


class Attached(msgspec.Struct, frozen=True, tag="attached"):
    """An identity has connected; any connection of it with a lower number is over."""

    identity: Identity
    number: int


class MethodCalled(msgspec.Struct, frozen=True, tag="method"):
    """A direct method for a device at the hub `to_hub`; its answer goes to `from_hub`."""

    identity: Identity
    from_hub: str
    to_hub: str
    call_id: int
    name: str
    payload: bytes
    timeout_s: float


class MethodAnswered(msgspec.Struct, frozen=True, tag="answer"):
    """The device's answer as JSON, or None for both when it takes no methods now."""

    to_hub: str
    call_id: int
    status: int | None
    payload: bytes | None


class EventsMissed(msgspec.Struct, frozen=True, tag="missed"):
    """This process was cut off for so long that events it never saw are gone."""


Event = DesiredWritten | IdentityChanged | InputQueued | Attached | MethodCalled | MethodAnswered | EventsMissed


def encode_event(event: Event) -> bytes:
    """The bytes that stand in the database."""
    return msgspec.json.encode(event)


def decode_event(data: bytes) -> Event:
    """Reads `encode_event` back."""
    event: Event = msgspec.json.decode(data, type=Event)
    return event
