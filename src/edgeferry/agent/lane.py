"""Lane: walks the updates of one model through the machine, one at a time.

What this file leaves to others: the table (`machine.py`), what a state does (`steps.py`), what is wanted (`agent.py`).

Rules:
- `_write` is the one road into the journal (restart rows are written before any lane walks), and no step runs before
  the state it belongs to is written: after a crash the journal never says less than was done.
- Orders from outside (a newer target, cancel, roll back, retry) interrupt a step only where the table has a row for
  them; a step that is cut off is a step that crashed, and those can be run again.
- Where the update that is shown has ended, the row of the version that serves is walked: it is watched, healed and
  rolled back like any other. While the one that is shown is on the link or waits, only its worker's deaths count.
- A journal that cannot be written stops the walk, never the device: what serves, serves on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from edgeferry.agent.claims import is_claimed
from edgeferry.agent.gate import CLOSED
from edgeferry.agent.machine import (
    BEFORE_SWITCH,
    LOOP_LIMIT,
    TERMINAL,
    Event,
    State,
    count_stalled,
    find_next,
    get_error_event,
    get_next,
)
from edgeferry.agent.places import remove_traces
from edgeferry.agent.record import CANCELLED, Fault, Target, UpdateRecord, change, make_record, write_record_bytes
from edgeferry.agent.settled import watch_deaths
from edgeferry.agent.stepping import run_step
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import AgentSettings, Outcome, Tools
from edgeferry.agent.turns import Turns
from edgeferry.errors import AccessError, BudgetTooSmall, EdgeferryError, InvariantBroken, LinkError, StorageError

_LOG = logging.getLogger(__name__)
_LONG_STATES = frozenset({State.RESOLVING, State.DOWNLOADING, State.WAITING})
_KEEPS_FAULT = frozenset({Event.RETRY_DUE, Event.ROLLED, Event.DAMAGED})
_ROWS_MAX = 50
"""Ended updates that a device remembers for each model."""
_RENEWED = (*CLOSED, BudgetTooSmall)
_SPREAD_MAX_S, _SPREAD_SHARE = 60.0, 0.01
_DAY_S = 86_400.0
_SETBACKS = frozenset({Event.TRY_LATER, Event.RETRY_DUE, Event.DAMAGED, Event.MANIFEST_LOST})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a lane needs of the agent: turns shared by all lanes, a source of jitter 0..1, and who must hear of what."""

    tools: Tools
    turns: Turns
    random: Callable[[], float]
    moved: Callable[[UpdateRecord], Awaitable[None]]
    """A record has a new state, and the journal has it."""
    settled: Callable[[UpdateRecord], Awaitable[None]]
    """An update has ended, well or badly: time to tidy up."""


