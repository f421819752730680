"""The conversation with the hub: connect, read the whole twin, listen, report, empty the outbox; for ever.

What this file leaves to others: MQTT (`transport/mqtt.py`), what a twin means (`plan.py`), what a command does
(`agent.py`).

Rules:
- A twin patch is a bell: the whole twin is read, then reconciled. A hub that is busy keeps its connection, and time.
- A connection that ends is normal. The next one comes after a pause that doubles, with half of it left to chance;
  a token that is about to expire is renewed by connecting again at once.
- A connection that may not be open any longer (`gate.py`) is ended, also one that is not made yet.
- A message leaves the outbox when the hub has acknowledged it; until then it is sent again under the same id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from edgeferry.agent.gate import Gate
from edgeferry.agent.reporter import Reporter
from edgeferry.errors import (
    AccessError,
    CaptivePortal,
    ConfigError,
    EdgeferryError,
    LinkBroken,
    LinkDown,
    LinkError,
    LinkTimeout,
    ProtocolError,
    ServerBusy,
    StorageError,
)
from edgeferry.storage.journal import Journal
from edgeferry.transport.mqtt import HubConnection, InputMessage, MethodCall, TwinBell

_LOG = logging.getLogger(__name__)
_RENEW_BEFORE_S = 120.0
_STEADY_S = 30.0
"""A connection that lasted this long makes the next pause a short one again."""
_PASSING = (LinkError, AccessError, ProtocolError, StorageError, ConfigError)
MENDED_CODES = frozenset(kind.code for kind in (LinkDown, LinkTimeout, LinkBroken, CaptivePortal))
"""What a link that is back mends; who was asked to wait, or has no right, waits on."""

OpenHub = Callable[[], AbstractAsyncContextManager[HubConnection]]


class Listener(Protocol):
    """Who hears what the hub says."""

    async def take_twin(self, desired: Mapping[str, Any]) -> None:
        """A full desired document."""

    async def take_message(self, name: str, body: bytes) -> None:
        """A message on the input `name`."""

    async def run_command(self, name: str, payload: object) -> tuple[int, dict[str, Any]]:
        """A direct method: status like HTTP's, and the answer."""

    def note_connected(self, connected: bool) -> None:
        """The connection has come or gone."""


class HubLink:
    """One hub, connected for as long as it lets us. `random` gives 0..1 for jitter."""

    def __init__(
        self,
        open_hub: OpenHub,
        listener: Listener,
        *,
        gate: Gate,
        reporter: Reporter,
        journal: Journal,
        random: Callable[[], float],
        pauses_s: tuple[float, float] = (1.0, 300.0),
    ) -> None:
        self._open_hub = open_hub
        self._gate = gate
        self._listener = listener
        self._reporter = reporter
        self._journal = journal
        self._random = random
        self._pauses_s = pauses_s
        self._outbox = asyncio.Event()
        self._bell = asyncio.Event()
        self._sent: set[str] = set()

    def note_message(self) -> None:
        """Something lies in the outbox."""
        self._outbox.set()

    def ring(self) -> None:
        """Reads the twin again, as if the hub had rung."""
        self._bell.set()

    async def run(self) -> None:
        """Stays connected for ever."""
        shortest_s, longest_s = self._pauses_s
        pause_s = shortest_s
        while True:
            await self._gate.wait_hub_open()
            began = time.monotonic()
            try:
                async with self._gate.open_hub():
                    await self._connect()
                pause_s = 0.0  # the token's time was up, or the window's
            except* _PASSING as group:
                _LOG.warning("no hub: %s", _get_message(group))
            self._listener.note_connected(False)
            steady = time.monotonic() - began > _STEADY_S
            pause_s = shortest_s if steady or pause_s == 0.0 else min(longest_s, pause_s * 2)
            await asyncio.sleep(pause_s * (0.5 + self._random() / 2))

    async def _connect(self) -> None:
        async with self._open_hub() as hub:
            twin = await self._fetch_twin(hub)
            self._listener.note_connected(True)
            await self._listener.take_twin(_get_mapping(twin, "desired"))
            lasts_s = max(1.0, hub.expires_at - time.time() - _RENEW_BEFORE_S)
            try:
                async with asyncio.timeout(lasts_s) as limit, asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._listen(hub))
                    tasks.create_task(self._read_twins(hub))
                    tasks.create_task(self._reporter.run(_get_mapping(twin, "reported"), hub.report))
                    tasks.create_task(self._empty_outbox(hub))
            except TimeoutError:
                if not limit.expired():
                    raise

    async def _listen(self, hub: HubConnection) -> None:
        async for event in hub.events():
            match event:
                case TwinBell():
                    self._bell.set()
                case InputMessage():
                    await self._listener.take_message(event.input, event.body)
                case MethodCall():
                    status, answer = await self._listener.run_command(event.name, event.payload)
                    await hub.answer_method(event.rid, status, payload=answer)

    async def _read_twins(self, hub: HubConnection) -> None:
        while True:
            await self._bell.wait()
            self._bell.clear()
            await self._listener.take_twin(_get_mapping(await self._fetch_twin(hub), "desired"))

    async def _fetch_twin(self, hub: HubConnection) -> Mapping[str, Any]:
        """The whole twin; a hub that is busy is asked again later over the same connection: a new one costs it more."""
        pause_s, longest_s = self._pauses_s
        while True:
            try:
                return await hub.fetch_twin()
            except ServerBusy as error:
                _LOG.info("the hub is busy, its twin is read later")
                await asyncio.sleep(max(pause_s * (0.5 + self._random() / 2), error.retry_after_s or 0.0))
                pause_s = min(longest_s, pause_s * 2)

    async def _empty_outbox(self, hub: HubConnection) -> None:
        while True:
            self._outbox.clear()
            try:
                for message in await self._journal.list_messages():
                    if message.mid not in self._sent:
                        await hub.send_output(message.output, message.body, mid=message.mid)
                        self._sent.add(message.mid)
                    await self._journal.drop_message(message.mid)
                    self._sent.discard(message.mid)
            except (
                StorageError
            ) as error:  # a full disk ends no conversation; what was sent is dropped when there is room
                _LOG.warning("the outbox is not emptied: %s", error.message)
            await self._outbox.wait()


def _get_mapping(twin: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = twin.get(key)
    return value if isinstance(value, Mapping) else {}


def _get_message(group: BaseExceptionGroup[EdgeferryError]) -> str:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first.message if isinstance(first, EdgeferryError) else type(first).__name__


def read_message(body: bytes) -> Mapping[str, Any] | None:
    """The JSON object of a message, or None."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None
