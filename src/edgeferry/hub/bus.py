"""What happens at this process when the store tells of a write: links are rung, calls go on, newer ones replace older.

Rules:
- Events are handled one at a time, in the order of commits. A defect met by one does not end the hub.
"""

from __future__ import annotations

import structlog

from edgeferry.errors import EdgeferryError
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.upkeep import drop_changed
from edgeferry.storage.hub_events import (
    Attached,
    DesiredWritten,
    Event,
    EventsMissed,
    IdentityChanged,
    InputQueued,
    MethodAnswered,
    MethodCalled,
)

_log = structlog.get_logger(__name__)


async def run_bus(rooms: HubRooms) -> None:
    """Runs as long as the hub."""
    while True:
        event = await rooms.db.events.get()
        try:
            await handle(rooms, event)
        except EdgeferryError as error:
            _log.warning("an event came to nothing", kind=type(event).__name__, code=error.code, reason=error.message)
        except Exception:  # noqa: BLE001 - the edge of a task: a defect met by one event must not stop the others
            _log.exception("an event failed", kind=type(event).__name__)


async def handle(rooms: HubRooms, event: Event) -> None:
    """Does what one event means here."""
    match event:
        case DesiredWritten(identity, patch):
            if (link := rooms.presence.find(identity)) is not None:
                link.send_desired(patch)
        case InputQueued(identity):
            if (link := rooms.presence.find(identity)) is not None:
                link.wake()
        case Attached(identity, number):
            rooms.presence.take_attached(identity, number)
        case IdentityChanged(identity):
            await drop_changed(rooms, device_id=identity.device_id)
        case MethodCalled():
            if event.to_hub == rooms.hub_id:
                await rooms.methods.deliver(event)
        case MethodAnswered():
            if event.to_hub == rooms.hub_id:
                rooms.methods.take_answer(event)
        case EventsMissed():
            for link in rooms.presence.get_links():
                link.close("the hub missed what was written meanwhile")
