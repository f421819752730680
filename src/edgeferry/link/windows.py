"""Connection windows: when a link may be used, as cron fields, a duration and a time zone.

What this file leaves to others: what may be sent inside a window (`budget.py`), and looking at the clock.

Rules:
- No windows: always open. Windows that overlap or touch are one.
- Fields are read as cron reads them (POSIX.1-2017, `crontab`): minute, hour, day, month, weekday; where day and weekday
  are both restricted, either will do.
- No window is lost or doubled by a change of clocks. A start that the clock skips comes as late as the clock jumped
  (02:30 becomes 03:30); one that comes twice opens at the first, or at both where the hours are `*`. Durations are real
  seconds.
- A clock that is wrong is a clock: any number is taken for a time, what lies outside 1970..2242 for the nearer end.
- The zone's rules come from the system, else from the package tzdata, which the extras `device` and `operator` bring.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from heapq import merge
from zoneinfo import ZoneInfo

from edgeferry.errors import ConfigInvalid

DURATION_MIN_S = 60
STARTS_MAX = 96
"""Of one window a day: more cost a small processor seconds for each look at the clock, and mean an open link."""
DURATION_MAX_S = 7 * 86_400
_CRON_MAX_CHARS = 100
_ZONE_MAX_CHARS = 64
_NICKNAMES = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *"}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_PART = re.compile(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/(\d{1,2}))?", re.ASCII)
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_TIME_MAX_S = float(1 << 33)
_AHEAD_DAYS = 8 * 366 + 32  # 29 February is at most eight years away (1896 to 1904, 2096 to 2104)
_LOOK_S = 3 * DURATION_MAX_S
"""How far an open time is followed over windows that begin where others end."""


@dataclass(frozen=True, slots=True)
class Window:
    """Opens at each time that `cron` names in `zone`, for `duration_s` seconds; `make_window` checks it."""

    cron: str
    duration_s: int
    zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class _Schedule:
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    def has(self, day: date) -> bool:
        """Whether there are starts on `day`."""
        in_days, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        either = len(self.days) < 31 and len(self.weekdays) < 7
        return day.month in self.months and (in_days or in_week if either else in_days and in_week)

    @property
    def is_hourly(self) -> bool:
        """Whether every hour has starts, and so also one that comes twice."""
        return len(self.hours) == 24


def make_window(cron: str, duration_s: int, zone: str = "UTC") -> Window:
    """A window that will open; raises ConfigInvalid for fields, a duration or a zone that cannot be."""
    if not DURATION_MIN_S <= duration_s <= DURATION_MAX_S:
        raise ConfigInvalid(f"expected duration_s in {DURATION_MIN_S}..{DURATION_MAX_S}, found {duration_s!r:.40}")
    schedule = _parse_cron(cron)
    starts = len(schedule.hours) * len(schedule.minutes)
    if starts > STARTS_MAX:
        raise ConfigInvalid(f"expected at most {STARTS_MAX} starts a day, found {starts}: open one long window instead")
    require_zone(zone)
    longest = max(_LONGEST_MONTHS[month - 1] for month in schedule.months)
    if min(schedule.days) > longest and len(schedule.weekdays) == 7:
        raise ConfigInvalid(f"expected a day that comes, found {cron!r:.120}")
    return Window(cron, duration_s, zone)


def require_zone(zone: str) -> str:
    """`zone` when it is the name of a time zone like Europe/Berlin; raises ConfigInvalid."""
    try:
        if len(zone) <= _ZONE_MAX_CHARS:
            ZoneInfo(zone)
            return zone
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError; the name of a folder an OSError
        pass
    raise ConfigInvalid(f"expected a time zone like Europe/Berlin, found {zone!r:.80}")


def get_local(zone: str, now: float) -> datetime:
    """The local time at `now`, Unix seconds."""
    return datetime.fromtimestamp(clamp_time(now), ZoneInfo(zone))


def clamp_time(now: float) -> float:
    """`now`, or the nearer end of 1970..2242 where it lies outside."""
    return 0.0 if math.isnan(now) else min(max(now, 0.0), _TIME_MAX_S)


def is_open(windows: Sequence[Window], now: float) -> bool:
    """Whether the link may be used at `now`, Unix seconds."""
    return not windows or find_next_open(windows, now) <= clamp_time(now)


def find_next_open(windows: Sequence[Window], now: float) -> float:
    """`now` where a window is open, else when the next one opens, Unix seconds."""
    now = clamp_time(now)
    return max(now, _find_span(windows, now)[0])


def find_close(windows: Sequence[Window], now: float) -> float:
    """When what is open at `now`, or opens next, closes: infinite without windows.

    Where windows follow on windows for weeks, a time two weeks ahead or more at which the link is still open.
    """
    return _find_span(windows, clamp_time(now))[1]


def _find_span(windows: Sequence[Window], now: float) -> tuple[float, float]:
    """The first open time that ends after `now`: its begin and end."""
    if not windows:
        return now, math.inf
    spans = _join(merge(*(_iterate_spans(window, now) for window in windows)))
    return next((span for span in spans if span[1] > now), (now + _AHEAD_DAYS * 86_400.0, math.inf))


def _join(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Spans that overlap or touch as one; ends with one that is longer than anybody looks ahead."""
    opens_at = closes_at = -math.inf
    for begin, end in spans:
        if begin > closes_at:
            yield opens_at, closes_at
            opens_at, closes_at = begin, end
        elif end > closes_at:
            closes_at = end
        if closes_at - opens_at > _LOOK_S:
            break
    yield opens_at, closes_at


