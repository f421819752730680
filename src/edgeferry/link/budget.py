"""What may be sent now, and how a transfer spreads over windows and days: arithmetic over ledger and policy.

What this file leaves to others: counting and keeping what was sent (the ledger), looking at the clock, sending.

Rules:
- A ledger is `{day: {kind: bytes}}`: days as `get_day` names them, bytes as they cross the wire. What went over a free
  link stands under the kind `free` and counts for no budget; what the hub's connection took under `hub`.
- Windows and budgets count on metered links only; a rate cap counts on all; nothing goes over a forbidden one.
- The hub's connection has `report_share` of each budget for itself, so that a device which spent the rest is heard.
- An urgent transfer passes closed windows, never a spent budget.
- Any number is taken for a time: nothing raises and no allowance is negative, however the clock jumps. `retry_at` is
  later than the `now` it answers; a caller whose clock is set anew asks anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from edgeferry.link.policy import LinkPolicy
from edgeferry.link.windows import clamp_time, find_close, find_next_open, get_local, is_open

FREE_KIND = "free"
HUB_KIND = "hub"
LOOK_AGAIN_S = 60.0
"""After which to ask again where no window and no renewal says when: an interface may have changed."""
_SITTINGS_MAX = 1000
_TRIES_MAX = 4000
_PLAN_MAX_S = 366 * 86_400.0

Reason = Literal["", "window_closed", "budget_spent", "link_forbidden"]
Ledger = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Spent:
    """Bytes that count for the budgets of today and this month, and those of them that the hub's connection took."""

    day_bytes: int = 0
    month_bytes: int = 0
    hub_day_bytes: int = 0
    hub_month_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something may be sent now, and within which bounds; else why not, and when to ask again.

    `closes_at` is infinite and `allowance_bytes` None where nothing bounds them; `rate_bps` is 0 for no cap.
    """

    may_send: bool
    reason: Reason = ""
    retry_at: float = 0.0
    closes_at: float = math.inf
    allowance_bytes: int | None = None
    rate_bps: int = 0


@dataclass(frozen=True, slots=True)
class Sitting:
    """One go of a transfer: `size_bytes` on the wire, from `starts_at` to `ends_at`, within one day."""

    starts_at: float
    ends_at: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a transfer spreads. `finishes_at` is None where it never does, and `reason` says why.

    `never_ends`: not within a year, or in more than a thousand sittings.
    """

    sittings: tuple[Sitting, ...]
    finishes_at: float | None
    reason: Literal["", "link_forbidden", "never_ends"] = ""

    @property
    def starts_at(self) -> float | None:
        """When its first byte goes; None for never."""
        return self.sittings[0].starts_at if self.sittings else self.finishes_at


def get_day(policy: LinkPolicy, now: float) -> str:
    """The day that bytes sent at `now` are booked on, like 2026-01-31, in the policy's zone."""
    return get_local(policy.zone, now).date().isoformat()


def read_spent(ledger: Ledger, policy: LinkPolicy, now: float) -> Spent:
    """What of `ledger` counts for the budgets at `now`."""
    today = get_day(policy, now)
    month = [kinds for day, kinds in ledger.items() if day[:7] == today[:7]]
    day = [kinds for day, kinds in ledger.items() if day == today]
    return Spent(
        day_bytes=_count(day),
        month_bytes=_count(month),
        hub_day_bytes=sum(max(0, kinds.get(HUB_KIND, 0)) for kinds in day),
        hub_month_bytes=sum(max(0, kinds.get(HUB_KIND, 0)) for kinds in month),
    )


def _count(days: list[Mapping[str, int]]) -> int:
    return sum(max(0, size) for kinds in days for kind, size in kinds.items() if kind != FREE_KIND)


def get_allowance(policy: LinkPolicy, spent: Spent, *, for_hub: bool = False) -> int | None:
    """Bytes that the budgets still let through on a metered link, from 0; None where there is no budget."""
    share = 0.0 if for_hub else policy.report_share
    left = [
        budget - used - max(0, math.ceil(budget * share) - by_hub)
        for budget, used, by_hub in (
            (policy.day_bytes, spent.day_bytes, spent.hub_day_bytes),
            (policy.month_bytes, spent.month_bytes, spent.hub_month_bytes),
        )
        if budget
    ]
    return max(0, min(left)) if left else None


def find_renewal(policy: LinkPolicy, spent: Spent, now: float, *, for_hub: bool = False) -> float:
    """When the allowance grows again: the next day's begin, or the next month's where this month's budget is spent."""
    today = get_local(policy.zone, now).date()
    month_only = replace(policy, day_bytes=0)
    if policy.month_bytes and get_allowance(month_only, spent, for_hub=for_hub) == 0:
        following = (today + timedelta(days=32 - today.day)).replace(day=1)
    else:
        following = today + timedelta(days=1)
    return datetime.combine(following, time(), ZoneInfo(policy.zone)).timestamp()


def judge(
    policy: LinkPolicy, spent: Spent, *, now: float, priority: int = 0, interface: str = "", least_bytes: int = 1
) -> Verdict:
    """Whether a transfer may send now.

    Args:
        policy: of this device's link.
        spent: of today and this month, from `read_spent`.
        now: Unix seconds.
        priority: of the transfer, as in the twin.
        interface: that the route leads over; "" where it is not known.
        least_bytes: a smaller allowance counts as spent: what a connection costs before it brings anything.
    """
    urgent = policy.urgent_priority is not None and priority >= policy.urgent_priority
    return _judge(policy, spent, now=now, interface=interface, least_bytes=least_bytes, windows=not urgent)


