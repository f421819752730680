"""What must be true of a device that died at a call of an update, and which calls are tried."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle, islice

from agent.agent_world import BLOCK_BYTES
from edgeferry.agent.ledger import BOOKING_BYTES
from soak.crash_calls import KINDS, Point, Side
from soak.crash_device import Account
from soak.crash_site import CrashSite, Story

SEED = 20261126
SHORT = 8
"""Deaths of each story in the short form."""
RESENT_BYTES = 64 << 10
"""What one death may cost of bytes that had been sent."""


# --- what must be true in the end -------------------------------------------------------------------------------------
def check_end(site: CrashSite, story: Story, account: Account) -> None:
    """The update has ended, the right version serves, refs and the hub agree."""
    assert account.error == "", account.error
    target = site.get_version(story.target)
    before = [site.get_version(one) for one in story.before]
    old, new = (before[-1] if before else "", target) if not story.command else (before[-2], target)
    ends = {("ACTIVE", new, old)}
    if story.command:  # a word that was not written down before the device died is not heard
        ends = {("ROLLED_BACK", old, ""), ("ACTIVE", new, old)} if account.died else {("ROLLED_BACK", old, "")}
    assert (account.state, account.serves, account.refs["previous"]) in ends, account
    assert account.refs["active"] == account.serves, account
    assert (account.reported["state"], account.reported["active"]) == (account.state, account.serves), account
    assert not before or (account.started_with and set(account.started_with) <= {old, new}), account
    assert account.orphans == [], account
    check_messages(story, account)


def check_messages(story: Story, account: Account) -> None:
    """Others have heard of the new version, at least once and under one id."""
    ids = {mid for mid, _ in account.messages}
    assert len(ids) == (0 if story.command else 1), account.messages
    assert len({body for _, body in account.messages}) == len(ids), account.messages


def check_ledger(site: CrashSite, story: Story, account: Account) -> None:
    """What was sent is counted, all but what was on its way when the device died; a death counts a booking too many.

    Bookings double where a link spends them within a second, as here: 64, 128, 256 KB.
    """
    counted = account.ledger_bytes - site.booked[story.before]
    sent = sum(site.origin.sent.values())
    on_its_way, booking = (BOOKING_BYTES, 4 * BOOKING_BYTES) if account.died else (0, 0)
    taken = BLOCK_BYTES if account.died else 0  # a block that the device had read when it died is not counted as sent
    assert sent - on_its_way <= counted <= sent + booking + taken, (counted, sent, account)


async def check_life(site: CrashSite, story: Story, whole_bytes: int, **more: object) -> Account:
    """One life of a device and all that must be true of it; `whole_bytes` of models are what nobody can save."""
    account = await site.live(story, **more)
    check_end(site, story, account)
    check_ledger(site, story, account)
    resent = site.count_payload() - whole_bytes if account.lost == 0 else 0  # what was not synced has to come again
    assert resent <= (RESENT_BYTES if account.died else 0), (resent, account)
    return account


# --- which calls ------------------------------------------------------------------------------------------------------
def list_points(counts: dict[str, int]) -> list[Point]:
    """Every call of a life that was counted, from each of its sides."""
    return [Point(kind, nth, side) for kind in KINDS for nth in range(counts.get(kind, 0)) for side in list_sides(kind)]


def list_sides(kind: str) -> tuple[Side, ...]:
    return ("before", "half", "after") if kind == "write" else ("before", "after")


def pick_points(points: list[Point], count: int, dice: random.Random) -> list[Point]:
    """Some of each kind, as far as `count` goes; another kind begins each time."""
    by_kind = {kind: [one for one in points if one.kind == kind] for kind in KINDS}
    kinds = [kind for kind in KINDS if by_kind[kind]]
    dice.shuffle(kinds)
    return [dice.choice(by_kind[kind]) for kind in islice(cycle(kinds), count)]


async def crash(site: CrashSite, story: Story, *, short: bool, powers: Iterator[int | None]) -> int:
    """Crashes a story at some of its calls or at all; returns how many devices died."""
    whole = await site.live(story)
    whole_bytes = site.count_payload()
    check_end(site, story, whole)
    points = list_points(whole.counts)
    chosen = pick_points(points, SHORT, random.Random(f"{SEED} {story.name}")) if short else points
    died = 0
    for point, power in zip(chosen, powers, strict=False):
        account = await check_life(site, story, whole_bytes, point=point, power=power)
        died += account.died
    return died
