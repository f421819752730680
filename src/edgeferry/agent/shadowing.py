"""The state SHADOWING: a proven version sees live pictures before the switch, and may be held back by what it says.

What this file leaves to others: showing and comparing (`Activator`), what an operator asks for (`twin/shadow.py`).

Rules:
- As in `steps.py`: the step may be cut off at any line. What was compared before a restart is compared again.
- With a least agreement, too few pictures are no agreement: the version is rejected like one that is not proven.
- Without one the switch waits for pictures as long as it was told to, and no longer.
- A live worker that is being started again says nothing of the candidate: it is waited for.
- A policy that changes meanwhile begins anew.
"""

from __future__ import annotations

import asyncio
import time

from edgeferry.agent.machine import Event
from edgeferry.agent.record import Target, UpdateRecord, change
from edgeferry.agent.tools import Outcome, Tools
from edgeferry.errors import ModelCrashed, ProbationFailed, WorkerLost
from edgeferry.twin.shadow import ShadowPolicy
from edgeferry.vision.agreement import Agreement

_BACK_MAX_S = 60.0
"""A live worker that stays away longer does not keep a version waiting that is only told of."""


async def shadow(tools: Tools, record: UpdateRecord, target: Target) -> Outcome:
    """Compares as long as the policy says, then judges; a policy that was taken back lets the switch happen."""
    agreement, policy = Agreement(), None
    while tools.wishes.shadow is not None and tools.wishes.shadow != policy:
        policy = tools.wishes.shadow
        agreement = await _compare(tools, record, policy)
    record = change(record, shadow=agreement.make_report() if agreement.pictures else None)
    problem = _find_problem(agreement, tools.wishes.shadow)
    if problem:
        return Outcome(Event.UNPROVEN, record, ProbationFailed(f"{record.model}@{record.version}: {problem}"))
    return Outcome(Event.AGREED, record)


async def _compare(tools: Tools, record: UpdateRecord, policy: ShadowPolicy) -> Agreement:
    if not await _start(tools, record, policy):
        return Agreement()
    try:
        return await _watch(tools, record, policy)
    finally:
        tools.activator.stop_shadow(record.model)


async def _start(tools: Tools, record: UpdateRecord, policy: ShadowPolicy) -> bool:
    """False where nothing can be compared; waits for a live worker, for long only where its answers are needed."""
    ends_at = time.monotonic() + (policy.for_s if policy.agreement else min(policy.for_s, _BACK_MAX_S))
    while tools.wishes.shadow == policy:
        try:
            return tools.activator.start_shadow(record.model, policy)
        except WorkerLost:
            if time.monotonic() >= ends_at:
                return False
            await asyncio.sleep(tools.settings.poll_s)
    return False


async def _watch(tools: Tools, record: UpdateRecord, policy: ShadowPolicy) -> Agreement:
    agreement, ends_at = Agreement(), time.monotonic() + policy.for_s
    while agreement.pictures < policy.pictures and time.monotonic() < ends_at and tools.wishes.shadow == policy:
        await asyncio.sleep(tools.settings.poll_s)
        found = tools.activator.find_agreement(record.model)
        if found is None:
            raise ModelCrashed(f"the worker of {record.model}@{record.version} died of a live picture")
        agreement = found
    return agreement


def _find_problem(agreement: Agreement, policy: ShadowPolicy | None) -> str:
    if policy is None or not policy.agreement:
        return ""
    if agreement.pictures >= policy.pictures and agreement.share >= policy.agreement:
        return ""
    return (
        f"expected an agreement of {policy.agreement:g} over {policy.pictures} live pictures,"
        f" found {agreement.share:.3f} over {agreement.pictures}"
    )
