"""A device that dies at any call of an update comes back serving, ends the update, and leaves nothing behind.

What a call is: `crash_calls.py`; what must be true in the end: `crash_checks.py`. Each life is that of a real agent in
a process that kills itself (`crash_device.py`); a machine that loses its power loses what was not synced as well
(`power_cut.py`).
"""

from __future__ import annotations

from itertools import cycle

import pytest

from soak.crash_checks import SHORT, crash
from soak.crash_site import STORIES, CrashSite, Story

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.soak
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_a_death_at_some_calls_ends_well(site: CrashSite, story: Story) -> None:
    """Every other time the whole machine loses its power."""
    died = await crash(site, story, short=True, powers=cycle([None, 0, None, 7]))
    assert died >= SHORT - 2, "calls of one life are hardly ever more than those of another"


@pytest.mark.soak_full
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_a_death_at_every_call_ends_well(site: CrashSite, story: Story) -> None:
    assert await crash(site, story, short=False, powers=cycle([None])) > 50
