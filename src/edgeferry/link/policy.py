"""LinkPolicy: what an operator says about a link, from the twin's section `edgeferry.link` or the TOML table `[link]`.

What this file leaves to others: whether something may be sent now (`budget.py`), which interface a route leads over.
What an operator writes: docs/link-policy.md.

Rules:
- One grammar for twin and settings file: what the twin says comes before the file, key by key; null says nothing.
- Reading never raises: a key that is unknown or has a bad value becomes a LinkProblem, and the base's value stays.
- An empty list of windows, a budget of 0 and a rate of 0 take a bound away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, cast, get_args

from edgeferry.errors import ConfigInvalid
from edgeferry.link.windows import Window, make_window, require_zone

LinkClass = Literal["free", "metered", "forbidden"]
HubMode = Literal["always", "windows"]
MEGABYTE = 1_000_000
RATE_MAX_BPS = 1 << 40
BUDGET_MIN_BYTES = 64 << 10
"""Less would not let one chunk through with its connection, and a device would never learn of a new budget."""
_BUDGET_MAX_BYTES = 1 << 50
_WINDOWS_MAX = 16
_INTERFACES_MAX = 16
_INTERFACE = re.compile(r"[A-Za-z0-9_.:@*?-]{1,32}")
_CURRENCY = re.compile(r"[A-Za-z]{1,8}|[^\W\d_]|[€$£¥]")
_KEEPALIVE_S = (10, 1177)  # Azure IoT Hub closes after 1.5 x keepalive, at the latest after 1767 s
_RTT_MAX_S = 60.0
_SHARE_MAX = 0.5


@dataclass(frozen=True, slots=True)
class LinkPolicy:
    """Times in seconds, sizes in bytes on the wire, rates in bits per second; 0 where a bound is not set or not known.

    `interfaces` are pairs of pattern and class, the first that matches counts. From `urgent_priority` on windows do
    not count (None: never). `report_share` of each budget is kept for the hub's connection.
    """

    windows: tuple[Window, ...] = ()
    zone: str = "UTC"
    rate_bps: int = 0
    day_bytes: int = 0
    month_bytes: int = 0
    price_per_mb: float = 0.0
    currency: str = "EUR"
    link_class: LinkClass = "metered"
    interfaces: tuple[tuple[str, LinkClass], ...] = ()
    urgent_priority: int | None = None
    keepalive_s: int = 60
    hub: HubMode = "always"
    report_share: float = 0.02
    link_bps: int = 0
    rtt_s: float = 0.0

    def get_class(self, interface: str) -> LinkClass:
        """The class of the link over `interface`: its own, else the policy's."""
        own = (kind for pattern, kind in self.interfaces if fnmatchcase(interface, pattern))
        return next(own, self.link_class)

    def get_price(self, wire_bytes: int) -> float:
        """What `wire_bytes` cost, in `currency`; a megabyte is 10^6 bytes."""
        return wire_bytes / MEGABYTE * self.price_per_mb


@dataclass(frozen=True, slots=True)
class LinkProblem:
    """A key of the section that cannot be followed, and why."""

    key: str
    message: str


def read_link_policy(
    section: Mapping[str, Any], base: LinkPolicy | None = None
) -> tuple[LinkPolicy, tuple[LinkProblem, ...]]:
    """`base` with what `section` says, and what of it cannot be followed; never raises."""
    policy, problems = base or LinkPolicy(), []
    for key, value in section.items():
        if value is None:
            continue
        try:
            policy = _read_key(policy, key, value)
        except ConfigInvalid as error:
            problems.append(LinkProblem(f"{key}"[:40], error.message))
    return policy, tuple(problems)


def _read_key(policy: LinkPolicy, key: str, value: object) -> LinkPolicy:
    if key == "windows":
        return replace(policy, windows=_read_windows(value, policy.zone))
    if key == "zone":
        zone = require_zone(_read_text(value))
        return replace(policy, zone=zone, windows=tuple(replace(window, zone=zone) for window in policy.windows))
    if key not in _READERS:
        raise ConfigInvalid(f"expected one of windows, zone, {', '.join(_READERS)}")
    field, read = _READERS[key]
    changes: dict[str, Any] = {field: read(value)}
    return replace(policy, **changes)


