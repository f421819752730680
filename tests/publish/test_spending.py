"""What a budget in bytes or money holds, and what it refuses."""

from __future__ import annotations

import pytest

from edgeferry.errors import ConfigInvalid, OverBudget
from edgeferry.publish.forecast import DeviceForecast, FleetForecast
from edgeferry.publish.spending import Spending, read_spending, require_within

PRICED = DeviceForecast(device="d", wire_bytes=2_000_000, money=13.0, currency="EUR", priced=True)
FREE = DeviceForecast(device="f", wire_bytes=2_000_000, link_class="free", currency="NOK", priced=True)
UNPRICED = DeviceForecast(device="u", wire_bytes=1000)


def make_fleet(*devices: DeviceForecast) -> FleetForecast:
    return FleetForecast(
        model="gauge",
        version="1.2.0",
        made_at=0.0,
        devices=devices,
        updates=len(devices),
        wire_bytes=sum(one.wire_bytes for one in devices),
        money={"EUR": sum(one.money for one in devices)},
    )


@pytest.mark.parametrize(
    ("budget", "devices", "refused"),
    [
        ("4MB", (PRICED, FREE), None),
        ("3.9MB", (PRICED, FREE), OverBudget),
        ("13 EUR", (PRICED, FREE), None),
        ("12.99 EUR", (PRICED, FREE), OverBudget),
        ("25 EUR", (PRICED, PRICED), OverBudget),
        ("100 EUR", (PRICED, UNPRICED), ConfigInvalid),
        ("100 NOK", (PRICED,), ConfigInvalid),
        ("0B", (), None),
    ],
)
def test_a_budget_is_for_all_devices_together(
    budget: str, devices: tuple[DeviceForecast, ...], refused: type[Exception] | None
) -> None:
    spending, fleet = read_spending(budget), make_fleet(*devices)
    if refused is None:
        require_within(spending, fleet)
    else:
        with pytest.raises(refused):
            require_within(spending, fleet)


@pytest.mark.parametrize(
    ("text", "amount", "currency"),
    [
        ("5MB", 5e6, ""),
        ("512 KiB", 524_288, ""),
        ("1.5gb", 1.5e9, ""),
        ("70000", 70_000, ""),
        ("3 EUR", 3, "EUR"),
        ("2.50€", 2.5, "€"),
    ],
)
def test_budgets_are_read(text: str, amount: float, currency: str) -> None:
    assert read_spending(text) == Spending(amount, currency)


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "5 MB extra", "1e9", "5,5MB", "nan", "5\u200bMB", "9" * 30])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        read_spending(text)