def judge_hub(policy: LinkPolicy, spent: Spent, *, now: float, interface: str = "") -> Verdict:
    """Whether the hub's connection may be open now: windows count where the policy says so."""
    windows = policy.hub == "windows"
    return _judge(policy, spent, now=now, interface=interface, least_bytes=1, windows=windows, for_hub=True)


def _judge(
    policy: LinkPolicy,
    spent: Spent,
    *,
    now: float,
    interface: str,
    least_bytes: int,
    windows: bool,
    for_hub: bool = False,
) -> Verdict:
    link_class = policy.get_class(interface)
    if link_class == "forbidden":
        return Verdict(False, "link_forbidden", _get_later(now, 0.0), rate_bps=policy.rate_bps)
    if link_class == "free":
        return Verdict(True, retry_at=now, rate_bps=policy.rate_bps)
    allowance = get_allowance(policy, spent, for_hub=for_hub)
    is_spent = allowance is not None and allowance < least_bytes
    counting = policy.windows if windows else ()
    bounded = Verdict(
        True, retry_at=now, closes_at=find_close(counting, now), allowance_bytes=allowance, rate_bps=policy.rate_bps
    )
    closed = not is_open(counting, now)
    if not is_spent and not closed:
        return bounded
    renewal = find_renewal(policy, spent, now, for_hub=for_hub) if is_spent else now
    retry_at = _get_later(now, find_next_open(counting, renewal))
    return replace(bounded, may_send=False, reason="window_closed" if closed else "budget_spent", retry_at=retry_at)


def _get_later(now: float, at: float) -> float:
    """`at`, or in a minute where it is not after `now`: so it is for a clock outside all calendars."""
    if at > now:
        return at
    return now + LOOK_AGAIN_S if math.isfinite(now) else LOOK_AGAIN_S


def plan_transfer(
    policy: LinkPolicy,
    spent: Spent,
    *,
    now: float,
    wire_bytes: int,
    bps: float,
    priority: int = 0,
    interface: str = "",
    resume_bytes: int = 0,
) -> Plan:
    """How `wire_bytes` go from `now` on over a link of `bps` bits per second, as early as the policy lets them.

    Args:
        policy: of this device's link.
        spent: of today and this month.
        now: Unix seconds.
        wire_bytes: of the transfer in one go.
        bps: what the link brings; the policy's cap is applied here. ValueError unless above 0.
        priority: of the transfer.
        interface: that the route leads over; "" where it is not known.
        resume_bytes: what each further sitting costs on top: a connection and a request. Shorter ones are not begun.
    """
    if bps <= 0:
        raise ValueError(f"expected a rate above 0, found {bps}")
    if policy.get_class(interface) == "forbidden":
        return Plan((), None, "link_forbidden")
    ask = _Ask(
        policy,
        bps=min(bps, policy.rate_bps or bps),
        priority=priority,
        interface=interface,
        least_bytes=min(resume_bytes + 1, wire_bytes),
    )
    sittings: list[Sitting] = []
    left = wire_bytes
    for sitting in _iterate_sittings(ask, spent, clamp_time(now)) if wire_bytes > 0 else ():
        goes_on = not sittings or sitting.starts_at - sittings[-1].ends_at < 1.0
        left += 0 if goes_on else resume_bytes
        size = min(left, sitting.size_bytes)
        sittings.append(Sitting(sitting.starts_at, ask.get_end(sitting.starts_at, size), size))
        left -= size
        if left == 0 or len(sittings) == _SITTINGS_MAX:
            break
    if left > 0:
        return Plan(tuple(sittings), None, "never_ends")
    return Plan(tuple(sittings), sittings[-1].ends_at if sittings else now)


@dataclass(frozen=True, slots=True)
class _Ask:
    policy: LinkPolicy
    bps: float
    priority: int
    interface: str
    least_bytes: int

    def get_end(self, starts_at: float, size_bytes: int) -> float:
        """When `size_bytes` are through."""
        return starts_at + size_bytes * 8 / self.bps

    def judge(self, spent: Spent, now: float) -> Verdict:
        """The verdict on this transfer at `now`."""
        least = self.least_bytes
        return judge(self.policy, spent, now=now, priority=self.priority, interface=self.interface, least_bytes=least)


def _iterate_sittings(ask: _Ask, spent: Spent, now: float) -> Iterator[Sitting]:
    """What may go, stretch by stretch, each used to its end."""
    at, until = now, now + _PLAN_MAX_S
    for _ in range(_TRIES_MAX):
        verdict = ask.judge(spent, at)
        end = min(until, verdict.retry_at)
        if verdict.may_send:
            end = min(until, verdict.closes_at, find_renewal(replace(ask.policy, month_bytes=0), spent, at))
            size = int((end - at) * ask.bps / 8)
            if verdict.allowance_bytes is not None:
                size = min(size, verdict.allowance_bytes)
            if size >= ask.least_bytes:
                yield Sitting(at, end, size)
                spent = replace(spent, day_bytes=spent.day_bytes + size, month_bytes=spent.month_bytes + size)
        if end >= until:
            return
        spent, at = _age(ask.policy, spent, then=at, now=end), end


def _age(policy: LinkPolicy, spent: Spent, *, then: float, now: float) -> Spent:
    """What still counts at `now` of what counted `then`."""
    before, today = get_day(policy, then), get_day(policy, now)
    if before[:7] != today[:7]:
        return Spent()
    return spent if before == today else replace(spent, day_bytes=0, hub_day_bytes=0)
