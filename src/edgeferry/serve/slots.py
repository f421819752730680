"""All models that are served: one slot each, one gate in front of them.

This is what the agent moves (it fulfils `agent/ports.py: Activator` by shape) and what requests take leases on.
What this file leaves to others: one model's switch (`slot.py`), which model answers a request (`infer.py`), versions
that serve beside the active one (`residents.py`).

Rules:
- The queue is bounded over all models; beyond it QueueFull at once.
- A request waits for a core before it takes its lease: it is answered by the newest version and never delays a drain.
- While a model is switched without room for two workers, or its worker is started again, its requests wait aside
  (`gate.py`), also those that came before: none fails of the switch, nor takes a place from another model's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from edgeferry.errors import Conflict, ModelNotReady
from edgeferry.model.health import Health
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.child import ModelTensors
from edgeferry.serve.gate import Gate
from edgeferry.serve.ports import EnginePort
from edgeferry.serve.residents import Residents
from edgeferry.serve.slot import NOT_READY_MESSAGE, Lease, Slot, SlotSettings
from edgeferry.twin.shadow import ShadowPolicy
from edgeferry.vision.agreement import Agreement

_READY = 1
"""Of a crowd on two cores this spares two hundredths of all CPU: threads that sleep and wake. More spare no more."""


@dataclass(frozen=True, slots=True)
class SlotsSettings:
    """`concurrency` inferences at once over all models, `waiting` more in the queue; the rest are turned away.

    The next one stands ready in its worker; where that is another model's than those that run, it runs beside them.
    `standing`: so many of them in overload (`gate.py`). `aside` more wait while their model is switched
    without room for two workers, or its worker is started again, with pictures of `aside_max_bytes` in all.
    """

    concurrency: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    waiting: int = 32
    standing: int | None = None
    aside: int = 128
    aside_max_bytes: int = 32 << 20
    slot: SlotSettings = field(default_factory=SlotSettings)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One served model as the API shows it; counts are since the last switch."""

    version: StoredVersion
    ready: bool
    deaths: int
    answered: int
    tensors: ModelTensors


