"""Kept versions made whole again: what `previous` and pins name and no lane walks is fetched where it was damaged.

What this file leaves to others: finding the damage (`healing.py`, `storage/mending.py`), what a state does
(`steps.py`), what is active and walked (`lane.py`).

Rules:
- The machine's own way, from RESOLVING to STORING, and no step beyond: refs, slot and twin are not touched.
- After every update: the lowest priority there is. The same policy of the link as for them.
- The records lie in the journal under a key of their own, written before their step: a kill loses no byte that came.
- Nothing is given up while it is named: what fails waits longer and longer, as `make_next` says.
- An unsigned version names no place that its bytes could be had from: what is damaged of it waits for its next update.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import msgspec

from edgeferry.agent.gate import CLOSED
from edgeferry.agent.lane import Lane, make_next
from edgeferry.agent.machine import TERMINAL, Event, State
from edgeferry.agent.places import remove_traces
from edgeferry.agent.record import Target, UpdateRecord, make_record
from edgeferry.agent.room import collect, load_kept, save_kept
from edgeferry.agent.stepping import run_step
from edgeferry.agent.threads import in_thread
from edgeferry.agent.tools import Outcome, Tools
from edgeferry.agent.turns import Turns
from edgeferry.errors import StorageError
from edgeferry.storage.mending import Named, list_hurt

_LOG = logging.getLogger(__name__)
_LAST = -(1 << 30)
"""Less urgent than any update."""
_LOOK_AGAIN_S = 60.0
_RETRY_MAX_S = 86_400.0
"""What is kept has time: a repository that does not have it any more is not asked every quarter of an hour."""
_FETCHING = frozenset({State.RESOLVING, State.DOWNLOADING, State.VERIFYING, State.PATCHING, State.STORING})
_CLOSED_CODES = frozenset(kind.code for kind in CLOSED)

FindTarget = Callable[[Named], Target | None]
"""Where the bytes of a version are to be had today; None where nobody can say, or a lane walks it."""


@dataclass(slots=True)
class Keeper:
    """One device's kept versions. `random` gives 0..1 for jitter."""

    tools: Tools
    turns: Turns
    random: Callable[[], float]
    find_target: FindTarget
    _records: dict[str, UpdateRecord] = field(default_factory=dict)
    _rung: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        settings = self.tools.settings  # a loader announces what it stored; this is no news
        settings = replace(settings, role="both", retry_max_s=max(settings.retry_max_s, _RETRY_MAX_S))
        self.tools = replace(self.tools, settings=settings, progress=lambda key, length_bytes: None)

    def ring(self) -> None:
        """Something was found damaged, or something else is wanted or allowed now."""
        self._rung.set()

    async def run(self) -> None:
        """Looks at the start, whenever it is rung, and again for what waits; for ever."""
        self._records = {one.identity: one for one in await load_kept(self.tools.journal)}
        while True:
            self._rung.clear()
            try:
                await self._heal_all()
            except StorageError as error:
                _LOG.warning("what is kept cannot be made whole: %s: %s", error.code, error.message)
                await asyncio.sleep(_LOOK_AGAIN_S)
                continue
            while not self._rung.is_set() and not any(map(self._is_due, self._records.values())):
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._get_pause_s()):
                        await self._rung.wait()

    def _get_pause_s(self) -> float:
        """Until the next that waits is due; a minute at most, for a clock that is set right."""
        rests_s = [one.retry_at - self.tools.now() for one in self._records.values()]
        return min([_LOOK_AGAIN_S, *(rest_s for rest_s in rests_s if rest_s > 0)])

    async def _heal_all(self) -> None:
        hurt = {one.identity: one for one in await in_thread(list_hurt, self.tools.repository)}
        for record in [one for one in self._records.values() if one.identity not in hurt]:
            await self._forget(record)
        for named in hurt.values():
            target = self.find_target(named)
            if target is not None:
                record = self._records.get(named.identity) or make_record(_make_last(target), self.tools.now())
                await self._walk(record, target)

    async def _walk(self, record: UpdateRecord, target: Target) -> None:
        """Until the version is whole, or something must be waited for."""
        if record.state is State.WAITING and not self._is_due(record):
            return
        if record.state is State.WAITING:
            record = self._follow(Outcome(Event.RETRY_DUE, record))
        while record.state in _FETCHING:
            await self._save(record)
            record = self._follow(await run_step(self.tools, self.turns, record, lambda _: target))
        if record.state is State.WAITING:
            _LOG.warning("%s@%s is damaged and waits: %s", record.model, record.version, record.fault)
            await self._save(record)
            return
        _LOG.info("%s@%s is whole again", record.model, record.version)
        await self._forget(record)

    def _is_due(self, record: UpdateRecord) -> bool:
        """A clock that jumped back makes it due; so does a link that may be used again."""
        if record.state is not State.WAITING or self._find_target(record) is None:
            return False
        if record.fault is not None and record.fault.code in _CLOSED_CODES and self.tools.gate.judge(_LAST).may_send:
            return True
        return not record.changed_at <= self.tools.now() < record.retry_at

    def _find_target(self, record: UpdateRecord) -> Target | None:
        return self.find_target(Named(record.model, record.version, record.identity))

    def _follow(self, outcome: Outcome) -> UpdateRecord:
        """As for a version that ref `active` names: it is healed, and never given up."""
        tools = self.tools
        return make_next(outcome, tools.settings, is_active=True, now=tools.now(), random=self.random())

    async def _save(self, record: UpdateRecord) -> None:
        self._records[record.identity] = record
        await save_kept(self.tools.journal, self._records.values())

    async def _forget(self, record: UpdateRecord) -> None:
        self._records.pop(record.identity, None)
        if self._find_target(record) is not None:
            await in_thread(remove_traces, self.tools.repository, record, owns_zip=False)
        await save_kept(self.tools.journal, self._records.values())
        await collect(self.tools.repository, self.tools.journal)


def _make_last(target: Target) -> Target:
    return msgspec.structs.replace(target, priority=_LAST)


def find_source(named: Named, lane: Lane | None, targets: Iterable[Target]) -> Target | None:
    """Where the bytes of a signed version are to be had: where those of any other one are, as the twin says today.

    Args:
        named: the version.
        lane: of its model, where there is one; what it walks is its own.
        targets: all that the twin asks for.
    """
    walked = lane.walked if lane is not None else None
    if walked is not None and walked.identity == named.identity and walked.state not in TERMINAL:
        return None
    rows = lane.rows.values() if lane is not None else ()
    kinds = [row.kind for row in rows if row.identity == named.identity] or ["signed"]
    near = next((one for one in targets if one.kind == "signed"), None)
    if near is None or "signed" not in kinds:
        return None
    return Target(
        kind="signed",
        model=named.model,
        version=named.version,
        key=f"kept|{named.model}|{named.identity}",
        identity=named.identity,
        repo=near.repo,
        sas=near.sas,
    )
