"""Serving: a version, its worker and its terms, as one value; who holds a worker, and who uses a Serving.

What this file leaves to others: which Serving is the one that answers (`slot.py`).

Rules:
- A worker is closed with the last Serving that holds it. One that died and was started again is held by the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.child import Terms
from edgeferry.serve.ports import WorkerPort


class HeldWorker:
    """A worker and the number of Servings that hold it; it is closed with the last of them."""

    def __init__(self, port: WorkerPort, share_key: str) -> None:
        self.port = port
        self.share_key = share_key
        self._holders = 1

    def hold(self) -> HeldWorker:
        """Adds a holder."""
        self._holders += 1
        return self

    async def release(self, drain_timeout_s: float) -> None:
        """Takes a holder away."""
        self._holders -= 1
        if self._holders == 0:
            await self.port.close(drain_timeout_s=drain_timeout_s)


class LeaseCount:
    """How many requests use a Serving, and a way to wait until none does."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._count == 0:
            self._none.set()

    async def wait_none(self, timeout_s: float) -> bool:
        """Waits at most `timeout_s`; True when no lease is left."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none.wait()
        except TimeoutError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Serving:
    """A version with the worker and the terms it is served with. Never changed, only replaced."""

    version: StoredVersion
    worker: HeldWorker
    terms: Terms
    leases: LeaseCount = field(default_factory=LeaseCount)
