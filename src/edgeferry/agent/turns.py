"""Turns: who may use the link, and who the disk and the engines, when several models are under way at once.

Rules:
- One at a time; among those who wait the highest priority goes first, then who came first.
- Who holds a turn is told when somebody of higher priority waits (`Hold.overtaken`), and gives way, unless it said that
  it does not.
- A turn that is cancelled while it waits, or while it is taken, is nobody's.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Hold:
    """A turn that is held; `overtaken` is set when somebody of higher priority waits for it."""

    priority: int
    gives_way: bool = True
    overtaken: asyncio.Event = field(default_factory=asyncio.Event)


class Turn:
    """A lock with priorities."""

    def __init__(self) -> None:
        self._held: Hold | None = None
        self._count = itertools.count()
        self._queue: list[tuple[int, int, Hold, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def take(self, priority: int = 0, *, gives_way: bool = True) -> AsyncIterator[Hold]:
        """Waits for the turn and holds it as long as the block runs; a higher `priority` goes first."""
        hold = Hold(priority, gives_way)
        await self._wait(hold)
        try:
            yield hold
        finally:
            self._pass_on()

    async def _wait(self, hold: Hold) -> None:
        if self._held is None:
            self._held = hold
            return
        if hold.priority > self._held.priority and self._held.gives_way:
            self._held.overtaken.set()
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (-hold.priority, next(self._count), hold, mine))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()  # it was ours already
            raise

    def _pass_on(self) -> None:
        while self._queue:
            _, _, hold, other = heapq.heappop(self._queue)
            if not other.done():
                self._held = hold
                other.set_result(None)
                return
        self._held = None


@dataclass(frozen=True, slots=True)
class Turns:
    """`link`: one download at a time. `work`: one model at a time verifies, stores, proves, switches."""

    link: Turn = field(default_factory=Turn)
    work: Turn = field(default_factory=Turn)
