"""One step of the machine in its turn: on the link, on disk and engines, or free.

What this file leaves to others: what a state does (`steps.py`), which turn is whose (`turns.py`), what follows
(`lane.py`, `kept.py`).

Rules:
- On the link a step gives way to a more urgent update, and begins again after it.
- What a step raises is an Outcome too: `machine.ERROR_EVENTS` says what a leaf means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext

from edgeferry.agent.machine import State, get_error_event
from edgeferry.agent.record import Target, UpdateRecord
from edgeferry.agent.steps import STEPS
from edgeferry.agent.tools import Outcome, Tools
from edgeferry.agent.turns import Hold, Turns
from edgeferry.errors import EdgeferryError

_LINK_STATES = frozenset({State.RESOLVING, State.DOWNLOADING})
_FREE_STATES = frozenset({State.SHADOWING, State.PROBATION, State.ACTIVE, State.WAITING})


async def run_step(
    tools: Tools, turns: Turns, record: UpdateRecord, get_target: Callable[[UpdateRecord], Target]
) -> Outcome:
    """Runs the step of the record's state; where it begins again it asks `get_target` again."""
    try:
        while True:
            async with _take_turn(turns, record) as hold:
                step = STEPS[record.state](tools, record, get_target(record))
                outcome = await _run_unless(step, hold.overtaken)
            if outcome is not None:
                return outcome
    except EdgeferryError as error:
        return Outcome(get_error_event(type(error)), record, error)


def _take_turn(turns: Turns, record: UpdateRecord) -> AbstractAsyncContextManager[Hold]:
    if record.state in _LINK_STATES:
        return turns.link.take(record.priority)
    if record.state in _FREE_STATES:
        return nullcontext(Hold(record.priority))
    return turns.work.take(record.priority, gives_way=False)


async def _run_unless(step: Awaitable[Outcome], overtaken: asyncio.Event) -> Outcome | None:
    """What the step says; None when it was cut off because somebody more urgent waits."""
    running, waiting = asyncio.ensure_future(step), asyncio.ensure_future(overtaken.wait())
    try:
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else None
    finally:
        waiting.cancel()
        if not running.done():
            running.cancel()
            await asyncio.wait({running})
