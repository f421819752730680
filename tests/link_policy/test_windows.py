"""Windows open and close when a walk over every minute says so, whatever the zone's clocks do."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import ConfigInvalid
from edgeferry.link.windows import DURATION_MAX_S, Window, find_close, find_next_open, is_open, make_window

DAY_S = 86_400
CHANGES = {  # days around which the clocks of a zone are set
    "Europe/Berlin": ("2026-03-29", "2026-10-25"),
    "America/New_York": ("2026-03-08", "2026-11-01"),
    "Australia/Lord_Howe": ("2026-04-05", "2026-10-04"),  # by half an hour
    "America/Havana": ("2026-03-08", "2026-11-01"),  # at midnight
    "Pacific/Apia": ("2011-12-30",),  # a day that never was
    "Asia/Kolkata": ("2026-02-28",),  # never, and half an hour beside the full hour
    "UTC": ("2028-02-29",),
}


@dataclass(frozen=True)
class Starts:
    """Cron fields as the sets they stand for; empty: `*`."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    weekdays: frozenset[int]

    @property
    def cron(self) -> str:
        fields = (self.minutes, self.hours, self.days, frozenset[int](), self.weekdays)
        return " ".join(",".join(map(str, sorted(field))) or "*" for field in fields)

    def has(self, wall: datetime) -> bool:
        in_day, in_week = wall.day in self.days, (wall.weekday() + 1) % 7 in self.weekdays
        day = (in_day or in_week) if self.days or self.weekdays else True
        return day and wall.minute in self.minutes and (not self.hours or wall.hour in self.hours)

    def walk(self, zone: ZoneInfo, begin: int, end: int) -> Iterator[int]:
        """Every start in begin..end, found by looking at the clock each minute."""
        before = datetime.fromtimestamp(begin - 60, zone).replace(tzinfo=None)
        for at in range(begin, end, 60):
            local = datetime.fromtimestamp(at, zone)
            wall = local.replace(tzinfo=None, fold=0)
            skipped = before + timedelta(minutes=1)
            while skipped < wall:
                if self.has(skipped):
                    yield at + int((skipped - before).total_seconds()) - 60
                skipped += timedelta(minutes=1)
            if self.has(wall) and (local.fold == 0 or not self.hours):
                yield at
            before = wall


def pick(lowest: int, highest: int, *, least: int = 0) -> st.SearchStrategy[frozenset[int]]:
    return st.frozensets(st.integers(lowest, highest), min_size=least, max_size=3)


STARTS = st.builds(Starts, pick(0, 59, least=1), pick(0, 23), pick(1, 31), pick(0, 6))
MOMENTS = st.sampled_from([(zone, day) for zone, days in CHANGES.items() for day in days])


def get_unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def find_by_walking(rows: list[tuple[Starts, int]], *, zone: str, now: int, ahead_s: int) -> tuple[float, float] | None:
    """Begin and end of the first open time that ends after `now`, or None within `ahead_s`."""
    begin = (now - DAY_S - 3600) // 60 * 60
    spans = sorted(
        (start, start + duration_s)
        for starts, duration_s in rows
        for start in starts.walk(ZoneInfo(zone), begin, now + ahead_s + DAY_S)
    )
    opens_at, closes_at = next((span for span in spans if span[1] > now), (None, 0))
    if opens_at is None:
        return None
    while longer := [end for start, end in spans if opens_at <= start <= closes_at < end]:
        closes_at = max(longer)
    return opens_at, closes_at


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(STARTS, st.integers(60, DAY_S)), min_size=1, max_size=3),
    MOMENTS,
    st.integers(-DAY_S, DAY_S),
)
def test_opening_and_closing_are_where_a_walk_over_all_minutes_finds_them(
    rows: list[tuple[Starts, int]], moment: tuple[str, str], offset_s: int
) -> None:
    zone, day = moment
    now = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) + offset_s
    windows = [make_window(starts.cron, duration_s, zone) for starts, duration_s in rows]
    found = find_by_walking(rows, zone=zone, now=now, ahead_s=2 * DAY_S)
    if found is None:
        assert find_next_open(windows, now) > now + 2 * DAY_S
        return
    opens_at, closes_at = found
    assert find_next_open(windows, now) == max(now, opens_at)
    assert is_open(windows, now) is (opens_at <= now)
    if closes_at < now + 2 * DAY_S:  # further than that the walk did not look
        assert find_close(windows, now) == closes_at
    else:
        assert find_close(windows, now) >= now + 2 * DAY_S


