"""Direct methods: a call goes to the device's link, at this process or another, and its answer comes back.

Rules:
- Nothing is kept: a call lives as long as its caller waits.
- A device that is not subscribed is not online yet: a caller who gives it time to connect waits for that too.
- An answer counts only from the identity that was called.
- Between processes a call and its answer travel as events of the store (storage/hub_events.py), each addressed to one
  process: that one answers also when the device is gone.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import msgspec

from edgeferry.errors import NotFound, RequestInvalid, RequestTimeout
from edgeferry.hub.presence import Presence
from edgeferry.storage.hub_db import HubDb
from edgeferry.storage.hub_events import MethodAnswered, MethodCalled
from edgeferry.twin.document import Json
from edgeferry.wire.iothub_topics import MethodAnswer
from edgeferry.wire.service_api import METHOD_PAYLOAD_MAX_BYTES, Identity, MethodRequest

LOOK_AGAIN_S = 0.5  # a device that has connected has yet to subscribe, or moves from one process to another


BAD_ANSWER = 502, b'{"error":"the device answered with no JSON of at most 128 KB"}'


@dataclass(slots=True)
class Methods:
    """Calls in flight at the process `hub_id`."""

    hub_id: str
    db: HubDb
    presence: Presence
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _calls: dict[int, asyncio.Future[MethodAnswered]] = field(default_factory=dict)
    _sent: dict[tuple[Identity, str], MethodCalled] = field(default_factory=dict)

    async def call(self, identity: Identity, request: MethodRequest) -> Json:
        """`{"status", "payload"}` as the device answered.

        Raises:
            NotFound: the device is not connected, or takes no methods (code DeviceNotOnline).
            RequestTimeout: no answer in time (code GatewayTimeout).
            RequestInvalid: the payload is too long.
        """
        payload = msgspec.json.encode(request.payload)
        if len(payload) > METHOD_PAYLOAD_MAX_BYTES:
            raise RequestInvalid(f"a method's payload has at most {METHOD_PAYLOAD_MAX_BYTES} bytes")
        answer = await self._call_when_online(identity, request, payload)
        if answer is None:
            raise NotFound(f"{identity} is not online, or takes no methods now", service_code="DeviceNotOnline")
        value = msgspec.Raw(answer.payload) if answer.payload else None  # it was read when it came in
        return {"status": answer.status, "payload": value}

    async def _call_when_online(
        self, identity: Identity, request: MethodRequest, payload: bytes
    ) -> MethodAnswered | None:
        """The answer; None when the device was not there, or not subscribed, for as long as it may take to connect."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + request.connect_timeout_s
        while True:
            hub = await self._find_hub(identity)
            if hub is not None:
                answer = await self._call_at(hub, identity, request, payload)
                if answer.status is not None:
                    return answer
            left_s = give_up_at - loop.time()
            if left_s <= 0:
                return None
            await self.presence.wait_for(identity, min(left_s, LOOK_AGAIN_S))

    async def _find_hub(self, identity: Identity) -> str | None:
        """The process that holds the device's link."""
        if self.presence.find(identity) is not None:
            return self.hub_id
        row = await self.db.read(lambda tables: tables.sessions.find_connection(identity))
        if row is None or not row.is_connected:
            return None
        is_here = row.hub == self.hub_id  # in the store, and it came meanwhile; or it is in its grace, and gone
        return row.hub if not is_here or self.presence.find(identity) else None

    async def _call_at(self, hub: str, identity: Identity, request: MethodRequest, payload: bytes) -> MethodAnswered:
        call_id = next(self._ids)
        called = MethodCalled(
            identity, self.hub_id, hub, call_id, request.name, payload, timeout_s=request.response_timeout_s
        )
        future = self._calls[call_id] = asyncio.get_running_loop().create_future()
        try:
            if hub == self.hub_id:
                await self.deliver(called)
            else:
                await self.db.write(lambda tables: tables.tell(called))
            return await asyncio.wait_for(future, request.response_timeout_s)
        except TimeoutError as error:
            raise RequestTimeout(f"{identity} did not answer in time", service_code="GatewayTimeout") from error
        finally:
            del self._calls[call_id]

    async def deliver(self, called: MethodCalled) -> None:
        """Sends a call to a device of this process; one that is not there is answered for."""
        rid = f"{self.hub_id}{next(self._ids):x}"
        link = self.presence.find(called.identity)
        if link is None or not link.send_method(called.name, rid, called.payload):
            await self._finish(called, None, None)
            return
        self._sent[called.identity, rid] = called
        asyncio.get_running_loop().call_later(called.timeout_s + 1.0, self._sent.pop, (called.identity, rid), None)

    async def answer(self, identity: Identity, answer: MethodAnswer, payload: bytes) -> None:
        """Hands a device's answer to its caller; one that nobody waits for is dropped.

        One that is no JSON, or too long, reaches the caller as BAD_ANSWER: to close the connection over it would bring
        the same packet again.
        """
        status, body = answer.status, payload.strip() or None
        try:
            msgspec.json.decode(body or b"null")
            is_good = len(payload) <= METHOD_PAYLOAD_MAX_BYTES
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            is_good = False
        if not is_good:
            status, body = BAD_ANSWER
        called = self._sent.pop((identity, answer.rid), None)
        if called is not None:
            await self._finish(called, status, body)

    async def _finish(self, called: MethodCalled, status: int | None, payload: bytes | None) -> None:
        answered = MethodAnswered(called.from_hub, called.call_id, status, payload)
        if called.from_hub == self.hub_id:
            self.take_answer(answered)
        else:
            await self.db.write(lambda tables: tables.tell(answered))

    def take_answer(self, answered: MethodAnswered) -> None:
        """An answer for a caller of this process."""
        future = self._calls.get(answered.call_id)
        if future is not None and not future.done():
            future.set_result(answered)