@dataclass(slots=True)
class Lane:
    """One model: `rows` are its records by key, `record` the one that is walked or shown, `target` what is wanted."""

    model: str
    around: Surroundings
    rows: dict[str, UpdateRecord] = field(default_factory=dict)
    record: UpdateRecord | None = None
    target: Target | None = None
    _active: str = ""
    """The identity that ref `active` names."""
    _orders: deque[Event] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def walked(self) -> UpdateRecord | None:
        """The record that steps and orders go to: what is shown, or what serves where that has ended."""
        has_ended = self.record is None or self.record.state in TERMINAL
        return (self._find_active() or self.record) if has_ended else self.record

    # --- orders from outside ------------------------------------------------------------------------------------------
    def aim(self, target: Target | None) -> None:
        """Says what is wanted now; a renewed SAS or URL of the same version wakes an update that waits for one."""
        renewed = target is not None and self.target is not None and target != self.target
        same = target is not None and self.record is not None and target.key == self.record.key
        self.target = target
        if renewed and same:
            self._orders.append(Event.RETRY_DUE)
        self._wake.set()

    def order(self, event: Event) -> bool:
        """Asks for `event`; False where the table refuses it now."""
        if not self._allows(event):
            return False
        self._orders.append(event)
        self._wake.set()
        return True

    def heal(self, identity: str) -> None:
        """Something stored of the version was found damaged: what is active is fetched again, if it is this one."""
        record = self.walked
        is_settled = record is not None and record.state in (State.PROBATION, State.ACTIVE)
        if record is not None and is_settled and record.identity == identity:
            self.order(Event.DAMAGED)

    async def fail(self) -> None:
        """A defect of ours ended the walk: the update gives up where the table lets it."""
        record = self.walked
        if record is not None and self._allows(Event.GIVE_UP):
            error = InvariantBroken(f"a defect ended this update in {record.state}; the log holds it")
            await self._advance(Outcome(Event.GIVE_UP, record, error))

    # --- the walk -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Walks for ever."""
        while True:
            self._wake.clear()
            await self._read_active()
            await self._settle()
            await self._renew_active()
            record = self.walked
            if record is None or record.state in TERMINAL:
                await self._wake.wait()
                continue
            outcome = await self._act(record)
            if outcome is not None:
                await self._advance(outcome)

    async def _settle(self) -> None:
        """Takes orders and follows the target, where the table allows."""
        while self._orders:
            event, record = self._orders.popleft(), self.walked
            if record is not None and self._allows(event):
                await self._advance(Outcome(event, record))
        await self._follow_target()

    async def _follow_target(self) -> None:
        record, target = self.record, self.target
        if record is not None and self._is_overtaken(record):
            if not self._allows(Event.SUPERSEDE):
                return  # past the switch: the newer version waits until this one has settled
            await self._advance(Outcome(Event.SUPERSEDE, record))
        if target is None:
            await self._show(self._find_active())
        elif self._begins(target):
            await self._write(make_record(target, self.around.tools.now()))
        elif self.record is None or not self._is_under_way(self.record):
            await self._show(self.rows[target.key])

    def _is_overtaken(self, record: UpdateRecord) -> bool:
        """Whether something else is wanted now; what has ended is no reason to stop healing what serves."""
        if not self._is_under_way(record) or (self.target is not None and self.target.key == record.key):
            return False
        return self.target is None or self._begins(self.target) or record.identity != self._active

    def _begins(self, target: Target) -> bool:
        """Whether the target is walked from its start: it never was, or it gave way to another."""
        row = self.rows.get(target.key)
        return row is None or (row.state is State.SUPERSEDED and not _is_cancelled(row))

    async def _read_active(self) -> None:
        active = await in_thread(self.around.tools.repository.refs.read, self.model, "active")
        self._active = active.identity if active is not None else ""

    async def _renew_active(self) -> None:
        """What serves again after a way back is watched again: the row with which it gave way is begun anew."""
        record = self.walked
        if record is not None and record.state not in TERMINAL:
            return
        rows = [row for row in self.rows.values() if row.state is State.SUPERSEDED and not _is_cancelled(row)]
        for row in [row for row in rows if row.identity == self._active][-1:]:
            now = self.around.tools.now()
            await self._write(change(row, state=State.ACTIVE, resume=None, fault=None, changed_at=now), shown=record)

    async def _show(self, row: UpdateRecord | None) -> None:
        """Turns to a row that is written already; what was reported last may have been of another one."""
        if row is not None and row is not self.record:
            self.record = row
            await self.around.moved(row)

    async def _act(self, record: UpdateRecord) -> Outcome | None:
        """Runs the state's step; None when an order cut it off."""
        steps = [asyncio.ensure_future(run_step(self.around.tools, self.around.turns, record, self._get_target))]
        active = self._find_active()
        if active is not None and record.state in _LONG_STATES and active.key != record.key:
            steps.append(asyncio.ensure_future(watch_deaths(self.around.tools, active)))
        try:
            while True:
                wake = asyncio.ensure_future(self._wake.wait())
                try:
                    await asyncio.wait({*steps, wake}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    wake.cancel()
                for step in steps:
                    if step.done():
                        return step.result()
                self._wake.clear()
                if self._must_stop(record):
                    return None
        finally:
            for step in steps:
                step.cancel()
            await asyncio.wait(steps)

    def _get_target(self, record: UpdateRecord) -> Target:
        if self.target is not None and self.target.key == record.key:
            return self.target
        near = self.target if self.target is not None and self.target.kind == "signed" == record.kind else None
        return Target(
            kind=record.kind,
            model=record.model,
            version=record.version,
            key=record.key,
            identity=record.identity,
            repo=near.repo if near is not None else "",
            sas=near.sas if near is not None else "",
        )

    def _must_stop(self, record: UpdateRecord) -> bool:
        if any(self._allows(event) for event in self._orders):
            return True
        if record.state is State.ACTIVE:
            return self.target is not None and self.record is not None and self.target.key != self.record.key
        return self._is_overtaken(record) and self._allows(Event.SUPERSEDE)

    def _allows(self, event: Event) -> bool:
        record = self.walked
        return record is not None and find_next(record.state, event, record.resume) is not None

    def _is_under_way(self, record: UpdateRecord) -> bool:
        return record.state is not State.ACTIVE and record.state not in TERMINAL

    def _find_active(self) -> UpdateRecord | None:
        return next((row for row in self.rows.values() if row.state is State.ACTIVE), None)

    # --- moving -------------------------------------------------------------------------------------------------------
    async def _advance(self, outcome: Outcome) -> None:
        tools = self.around.tools
        await self._read_active()
        is_active = outcome.record.identity == self._active
        record = make_next(outcome, tools.settings, is_active=is_active, now=tools.now(), random=self.around.random())
        await self._write(record)
        _LOG.info("%s@%s: %s -> %s", record.model, record.version, outcome.record.state, record.state)
        if outcome.error is not None:
            _LOG.warning("%s@%s: %s: %s", record.model, record.version, outcome.error.code, outcome.error.message)
        if record.state is State.ACTIVE:
            for row in [row for row in self.rows.values() if row.state is State.ACTIVE and row.key != record.key]:
                await self._write(change(row, state=get_next(row.state, Event.SUPERSEDE)), shown=record)
        if not self._is_under_way(record):
            await self._tidy(record)

    async def _tidy(self, record: UpdateRecord) -> None:
        tools = self.around.tools
        try:
            if record.state is not State.ACTIVE:
                owns = record.kind == "classic" and await is_claimed(tools.journal, record.file_name)
                await in_thread(remove_traces, tools.repository, record, owns_zip=owns)
                await tools.activator.discard(record.model)
            await self.around.settled(record)
        except StorageError as error:  # the sweep at the next start takes what is left
            _LOG.warning("cannot tidy up after %s@%s: %s", record.model, record.version, error.message)

    async def forget_old_rows(self) -> None:
        """Keeps what ended last; of what the twin may still name, nothing is forgotten while it is shown."""
        ended = [row for row in self.rows.values() if row.state in TERMINAL and row is not self.record]
        for row in sorted(ended, key=lambda one: one.changed_at)[:-_ROWS_MAX]:
            await self.around.tools.journal.delete_record(row.key)
            del self.rows[row.key]

    async def _write(self, record: UpdateRecord, *, shown: UpdateRecord | None = None) -> None:
        """The one road into the journal; returns only when the row is on the disk."""
        delay_s = self.around.tools.settings.retry_base_s
        while True:
            try:
                await self.around.tools.journal.save_record(
                    record.key, model=record.model, state=record.state, body=write_record_bytes(record)
                )
                break
            except StorageError as error:
                _LOG.warning("cannot write the journal, trying again: %s", error.message)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, self.around.tools.settings.retry_max_s)
        self.rows[record.key] = record
        self.record = shown or record
        await self.around.moved(record)


