"""The gate in front of the workers: how many requests run, how many wait, and the rest that are turned away at once.

Latency under load is queue length times service time, so the queue is short and its end is an answer
(503 + Retry-After), never a time-out.

Rules:
- A place is given back however its request ends: answered, failed or cancelled.
- A queue that grows while answers come as fast as ever means overload, and is kept short. One that grows while none
  comes at all (a core was taken away for a moment, many cameras spoke at once) empties by itself: it may be longer.
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

_STALL_FACTOR, _STALL_S = 2.0, 0.005
"""No answer for twice as long as one usually takes, and a little more, is a stall."""
_SURGE_S = 0.1
"""For so long after a stall the queue may be longer: what has gathered is answered then."""
_WEIGHT = 0.1


class Gate:
    """At most `running` requests inside `run()`, at most `waiting` more inside `queue()`, and `aside` aside.

    `surge`: so many more may wait when answers stall; `clock`: seconds.
    """

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        aside: int = 0,
        surge: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._surge = surge
        self._usual_s = 0.0
        self._answered_at = self._stalled_at = -_SURGE_S
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
        if self._taken >= self._places and self._taken >= self._places + self._get_surge():
            raise QueueFull(f"expected a free place, found {self._taken} requests running or waiting")

    def _get_surge(self) -> int:
        now = self._clock()
        if now - self._answered_at > _STALL_FACTOR * self._usual_s + _STALL_S:
            self._stalled_at = now
        return self._surge if now - self._stalled_at < _SURGE_S else 0

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
            began_at = self._clock()
            try:
                yield
            finally:
                self._answered_at = self._clock()
                self._usual_s += _WEIGHT * (self._answered_at - began_at - self._usual_s)
