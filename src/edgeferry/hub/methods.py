"""Direct methods: a call goes to the device's link, its answer comes back by request id.

Rules:
- Nothing is stored: a call lives as long as its caller waits.
- An answer counts only from the identity that was called.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import msgspec

from edgeferry.errors import NotFound, RequestInvalid, RequestTimeout
from edgeferry.hub.presence import Presence
from edgeferry.twin.document import Json
from edgeferry.wire.iothub_topics import MethodAnswer
from edgeferry.wire.service_api import METHOD_PAYLOAD_MAX_BYTES, Identity, MethodRequest

Answer = tuple[int, object]


@dataclass(slots=True)
class Methods:
    """Calls in flight."""

    presence: Presence
    _rids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _waiting: dict[tuple[Identity, str], asyncio.Future[Answer]] = field(default_factory=dict)

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
        link = await self.presence.wait_for(identity, request.connect_timeout_s)
        rid = str(next(self._rids))
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[identity, rid] = future
        try:
            if link is None or not link.send_method(request.name, rid, payload):
                raise NotFound(f"{identity} is not online", service_code="DeviceNotOnline")
            status, answer = await asyncio.wait_for(future, request.response_timeout_s)
        except TimeoutError as error:
            raise RequestTimeout(f"{identity} did not answer in time", service_code="GatewayTimeout") from error
        finally:
            del self._waiting[identity, rid]
        return {"status": status, "payload": answer}

    def answer(self, identity: Identity, answer: MethodAnswer, payload: bytes) -> None:
        """Hands an answer to its caller; one that nobody waits for is dropped.

        Raises:
            RequestInvalid: the payload is not JSON.
        """
        try:
            value = msgspec.json.decode(payload) if payload.strip() else None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise RequestInvalid("the answer of a method is not JSON") from error
        future = self._waiting.get((identity, answer.rid))
        if future is not None and not future.done():
            future.set_result((answer.status, value))
