"""No more is sent than a budget holds, nothing outside a window, and no clock makes an allowance negative."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeferry.link.budget import (
    LOOK_AGAIN_S,
    Plan,
    Spent,
    Verdict,
    find_renewal,
    get_allowance,
    get_day,
    judge,
    judge_hub,
    plan_transfer,
    read_spent,
)
from edgeferry.link.policy import LinkPolicy, read_link_policy
from edgeferry.link.windows import find_close, find_next_open, is_open, make_window

NIGHT = {"cron": "0 2 * * *", "duration_s": 7200}
ZONES = ("UTC", "Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia")


def make_policy(**section: Any) -> LinkPolicy:
    """A policy as an operator writes it."""
    policy, problems = read_link_policy(section)
    assert problems == ()
    return policy


def get_unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


NOON, AT_TWO, AT_THREE = (get_unix(f"2026-11-25T{hour}:00Z") for hour in ("12", "02", "03"))
MIDNIGHT, NEXT_TWO = get_unix("2026-11-26T00:00Z"), get_unix("2026-11-26T02:00Z")

VERDICTS = [
    # what, section, spent, how asked, verdict
    ("no policy", {}, Spent(9, 9), {}, Verdict(True, retry_at=NOON)),
    ("rate", {"rate_bps": 64}, Spent(), {}, Verdict(True, retry_at=NOON, rate_bps=64)),
    ("budget left", {"day_bytes": 100_000}, Spent(40_000, 40_000, 2000, 2000), {},
     Verdict(True, retry_at=NOON, allowance_bytes=60_000)),
    ("the hub's share is kept", {"day_bytes": 100_000}, Spent(40_000, 40_000), {},
     Verdict(True, retry_at=NOON, allowance_bytes=58_000)),
    ("the month holds less", {"day_bytes": 100_000, "month_bytes": 200_000, "report_share": 0}, Spent(0, 170_000), {},
     Verdict(True, retry_at=NOON, allowance_bytes=30_000)),
    ("day spent", {"day_bytes": 100_000}, Spent(98_000, 98_000), {},
     Verdict(False, "budget_spent", MIDNIGHT, allowance_bytes=0)),
    ("too little left for a connection", {"day_bytes": 100_000}, Spent(97_000, 97_000), {"least_bytes": 5000},
     Verdict(False, "budget_spent", MIDNIGHT, allowance_bytes=1000)),
    ("overspent", {"day_bytes": 100_000}, Spent(150_000, 150_000), {},
     Verdict(False, "budget_spent", MIDNIGHT, allowance_bytes=0)),
    ("month spent", {"month_bytes": 100_000}, Spent(0, 100_000), {},
     Verdict(False, "budget_spent", get_unix("2026-12-01T00:00Z"), allowance_bytes=0)),
    ("window closed", {"windows": [NIGHT]}, Spent(), {}, Verdict(False, "window_closed", NEXT_TWO)),
    ("window open", {"windows": [NIGHT]}, Spent(), {"now": AT_THREE},
     Verdict(True, retry_at=AT_THREE, closes_at=AT_TWO + 7200)),
    ("window open, budget spent", {"windows": [NIGHT], "day_bytes": 100_000}, Spent(100_000), {"now": AT_THREE},
     Verdict(False, "budget_spent", NEXT_TWO, allowance_bytes=0)),
    ("window closed, month spent", {"windows": [NIGHT], "month_bytes": 100_000}, Spent(0, 100_000), {},
     Verdict(False, "window_closed", get_unix("2026-12-01T02:00Z"), allowance_bytes=0)),
    ("urgent passes a closed window", {"windows": [NIGHT], "urgent_priority": 10}, Spent(), {"priority": 10},
     Verdict(True, retry_at=NOON)),
    ("not urgent enough", {"windows": [NIGHT], "urgent_priority": 10}, Spent(), {"priority": 9},
     Verdict(False, "window_closed", NEXT_TWO)),
    ("urgent, budget spent", {"day_bytes": 100_000, "urgent_priority": 10}, Spent(100_000), {"priority": 10},
     Verdict(False, "budget_spent", MIDNIGHT, allowance_bytes=0)),
    ("free", {"windows": [NIGHT], "day_bytes": 100_000, "class": "free", "rate_bps": 8}, Spent(100_000), {},
     Verdict(True, retry_at=NOON, rate_bps=8)),
    ("free by interface", {"windows": [NIGHT], "interfaces": {"eth0": "free"}}, Spent(), {"interface": "eth0"},
     Verdict(True, retry_at=NOON)),
    ("forbidden", {"interfaces": {"sat*": "forbidden"}, "urgent_priority": 0}, Spent(), {"interface": "sat0"},
     Verdict(False, "link_forbidden", NOON + LOOK_AGAIN_S)),
]  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row[1:], id=row[0]) for row in VERDICTS])
def test_what_may_be_sent_follows_policy_ledger_and_clock(row: tuple[Any, Spent, dict[str, Any], Verdict]) -> None:
    section, spent, asked, expected = row
    verdict = judge(make_policy(**section), spent, **{"now": NOON, **asked})
    if not expected.may_send:  # a link that is closed tells when the next window closes, too
        verdict = replace(verdict, closes_at=math.inf)
    assert verdict == expected


def test_the_hub_is_heard_after_the_downloads_have_spent_their_share() -> None:
    policy = make_policy(day_bytes=100_000)
    spent = Spent(98_500, 98_500, 500, 500)
    assert not judge(policy, spent, now=NOON).may_send
    assert judge_hub(policy, spent, now=NOON).allowance_bytes == 1500
    assert judge_hub(policy, Spent(100_000), now=NOON).reason == "budget_spent"


def test_the_hubs_connection_waits_for_windows_only_where_the_policy_says_so() -> None:
    assert judge_hub(make_policy(windows=[NIGHT]), Spent(), now=NOON).may_send
    verdict = judge_hub(make_policy(windows=[NIGHT], hub="windows"), Spent(), now=NOON)
    assert (verdict.may_send, verdict.reason, verdict.retry_at) == (False, "window_closed", NEXT_TWO)


def test_a_ledger_is_read_by_day_and_month_of_the_zone_without_what_was_free() -> None:
    ledger = {
        "2026-11-30": {"download": 1, "hub": 2, "free": 1000},
        "2026-11-29": {"download": 10},
        "2026-12-01": {"hub": 100, "download": 200},
        "2025-11-30": {"download": 5000},
    }
    last_night = get_unix("2026-11-30T23:30Z")
    assert read_spent(ledger, LinkPolicy(), last_night) == Spent(3, 13, 2, 2)
    assert get_day(LinkPolicy(), last_night) == "2026-11-30"
    in_berlin = make_policy(zone="Europe/Berlin")
    assert read_spent(ledger, in_berlin, last_night) == Spent(300, 300, 100, 100)
    assert get_day(in_berlin, last_night) == "2026-12-01"


@settings(deadline=None)
@given(
    st.floats(),
    st.dictionaries(
        st.dates().map(str) | st.text(max_size=5),
        st.dictionaries(st.sampled_from(["free", "hub", "download"]), st.integers()),
    ),
    st.sampled_from([{}, {"day_bytes": 65536}, {"month_bytes": 70_000, "windows": [NIGHT]}, {"class": "forbidden"}]),
)
def test_no_clock_and_no_ledger_raises_or_makes_an_allowance_negative(
    now: float, ledger: dict[str, dict[str, int]], section: dict[str, Any]
) -> None:
    policy = make_policy(zone="Europe/Berlin", **section)
    spent = read_spent(ledger, policy, now)
    for verdict in (judge(policy, spent, now=now), judge_hub(policy, spent, now=now)):
        assert verdict.allowance_bytes is None or verdict.allowance_bytes >= 0
        assert verdict.may_send or math.isfinite(verdict.retry_at)
        assert verdict.may_send or not abs(now) < 1e15 or verdict.retry_at > now


@given(st.sampled_from(ZONES), st.floats(0, 4e9), st.booleans())
@example("UTC", get_unix("2026-01-31T12:00Z"), True)  # February is shorter than what is left of 31 days
@example("Europe/Berlin", get_unix("2026-12-31T23:30Z"), True)
def test_a_budget_renews_at_the_first_moment_of_the_next_day_or_month(zone: str, now: float, is_month: bool) -> None:
    policy = make_policy(zone=zone, month_bytes=100_000)
    renewal = find_renewal(policy, Spent(0, 100_000 if is_month else 0), now)
    before, after = (datetime.fromtimestamp(at, ZoneInfo(zone)) for at in (renewal - 1, renewal))
    today = datetime.fromtimestamp(now, ZoneInfo(zone))
    assert renewal > now and before.date() < after.date()
    if is_month:
        assert (before.year, before.month) == (today.year, today.month) and after.month != today.month
    else:
        assert before.date() == today.date()


@given(st.integers(0, 300_000), st.integers(0, 300_000), st.integers(0, 300_000))
def test_what_is_left_and_what_is_spent_make_up_the_budget(day: int, earlier: int, hub: int) -> None:
    policy = make_policy(day_bytes=100_000, month_bytes=300_000)
    spent = Spent(day + hub, day + hub + earlier, hub, hub)
    left, for_hub = get_allowance(policy, spent), get_allowance(policy, spent, for_hub=True)
    assert left is not None and for_hub is not None and 0 <= left <= for_hub <= left + 6000
    assert for_hub == max(0, min(100_000 - day - hub, 300_000 - day - hub - earlier))


# --- spreading a transfer ---------------------------------------------------------------------------------------------
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "windows": st.lists(
            st.builds(
                lambda minute, hour, duration_s: {"cron": f"{minute} {hour} * * *", "duration_s": duration_s},
                st.integers(0, 59),
                st.integers(0, 23).map(str) | st.just("*"),
                st.integers(60, 90_000),
            ),
            min_size=1,
            max_size=3,
        ),
        "zone": st.sampled_from(ZONES),
        "day_bytes": st.integers(65536, 500_000),
        "month_bytes": st.integers(200_000, 2_000_000),
        "rate_bps": st.integers(2000, 100_000),
        "report_share": st.floats(0, 0.5),
    },
)


def list_bookings(plan: Plan, policy: LinkPolicy) -> Counter[str]:
    """Bytes by the day that each sitting begins in; no sitting may reach into the next."""
    booked: Counter[str] = Counter()
    for sitting in plan.sittings:
        day = get_day(policy, sitting.starts_at)
        assert get_day(policy, max(sitting.starts_at, sitting.ends_at - 0.001)) == day
        booked[day] += sitting.size_bytes
    return booked


@settings(max_examples=150, deadline=None)
@given(SECTIONS, st.floats(1.6e9, 1.9e9), st.integers(0, 3_000_000), st.floats(2000, 1e6), st.integers(0, 8000))
def test_a_plan_keeps_to_windows_and_budgets_and_its_bytes_add_up(
    section: dict[str, Any], now: float, wire_bytes: int, bps: float, resume_bytes: int
) -> None:
    policy = make_policy(**section)
    plan = plan_transfer(policy, Spent(), now=now, wire_bytes=wire_bytes, bps=bps, resume_bytes=resume_bytes)
    at = now
    for sitting in plan.sittings:
        assert at <= sitting.starts_at <= sitting.ends_at and sitting.size_bytes > 0
        assert is_open(policy.windows, sitting.starts_at)
        assert sitting.ends_at <= find_close(policy.windows, sitting.starts_at) + 0.001
        rate = min(bps, policy.rate_bps or bps)
        assert sitting.ends_at - sitting.starts_at == pytest.approx(sitting.size_bytes * 8 / rate, abs=0.001)
        at = sitting.ends_at
    days = list_bookings(plan, policy)
    months: Counter[str] = Counter()
    for day, size in days.items():
        months[day[:7]] += size
    assert not policy.day_bytes or max(days.values(), default=0) <= policy.day_bytes * (1 - policy.report_share) + 1
    assert not policy.month_bytes or max(months.values(), default=0) <= policy.month_bytes
    if plan.finishes_at is not None:
        gaps = sum(late.starts_at - early.ends_at >= 1 for early, late in pairwise(plan.sittings))
        assert sum(days.values()) == wire_bytes + gaps * resume_bytes
        assert plan.finishes_at == (at if plan.sittings else now)
    else:
        assert plan.reason == "never_ends"


@settings(max_examples=60, deadline=None)
@given(SECTIONS, st.floats(1.6e9, 1.9e9), st.integers(1, 400_000))
def test_a_plan_begins_at_the_first_moment_the_policy_allows(
    section: dict[str, Any], now: float, wire_bytes: int
) -> None:
    policy = make_policy(**section)
    plan = plan_transfer(policy, Spent(), now=now, wire_bytes=wire_bytes, bps=64_000)
    assert plan.starts_at == pytest.approx(find_next_open(policy.windows, now), abs=1e-3)


def test_a_transfer_that_does_not_fit_today_goes_on_in_the_next_nights() -> None:
    policy = make_policy(windows=[NIGHT], day_bytes=500_000, report_share=0)
    plan = plan_transfer(policy, Spent(), now=NOON, wire_bytes=1_200_000, bps=80_000, resume_bytes=5000)
    nights = [(sitting.starts_at, sitting.ends_at, sitting.size_bytes) for sitting in plan.sittings]
    day_s = timedelta(days=1).total_seconds()
    assert nights == [
        (NEXT_TWO, NEXT_TWO + 50, 500_000),
        (NEXT_TWO + day_s, NEXT_TWO + day_s + 50, 500_000),
        (NEXT_TWO + 2 * day_s, NEXT_TWO + 2 * day_s + 21, 210_000),
    ]
    assert (plan.starts_at, plan.finishes_at, plan.reason) == (NEXT_TWO, nights[-1][1], "")


def test_what_is_spent_already_counts_today_and_not_tomorrow() -> None:
    policy = make_policy(day_bytes=100_000, report_share=0)
    plan = plan_transfer(policy, Spent(80_000, 80_000), now=NOON, wire_bytes=120_000, bps=80_000)
    assert [(sitting.starts_at, sitting.size_bytes) for sitting in plan.sittings] == [
        (NOON, 20_000),
        (MIDNIGHT, 100_000),
    ]


NEVER = [
    ("forbidden", {"class": "forbidden"}, 1000, {}, "link_forbidden"),
    ("more than a year of budgets", {"day_bytes": 65536}, 1 << 30, {}, "never_ends"),
    ("a connection costs more than a day holds", {"day_bytes": 65536}, 100_000, {"resume_bytes": 65536}, "never_ends"),
    ("windows too short", {"windows": [{"cron": "@daily", "duration_s": 60}]}, 9000,
     {"resume_bytes": 8000, "bps": 1000}, "never_ends"),
    ("a link that hardly moves", {}, 1 << 30, {"bps": 1}, "never_ends"),
]  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row[1:], id=row[0]) for row in NEVER])
def test_a_transfer_that_never_ends_is_told_so(row: tuple[Any, int, dict[str, Any], str]) -> None:
    section, wire_bytes, asked, reason = row
    plan = plan_transfer(
        make_policy(**section), Spent(), **{"now": NOON, "wire_bytes": wire_bytes, "bps": 64_000, **asked}
    )
    assert (plan.finishes_at, plan.reason) == (None, reason)


def test_nothing_to_send_is_done_now_and_a_link_without_a_rate_is_refused() -> None:
    plan = plan_transfer(LinkPolicy(windows=(make_window("@daily", 60),)), Spent(), now=NOON, wire_bytes=0, bps=1)
    assert plan == Plan((), NOON) and plan.starts_at == NOON
    with pytest.raises(ValueError, match="above 0"):
        plan_transfer(LinkPolicy(), Spent(), now=NOON, wire_bytes=1, bps=0)
