"""The gate in front of the workers: how many requests run, how many wait, and the rest that are turned away at once.

Latency under load is queue length times service time, so the queue is short and its end is an answer
(503 + Retry-After), never a time-out.

Rules:
- A place is given back however its request ends: answered, failed or cancelled.
- The gate spans all models: cores are shared by all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from edgeferry.errors import QueueFull


class Gate:
    """At most `running` requests inside `run()`, at most `waiting` more inside `queue()`."""

    def __init__(self, *, running: int, waiting: int) -> None:
        self._places = running + waiting
        self._taken = 0
        self._cores = asyncio.Semaphore(running)

    @property
    def taken(self) -> int:
        """Requests that run or wait now."""
        return self._taken

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

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Waits for a core and holds it."""
        async with self._cores:
            yield
