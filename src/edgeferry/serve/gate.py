"""The gate in front of the workers: how many requests run, how many wait, and the rest that are turned away at once.

Latency under load is queue length times service time, so the queue is short and its end is an answer
(503 + Retry-After), never a time-out.

Rules:
- A place is given back however its request ends: answered, failed or cancelled.
- A queue alone is no overload: clients that wait for their answers before they ask again, or cameras that speak at
  once, are served in turn. Overload is when far more come than are answered: then every place only makes all wait
  longer, and nobody waits.
- The gate spans all models: cores are shared by all.
- Who asks a model while it is being switched without room for two, or started again, waits aside, in a queue of its
  own: it is longer, because it ends with the switch, and stands in nobody's way who asks another model. What these
  requests hold in memory is bounded too: memory is what such a switch is short of.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgeferry.errors import QueueFull

_ANSWERS = 64
"""Over so many answers it is counted who came."""
_FORGOTTEN_S = 1.0
"""What was before such a silence says nothing of now."""


class Gate:
    """At most `running` requests inside `run()`, at most `waiting` more inside `queue()`, and `aside` aside.

    `ready`: so many of those who wait are let into `run()` all the same: a core that becomes free finds the next one in
    its worker, where it would else have to be sent for.
    `aside_max_bytes`: what those aside hold in all; one of any size may wait alone.
    `standing`: so many wait in overload, that is when more than `waiting` came beyond those that were answered; None:
    `waiting` then too. `clock`: seconds.
    """

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        ready: int = 0,
        aside: int = 0,
        aside_max_bytes: int = 0,
        standing: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._running = running
        self._waiting = waiting
        self._places = running + waiting
        self._places_standing = running + (waiting if standing is None else standing)
        self._clock = clock
        self._came = 0
        self._came_at_answers: deque[int] = deque([0], maxlen=_ANSWERS)
        self._left_at = 0.0
        self._places_aside = aside
        self._taken = 0
        self._taken_aside = 0
        self._aside_max_bytes = aside_max_bytes
        self._aside_bytes = 0
        self._cores = asyncio.Semaphore(running + ready)

    @property
    def taken(self) -> int:
        """Requests that run or wait now."""
        return self._taken + self._taken_aside

    @property
    def busy(self) -> bool:
        """Whether every core is taken: who comes now has to wait."""
        return self._taken >= self._running

    def require_place(self) -> None:
        """Raises QueueFull when no place is free: asked before a body is read that could not be answered."""
        if self._taken < self._places_standing:
            return
        if self._taken >= self._places or self._is_overloaded():
            self._came += 1
            raise QueueFull(f"expected a free place, found {self._taken} requests running or waiting")

    def _is_overloaded(self) -> bool:
        return self._came - self._came_at_answers[0] - len(self._came_at_answers) > self._waiting

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Holds a place; raises QueueFull at once when there is none."""
        if not self._taken and self._clock() - self._left_at > _FORGOTTEN_S:
            self._came_at_answers.clear()
            self._came_at_answers.append(self._came)
        self.require_place()
        self._taken += 1
        self._came += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._came_at_answers.append(self._came)
            self._left_at = self._clock()

    @contextmanager
    def queue_aside(self, size_bytes: int = 0) -> Iterator[None]:
        """Holds a place aside until a request of `size_bytes` has ended; raises QueueFull at once without one."""
        held_bytes = self._aside_bytes + size_bytes
        if self._taken_aside >= self._places_aside or (self._taken_aside and held_bytes > self._aside_max_bytes):
            found = f"{self._taken_aside} requests of {self._aside_bytes} bytes"
            raise QueueFull(f"expected a free place, found {found} waiting for a switch")
        self._taken_aside += 1
        self._aside_bytes += size_bytes
        try:
            yield
        finally:
            self._taken_aside -= 1
            self._aside_bytes -= size_bytes

    def run(self) -> asyncio.Semaphore:
        """`async with` it: waits for a core, or to be the next one to have one, and holds it."""
        return self._cores
