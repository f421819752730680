"""How fast, how much, until when: what a device says about its link."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeferry.agent.gate import HTTP, WIRE_FACTOR, Gate
from edgeferry.agent.ledger import Ledger
from edgeferry.agent.outlook import forecast, make_ledger_status, make_link_status
from edgeferry.agent.pace import Pace
from edgeferry.link.policy import LinkPolicy, read_link_policy
from edgeferry.storage.journal import Journal, open_journal
from edgeferry.twin.status import ModelStatus

NOW = 1_767_225_600.0  # 2026-01-01 00:00 UTC
LOADING = ModelStatus(model="m", state="DOWNLOADING", done_bytes=100_000, total_bytes=1_100_000)


def make_gate(journal: Journal, **section: object) -> Gate:
    policy, problems = read_link_policy(section, LinkPolicy())
    assert problems == ()
    ledger = Ledger(journal, {HTTP: lambda: 0})
    return Gate(ledger, policy=policy, now=lambda: NOW, find_interface=lambda: "wwan0")


def test_the_pace_is_that_of_the_last_half_minute_of_one_download() -> None:
    pace = Pace()
    assert pace.get_bps("a") == 0.0
    for second in range(100):
        pace.note("a", second * (1000 if second < 50 else 2000), second)
    assert pace.get_bps("a") == pytest.approx(16_000, rel=0.05)
    assert pace.get_bps("b") == 0.0
    pace.note("a", 10, 100.0)  # it began anew
    assert pace.get_bps("a") == 0.0


async def test_a_download_is_done_when_its_rest_has_come(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        done = forecast(LOADING, make_gate(journal), 80_000, priority=0)
        assert done.finishes_at == pytest.approx(NOW + 100, abs=2)
        assert done.bps == 80_000
        unknown = forecast(LOADING, make_gate(journal), 0.0, priority=0)
        assert unknown.finishes_at == 0.0
        told = forecast(LOADING, make_gate(journal, bps=160_000), 0.0, priority=0)
        assert told.finishes_at == pytest.approx(NOW + 50, abs=2)


async def test_a_budget_puts_the_end_off_to_another_day(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        gate = make_gate(journal, day_bytes=500_000, report_share=0)
        done = forecast(LOADING, gate, 80_000, priority=0)
        assert 1_000_000 * WIRE_FACTOR / 500_000 > 2
        assert NOW + 2 * 86_400 < done.finishes_at < NOW + 3 * 86_400


async def test_the_ledger_and_the_link_are_told_with_their_bounds(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        await journal.add_bytes("2026-01-01", "http", 70_000)
        await journal.add_bytes("2025-12-31", "http", 30_000)
        gate = make_gate(journal, day_bytes=100_000, price_per_mb=5.0, interfaces={"wwan*": "metered"}, rate_bps=9_600)
        await gate.ledger.load()
        ledger, link = make_ledger_status(gate), make_link_status(gate)
        assert (ledger.day_bytes, ledger.month_bytes, ledger.total_bytes) == (70_000, 70_000, 100_000)
        assert (ledger.day_budget_bytes, ledger.cost, ledger.currency) == (100_000, 0.35, "EUR")
        assert (link.link_class, link.may_send, link.rate_bps) == ("metered", True, 9_600)
        shut = make_link_status(make_gate(journal, windows=[{"cron": "0 2 * * *", "duration_s": 60}]))
        assert (shut.may_send, shut.reason, shut.opens_at) == (False, "window_closed", NOW + 7200)
