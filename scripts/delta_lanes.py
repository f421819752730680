"""Runs the steps of a bench on as many lanes as there are cores for it, the heaviest first, until time is up.

Rules:
- The heaviest step begins first: the lanes then end at about the same time.
- A step that has not begun when time is up is not done, and named: its absence is told, never hidden.
- A step that fails ends the bench.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """One thing to do; `weight` is about how long it takes, in any unit that all steps share."""

    name: str
    weight: float
    run: Callable[[], T]


@dataclass(frozen=True, slots=True)
class Lanes:
    """So many steps at a time, until `end_s` on the monotonic clock."""

    count: int
    end_s: float
    skipped: list[str] = field(default_factory=list)

    def run(self, steps: Sequence[Step[T]], tell: Callable[[Step[T], T], None]) -> list[T | None]:
        """What each step gave, in the order of `steps`; None where time was up. `tell` hears of each one at once."""
        found: list[T | None] = [None] * len(steps)
        pool = ThreadPoolExecutor(self.count)
        try:
            order = sorted(range(len(steps)), key=lambda index: -steps[index].weight)
            places = {pool.submit(self._run_in_time, steps[index]): index for index in order}
            for future in as_completed(places):
                for value in future.result():
                    found[places[future]] = value
                    tell(steps[places[future]], value)
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def _run_in_time(self, step: Step[T]) -> list[T]:
        if time.monotonic() < self.end_s:
            return [step.run()]
        self.skipped.append(step.name)
        return []