def _iterate_spans(window: Window, now: float) -> Iterator[tuple[float, float]]:
    first = get_local(window.zone, now - window.duration_s).date() - timedelta(days=1)
    schedule = _parse_cron(window.cron)
    for offset in range(_AHEAD_DAYS):
        day = first + timedelta(days=offset)
        if schedule.has(day):
            yield from _list_spans(window, day)


@lru_cache(maxsize=1024)
def _list_spans(window: Window, day: date) -> tuple[tuple[float, float], ...]:
    starts = sorted(set(_iterate_starts(_parse_cron(window.cron), day, ZoneInfo(window.zone))))
    joined = _join((start, start + window.duration_s) for start in starts)
    return tuple(span for span in joined if span[0] > -math.inf)


def _iterate_starts(schedule: _Schedule, day: date, zone: ZoneInfo) -> Iterator[float]:
    for hour in schedule.hours:
        for minute in schedule.minutes:
            start = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
            begin = start.astimezone(UTC).timestamp()
            yield begin
            again = start.replace(fold=1).astimezone(UTC).timestamp()
            if schedule.is_hourly and again > begin:
                yield again


@lru_cache(maxsize=64)
def _parse_cron(cron: str) -> _Schedule:
    fields = _NICKNAMES.get(cron, cron).split() if len(cron) <= _CRON_MAX_CHARS else []
    if len(fields) != len(_FIELDS):
        nicknames = ", ".join(_NICKNAMES)
        raise ConfigInvalid(f"expected five fields like '0 2 * * *', or {nicknames}, found {cron!r:.120}")
    minutes, hours, days, months, weekdays = (
        _parse_field(text.lower(), *bounds) for text, bounds in zip(fields, _FIELDS, strict=True)
    )
    return _Schedule(tuple(sorted(minutes)), tuple(sorted(hours)), days, months, frozenset(day % 7 for day in weekdays))


def _parse_field(text: str, name: str, lowest: int, highest: int) -> frozenset[int]:
    found: set[int] = set()
    for part in _name_to_number(text, name).split(","):
        match = _PART.fullmatch(part)
        first, last, step = (int(group) if group else None for group in match.groups()) if match else (None, None, 0)
        begin = lowest if first is None else first
        open_end = first is None or (last is None and step is not None)
        end = highest if open_end else (begin if last is None else last)
        if step == 0 or not lowest <= begin <= end <= highest:
            raise ConfigInvalid(f"expected {name} as numbers in {lowest}..{highest}, found {text!r:.80}")
        found.update(range(begin, end + 1, step or 1))
    return frozenset(found)


def _name_to_number(text: str, name: str) -> str:
    names = {"month": _MONTHS, "weekday": _WEEKDAYS}.get(name, ())
    for number, word in enumerate(names, start=1 if name == "month" else 0):
        text = re.sub(rf"\b{word}\b", str(number), text)
    return text
