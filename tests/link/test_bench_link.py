"""The bench over thin links: it measures the real thing, and notices what falls short."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "scripts"))  # the scripts are no package: they find each other in their folder

from bench_link import judge_idle, judge_run, make_idle_table, make_table  # noqa: E402
from link_scenes import Idle, LinkRun, Update  # noqa: E402

from link.pipe import TCP, Count  # noqa: E402
from link.profiles import LTE_M  # noqa: E402
from link.thin_link import Counts, DirectionCounts, FlowFacts, Trace  # noqa: E402

FRAME_BYTES = 62 * 22
"""What TLS puts around a payload of a megabyte: 62 records."""
UPDATE = Update(
    seconds=30.0,
    goodput_bps=280_000.0,
    https=1_005_000 + FRAME_BYTES,
    mqtt=3_000,
    wire=1_100_000,
    ledger=1_099_000,
)
RUN = LinkRun(LTE_M, 1_000_000, 1_000_000, [290_000.0], [UPDATE])
IDLE = Idle(
    keepalive_s=60,
    pings=2,
    ping_bytes=400,
    connect_bytes=9_000,
    connection_s=3600,
    resident_bytes=80_000_000,
    cpu_share=0.001,
)


def test_figures_that_are_within_what_is_asked_hold() -> None:
    assert judge_run(RUN) == judge_idle(IDLE) == []
    assert "| 0.966 | 1,364 | 8,000 | 5,000 | 3,000 | 1,100,000 | 0.999 | 30 | yes |" in make_table([RUN])
    assert "| 60 | 200 | 9,000 | 504,000 | 80.0 | 0.10% | yes |" in make_idle_table([IDLE])


@pytest.mark.parametrize(
    ("update", "text"),
    [
        (replace(UPDATE, goodput_bps=260_000.0), "goodput is 89.7% of what the link gives, at least 90% asked"),
        (replace(UPDATE, goodput_bps=None), "goodput is 0.0% of what the link gives, at least 90% asked"),
        (replace(UPDATE, mqtt=3_193), "8,193 bytes above TCP, TLS frames and payload, at most 8,192 asked"),
        (replace(UPDATE, ledger=1_060_000), "the ledger is -3.6% off the wire, 2% allowed"),
        (replace(UPDATE, ledger=1_123_000), "the ledger is +2.1% off the wire, 2% allowed"),
    ],
)
def test_an_update_that_falls_short_is_told(update: Update, text: str) -> None:
    assert judge_run(replace(RUN, updates=[update])) == [f"lte-m: {text}"]


def test_a_transfer_is_asked_for_no_more_than_the_link_has_nor_than_plain_tcp_makes_of_it() -> None:
    assert replace(RUN, bulk_bps=[310_000.0]).best_bps == LTE_M.bps
    assert replace(RUN, bulk_bps=[100_000.0, 250_000.0, 290_000.0]).best_bps == 250_000


def test_an_answer_ends_with_its_last_byte_however_late_its_connection_says_goodbye() -> None:
    """A server that lets an idle connection go sends 24 bytes, in the middle of what is measured or not."""
    came = ((0.0, 1_000), (1.0, 2_448), (9.0, 99_000), (9.1, 99_624))
    assert _make_counts(came).find_answer(8443) == (98_624, 8.1)
    assert _make_counts((*came, (33.0, 99_648))).find_answer(8443) == (98_624, 8.1)
    assert _make_counts((*came, (33.0, 99_647))).find_answer(8443) == (98_647, 32.0)


def _make_counts(came: Trace) -> Counts:
    """A handshake, and one answer."""
    none = Count()
    flows = [
        FlowFacts(TCP, 40_000, 8443, none, none, trace[-1][1], trace) for trace in (((-1.0, 200), (0.5, 500)), came)
    ]
    up, down = (DirectionCounts(none, none, none, none, (flow,)) for flow in flows)
    return Counts(up, down)


def test_an_idle_device_that_falls_short_is_told() -> None:
    [memory] = judge_idle(replace(IDLE, resident_bytes=90_100_000))
    assert memory == "idle, keepalive 60 s: 90.1 MB resident, at most 90 MB asked"
    [cpu] = judge_idle(replace(IDLE, cpu_share=0.005))
    assert cpu == "idle, keepalive 60 s: 0.50% of a core used, less than 0.5% asked"


@pytest.mark.soak
@pytest.mark.usefixtures("needs_link")
def test_a_small_run_measures_every_figure_of_an_update(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, ROOT / "scripts" / "bench_link.py", "--profile", "lte-m", "--no-idle", "--json", figures]
    done = subprocess.run([*command, "--ballast-bytes", "60000"], capture_output=True, text=True, check=False)
    [run] = json.loads(figures.read_text())["runs"]
    [update] = run["updates"]
    assert update["goodput_bps"] > 0.5 * run["profile"]["bps"]
    assert update["wire"] > update["https"] + update["mqtt"] > run["payload_bytes"] >= run["artifact_bytes"]
    assert (done.returncode == 0) == ("FALLS SHORT" not in done.stdout)
