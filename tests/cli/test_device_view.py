"""What `device status` shows, line by line, and how it is watched."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeferry.cli.device_view import make_lines, show_time
from edgeferry.twin.status import DeviceStatus, LedgerStatus, LinkStatus, ModelStatus, VersionStatus

NOW = time.mktime((2026, 11, 26, 12, 0, 0, 0, 0, -1))
FAULT = {"code": "budget_spent", "message": "no transfer now: budget spent", "advice": "Nothing to do."}
LOADING = ModelStatus(
    model="detector",
    active="1.0.0",
    previous="0.9.0",
    target="1.1.0",
    state="DOWNLOADING",
    done_bytes=250_000,
    total_bytes=1_000_000,
    bps=64_000,
    finishes_at=NOW + 95,
)


def show(*, running: bool = True, **fields: Any) -> list[str]:
    who = DeviceStatus(device="barge-1/ferry", role="both", connected=running, disk_free_bytes=5_100_000_000)
    status = msgspec.structs.replace(who, **fields)
    return make_lines({**msgspec.to_builtins(status), "running": running}, NOW)


def test_a_download_shows_how_far_it_is_how_fast_and_when_it_will_be_done() -> None:
    lines = show(models=(LOADING,))
    assert lines[0] == "barge-1/ferry (both), connected, 5.1 GB free"
    assert lines[3:] == [
        "  detector: active 1.0.0, previous 0.9.0",
        "    1.1.0 DOWNLOADING [######..................] 25%, 250,000 bytes of 1.0 MB, 64 kbit/s, done 12:01:35",
    ]


def test_what_waits_shows_until_when_and_why() -> None:
    later = NOW + 2 * 86_400
    waiting = msgspec.structs.replace(LOADING, state="WAITING", retry_at=later, finishes_at=later + 60, error=FAULT)
    [*_, line, error, advice] = show(models=(waiting,))
    assert line.endswith("250,000 bytes of 1.0 MB, again 2026-11-28 12:00, done 2026-11-28 12:01")
    assert (error, advice) == ("    budget_spent: no transfer now: budget spent", "      Nothing to do.")


SHUT = LinkStatus(link_class="metered", may_send=False, reason="window_closed", opens_at=NOW + 60)
LINKS = [
    (LinkStatus(link_class="free"), "free, open"),
    (LinkStatus(link_class="metered", closes_at=NOW + 3600), "metered, open until 13:00:00"),
    (LinkStatus(link_class="metered", rate_bps=64_000), "metered, open, at most 64 kbit/s"),
    (SHUT, "metered, the window is closed until 12:01:00"),
    (
        msgspec.structs.replace(SHUT, link_class="forbidden", reason="link_forbidden"),
        "forbidden: nothing is fetched over this interface",
    ),
]


@pytest.mark.parametrize(("link", "words"), LINKS)
def test_the_link_says_whether_it_may_be_used_and_until_when(link: LinkStatus, words: str) -> None:
    assert f"  link    {words}" in show(link=link)


def test_the_ledger_stands_beside_its_budgets_and_its_price() -> None:
    ledger = LedgerStatus(
        day_bytes=20_018,
        month_bytes=1_250_000,
        total_bytes=7_300_000,
        day_budget_bytes=500_000,
        cost=5.6,
        currency="EUR",
    )
    line = "  ledger  today 20,018 bytes of 500,000 bytes, this month 1.2 MB, 5.60 EUR, in all 7.3 MB"
    assert line in show(ledger=ledger)


def test_versions_and_what_is_wrong_with_the_twin_are_listed() -> None:
    here = VersionStatus(model="detector", version="1.0.0", identity="sha256:0", size_bytes=800_000, active=True)
    versions = (
        msgspec.structs.replace(here, pinned=True),
        msgspec.structs.replace(here, version="0.9.0", size_bytes=790_000, active=False, whole=False),
    )
    lines = show(versions=versions, problem=FAULT)
    assert lines[-4:] == [
        "  detector@1.0.0: 800,000 bytes, active, pinned",
        "  detector@0.9.0: 790,000 bytes, damaged",
        "  budget_spent: no transfer now: budget spent",
        "    Nothing to do.",
    ]


def test_a_folder_on_which_nothing_runs_has_neither_link_nor_ledger() -> None:
    assert show(running=False) == ["barge-1/ferry (both), not running, 5.1 GB free"]


@pytest.mark.parametrize("at", [1e18, -1e18, float("inf")])
def test_a_time_that_is_none_is_shown_as_unknown(at: float) -> None:
    assert show_time(at, NOW) == "at an unknown time"


def count_waits(pid: int) -> int:
    """How often the main thread of a process has gone to sleep so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_watching_says_what_is_new_until_it_is_stopped(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "edgeferry.cli.main", "device", "status", "--watch", "--storage", str(tmp_path)]
    watching = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    first = watching.stdout.readline()
    woken = count_waits(watching.pid)
    deadline = time.monotonic() + 15
    while count_waits(watching.pid) < woken + 2:  # it has looked again, and there is nothing new
        assert watching.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    watching.send_signal(signal.SIGINT)
    rest, _ = watching.communicate(timeout=10)
    assert "not running" in first
    assert rest.strip() in ("", "stopped")
