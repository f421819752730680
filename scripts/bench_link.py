"""Measures updates over thin links, and what a device costs that has nothing to do.

Prints a table, takes `--json FILE`, writes its section of docs/benchmarks.md with `--write FILE`, and exits non-zero
when a figure falls short. What is measured stands in link_scenes.py, the link in tests/link/.

Rules:
- Slow links are slow: the scenes run side by side, each in namespaces of its own.
- It ends in time: after `END_AFTER_S` it gives up, which is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from link_scenes import Idle, LinkRun, Update, run_idle, run_updates
from page_sections import write_section

from link.profiles import PROFILES
from link.thin_link import find_missing
from link.thin_site import prepare

GOODPUT_MIN_SHARE = 0.90
OVERHEAD_MAX_BYTES = 8192
LEDGER_MAX_SHARE = 0.02
RESIDENT_MAX_BYTES = 90 * 1000 * 1000
CPU_MAX_SHARE = 0.005
BALLAST_BYTES = 1_150_000
"""Random weights, of which about 1 MB travels."""
SMALL_BALLAST_BYTES = 100_000
IDLE_SCENES = ((60, 2), (240, 1))
"""Keepalive in seconds, and how many of them are waited for."""
END_AFTER_S = 25 * 60


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured."""

    runs: Sequence[LinkRun]
    idles: Sequence[Idle]


def judge_run(run: LinkRun) -> list[str]:
    """What of a profile's figures falls short of what is asked, in words."""
    found = []
    if run.goodput_bps < GOODPUT_MIN_SHARE * run.best_bps:
        share = run.goodput_bps / run.best_bps
        found.append(f"goodput is {share:.1%} of what the link gives, at least {GOODPUT_MIN_SHARE:.0%} asked")
    if run.overhead_bytes > OVERHEAD_MAX_BYTES:
        found.append(
            f"{run.overhead_bytes:,} bytes above TCP, TLS frames and payload, at most {OVERHEAD_MAX_BYTES:,} asked"
        )
    for update in run.updates:
        if abs(find_ledger_error(update)) > LEDGER_MAX_SHARE:
            found.append(f"the ledger is {find_ledger_error(update):+.1%} off the wire, {LEDGER_MAX_SHARE:.0%} allowed")
    return [f"{run.profile.name}: {text}" for text in found]


def judge_idle(idle: Idle) -> list[str]:
    """The same, of a device with nothing to do."""
    found = []
    if idle.resident_bytes > RESIDENT_MAX_BYTES:
        found.append(f"{idle.resident_bytes / 1e6:.1f} MB resident, at most {RESIDENT_MAX_BYTES / 1e6:.0f} MB asked")
    if idle.cpu_share >= CPU_MAX_SHARE:
        found.append(f"{idle.cpu_share:.2%} of a core used, less than {CPU_MAX_SHARE:.1%} asked")
    return [f"idle, keepalive {idle.keepalive_s} s: {text}" for text in found]


def find_ledger_error(update: Update) -> float:
    """By what share the ledger is above the wire."""
    return (update.ledger - update.wire) / update.wire


# --- the page ---------------------------------------------------------------------------------------------------------
def make_table(runs: Sequence[LinkRun]) -> str:
    """The updates as a Markdown table."""
    head = (
        "| link | bit/s | round trip s | loss | bulk TCP bit/s | artifact bytes | goodput bit/s | goodput / best"
        " | its TLS frames | overhead | of it HTTPS | of it MQTT | wire bytes | ledger / wire | seconds | holds |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"
    )
    return head + "\n".join(_make_row(run) for run in runs) + "\n"


def _make_row(run: LinkRun) -> str:
    profile, dearest = run.profile, max(run.updates, key=lambda update: update.https + update.mqtt)
    ledger = f"{1 + find_ledger_error(dearest):.3f}"
    cells = [
        *(profile.name, f"{profile.bps:,}", f"{profile.rtt_s:g}", f"{profile.loss:.0%}"),
        *(f"{median(run.bulk_bps):,.0f}", f"{run.artifact_bytes:,}", f"{run.goodput_bps:,.0f}"),
        *(f"{run.goodput_bps / run.best_bps:.3f}", f"{run.frame_bytes:,}", f"{run.overhead_bytes:,}"),
        *(f"{dearest.https - run.payload_bytes - run.frame_bytes:,}", f"{dearest.mqtt:,}", f"{dearest.wire:,}", ledger),
        *(f"{median(update.seconds for update in run.updates):.0f}", "no" if judge_run(run) else "yes"),
    ]
    return f"| {' | '.join(cells)} |"


