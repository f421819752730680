"""The benches: they share one page, and the load bench notices what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # the scripts are no package: they find each other in their folder

from bench_hub import Scene, Step  # noqa: E402
from hub_site import Memory  # noqa: E402
from page_sections import replace_section  # noqa: E402

SMALL = Memory(resident=90, anonymous=50, peak=95)


def make_step(answer: dict[str, object], memory: Memory = SMALL) -> Step:
    return Step(Scene("TLS", 10, True, 100), "a step", answer, 0.5, memory)


def test_each_bench_replaces_its_own_section_and_no_other() -> None:
    page = replace_section("# Measurements\n", "make one", "first\n")
    page = replace_section(page, "make two", "second")
    again = replace_section(page, "make one", "third")
    assert "first" not in again
    assert again.index("third") < again.index("second")
    assert replace_section(again, "make one", "first") == page


def test_a_section_without_its_end_is_not_guessed_at() -> None:
    page = replace_section("", "make one", "first").replace("<!-- make one ends -->\n", "")
    with pytest.raises(SystemExit, match="has no end"):
        replace_section(page, "make one", "second")


def test_a_step_without_failures_and_within_its_memory_holds() -> None:
    assert make_step({"delivered": 10, "acknowledged": 10, "failures": {}}).shortfalls == []


def test_failures_lost_patches_and_memory_fall_short() -> None:
    assert make_step({"failures": {"connection lost": 1}}).shortfalls == ["1 x connection lost"]
    assert make_step({"acknowledged": 9, "failures": {}}).shortfalls == ["9 of 10 acknowledged"]
    assert make_step({"delivered": 9, "failures": {}}).shortfalls == ["9 of 10 delivered"]
    assert len(make_step({}, Memory(resident=101, anonymous=50, peak=101)).shortfalls) == 1


def test_a_small_fleet_connects_is_patched_and_comes_back(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, ROOT / "scripts" / "bench_hub.py", "--tls-modules", "60", "--plain-modules", "40"]
    done = subprocess.run([*command, "--json", figures], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads(figures.read_text())
    assert [step["answer"].get("acknowledged") for step in steps] == [None, None, 60, None, 60, None, None, 40]
    assert all(step["memory"]["resident"] > 0 for step in steps)
