"""Residents: versions that serve beside the active one of their model, each in a worker of its own.

What this file leaves to others: which versions are stored and who asks (`v2_repository.py`), queue and cores
(`slots.py`).

Rules:
- A resident never moves `active`. When it becomes active itself, its second worker is let go of.
- It is proven before it answers, restarted when it dies, and drained when it goes, as every version is (`slot.py`).
- One load at a time, RESIDENTS_MAX at once: each holds a model in memory.
- What could not be loaded is remembered with the reason, until it loads or is unloaded.
"""

from __future__ import annotations

import asyncio
import re

import structlog

from edgeferry.errors import Conflict, EdgeferryError
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.ports import EnginePort
from edgeferry.serve.slot import Slot, SlotSettings

RESIDENTS_MAX = 8
_FAILURES_MAX = 100
_log = structlog.get_logger(__name__)
Key = tuple[str, str]
"""Model and version."""


class Residents:
    """See the module. `loading` is the one that is being loaded, `failures` says why others could not be."""

    def __init__(self, engine: EnginePort, settings: SlotSettings) -> None:
        self.loading: Key | None = None
        self.failures: dict[Key, str] = {}
        self._engine = engine
        self._settings = settings
        self._slots: dict[Key, Slot] = {}
        self._one_load = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    def find(self, model: str, version: str) -> Slot | None:
        """The resident of that name."""
        return self._slots.get((model, version))

    def find_latest(self, model: str) -> str:
        """The highest resident version of `model`; empty when there is none."""
        return max((key[1] for key in self._slots if key[0] == model), key=order_version, default="")

    def list_slots(self) -> list[Slot]:
        """All residents, by model and version."""
        return [self._slots[key] for key in sorted(self._slots)]

    async def load(self, version: StoredVersion) -> None:
        """Proves `version` and serves it under its full name; nothing happens when it is resident already.

        Raises:
            Conflict: too many are resident, or it cannot be loaded: its files, its model or its golden truth.
            WorkerStartFailed: no worker could be started.
        """
        key = (version.model, version.version)
        async with self._one_load:
            if key in self._slots:
                return
            if len(self._slots) >= RESIDENTS_MAX:
                raise Conflict(f"expected fewer than {RESIDENTS_MAX} resident versions, found {len(self._slots)}")
            self.loading = key
            try:
                self._slots[key] = await self._open(version)
            finally:
                self.loading = None

    async def unload(self, model: str, version: str) -> None:
        """Lets running requests of that resident finish and ends its worker; forgets why it failed to load."""
        self.failures.pop((model, version), None)
        slot = self._slots.pop((model, version), None)
        if slot is not None:
            await slot.close()
            _log.info("unloaded", model=model, version=version)

    def let_go(self, model: str, version: str) -> None:
        """As `unload`, without waiting."""
        self.failures.pop((model, version), None)
        if (model, version) in self._slots:
            task = asyncio.create_task(self.unload(model, version))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Ends every worker."""
        slots, self._slots = list(self._slots.values()), {}
        await asyncio.gather(*self._closing, *(slot.close() for slot in slots))

    async def _open(self, version: StoredVersion) -> Slot:
        slot = Slot(version.model, self._engine, self._settings)
        try:
            await slot.switch(version)
        except EdgeferryError as error:
            await slot.close()
            raise self._note_failure(version, error) from error
        except BaseException:
            await slot.close()
            raise
        self.failures.pop((version.model, version.version), None)
        return slot

    def _note_failure(self, version: StoredVersion, error: EdgeferryError) -> EdgeferryError:
        """What the caller is told: messages may name files, so they stay in the log."""
        _log.error("load_failed", version=str(version), code=error.code, message=error.message)
        reason = f"{error.code}: {error.advice}"
        while len(self.failures) >= _FAILURES_MAX:
            self.failures.pop(next(iter(self.failures)))
        self.failures[version.model, version.version] = reason
        return Conflict(f"{version} cannot be loaded, {reason}")


def order_version(version: str) -> tuple[tuple[int, int, str], ...]:
    """A key that puts 1.10.0 after 1.9.0."""
    parts = re.findall(r"\d+|\D+", version)
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)
