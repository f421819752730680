"""Turns: who may use the link, and who the disk and the engines, when several models are under way at once.

Rules:
- One at a time; among those who wait the highest priority goes first, then who came first.
- A turn that is cancelled while it waits, or while it is taken, is nobody's.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


class Turn:
    """A lock with priorities."""

    def __init__(self) -> None:
        self._held = False
        self._count = itertools.count()
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def take(self, priority: int = 0) -> AsyncIterator[None]:
        """Waits for the turn and holds it as long as the block runs; a higher `priority` goes first."""
        await self._wait(priority)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, priority: int) -> None:
        if not self._held:
            self._held = True
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (-priority, next(self._count), mine))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()  # it was ours already
            raise

    def _pass_on(self) -> None:
        while self._queue:
            _, _, other = heapq.heappop(self._queue)
            if not other.done():
                other.set_result(None)
                return
        self._held = False


@dataclass(frozen=True, slots=True)
class Turns:
    """`link`: one download at a time. `work`: one model at a time verifies, stores, proves, switches."""

    link: Turn = field(default_factory=Turn)
    work: Turn = field(default_factory=Turn)