ROWS = [
    # what, cron, zone, duration, now, opens, closes
    ("nightly", "0 2 * * *", "Europe/Berlin", 7200, "2026-07-01T12:00Z", "2026-07-02T00:00Z", "2026-07-02T02:00Z"),
    ("in winter an hour later", "0 2 * * *", "Europe/Berlin", 7200, "2026-01-01T12:00Z", "2026-01-02T01:00Z", None),
    ("skipped by the clock", "30 2 * * *", "Europe/Berlin", 600, "2026-03-28T12:00Z", "2026-03-29T01:30Z", None),
    ("there twice", "30 2 * * *", "Europe/Berlin", 600, "2026-10-24T12:00Z", "2026-10-25T00:30Z", None),
    ("not a second time", "30 2 * * *", "Europe/Berlin", 600, "2026-10-25T00:50Z", "2026-10-26T01:30Z", None),
    ("hourly a second time", "30 * * * *", "Europe/Berlin", 600, "2026-10-25T00:50Z", "2026-10-25T01:30Z", None),
    ("weekly", "@weekly", "UTC", 60, "2026-11-25T00:00Z", "2026-11-29T00:00Z", "2026-11-29T00:01Z"),
    ("workdays by name", "0 6 * * mon-fri", "UTC", 60, "2026-11-28T00:00Z", "2026-11-30T06:00Z", None),
    ("Sunday as 7", "0 6 * * 7", "UTC", 60, "2026-11-28T00:00Z", "2026-11-29T06:00Z", None),
    ("either day", "0 0 13 * fri", "UTC", 60, "2026-11-07T00:01Z", "2026-11-13T00:00Z", None),
    ("every 20 minutes from 5", "5/20 * * * *", "UTC", 60, "2026-11-07T00:46Z", "2026-11-07T01:05Z", None),
    ("by month's name", "0 0 1 dec *", "UTC", 60, "2026-11-07T00:01Z", "2026-12-01T00:00Z", None),
    ("eight years on", "0 0 29 2 *", "UTC", 60, "2096-02-29T01:00Z", "2104-02-29T00:00Z", None),
    ("for days", "0 0 1 * *", "UTC", 5 * DAY_S, "2026-11-04T12:00Z", "2026-11-04T12:00Z", "2026-11-06T00:00Z"),
    ("on a day that never was", "0 2 30 * *", "Pacific/Apia", 3600, "2011-12-30T12:30Z", "2011-12-30T12:30Z",
     "2011-12-30T13:00Z"),
    ("over midnight", "0 23 * * *", "UTC", 7200, "2026-11-08T00:30Z", "2026-11-08T00:30Z", "2026-11-08T01:00Z"),
]  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row[1:], id=row[0]) for row in ROWS])
def test_a_window_opens_when_the_clock_on_the_wall_says_so(row: tuple[str, str, int, str, str, str | None]) -> None:
    cron, zone, duration_s, now, opens, closes = row
    window = make_window(cron, duration_s, zone)
    assert find_next_open([window], get_unix(now)) == get_unix(opens)
    assert find_close([window], get_unix(now)) == (get_unix(closes) if closes else get_unix(opens) + duration_s)


def test_without_windows_the_link_is_always_open() -> None:
    assert is_open([], 5.0) and find_next_open([], 5.0) == 5.0 and find_close([], 5.0) == math.inf


def test_windows_that_touch_are_one_and_those_that_never_end_are_open_for_weeks() -> None:
    now = get_unix("2026-11-08T12:00Z")
    halves = [make_window("0 10 * * *", 7200), make_window("0 12 * * *", 3600)]
    assert find_close(halves, now - 60) == now + 3600
    for cron, duration_s in (("*/15 * * * *", 900), ("@daily", DAY_S), ("@weekly", DURATION_MAX_S)):
        endless = [make_window(cron, duration_s)]
        closes_at = find_close(endless, now)
        assert closes_at > now + 14 * DAY_S and is_open(endless, closes_at)


@pytest.mark.parametrize("cron", [
    "", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "*/0 * * * *",
    "5-1 * * * *", "1,,2 * * * *", "-1 * * * *", "٣ * * * *", "x * * * *", "jan * * * *", "@yearly",
    "* * * * *" + " " * 100, "* * * * *", "*/10 * * * *", "0 0 30 2 *", "0 0 31 2,4,6,9,11 *",
])  # fmt: skip
def test_fields_that_say_nothing_and_days_that_never_come_are_refused(cron: str) -> None:
    with pytest.raises(ConfigInvalid, match="expected"):
        make_window(cron, 60)


@pytest.mark.parametrize("duration_s", [-1, 0, 59, DURATION_MAX_S + 1])
def test_a_duration_out_of_bounds_is_refused(duration_s: int) -> None:
    with pytest.raises(ConfigInvalid, match="duration_s"):
        make_window("@daily", duration_s)


@pytest.mark.parametrize(
    "zone", ["", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "Europe", "a\0b", "\ud800", "x" * 65]
)
def test_a_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(ConfigInvalid, match="time zone"):
        make_window("@daily", 60, zone)


@given(st.text(max_size=40), st.integers(), st.text(max_size=20))
def test_whatever_is_written_makes_a_window_or_is_refused(cron: str, duration_s: int, zone: str) -> None:
    try:
        window = make_window(cron, duration_s, zone)
    except ConfigInvalid:
        return
    assert find_close([window], 0.0) > find_next_open([window], 0.0)


@given(st.floats(), st.sampled_from([(), ("@hourly",), ("0 2 * * *", "30 2 * * sun"), ("0 0 29 2 *",)]))
def test_any_number_is_taken_for_a_time(now: float, crons: tuple[str, ...]) -> None:
    windows = [Window(cron, 600, "Europe/Berlin") for cron in crons]
    assert is_open(windows, now) in (True, False)
    assert find_close(windows, now) >= find_next_open(windows, now) >= 0


def test_zones_are_known_on_a_machine_that_has_none_of_its_own() -> None:
    program = (
        "from edgeferry.link.windows import find_next_open, make_window\n"
        "print(find_next_open([make_window('0 2 * * *', 60, 'Europe/Berlin')], 1782900000.0))"
    )
    environment = {**os.environ, "PYTHONTZPATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == get_unix("2026-07-02T00:00Z")
