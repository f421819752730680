"""Seeded hostile streams of MQTT through codec, order, names, tokens and topics: 20,000, in full 1,000,000.

Each block of streams is read by a process of its own (stream_fuzz.py), which looks at time and memory as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
GROWTH_MAX_KB = 16 * 1024  # what a header promises (256 MB) is never allocated, and nothing is kept
FULL_BLOCKS, FULL_BLOCK = 5, 200_000
ENDS = {"ProtocolViolated", "LimitExceeded", "HubRefused", "alive", "over"}


def read_streams(first: int, count: int, *more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, Path(__file__).with_name("stream_fuzz.py"), str(first), str(count), *more],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def require_sound(first: int, count: int) -> None:
    done = read_streams(first, count)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert sum(found["ends"].values()) == count
    assert min(found["ends"].get(end, 0) for end in ENDS) > count / 100, f"an end is hardly reached: {found['ends']}"
    assert set(found["ends"]) == ENDS
    assert found["growth_kb"] < GROWTH_MAX_KB
    print(found)


@pytest.mark.soak
def test_twenty_thousand_streams_end_in_packets_or_in_our_own_errors() -> None:
    require_sound(0, 20_000)


@pytest.mark.soak_full
@pytest.mark.parametrize("block", range(FULL_BLOCKS))
def test_a_million_streams_end_in_packets_or_in_our_own_errors(block: int) -> None:
    require_sound(20_000 + block * FULL_BLOCK, FULL_BLOCK)


def test_a_defect_is_found_and_its_stream_shown() -> None:
    done = read_streams(0, 20_000, "planted")
    assert done.returncode == 1 and "ValueError" in done.stderr
    assert "seed" in done.stderr.splitlines()[-1]
