"""The update machine: states, events and what follows from what, as data.

What this file leaves to others: what a state does (`steps.py`), who walks it and writes the journal (`lane.py`).

Rules:
- Pure. Code here only looks up; the tables are the machine, and the diagram in the docs is made from them.
- An event that has no row in a state is refused (`find_next` gives None): that is how a cancel after the switch is
  refused, and how a newer version waits until probation has ended.
- A version that ref `active` names and that is being healed is never given up: those rows lead to WAITING instead.
- WAITING has no row of its own but RETRY_DUE: every other event means what it means in the state it came from.
- Forty transitions without progress are a loop, and a loop gives up. Progress is to come further than ever before in
  (artifact, state); bytes are counted by the partial file, and WAITING counts neither way. What follows ACTIVE counts
  anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from edgeferry import errors
from edgeferry.errors import EdgeferryError, InvariantBroken


class State(StrEnum):
    """Where an update stands; the values are what the journal and the twin hold."""

    RESOLVING = "RESOLVING"
    DOWNLOADING = "DOWNLOADING"
    VERIFYING = "VERIFYING"
    PATCHING = "PATCHING"
    STORING = "STORING"
    PROVING = "PROVING"
    SHADOWING = "SHADOWING"
    SWITCHING = "SWITCHING"
    PROBATION = "PROBATION"
    ROLLING_BACK = "ROLLING_BACK"
    WAITING = "WAITING"
    ACTIVE = "ACTIVE"
    ROLLED_BACK = "ROLLED_BACK"
    REJECTED = "REJECTED"
    SUPERSEDED = "SUPERSEDED"
    FAILED = "FAILED"


class Event(StrEnum):
    """What a step or somebody outside says."""

    # the way forward
    PLANNED = "planned"
    ALREADY_STORED = "already_stored"
    ALREADY_ACTIVE = "already_active"
    NOTHING_MISSING = "nothing_missing"
    DOWNLOADED = "downloaded"
    UNCODED = "uncoded"
    CODED = "coded"
    PATCHED = "patched"
    MORE_ARTIFACTS = "more_artifacts"
    STORED = "stored"
    HANDED_OVER = "handed_over"
    PROVEN = "proven"
    SHADOW_FIRST = "shadow_first"
    AGREED = "agreed"
    SWITCHED = "switched"
    HEALTHY = "healthy"
    ROLLED = "rolled_back"
    STAYS = "stays"
    RETRY_DUE = "retry_due"
    # the ways out
    DAMAGED = "damaged"
    MANIFEST_LOST = "manifest_lost"
    DELTA_FAILED = "delta_failed"
    UNPROVEN = "unproven"
    UNHEALTHY = "unhealthy"
    TRY_LATER = "try_later"
    GIVE_UP = "give_up"
    # from outside
    SUPERSEDE = "supersede"
    CANCEL = "cancel"
    ROLL_BACK = "roll_back"


S, E = State, Event

# fmt: off
_ROWS: Final = (
    # state           event              next
    (S.RESOLVING,     E.PLANNED,         S.DOWNLOADING),
    (S.RESOLVING,     E.NOTHING_MISSING, S.STORING),
    (S.RESOLVING,     E.ALREADY_STORED,  S.PROVING),
    (S.RESOLVING,     E.ALREADY_ACTIVE,  S.ACTIVE),
    (S.RESOLVING,     E.HANDED_OVER,     S.ACTIVE),        # loader role: stored before, announced again
    (S.DOWNLOADING,   E.DOWNLOADED,      S.VERIFYING),
    (S.VERIFYING,     E.UNCODED,         S.STORING),
    (S.VERIFYING,     E.CODED,           S.PATCHING),
    (S.VERIFYING,     E.DAMAGED,         S.DOWNLOADING),
    (S.PATCHING,      E.PATCHED,         S.STORING),
    (S.PATCHING,      E.DAMAGED,         S.DOWNLOADING),   # the partial went missing under us
    (S.PATCHING,      E.DELTA_FAILED,    S.DOWNLOADING),   # the plan now holds the full file instead
    (S.PATCHING,      E.MANIFEST_LOST,   S.RESOLVING),     # what the full file is stands in the manifest that was kept
    (S.STORING,       E.MORE_ARTIFACTS,  S.DOWNLOADING),
    (S.STORING,       E.DAMAGED,         S.DOWNLOADING),   # what was verified is gone: a crash between rename and fsync
    (S.STORING,       E.MANIFEST_LOST,   S.RESOLVING),     # fetched again; what came of the content is here
    (S.STORING,       E.STORED,          S.PROVING),
    (S.STORING,       E.HANDED_OVER,     S.ACTIVE),        # loader role
    (S.PROVING,       E.PROVEN,          S.SWITCHING),
    (S.PROVING,       E.SHADOW_FIRST,    S.SHADOWING),     # policy.shadow: live pictures are shown to it too
    (S.PROVING,       E.ALREADY_ACTIVE,  S.ACTIVE),        # healed, and its worker lives
    (S.PROVING,       E.DAMAGED,         S.RESOLVING),     # the stored version is not whole any more
    (S.SHADOWING,     E.AGREED,          S.SWITCHING),
    (S.SWITCHING,     E.SWITCHED,        S.PROBATION),
    (S.PROBATION,     E.HEALTHY,         S.ACTIVE),
    (S.PROBATION,     E.UNHEALTHY,       S.ROLLING_BACK),
    (S.PROBATION,     E.ROLL_BACK,       S.ROLLING_BACK),
    (S.PROBATION,     E.DAMAGED,         S.RESOLVING),     # at rest: what is damaged is fetched again
    (S.ACTIVE,        E.ROLL_BACK,       S.ROLLING_BACK),
    (S.ACTIVE,        E.UNHEALTHY,       S.ROLLING_BACK),  # repeated worker deaths
    (S.ACTIVE,        E.DAMAGED,         S.RESOLVING),     # likewise; the worker that runs serves on
    (S.ACTIVE,        E.SUPERSEDE,       S.SUPERSEDED),    # a newer version became active
    (S.ROLLING_BACK,  E.ROLLED,          S.ROLLED_BACK),
    (S.ROLLING_BACK,  E.STAYS,           S.ACTIVE),        # asked for, and there is nothing sound to go back to
    (S.WAITING,       E.RETRY_DUE,       S.WAITING),       # the state it came from: see find_next

    # when a step fails: how each of the four verdicts of ERROR_EVENTS reads once the live version may have been touched
    (S.SWITCHING,     E.TRY_LATER,       S.WAITING),       # disk full while a ref is written
    (S.SWITCHING,     E.GIVE_UP,         S.ROLLING_BACK),
    (S.SWITCHING,     E.UNPROVEN,        S.ROLLING_BACK),
    (S.SWITCHING,     E.DELTA_FAILED,    S.ROLLING_BACK),
    (S.PROBATION,     E.TRY_LATER,       S.ROLLING_BACK),
    (S.PROBATION,     E.GIVE_UP,         S.ROLLING_BACK),
    (S.PROBATION,     E.UNPROVEN,        S.ROLLING_BACK),
    (S.PROBATION,     E.DELTA_FAILED,    S.ROLLING_BACK),
    (S.ROLLING_BACK,  E.TRY_LATER,       S.FAILED),
    (S.ROLLING_BACK,  E.GIVE_UP,         S.FAILED),
    (S.ROLLING_BACK,  E.UNPROVEN,        S.FAILED),
    (S.ROLLING_BACK,  E.DELTA_FAILED,    S.FAILED),
)

BEFORE_SWITCH: Final = (S.RESOLVING, S.DOWNLOADING, S.VERIFYING, S.PATCHING, S.STORING, S.PROVING, S.SHADOWING)
_ROWS_BEFORE_SWITCH: Final = (
    # event           next, where the state has no row of its own: the live version was never touched
    (E.TRY_LATER,     S.WAITING),
    (E.GIVE_UP,       S.REJECTED),
    (E.UNPROVEN,      S.REJECTED),
    (E.DELTA_FAILED,  S.REJECTED),
    (E.SUPERSEDE,     S.SUPERSEDED),
    (E.CANCEL,        S.SUPERSEDED),
)

_ROWS_WHILE_ACTIVE: Final = (
    # event           next, before the switch, for a version that ref `active` names: it is healed, and never given up
    (E.GIVE_UP,       S.WAITING),
    (E.UNPROVEN,      S.WAITING),
    (E.DELTA_FAILED,  S.WAITING),
)

_RESTART_ROWS: Final = (
    # state found in the journal   goes on as
    (S.RESOLVING,                  S.RESOLVING),
    (S.DOWNLOADING,                S.DOWNLOADING),         # from the partial file's own length
    (S.VERIFYING,                  S.VERIFYING),
    (S.PATCHING,                   S.PATCHING),
    (S.STORING,                    S.STORING),
    (S.PROVING,                    S.PROVING),
    (S.SHADOWING,                  S.PROVING),             # the candidate is gone with the process
    (S.SWITCHING,                  S.PROVING),             # ref is the target already: PROBATION, see get_restart
    (S.PROBATION,                  S.PROBATION),
    (S.ROLLING_BACK,               S.ROLLING_BACK),
    (S.WAITING,                    S.WAITING),
    (S.ACTIVE,                     S.ACTIVE),
    (S.ROLLED_BACK,                S.ROLLED_BACK),
    (S.REJECTED,                   S.REJECTED),
    (S.SUPERSEDED,                 S.SUPERSEDED),
    (S.FAILED,                     S.FAILED),
)
# fmt: on

TERMINAL: Final = frozenset({S.ROLLED_BACK, S.REJECTED, S.SUPERSEDED, S.FAILED})
LOOP_LIMIT: Final = 40


def _make_transitions() -> dict[tuple[State, Event], State]:
    table = {(state, event): after for state in BEFORE_SWITCH for event, after in _ROWS_BEFORE_SWITCH}
    return {**table, **{(state, event): after for state, event, after in _ROWS}}


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(_make_transitions())
WHILE_ACTIVE: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (state, event): after
        for state in BEFORE_SWITCH
        for event, after in _ROWS_WHILE_ACTIVE
        if TRANSITIONS[state, event] is S.REJECTED
    }
)
RESTART: Final[Mapping[State, State]] = MappingProxyType(dict(_RESTART_ROWS))

ERROR_EVENTS: Final[Mapping[type[EdgeferryError], Event]] = MappingProxyType(
    {
        errors.ConfigError: E.GIVE_UP,  # a twin or a name that is wrong stays wrong until somebody changes it
        errors.LinkError: E.TRY_LATER,
        errors.AccessError: E.TRY_LATER,  # a new SAS in the twin wakes it
        errors.BundleError: E.GIVE_UP,
        errors.MetadataUntrusted: E.TRY_LATER,  # a captive portal is not a verdict
        errors.MetadataExpired: E.TRY_LATER,  # nor is a clock that is wrong
        errors.DeltaError: E.DELTA_FAILED,
        errors.StorageError: E.TRY_LATER,
        errors.ModelError: E.UNPROVEN,
        errors.RequestError: E.UNPROVEN,  # a golden picture that the worker cannot answer
        errors.ProtocolError: E.TRY_LATER,
        errors.InternalError: E.GIVE_UP,
        errors.WorkerStartFailed: E.TRY_LATER,  # ours, not the model's: memory may come back
    }
)
"""The nearest class decides: a leaf before its branch. Every branch has a row; each leaf is tested."""


def get_error_event(error: type[EdgeferryError]) -> Event:
    """What a step that raised `error` says to the machine."""
    return next(ERROR_EVENTS[kind] for kind in error.__mro__ if kind in ERROR_EVENTS)


def find_next(state: State, event: Event, resume: State | None = None, *, is_active: bool = False) -> State | None:
    """The state after `event`, or None where the table refuses it.

    Args:
        state: where the update stands.
        event: what happened.
        resume: for WAITING, the state it came from.
        is_active: ref `active` names the version.
    """
    if state is S.WAITING and resume is not None:
        if event is E.RETRY_DUE:
            return resume
        state = resume
    after = WHILE_ACTIVE.get((state, event)) if is_active else None
    return after or TRANSITIONS.get((state, event))


def get_next(state: State, event: Event, resume: State | None = None, *, is_active: bool = False) -> State:
    """The state after `event`.

    Raises:
        InvariantBroken: the table has no such row; a step may only say what its state allows.
    """
    after = find_next(state, event, resume, is_active=is_active)
    if after is None:
        raise InvariantBroken(f"the update machine has no row for {event} in {state}", state=state, event=event)
    return after


def get_restart(state: State, *, ref_is_target: bool) -> State:
    """Where an update goes on after a restart: the refs say what is true, the record what we were doing."""
    return S.PROBATION if state is S.SWITCHING and ref_is_target else RESTART[state]


Mark = tuple[int, int]
"""How far an update has come: (index of the artifact, rank of the state)."""

_RANK: Final = {state: rank for rank, state in enumerate(State)}


def count_stalled(stalled: int, mark: Mark, *, index: int, before: State, after: State) -> tuple[int, Mark]:
    """The loop guard's arithmetic over one transition: (transitions since the last progress, furthest point so far)."""
    if S.WAITING in (before, after):
        return stalled, mark
    if before is S.ACTIVE:  # an update that had ended: what follows is a walk of its own
        return 0, (index, _RANK[after])
    reached = (index, _RANK[after])
    return (0, reached) if reached > mark else (stalled + 1, mark)


def make_diagram() -> str:
    """The machine as a Mermaid state diagram, for the docs."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, event), after in TRANSITIONS.items():
        if state is not S.WAITING:
            arrows.setdefault((state, after), []).append(event)
    for (state, event), after in WHILE_ACTIVE.items():
        arrows.setdefault((state, after), []).append(f"{event} if active")
    lines = [f"    {state} --> {after}: {', '.join(events)}" for (state, after), events in arrows.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> RESOLVING", *lines, "    WAITING --> DOWNLOADING: retry_due", ""])
