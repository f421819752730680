"""What `edgeferry forecast` shows a person: a row for each device, and the fleet.

What this file leaves to others: the figures (`publish/forecast.py`), the commands.

Rules:
- Times are in the zone of whoever looks; bytes and megabytes are powers of ten, as links are billed.
- What comes out of twins and manifests is shown without control characters.
"""

from __future__ import annotations

import math
import sys
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeferry.cli.patch_commands import PLAIN_WIDTH
from edgeferry.cli.plain_text import clean_name
from edgeferry.publish.forecast import DeviceForecast, FleetForecast, StepForecast

_WHY = {
    "link_unknown": "speed not told",
    "link_forbidden": "never: its link is forbidden",
    "never_ends": "never: its budgets and windows do not hold it",
}


def print_forecast(found: FleetForecast) -> None:
    """Prints the table, and below it what is to be said of single devices."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    console.print(make_table(found))
    for one in found.devices:
        for note in one.notes:
            console.print(Text(f"{one.device}: {clean_name(note)}"))


def make_table(found: FleetForecast) -> Table:
    """A row for each device, and one for all."""
    title = Text(f"{found.model} {found.version}")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("device", "has", "takes"):
        table.add_column(name, overflow="fold")
    for name in ("payload bytes", "on the wire", "on its link", "done", "money"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.devices:
        table.add_row(*map(Text, _make_row(one, found.made_at)))
    table.add_section()
    table.add_row(*map(Text, _make_total(found)))
    return table


def _make_row(one: DeviceForecast, now: float) -> tuple[str, ...]:
    has = clean_name(one.active) or "-"
    if one.error is not None:
        return one.device, "?", clean_name(one.error["message"]), "", "", "", "", ""
    if not one.needed:
        return one.device, has, "nothing, it runs this version", "0", "0", "", "", ""
    busy = _show_span(one.transfer_s) if one.transfer_s is not None else "?"
    done = _WHY[one.reason] if one.reason else show_end(one.finishes_at, now)
    goes = f" in {one.sittings} goes" if one.sittings > 1 else ""
    return (
        one.device,
        has,
        show_steps(one.steps),
        f"{one.payload_bytes:,}",
        f"{one.wire_bytes:,}",
        busy,
        f"{done}{goes}",
        _show_money(one),
    )


def _make_total(found: FleetForecast) -> tuple[str, ...]:
    money = ", ".join(f"{amount:,.2f} {currency}" for currency, amount in found.money.items())
    done = show_end(found.finishes_at, found.made_at) if found.updates else ""
    sums = f"{found.payload_bytes:,}", f"{found.wire_bytes:,}"
    return f"{found.updates} of {len(found.devices)} devices", "", "", *sums, "", done, money


def _show_money(one: DeviceForecast) -> str:
    return f"{one.money:,.2f} {one.currency}" if one.priced else "no price"


def show_steps(steps: tuple[StepForecast, ...]) -> str:
    """Like `patch from 1.0.0, labels.txt in full, 3 golden`."""
    words = [_name_step(step) for step in steps if step.kind != "golden"]
    golden = sum(step.kind == "golden" for step in steps)
    return ", ".join([*words, *([f"{golden} golden"] if golden else [])]) or "what it has already"


def _name_step(step: StepForecast) -> str:
    return (
        f"patch from {step.base or 'another version'}" if step.kind == "patch" else f"{clean_name(step.path)} in full"
    )


def _show_span(seconds: float) -> str:
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def show_end(at: float | None, now: float) -> str:
    """The time of day, with its date where that is another day than today."""
    if at is None:
        return "?"
    then, today = datetime.fromtimestamp(at), datetime.fromtimestamp(now)
    return f"{then:%H:%M:%S}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M}"
