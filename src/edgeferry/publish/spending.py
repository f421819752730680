"""What a deployment may take: a budget in bytes or in money, for all of its devices together. Pure.

What an update takes is `forecast.py`'s.

Rules:
- Bytes are those on the wire, on whatever link; money is what the twins' prices make of them.
- A budget that cannot be compared (a device that could not be asked, no price, another currency) is not kept.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edgeferry.errors import ConfigInvalid, OverBudget
from edgeferry.publish.forecast import DeviceForecast, FleetForecast

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_BUDGET = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]{0,8}|[^\W\d_]|[€$£¥])")


@dataclass(frozen=True, slots=True)
class Spending:
    """`amount` of `currency`; without one, of bytes."""

    amount: float
    currency: str = ""


def read_spending(text: str) -> Spending:
    """`5MB`, `512 KiB`, `3 EUR`, `2.50 USD`; raises ConfigInvalid."""
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise ConfigInvalid(f"expected a budget like 5MB or '3 EUR', found {text!r:.40}")
    amount, unit = float(match[1]), match[2]
    factor = _UNITS.get(unit.lower())
    return Spending(amount, unit) if factor is None else Spending(amount * factor)


def require_within(spending: Spending, forecast: FleetForecast) -> None:
    """Returns when the budget holds the whole deployment.

    Raises:
        OverBudget: it does not.
        ConfigInvalid: it cannot be told whether it does.
    """
    for one in forecast.devices:
        _require_comparable(spending, one)
    taken: float = forecast.money.get(spending.currency, 0.0) if spending.currency else forecast.wire_bytes
    if taken > spending.amount or not math.isfinite(taken):
        unit = spending.currency or "bytes"
        shown = [f"{amount:,.2f}" if spending.currency else f"{amount:,.0f}" for amount in (taken, spending.amount)]
        raise OverBudget(
            f"{forecast.model} {forecast.version} would take {shown[0]} {unit} on {forecast.updates} devices, "
            f"the budget is {shown[1]}"
        )


def _require_comparable(spending: Spending, one: DeviceForecast) -> None:
    if one.error is not None:
        raise ConfigInvalid(f"the budget cannot be kept: {one.device} could not be asked: {one.error['message']}")
    if not spending.currency or not one.needed or one.link_class == "free":
        return
    if not one.priced:
        raise ConfigInvalid(f"the budget cannot be kept: the twin of {one.device} tells no link.price_per_mb")
    if one.currency != spending.currency:
        raise ConfigInvalid(
            f"the budget cannot be kept: the price of {one.device} is in {one.currency}, not {spending.currency}"
        )
