"""A clock that jumps in any state of an update: the update ends as if it had not, and nobody waits longer for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agent.agent_world import FAST
from edgeferry.agent.machine import State
from soak.crash_calls import Point
from soak.crash_checks import check_end, check_ledger
from soak.crash_device import Account
from soak.crash_site import STORIES, CrashSite, Story, open_crash_site

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOUR_S, DAY_S, DECADE_S = 3600.0, 86_400.0, 3653 * 86_400.0
LEAPS_S = [sign * leap for leap in (HOUR_S, DAY_S, DECADE_S) for sign in (1, -1)]
STATES = [
    State.RESOLVING,
    State.WAITING,
    State.DOWNLOADING,
    State.VERIFYING,
    State.PATCHING,
    State.STORING,
    State.PROVING,
    State.SWITCHING,
    State.PROBATION,
    State.ACTIVE,
]
PATCH = next(story for story in STORIES if story.name == "signed patch")
FIRST = next(story for story in STORIES if story.name == "first signed")
SLACK_S = 1.0
"""A busy machine's, beside a back-off of a tenth of a second."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CrashSite]:
    """One for all tests of this file: each life begins with a folder of its own."""
    async with open_crash_site(tmp_path_factory.mktemp("crashes")) as found:
        yield found


async def live(site: CrashSite, story: Story, **leaps_s: float) -> Account:
    """A life in which the server is busy once, so that WAITING is walked through too."""
    account = await site.live(story, busy=1, leaps_s=leaps_s)
    check_end(site, story, account)
    check_ledger(site, story, account)
    assert set(leaps_s) <= set(account.walked), "the clock was to jump in each of these states"
    assert account.waited_s < FAST.retry_max_s + SLACK_S
    return account


@pytest.mark.soak
@pytest.mark.parametrize("leap_s", LEAPS_S)
async def test_a_clock_that_jumps_in_any_state_changes_nothing(site: CrashSite, leap_s: float) -> None:
    """Ten years ahead metadata is too old: that is the next test."""
    for state in STATES:
        if leap_s < DECADE_S or state not in (State.RESOLVING, State.WAITING):
            account = await live(site, PATCH, **{state: leap_s})
            assert account.met == ["server_busy"], account.met


@pytest.mark.soak
async def test_a_clock_that_is_years_ahead_makes_metadata_too_old_until_it_is_set_right(site: CrashSite) -> None:
    account = await site.live(PATCH, leaps_s={State.RESOLVING: DECADE_S, State.WAITING: -DECADE_S})
    check_end(site, PATCH, account)
    assert account.met == ["metadata_expired"]


@pytest.mark.soak
async def test_a_device_that_wakes_up_years_ago_takes_its_first_version(site: CrashSite) -> None:
    account = await live(site, FIRST, **{State.RESOLVING: -DECADE_S})
    assert account.walked[-1] == State.ACTIVE


@pytest.mark.soak
async def test_messages_keep_their_ids_when_the_clock_jumps_and_the_device_dies(site: CrashSite) -> None:
    """The message is made anew after the death: under the id that it had."""
    whole = await site.live(PATCH)
    for nth in range(whole.counts["hub"]):
        account = await site.live(
            PATCH, point=Point("hub", nth, "before"), leaps_s={State.SWITCHING: -DAY_S, State.PROBATION: DECADE_S}
        )
        check_end(site, PATCH, account)
