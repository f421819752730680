"""What `edgeferry device status` shows: lines for a person, made of the status alone. Pure.

What this file leaves to others: asking the agent (`device_commands.py`), redrawing.

Rules:
- Plain text without `rich`: a device has none.
- Times are in the zone of whoever looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

_BAR_CHARS = 24
_DAY_S = 86_400
_WHY = {"window_closed": "the window is closed", "budget_spent": "the budget is spent"}


def make_lines(status: Mapping[str, Any], now: float) -> list[str]:
    """The device, its link and ledger, its disk, then each model. `now`: Unix seconds."""
    hub = "connected" if status["connected"] else "no hub" if status["running"] else "not running"
    lines = [f"{status['device']} ({status['role']}), {hub}, {_show_bytes(status['disk_free_bytes'])} free"]
    if status["running"]:
        lines += [f"  link    {_show_link(status['link'], now)}", f"  ledger  {_show_ledger(status['ledger'])}"]
    for one in status["models"]:
        lines += _make_model_lines(one, now)
    lines += [_make_version_line(one) for one in status.get("versions", ())]
    if status.get("problem"):
        lines += _make_error_lines(status["problem"], "  ")
    return lines


def _show_link(link: Mapping[str, Any], now: float) -> str:
    cap = f", at most {link['rate_bps'] / 1000:g} kbit/s" if link["rate_bps"] else ""
    if link["may_send"]:
        closes = f" until {show_time(link['closes_at'], now)}" if link["closes_at"] else ""
        return f"{link['link_class']}, open{closes}{cap}"
    if link["reason"] == "link_forbidden":
        return "forbidden: nothing is fetched over this interface"
    return f"{link['link_class']}, {_WHY.get(link['reason'], 'closed')} until {show_time(link['opens_at'], now)}{cap}"


def _show_ledger(ledger: Mapping[str, Any]) -> str:
    def show(kind: str) -> str:
        budget = ledger[f"{kind}_budget_bytes"]
        return _show_bytes(ledger[f"{kind}_bytes"]) + (f" of {_show_bytes(budget)}" if budget else "")

    cost = f", {ledger['cost']:.2f} {ledger['currency']}" if ledger["currency"] else ""
    return f"today {show('day')}, this month {show('month')}{cost}, in all {_show_bytes(ledger['total_bytes'])}"


def _make_model_lines(one: Mapping[str, Any], now: float) -> Iterator[str]:
    yield f"  {one['model']}: active {one['active'] or 'none'}, previous {one['previous'] or 'none'}"
    if one["state"] and one["state"] != "ACTIVE":
        yield f"    {one['target']} {one['state']}{_show_progress(one, now)}"
    if one["error"]:
        yield from _make_error_lines(one["error"], "    ")


def _make_version_line(one: Mapping[str, Any]) -> str:
    marks = [mark for mark in ("active", "previous", "pinned") if one[mark]] + ([] if one["whole"] else ["damaged"])
    return (
        f"  {one['model']}@{one['version']}: {_show_bytes(one['size_bytes'])}{', ' if marks else ''}{', '.join(marks)}"
    )


def _show_progress(one: Mapping[str, Any], now: float) -> str:
    if one["state"] not in ("DOWNLOADING", "WAITING"):
        return ""
    again = f", again {show_time(one['retry_at'], now)}" if one["state"] == "WAITING" and one["retry_at"] else ""
    if not one["total_bytes"]:
        return again
    share = one["done_bytes"] / one["total_bytes"]
    bar = "#" * round(share * _BAR_CHARS)
    rate = f", {one['bps'] / 1000:.0f} kbit/s" if one["bps"] and one["state"] == "DOWNLOADING" else ""
    done = f", done {show_time(one['finishes_at'], now)}" if one["finishes_at"] else ""
    sizes = f"{_show_bytes(one['done_bytes'])} of {_show_bytes(one['total_bytes'])}"
    return f" [{bar:.<{_BAR_CHARS}}] {share:.0%}, {sizes}{rate}{again}{done}"


def _make_error_lines(error: Mapping[str, str], indent: str) -> list[str]:
    return [f"{indent}{error['code']}: {error['message']}", f"{indent}  {error['advice']}"]


def _show_bytes(size_bytes: float) -> str:
    """Like `20,018 bytes`, `1.2 MB`, `5.1 GB`: powers of ten, as links are billed."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes:,.0f} bytes"


def show_time(at: float, now: float) -> str:
    """The time of day, with its date where that is another day than today."""
    try:
        then, today = datetime.fromtimestamp(at), datetime.fromtimestamp(now)
    except (OverflowError, ValueError, OSError):
        return "at an unknown time"
    return f"{then:%H:%M:%S}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M}"