def make_next(
    outcome: Outcome, settings: AgentSettings, *, now: float, random: float, is_active: bool = False
) -> UpdateRecord:
    """The record after `outcome`: state by the table, loop guard, back-off and the error to show.

    Args:
        outcome: what the step said, with the record as it left it.
        settings: for the back-off.
        now: Unix seconds.
        random: 0..1, for jitter.
        is_active: ref `active` names the version.

    Raises:
        InvariantBroken: the table has no row for this event in this state.
    """
    record, event, error = outcome.record, outcome.event, outcome.error
    after = get_next(record.state, event, record.resume, is_active=is_active)
    stalled, mark = count_stalled(record.stalled, record.mark, index=record.index, before=record.state, after=after)
    if stalled > LOOP_LIMIT:
        error = InvariantBroken(f"{stalled} transitions without progress: gave up in {record.state}")
        after = find_next(record.state, Event.GIVE_UP, record.resume, is_active=is_active) or after
    given_up = find_next(record.state, event, record.resume) is State.REJECTED or stalled > LOOP_LIMIT
    waits, failed = after is State.WAITING, not isinstance(error, CLOSED)
    heals = is_active and after in BEFORE_SWITCH  # each step of a walk that ends badly again succeeds but for the last
    return change(
        record,
        state=after,
        resume=_get_resume(record, anew=is_active and given_up) if waits else None,
        retry_at=now + get_retry_delay(record.retries, error, settings, random=random) if waits else 0.0,
        retries=record.retries + failed if waits else record.retries if event in _SETBACKS or heals else 0,
        stalled=0 if waits and given_up else stalled,
        mark=mark,
        changed_at=now,
        fault=_make_fault(event, error) or (record.fault if event in _KEEPS_FAULT else None),
    )


def _get_resume(record: UpdateRecord, *, anew: bool) -> State:
    """Where a wait ends: what would have given up, did the version not serve, begins again from its start."""
    if anew:
        return State.PROVING if record.kind == "local" else State.RESOLVING
    return record.resume or record.state


def _is_cancelled(record: UpdateRecord) -> bool:
    return record.fault is not None and record.fault.code == CANCELLED


def _make_fault(event: Event, error: EdgeferryError | None) -> Fault | None:
    if event is Event.CANCEL:
        return Fault(CANCELLED, "this update was cancelled", "Raise try to ask for this version again.")
    return Fault(error.code, error.message[:300], error.advice) if error is not None else None


def get_retry_delay(retries: int, error: EdgeferryError | None, settings: AgentSettings, *, random: float) -> float:
    """Seconds until the next try: doubling, capped, half of it left to chance; never sooner than a server asked.

    A window that opens or a budget that renews is waited for as long as it takes; a fleet comes a little apart.
    """
    asked = error.retry_after_s if isinstance(error, LinkError) else None
    if isinstance(error, _RENEWED):
        opens_s = asked or 0.0
        return opens_s + random * min(_SPREAD_MAX_S, opens_s * _SPREAD_SHARE)
    if isinstance(error, AccessError) or (error is not None and get_error_event(type(error)) is not Event.TRY_LATER):
        delay = min(max(_DAY_S, settings.access_retry_s), settings.access_retry_s * 2.0 ** min(retries, 20))
    else:
        delay = min(settings.retry_max_s, settings.retry_base_s * 2.0 ** min(retries, 20))
    return max(delay * (0.5 + random / 2), min(asked or 0.0, settings.access_retry_s))
