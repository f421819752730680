"""A machine that loses its power at any call of an update comes back serving: all is lost that was not synced, or some.

Calls, lives and what must be true in the end are those of `test_device_crashes.py`.
"""

from __future__ import annotations

import random
from itertools import cycle

import pytest

from soak.crash_checks import SEED, crash
from soak.crash_site import STORIES, CrashSite, Story

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.soak_full
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_a_power_cut_at_every_call_ends_well(site: CrashSite, story: Story) -> None:
    dice = random.Random(SEED)
    powers = (dice.choice([0, dice.randint(1, 1 << 30)]) for _ in cycle([0]))
    assert await crash(site, story, short=False, powers=powers) > 50
