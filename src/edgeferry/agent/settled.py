"""What the states after the switch do: watching the version that serves, and going back to the one before it.

What this file leaves to others: the way there (`steps.py`), what an ailment is (`probation.py`), which state follows
(`machine.py`).

Rules:
- As in `steps.py`: a step may be cut off at any line and run again from its start.
- What serves is given up only for what has been proven: until then refs and slot stay as they are.
"""

from __future__ import annotations

import asyncio
import logging
import time

from edgeferry.agent.announce import announce
from edgeferry.agent.machine import Event
from edgeferry.agent.places import find_stored, find_verified, require_stored
from edgeferry.agent.probation import find_ailment
from edgeferry.agent.record import Target, UpdateRecord
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Outcome, Tools
from edgeferry.errors import (
    EdgeferryError,
    ModelCrashed,
    ModelError,
    ModelNotReady,
    ProbationFailed,
    StorageFailed,
    WorkerLost,
)
from edgeferry.model.stored import StoredVersion
from edgeferry.storage.mending import find_sound_ref

_LOG = logging.getLogger(__name__)
_TRY_AGAIN_S = 60.0
_COMES_BACK_S = 20.0
"""A worker that died is started again within this time, pauses included, where it can be."""


# --- PROBATION --------------------------------------------------------------------------------------------------------
async def watch_probation(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Serves and watches: enough answers and enough time without ailment, and the version stays.

    Where nobody asked for enough answers, the golden truth is asked once more instead.
    """
    settings = tools.settings
    stored = await in_thread(require_stored, tools.repository, record)
    await announce(tools, record, stored)  # said already, unless a crash came between
    if tools.serves and not tools.is_served(record):
        return Outcome(Event.UNHEALTHY, record, ModelCrashed(f"{stored} did not load after a restart"))
    if record.unclean_boots >= settings.unclean_boots:
        error = ModelCrashed(f"this device died {record.unclean_boots} times while {stored} was on probation")
        return Outcome(Event.UNHEALTHY, record, error)
    ends_at = time.monotonic() + settings.probation_s
    while time.monotonic() < ends_at:
        ailment = _find_ailment(tools, record, deaths_max=settings.probation_deaths)
        if ailment:
            return Outcome(Event.UNHEALTHY, record, _make_verdict(f"{stored}: {ailment}", tools, record))
        await asyncio.sleep(settings.poll_s)
    if tools.serves and tools.activator.get_health(record.model).answered < settings.probation_requests:
        return await _ask_again(tools, record)
    return Outcome(Event.HEALTHY, record)


async def _ask_again(tools: Tools, record: UpdateRecord) -> Outcome:
    """A worker that is lost while it is asked has died once: it is started again, and asked again.

    How many deaths are too many is said as before; a worker that does not come back is no version that does well.
    """
    settings = tools.settings
    ends_at = time.monotonic() + max(settings.probation_s, _COMES_BACK_S)
    while await in_thread(find_stored, tools.repository, record) is not None:
        try:
            await tools.activator.prove_again(record.model)
            return Outcome(Event.HEALTHY, record)
        except (WorkerLost, ModelNotReady, ModelCrashed) as error:
            await asyncio.sleep(settings.poll_s)
            ailment = _find_ailment(tools, record, deaths_max=settings.probation_deaths)
            if ailment or time.monotonic() >= ends_at:
                return Outcome(Event.UNHEALTHY, record, ModelCrashed(ailment or error.message))
    return Outcome(Event.DAMAGED, record)


def _find_ailment(tools: Tools, record: UpdateRecord, *, deaths_max: int) -> str:
    model, activator = record.model, tools.activator
    return find_ailment(activator.get_health(model), activator.find_health_before(model), deaths_max=deaths_max)


def _make_verdict(text: str, tools: Tools, record: UpdateRecord) -> ModelError:
    return ModelCrashed(text) if tools.activator.get_health(record.model).deaths else ProbationFailed(text)


# --- ACTIVE -----------------------------------------------------------------------------------------------------------
async def watch_active(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Serves for as long as nothing newer comes and its worker does not die again and again.

    A worker that has to be started again loads the file again: what died of damage is fetched, not tried for ever.
    """
    seen = 0
    while True:
        await asyncio.sleep(1.0)
        deaths = tools.activator.get_health(record.model).deaths
        is_away = await _is_away(tools, record)
        if is_away or deaths > seen:
            stored = await in_thread(find_verified, tools.repository, record)
            if stored is None:
                return Outcome(Event.DAMAGED, record)
            error = await _bring_back(tools, stored) if is_away else None
            if error is not None:
                return Outcome(Event.UNHEALTHY, record, error)
        seen = deaths
        outcome = await _judge_deaths(tools, record)
        if outcome is not None:
            return outcome


async def watch_deaths(tools: Tools, record: UpdateRecord) -> Outcome:
    """What is left of `watch_active` while a newer version is on its way, which may take days."""
    while True:
        await asyncio.sleep(1.0)
        outcome = await _judge_deaths(tools, record)
        if outcome is not None:
            return outcome


async def _judge_deaths(tools: Tools, record: UpdateRecord) -> Outcome | None:
    """The way back from a worker that dies again and again, where there is one."""
    deaths = tools.activator.get_health(record.model).deaths
    if not tools.serves or deaths < tools.settings.active_deaths or not tools.is_served(record):
        return None
    if await in_thread(tools.repository.read_ref, record.model, "previous") is None:
        return None
    error = ModelCrashed(f"the worker of {record.model}@{record.version} died {deaths} times")
    return Outcome(Event.UNHEALTHY, record, error)


async def _is_away(tools: Tools, record: UpdateRecord) -> bool:
    """Whether another version serves, or none, though the ref names this one: it did not load when the device started.

    A loader serves nothing.
    """
    if not tools.serves or tools.is_served(record):
        return False
    active = await in_thread(tools.repository.refs.read, record.model, "active")
    return active is not None and active.identity == record.identity


async def _bring_back(tools: Tools, stored: StoredVersion) -> ModelError | None:
    """Tries once more; the model's own error is a verdict where another version serves, all else may pass."""
    try:
        await tools.activator.prove(stored)
        await tools.activator.switch(stored)
    except EdgeferryError as error:
        _LOG.warning("%s still does not serve: %s: %s", stored, error.code, error.message)
        if isinstance(error, ModelError) and stored.model in tools.served:
            return error
        await asyncio.sleep(_TRY_AGAIN_S)
    else:
        tools.served[stored.model] = stored.identity
    return None


# --- ROLLING_BACK -----------------------------------------------------------------------------------------------------
async def roll_back(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Back to `previous`: the bytes are all here. It is proven first, then refs and slot move.

    Where somebody asked for it and there is nothing sound to go back to, the version that does well stays.
    """
    try:
        await _go_back(tools, record)
    except EdgeferryError as error:
        active = await in_thread(tools.repository.refs.read, record.model, "active")
        stays = active is not None and active.identity == record.identity and tools.is_served(record)
        if stays and record.fault is None:
            return Outcome(Event.STAYS, record, error)
        raise
    return Outcome(Event.ROLLED, record)


async def _go_back(tools: Tools, record: UpdateRecord) -> None:
    repository, activator = tools.repository, tools.activator
    goal, is_half_way = await _find_goal(tools, record)
    if tools.serves:
        await activator.discard(record.model)
        if not is_half_way and tools.served.get(record.model) != goal.identity:
            await activator.prove(goal)
    if not is_half_way:  # until the slot has moved, what serves now stays within reach of a restart
        now = await in_thread(repository.read_ref, record.model, "active")
        await in_thread(repository.write_ref, record.model, "active", goal)
        await in_thread(repository.write_ref, record.model, "previous", now)
    if tools.serves and tools.served.get(record.model) != goal.identity:
        await activator.switch(goal)
    tools.served[record.model] = goal.identity
    before = await in_thread(repository.refs.read, record.model, "previous")
    if before is not None and before.identity in (record.identity, goal.identity):
        await in_thread(repository.write_ref, record.model, "previous", None)


async def _find_goal(tools: Tools, record: UpdateRecord) -> tuple[StoredVersion, bool]:
    """The version to go back to, and whether the ref says so already: an earlier run came so far."""
    active = await in_thread(tools.repository.read_ref, record.model, "active")
    if active is not None and active.identity != record.identity:
        return active, True
    previous = await in_thread(find_sound_ref, tools.repository, record.model, "previous")
    if previous is None:
        raise StorageFailed(f"there is no previous version of {record.model} to go back to")
    return previous, False
