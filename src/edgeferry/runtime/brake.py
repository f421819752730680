"""brake: workers that load stand still while requests run, and go on between them.

Niceness alone does not keep a load out of the way: a kernel lets whoever runs end its slice, some milliseconds, before
one that wakes takes its place, and a request that waits behind another one is not moved to the core that a load holds.
So whoever loads is stopped (SIGSTOP) while requests need the cores, and goes on (SIGCONT) when they are quiet.

What this file leaves to others: which requests run and who loads (`child.py`), niceness (`limits.py`).

Rules:
- With more cores than requests that run, and one to spare, nobody is stopped.
- Where requests follow one another, each time a load runs the next one meets it, and may be late. So it rests for a
  multiple of what it ran: a long one at first (GENTLE), in which most loads are done, a short one from GENTLE_S on.
- A load gets its turn all the same, TURN_S, after it was held for `held_max_s`. One core is its own then, and a request
  that would take it waits. That is an eighth of a core from GENTLE_S on, about what niceness leaves.
- Whoever is stopped goes on when its load has ended, in whatever way. SIGKILL needs no going on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any


@dataclass(frozen=True, slots=True)
class Pace:
    """How a load goes on: it rests for `rest` times what it ran, and is held for `held_max_s` seconds at most."""

    rest: float
    held_max_s: float


TURN_S = 0.015
GENTLE_S = 0.15
GENTLE, BRISK = Pace(38.0, 0.25), Pace(4.0, 0.1)


class _State(Enum):
    FREE = auto()
    HELD = auto()
    TURN = auto()


class Load:
    """A process that loads."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._began_s = time.monotonic()
        self._stood_s = 0.0
        self._stands_since: float | None = None

    @property
    def stood_s(self) -> float:
        """Seconds for which it was stopped so far."""
        now = time.monotonic()
        return self._stood_s + (now - self._stands_since if self._stands_since is not None else 0.0)

    @property
    def ran_s(self) -> float:
        """Seconds for which it could run so far."""
        return time.monotonic() - self._began_s - self.stood_s

    def stop(self) -> None:
        """Stops it. Safe to call twice."""
        if self._stands_since is None:
            self._stands_since = time.monotonic()
            self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets it run. Safe to call twice."""
        if self._stands_since is not None:
            self._stood_s, self._stands_since = self.stood_s, None
            self._send(signal.SIGCONT)

    async def wait(self, futures: set[asyncio.Future[Any]], timeout_s: float) -> bool:
        """Waits for one of `futures`; False once it could run for `timeout_s` seconds without one."""
        until_s = self.ran_s + timeout_s
        while (left_s := until_s - self.ran_s) > 0:
            done, _ = await asyncio.wait(futures, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return True
        return False

    def _send(self, which: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended, and whoever waits for it will hear
            os.kill(self.pid, which)


class Brake:
    """Shared by all workers of a main process, inside its event loop.

    `cores`: those that requests and loads share; None: all that this process may use.
    """

    def __init__(self, cores: int | None = None) -> None:
        cores = cores or len(os.sched_getaffinity(0))
        self._beside_a_load = max(0, cores - 1)
        self._free_max = max(0, cores - 2)
        self._running = 0
        self._loads: list[Load] = []
        self._state = _State.FREE
        self._went_on_at = self._rests_until = self._held_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    # --- the request's side -------------------------------------------------------------------------------------------
    async def wait_turn(self) -> None:
        """Waits where a load has its turn and only its core is left."""
        while self._state is _State.TURN and self._running >= self._beside_a_load:
            self._changed.clear()
            await self._changed.wait()

    @contextmanager
    def run(self) -> Iterator[None]:
        """A request runs."""
        self._running += 1
        self._note_change()
        try:
            yield
        finally:
            self._running -= 1
            self._note_change()
            self._changed.set()

    # --- the load's side ----------------------------------------------------------------------------------------------
    async def wait_quiet(self, timeout_s: float) -> None:
        """Waits until no request runs, at most `timeout_s` seconds: for what cannot be stopped half-way."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._running:
                    self._changed.clear()
                    await self._changed.wait()

    @contextmanager
    def load(self, pid: int) -> Iterator[Load]:
        """The process `pid` loads: until the block has ended it may be stopped."""
        load = Load(pid)
        if not self._loads:
            self._went_on_at = time.monotonic()
        self._loads.append(load)
        if self._state is _State.HELD:
            load.stop()
        self._note_change()
        try:
            yield load
        finally:
            self._loads.remove(load)
            load.go_on()
            if not self._loads:
                self._enter(_State.FREE)

    def _note_change(self) -> None:
        if not self._loads or self._state is _State.TURN:
            return
        busy = self._running > self._free_max
        if self._state is _State.FREE and busy:
            self._enter(_State.HELD)
        elif self._state is _State.HELD:
            until = self._held_until if busy else self._rests_until
            self._wait(until - time.monotonic())

    def _end_wait(self) -> None:
        busy = self._running > self._free_max
        if not busy:
            self._enter(_State.FREE)
        else:
            self._enter(_State.TURN if self._state is _State.HELD else _State.HELD)

    def _enter(self, state: _State) -> None:
        now = time.monotonic()
        if state is _State.HELD:
            pace = GENTLE if any(load.ran_s < GENTLE_S for load in self._loads) else BRISK
            self._held_until = now + pace.held_max_s
            self._rests_until = now + min(pace.rest * (now - self._went_on_at), pace.held_max_s)
        elif self._state is _State.HELD:
            self._went_on_at = now
        self._state = state
        for load in self._loads:
            if state is _State.HELD:
                load.stop()
            else:
                load.go_on()
        self._wait({_State.HELD: self._held_until - now, _State.TURN: TURN_S}.get(state))
        self._changed.set()

    def _wait(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, seconds), self._end_wait) if seconds is not None else None