def make_idle_table(idles: Sequence[Idle]) -> str:
    """The devices with nothing to do as a Markdown table."""
    head = (
        "| keepalive s | bytes a keepalive | bytes a connection | bytes a day | resident MB | CPU | holds |\n"
        "|--:|--:|--:|--:|--:|--:|---|\n"
    )
    return head + "\n".join(_make_idle_row(idle) for idle in idles) + "\n"


def _make_idle_row(idle: Idle) -> str:
    cells = [
        *(f"{idle.keepalive_s}", f"{idle.ping_bytes / idle.pings:,.0f}", f"{idle.connect_bytes:,}"),
        *(f"{idle.day_bytes:,.0f}", f"{idle.resident_bytes / 1e6:.1f}", f"{idle.cpu_share:.2%}"),
        "no" if judge_idle(idle) else "yes",
    ]
    return f"| {' | '.join(cells)} |"


def make_section(figures: Figures, took_s: float) -> str:
    """What stands in docs/benchmarks.md."""
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}; the whole run took {took_s:.0f} s"
    return (
        "## Updates over thin links\n\n"
        f"Asked: from the artifact's first byte to its last at least {GOODPUT_MIN_SHARE:.0%} of min(link, bulk TCP on"
        f" the same link); a whole update at most {OVERHEAD_MAX_BYTES:,} bytes above TCP beside its payload and the TLS"
        " frames of that (handshakes, HTTP heads, metadata, twin, reports; all connections fresh); the ledger within"
        f" {LEDGER_MAX_SHARE:.0%} of the wire.\n\n"
        "A hub with TLS and the repository it publishes stand on one side of a link in user space, a device on the"
        " other (tests/link/). Where packets are lost, bulk transfers and updates are run thrice and medians compared;"
        f" bytes are the dearest update's. Seconds: from the device's start to ACTIVE. ({machine}.)\n\n"
        f"{make_table(figures.runs)}\n"
        "## A device with nothing to do\n\n"
        f"Asked: at most {RESIDENT_MAX_BYTES / 1e6:.0f} MB resident and less than {CPU_MAX_SHARE:.1%} of a core, of a"
        " loader, which has no worker. Bytes are IP bytes both ways; a day holds keepalives, and a new connection"
        f" whenever a token's time is up.\n\n{make_idle_table(figures.idles)}"
    )


# --- the run ----------------------------------------------------------------------------------------------------------
def measure(options: argparse.Namespace) -> Figures:
    """Runs all scenes side by side."""
    profiles = [one for one in PROFILES if one.name in options.profile]
    scenes = IDLE_SCENES if options.idle else ()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(profiles) + len(scenes)) as pool:
        folder = Path(name)
        large, small = prepare(folder / "large", options.ballast_bytes), prepare(folder / "small", SMALL_BALLAST_BYTES)
        runs = [pool.submit(run_updates, one, large, folder / one.name) for one in profiles]
        idles = [
            pool.submit(run_idle, keepalive_s, small, folder / f"idle-{keepalive_s}", pings=pings)
            for keepalive_s, pings in scenes
        ]
        return Figures([run.result() for run in runs], [idle.result() for idle in idles])


def _give_up(*_: object) -> None:
    print(f"FALLS SHORT: not done after {END_AFTER_S / 60:.0f} minutes", flush=True)
    os._exit(1)  # the threads of the scenes do not end; each link ends with this process and takes its own along


def main() -> int:
    """Runs the scenes, prints, writes; returns the exit code."""
    names = [one.name for one in PROFILES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--profile", nargs="+", choices=names, default=names)
    parser.add_argument("--ballast-bytes", type=int, default=BALLAST_BYTES)
    parser.add_argument("--no-idle", dest="idle", action="store_false")
    options = parser.parse_args()
    missing = find_missing()
    if missing is not None:
        raise SystemExit(f"FALLS SHORT: {missing}")
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(END_AFTER_S)
    began = time.monotonic()
    figures = measure(options)
    print(make_table(figures.runs))
    print(make_idle_table(figures.idles))
    if options.json:
        options.json.write_text(json.dumps(asdict(figures), indent=1) + "\n")
    if options.write:
        write_section(options.write, "make bench-link", make_section(figures, time.monotonic() - began))
    short = [text for run in figures.runs for text in judge_run(run)]
    short += [text for idle in figures.idles for text in judge_idle(idle)]
    for text in short:
        print(f"FALLS SHORT: {text}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
