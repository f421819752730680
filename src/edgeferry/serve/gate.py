"""The gate in front of the workers: how many requests run, how many wait, and the rest that are turned away at once.

Latency under load is queue length times service time, so the queue is short and its end is an answer
(503 + Retry-After), never a time-out.

Rules:
- A place is given back however its request ends: answered, failed or cancelled.
- A queue that empties again within BURST_S is a burst (cameras that speak at once, a core that was away for a moment)
  and may be long. One that stands is overload, in which every place only makes all wait longer: it is kept short until
  nobody was refused for as long.
- The gate spans all models: cores are shared by all.
- Who asks a model while it is being switched without room for two, or started again, waits aside, in a queue of its
  own: it is longer, because it ends with the switch, and stands in nobody's way who asks another model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from edgeferry.errors import QueueFull

BURST_S = 0.1


class Gate:
    """At most `running` requests inside `run()`, at most `waiting` more inside `queue()`, and `aside` aside.

    `standing`: so many wait at most while the queue stands; None: `waiting` then too. `clock`: seconds.
    """

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        aside: int = 0,
        standing: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._running = running
        self._places = running + waiting
        self._places_standing = running + (waiting if standing is None else standing)
        self._clock = clock
        self._queues_since: float | None = None
        self._refused_at = -BURST_S
        self._places_aside = aside
        self._taken = 0
        self._taken_aside = 0
        self._cores = asyncio.Semaphore(running)

    @property
    def taken(self) -> int:
        """Requests that run or wait now."""
        return self._taken + self._taken_aside

    @property
    def busy(self) -> bool:
        """Whether every core is taken: who comes now has to wait."""
        return self._cores.locked()

    def require_place(self) -> None:
        """Raises QueueFull when no place is free: asked before a body is read that could not be answered."""
        if self._taken >= self._places_standing and self._taken >= self._count_places():
            self._refused_at = self._clock()
            raise QueueFull(f"expected a free place, found {self._taken} requests running or waiting")

    def _count_places(self) -> int:
        now = self._clock()
        stands = self._queues_since is not None and now - self._queues_since > BURST_S
        return self._places_standing if stands or now - self._refused_at < BURST_S else self._places

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Holds a place; raises QueueFull at once when there is none."""
        self.require_place()
        self._taken += 1
        if self._queues_since is None and self._taken > self._running:
            self._queues_since = self._clock()
        try:
            yield
        finally:
            self._taken -= 1
            if self._taken <= self._running:
                self._queues_since = None

    @contextmanager
    def queue_aside(self) -> Iterator[None]:
        """Holds a place aside until the request has ended; raises QueueFull at once when there is none."""
        if self._taken_aside >= self._places_aside:
            raise QueueFull(f"expected a free place, found {self._taken_aside} requests waiting for a switch")
        self._taken_aside += 1
        try:
            yield
        finally:
            self._taken_aside -= 1

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Waits for a core and holds it."""
        async with self._cores:
            yield
