"""The update machine as data: complete, closed, and with no way to walk for ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry import errors
from edgeferry.agent.lane import get_retry_delay, make_next
from edgeferry.agent.machine import (
    LOOP_LIMIT,
    RESTART,
    TERMINAL,
    TRANSITIONS,
    Event,
    State,
    find_next,
    get_error_event,
    get_next,
    get_restart,
    make_diagram,
)
from edgeferry.agent.record import UpdateRecord, change, read_record_bytes, write_record_bytes
from edgeferry.agent.steps import STEPS
from edgeferry.agent.tools import AgentSettings, Outcome
from edgeferry.errors import InvariantBroken

WORKING = [state for state in State if state not in TERMINAL and state not in (State.WAITING, State.ACTIVE)]
LEAVES = sorted(errors.find_leaves(), key=lambda leaf: leaf.code)


def make_record(**fields: object) -> UpdateRecord:
    return change(UpdateRecord(kind="signed", model="m", version="1", key="k", identity="sha256:" + "0" * 64), **fields)


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.code)
def test_every_error_has_an_event_that_every_working_state_understands(leaf: type[errors.EdgeferryError]) -> None:
    event = get_error_event(leaf)
    assert [state for state in WORKING if find_next(state, event) is None] == []


@pytest.mark.parametrize(
    ("leaf", "event"),
    [
        (errors.LinkDown, Event.TRY_LATER),
        (errors.CaptivePortal, Event.TRY_LATER),
        (errors.MetadataUntrusted, Event.TRY_LATER),
        (errors.NoSpace, Event.TRY_LATER),
        (errors.AccessDenied, Event.TRY_LATER),
        (errors.WorkerStartFailed, Event.TRY_LATER),
        (errors.DigestMismatch, Event.GIVE_UP),
        (errors.BundleUnsafe, Event.GIVE_UP),
        (errors.SpecIncomplete, Event.GIVE_UP),
        (errors.DeltaDamaged, Event.DELTA_FAILED),
        (errors.GoldenMismatch, Event.UNPROVEN),
        (errors.ModelCrashed, Event.UNPROVEN),
    ],
)
def test_errors_are_split_by_who_must_act(leaf: type[errors.EdgeferryError], event: Event) -> None:
    assert get_error_event(leaf) is event


def test_every_state_has_a_restart_row_and_a_step_or_is_terminal() -> None:
    assert set(RESTART) == set(State)
    assert set(STEPS) == set(State) - TERMINAL
    assert all(RESTART[state] is state for state in TERMINAL)


def test_a_crash_in_the_switch_is_judged_by_the_ref() -> None:
    assert get_restart(State.SWITCHING, ref_is_target=True) is State.PROBATION
    assert get_restart(State.SWITCHING, ref_is_target=False) is State.PROVING
    assert get_restart(State.DOWNLOADING, ref_is_target=True) is State.DOWNLOADING


def test_terminal_states_have_no_way_out_and_all_others_have_one() -> None:
    left = {state for state, _ in TRANSITIONS}
    assert left == set(State) - TERMINAL


def test_every_state_is_reached_from_the_start() -> None:
    reached, frontier = {State.RESOLVING}, [State.RESOLVING]
    while frontier:
        state = frontier.pop()
        for (source, _), after in TRANSITIONS.items():
            if source is state and after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached == set(State)


@pytest.mark.parametrize("state", [State.SWITCHING, State.PROBATION, State.ROLLING_BACK])
def test_after_the_switch_began_cancel_is_refused_and_a_newer_version_waits(state: State) -> None:
    assert find_next(state, Event.CANCEL) is None
    assert find_next(state, Event.SUPERSEDE) is None
    assert find_next(State.WAITING, Event.CANCEL, resume=state) is None


@pytest.mark.parametrize("state", [state for state in WORKING if find_next(state, Event.CANCEL) is not None])
def test_before_the_switch_giving_up_never_touches_the_live_version(state: State) -> None:
    assert find_next(state, Event.GIVE_UP) is State.REJECTED
    assert find_next(state, Event.UNPROVEN) is State.REJECTED
    assert find_next(State.WAITING, Event.CANCEL, resume=state) is State.SUPERSEDED
    assert find_next(State.WAITING, Event.RETRY_DUE, resume=state) is state


@pytest.mark.parametrize("event", [Event.GIVE_UP, Event.UNPROVEN, Event.DELTA_FAILED])
@pytest.mark.parametrize("state", [state for state in State if find_next(state, Event.CANCEL) is State.SUPERSEDED])
def test_what_is_active_is_never_rejected_but_begun_anew_after_a_long_pause(state: State, event: Event) -> None:
    record = make_record(state=state, kind="signed")
    usual, healed = (
        make_next(
            Outcome(event, record, errors.DigestMismatch("x")), AgentSettings(), now=0, random=0, is_active=active
        )
        for active in (False, True)
    )
    if usual.state is not State.REJECTED:
        assert healed == usual
        return
    assert (healed.state, healed.resume) == (State.WAITING, State.RESOLVING)
    assert healed.retry_at >= 1800


def test_a_loop_in_what_is_active_waits_and_begins_anew() -> None:
    record = make_record(state=State.DOWNLOADING, stalled=LOOP_LIMIT, mark=(9, 9))
    waiting = make_next(Outcome(Event.DOWNLOADED, record), AgentSettings(), now=0, random=0, is_active=True)
    assert (waiting.state, waiting.fault.code if waiting.fault else "") == (State.WAITING, "invariant_broken")
    again = make_next(Outcome(Event.RETRY_DUE, waiting), AgentSettings(), now=0, random=0, is_active=True)
    assert again.state is State.RESOLVING


def test_an_event_without_a_row_is_a_defect() -> None:
    with pytest.raises(InvariantBroken):
        get_next(State.REJECTED, Event.DOWNLOADED)


FREE = st.sampled_from([event for event in Event if event is not Event.RETRY_DUE])


@settings(max_examples=150, deadline=None)
@given(st.lists(FREE, min_size=1, max_size=400))
def test_no_walk_goes_on_without_progress(events: list[Event]) -> None:
    record, without_waiting, furthest = make_record(), 0, (0, 0)
    for drawn in events:
        if record.state in TERMINAL:
            return
        event = Event.RETRY_DUE if record.state is State.WAITING else drawn
        if find_next(record.state, event, record.resume) is None:
            continue
        was = record.state
        record = make_next(Outcome(event, record), AgentSettings(), now=1.0, random=0.5)
        if State.WAITING in (was, record.state):
            continue
        if was is State.ACTIVE:  # healing or rolling back: another walk
            without_waiting, furthest = 0, record.mark
            continue
        without_waiting = 0 if record.mark > furthest else without_waiting + 1
        furthest = max(furthest, record.mark)
        assert without_waiting <= LOOP_LIMIT + 1
        assert read_record_bytes(write_record_bytes(record)) == record


def test_a_loop_gives_up_with_an_error_that_says_so() -> None:
    record = make_record(state=State.DOWNLOADING)
    for _ in range(LOOP_LIMIT):
        for event in (Event.DOWNLOADED, Event.DAMAGED):
            if record.state in TERMINAL:
                break
            record = make_next(Outcome(event, record), AgentSettings(), now=1.0, random=0.5)
    assert record.state is State.REJECTED
    assert record.fault is not None
    assert record.fault.code == "invariant_broken"


def test_waiting_goes_back_to_where_it_came_from_and_counts_its_tries() -> None:
    error = errors.LinkDown("no link")
    record = make_next(
        Outcome(Event.TRY_LATER, make_record(state=State.PATCHING), error), AgentSettings(), now=100.0, random=1.0
    )
    assert (record.state, record.resume, record.retries) == (State.WAITING, State.PATCHING, 1)
    assert record.retry_at == pytest.approx(102.0)
    back = make_next(Outcome(Event.RETRY_DUE, record), AgentSettings(), now=102.0, random=0.5)
    assert (back.state, back.resume, back.retries, back.fault) == (State.PATCHING, None, 1, record.fault)
    forward = make_next(Outcome(Event.PATCHED, back), AgentSettings(), now=103.0, random=0.5)
    assert (forward.retries, forward.fault) == (0, None)


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_back_off_doubles_is_capped_and_leaves_half_to_chance(retries: int, random: float) -> None:
    options = AgentSettings(retry_base_s=2, retry_max_s=900)
    delay = get_retry_delay(retries, errors.LinkDown("x"), options, random=random)
    full = min(900, 2 * 2 ** min(retries, 20))
    assert full / 2 <= delay <= full


def test_a_server_that_asks_for_time_gets_it_and_a_refused_right_is_not_hammered() -> None:
    busy = errors.ServerBusy("later")
    busy.retry_after_s = 120.0
    assert get_retry_delay(0, busy, AgentSettings(), random=0.5) == 120.0
    assert get_retry_delay(0, errors.AccessDenied("no"), AgentSettings(), random=0.0) >= 1800


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_a_right_that_is_refused_again_and_again_is_asked_for_once_a_day_in_the_end(
    retries: int, random: float
) -> None:
    delay = get_retry_delay(retries, errors.AccessDenied("no"), AgentSettings(access_retry_s=3600), random=random)
    full = min(86_400, 3600 * 2 ** min(retries, 20))
    assert full / 2 <= delay <= full


def test_what_is_healed_and_damaged_again_waits_longer_each_time_and_is_never_given_up() -> None:
    """All steps succeed but the one that tells: the file that is published is another one than was signed."""
    record = make_record()
    steps = (Event.RETRY_DUE, Event.PLANNED, Event.DOWNLOADED)
    waits: list[float] = []
    for _ in range(6):
        for event in steps if waits else steps[1:]:
            record = make_next(Outcome(event, record), AgentSettings(), now=0.0, random=1.0, is_active=True)
        error = errors.DigestMismatch("again")
        outcome = Outcome(Event.GIVE_UP, record, error)
        record = make_next(outcome, AgentSettings(), now=0.0, random=1.0, is_active=True)
        waits.append(record.retry_at)
    assert waits == [3600.0, 7200.0, 14_400.0, 28_800.0, 57_600.0, 86_400.0]


def test_the_diagram_shows_every_state() -> None:
    diagram = make_diagram()
    assert [state for state in State if state not in diagram] == []