class Slots:
    """The models being served, by name. `default_model` answers where a request names none."""

    def __init__(self, engine: EnginePort, settings: SlotsSettings | None = None, *, default_model: str = "") -> None:
        settings = settings or SlotsSettings()
        self.default_model = default_model
        self.gate = Gate(
            running=settings.concurrency,
            ready=_READY,
            waiting=settings.waiting,
            aside=settings.aside,
            aside_max_bytes=settings.aside_max_bytes,
            standing=settings.standing,
        )
        self._engine = engine
        self._settings = settings.slot
        self._slots: dict[str, Slot] = {}
        self.residents = Residents(engine, settings.slot)

    # --- what the agent moves (Activator) -----------------------------------------------------------------------------
    async def prove(self, version: StoredVersion) -> None:
        """Holds a proven worker for `version`; see Activator.prove."""
        await self._make_slot(version.model).prove(version)

    async def switch(self, version: StoredVersion) -> None:
        """Serves `version` under its model's name from now on; see Activator.switch."""
        await self._make_slot(version.model).switch(version)
        self.residents.let_go(version.model, version.version)

    async def load_resident(self, version: StoredVersion) -> None:
        """Serves `version` beside what is active; raises as `Residents.load`, and Conflict without memory for it."""
        if any(slot.paused for slot in self._slots.values()):
            raise Conflict(f"expected memory for {version}, found none: a switch is under way without room for two")
        live = next((slot.serving for slot in self._slots.values() if slot.ready and slot.serving), None)
        if live is not None and self.residents.find(version.model, version.version) is None:
            pid = live.worker.port.pid
            if not await self._engine.has_room(version, beside=live.version, pid=pid):
                raise Conflict(f"expected memory for {version} beside {live.version}, found too little")
        await self.residents.load(version)

    async def discard(self, model: str) -> None:
        """Lets go of a proven worker that was never switched to."""
        if model in self._slots:
            await self._slots[model].discard()

    async def prove_again(self, model: str) -> None:
        """Runs the golden truth once more on the worker that serves; see Activator.prove_again."""
        await self._make_slot(model).prove_again()

    def start_shadow(self, model: str, policy: ShadowPolicy) -> bool:
        """Shows the candidate a share of the live pictures; see Activator.start_shadow."""
        return model in self._slots and self._slots[model].start_shadow(policy, lambda: self.gate.busy)

    def find_agreement(self, model: str) -> Agreement | None:
        """How far candidate and live version agree so far; None once the candidate is gone."""
        slot = self._slots.get(model)
        if slot is None or slot.shadow is None or slot.shadow.is_gone(slot.serving):
            return None
        return slot.shadow.agreement

    def stop_shadow(self, model: str) -> None:
        """Shows the candidate nothing more."""
        if model in self._slots:
            self._slots[model].stop_shadow()

    def is_alive(self, model: str) -> bool:
        """Whether a living worker serves `model`."""
        return model in self._slots and self._slots[model].ready

    def get_health(self, model: str) -> Health:
        """How the serving version of `model` does since the last switch."""
        return self._slots[model].tally.get_health() if model in self._slots else Health()

    def find_health_before(self, model: str) -> Health | None:
        """How the version before did, or None."""
        return self._slots[model].before if model in self._slots else None

    async def close(self) -> None:
        """Stops serving: running requests finish within the drain time, every worker ends."""
        await asyncio.gather(self.residents.close(), *(slot.close() for slot in self._slots.values()))

    # --- what requests use --------------------------------------------------------------------------------------------
    def get_models(self) -> dict[str, ServedModel]:
        """What is served now, by name."""
        return {name: served for name, slot in sorted(self._slots.items()) if (served := _describe(slot)) is not None}

    def list_names(self) -> list[str]:
        """The names of the models that are served now, in no order."""
        return [name for name, slot in self._slots.items() if slot.serving is not None]

    def list_served(self) -> list[ServedModel]:
        """The active version of each model, and those that serve beside them."""
        beside = [served for slot in self.residents.list_slots() if (served := _describe(slot)) is not None]
        return [*self.get_models().values(), *beside]

    @asynccontextmanager
    async def lease(self, model: str, version: str = "", *, size_bytes: int = 0) -> AsyncIterator[Lease]:
        """A place in the queue, then a core, then a hold on the version of `model` that serves at that moment.

        A `version` that is resident beside the active one is held instead; of any other the active one is.
        `size_bytes` is what the request holds in memory while it waits.

        Raises:
            QueueFull: too many requests run or wait.
            ModelNotReady: nothing is served under that name.
            WorkerLost: its worker died and is not back in time.
        """
        slot = self.residents.find(model, version) or self._slots.get(model)
        if slot is None:
            raise ModelNotReady(NOT_READY_MESSAGE, model=model)
        while True:
            with self.gate.queue() if slot.ready else self.gate.queue_aside(size_bytes):
                await slot.wait_ready()
                async with self.gate.run():
                    if not slot.ready:  # it died while this request waited for a core: wait without holding one
                        continue
                    with slot.lease() as lease:
                        yield lease
                    return

    def find_resident(self, wanted: str) -> str:
        """`name@version` of the resident that answers to `wanted`; empty where an active version or none does."""
        name, _, version = wanted.partition("@")
        if not version and name not in self.list_names():
            version = self.residents.find_latest(name)
        return f"{name}@{version}" if self.residents.find(name, version) is not None else ""

    def _make_slot(self, model: str) -> Slot:
        return self._slots.setdefault(model, Slot(model, self._engine, self._settings))


def _describe(slot: Slot) -> ServedModel | None:
    serving = slot.serving
    if serving is None:
        return None
    tensors = serving.worker.port.tensors
    return ServedModel(serving.version, slot.ready, slot.tally.deaths, slot.tally.answered, tensors)