def _read_windows(value: object, zone: str) -> tuple[Window, ...]:
    if not isinstance(value, list) or len(value) > _WINDOWS_MAX:
        raise ConfigInvalid(f"expected a list of at most {_WINDOWS_MAX} windows")
    return tuple(_read_window(entry, zone) for entry in value)


def _read_window(entry: object, zone: str) -> Window:
    if not isinstance(entry, Mapping) or set(entry) != {"cron", "duration_s"}:
        raise ConfigInvalid('expected a window like {"cron": "0 2 * * *", "duration_s": 7200}')
    duration_s = entry["duration_s"]
    if type(duration_s) is not int:
        raise ConfigInvalid("expected duration_s as a whole number of seconds")
    return make_window(_read_text(entry["cron"]), duration_s, zone)


def _read_interfaces(value: object) -> tuple[tuple[str, LinkClass], ...]:
    if not isinstance(value, Mapping) or len(value) > _INTERFACES_MAX:
        raise ConfigInvalid(f"expected at most {_INTERFACES_MAX} interfaces, each with a class")
    for name in value:
        if not isinstance(name, str) or not _INTERFACE.fullmatch(name):
            raise ConfigInvalid(f"expected the name of an interface or a pattern like 'wwan*', found {name!r:.80}")
    read = _make_choice(get_args(LinkClass))
    found = [(name, cast(LinkClass, read(kind))) for name, kind in value.items() if kind is not None]
    return tuple(sorted(found, key=lambda pair: _get_rank(pair[0])))


def _get_rank(pattern: str) -> tuple[bool, int, str]:
    """Names before patterns, and of these the one that says most: a twin keeps no order."""
    return any(sign in pattern for sign in "*?"), -len(pattern.replace("*", "")), pattern


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigInvalid(f"expected a text, found {type(value).__name__}")
    return value


def _read_currency(value: object) -> str:
    if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
        raise ConfigInvalid(f"expected a currency like EUR, found {value!r:.40}")
    return value


def _make_whole(lowest: int, highest: int, *, or_none: bool = False) -> Callable[[object], int]:
    """Reads a whole number in bounds; with `or_none` 0 too, which stands for no bound."""

    def read(value: object) -> int:
        if type(value) is int and (lowest <= value <= highest or (or_none and value == 0)):
            return value
        none = "0 (none) or " if or_none else ""
        raise ConfigInvalid(f"expected {none}a whole number in {lowest}..{highest}, found {value!r:.40}")

    return read


def _make_number(highest: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        if type(value) in (int, float) and 0 <= cast(float, value) <= highest:
            return float(cast(float, value))
        raise ConfigInvalid(f"expected a number in 0..{highest:g}, found {value!r:.40}")

    return read


def _make_choice(choices: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise ConfigInvalid(f"expected one of {', '.join(choices)}, found {value!r:.40}")

    return read


_read_budget = _make_whole(BUDGET_MIN_BYTES, _BUDGET_MAX_BYTES, or_none=True)
_READERS: Mapping[str, tuple[str, Callable[[object], object]]] = {
    "rate_bps": ("rate_bps", _make_whole(0, RATE_MAX_BPS)),
    "day_bytes": ("day_bytes", _read_budget),
    "month_bytes": ("month_bytes", _read_budget),
    "price_per_mb": ("price_per_mb", _make_number(1e6)),
    "currency": ("currency", _read_currency),
    "class": ("link_class", _make_choice(get_args(LinkClass))),
    "interfaces": ("interfaces", _read_interfaces),
    "urgent_priority": ("urgent_priority", _make_whole(-1000, 1 << 31)),
    "keepalive_s": ("keepalive_s", _make_whole(*_KEEPALIVE_S)),
    "hub": ("hub", _make_choice(get_args(HubMode))),
    "report_share": ("report_share", _make_number(_SHARE_MAX)),
    "bps": ("link_bps", _make_whole(0, RATE_MAX_BPS)),
    "rtt_s": ("rtt_s", _make_number(_RTT_MAX_S)),
}
"""Key -> field of LinkPolicy and how its value is read. `windows` and `zone` hang together and are read by name."""
