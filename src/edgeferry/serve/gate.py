"""The gate in front of the workers: how many requests run, how many wait, and the rest that are turned away at once.

Latency under load is queue length times service time, so the queue is short and its end is an answer
(503 + Retry-After), never a time-out.

Rules:
- A place is given back however its request ends: answered, failed or cancelled.
- The gate spans all models: cores are shared by all.
- Who asks a model while it is being switched without room for two, or started again, waits aside, in a queue of its
  own: it is longer, because it ends with the switch, and stands in nobody's way who asks another model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from edgeferry.errors import QueueFull


class Gate:
    """At most `running` requests inside `run()`, at most `waiting` more inside `queue()`, and `aside` aside."""

    def __init__(self, *, running: int, waiting: int, aside: int = 0) -> None:
        self._places = running + waiting
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
        if self._taken >= self._places:
            raise QueueFull(f"expected a free place, found {self._taken} requests running or waiting")

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Holds a place; raises QueueFull at once when there is none."""
        self.require_place()
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

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
