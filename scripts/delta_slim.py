"""Slim versions for `make bench-delta`: bench_slim.py in a process of its own, its section and what falls short.

Rules:
- A child that ends without its figures falls short: nothing passes by not being measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "bench_slim.py"
SLIM_WEIGHT = 200e6
"""As long as a patch for a model of so many bytes takes."""
_MAX_S = 900


@dataclass(frozen=True, slots=True)
class Slim:
    """What bench_slim.py found: Markdown, its rows as it writes them, and what falls short."""

    section: str
    rows: list[dict[str, object]]
    shortfalls: list[str]


def measure_slim(folder: Path, *, script: Path = SCRIPT) -> Slim:
    """Some minutes of one core."""
    figures = folder / "slim.json"
    try:
        done = subprocess.run(
            [sys.executable, script, "--json", figures], capture_output=True, text=True, timeout=_MAX_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Slim("", [], [f"slim: not done after {_MAX_S} s"])
    if not figures.is_file():
        return Slim("", [], [f"slim: not measured: {done.stderr.strip()[-300:] or 'no figures'}"])
    found = json.loads(figures.read_text())
    shortfalls = found["shortfalls"]
    if done.returncode and not shortfalls:
        shortfalls = [f"slim: {script.name} ended with {done.returncode}"]
    return Slim(done.stdout, found["rows"], shortfalls)
