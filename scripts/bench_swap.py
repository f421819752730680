"""Changes models under load and measures who notices: ours beside every peer that can change a model while it runs.

Prints a table, takes `--json FILE`, writes its section of docs/benchmarks.md with `--write FILE`, and exits non-zero
when a figure of ours falls short. Servers and how they change a model stand in serving/swap_sides.py, the load in
serving/load.py, what is swapped in serving/swap_scenes.py.

Rules:
- Open loop at half of what the server answers in a closed one, by a plain pooled keep-alive client without retry.
- The window of a swap runs from the order until the old model is freed. A request that touches a window is in it; all
  others are steady.
- All scenes and all peers take turns, `RUNS` times. Ratios are of times of one run, their median is judged and their
  spread is told; swaps, requests and failures are those of all runs together.
- It ends in time: after `END_AFTER_S` it gives up, which is a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench_serve import Check, make_checks_table, make_environments, make_site, report
from serving.load import Run, get_quantile, run_closed, run_open
from serving.machine import describe_machine, read_own_bytes
from serving.servers import NotStarted
from serving.swap_scenes import P99_SLOW_MAX, Scene, make_scenes
from serving.swap_sides import CHANGING, OURS, OpenSide, Side, open_ours

FASTESTDET = Path("pairs") / "fastestdet_fp32_retrain" / "v2.onnx"
RUNS = 7
SWAPS, REQUESTS = 20, 2000
"""Of each scene in all runs together."""
PEER_SWAPS, PEER_REQUESTS = 2, 200
"""Of each peer in a run."""
MEMORY_SWAPS = 40
RATE_SHARE = 0.5
STEADY_S, PEER_STEADY_S = 3.2, 1.6
"""Before the first swap: a p99 of a ratio that is judged wants some hundred steady requests."""
BETWEEN_S = 0.8
MEMORY_MAX, WORST_MAX, SLOW_MIN_S = 1.03, 3.0, 1.0
END_AFTER_S = 24.5 * 60
POLL_S = 0.05


@dataclass(slots=True)
class Found:
    """One run of one scene on one side. Times in seconds."""

    scene: str
    side: str
    rate: float = 0.0
    swaps: int = 0
    swap_s: float = 0.0
    requests: int = 0
    failed: int = 0
    faults: tuple[str, ...] = ()
    steady_p50_s: float = 0.0
    steady_p99_s: float = 0.0
    window_p99_s: float = 0.0
    worst_s: float = 0.0
    refused: tuple[str, ...] = ()
    """Codes with which a new version was refused, one for each."""
    load_cpu_s: float = 0.0
    """What the new worker had cost when it was proven, where that is known."""

    @property
    def p99_ratio(self) -> float:
        """p99 in the windows / p99 outside of them."""
        return self.window_p99_s / self.steady_p99_s if self.steady_p99_s else 0.0

    @property
    def worst_ratio(self) -> float:
        """The longest request in a window / p99 outside of them."""
        return self.worst_s / self.steady_p99_s if self.steady_p99_s else 0.0


@dataclass(slots=True)
class Figures:
    """All that was measured. `memory` is that of the tree after MEMORY_SWAPS swaps / after one, by scene."""

    found: list[Found] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


# --- one run ----------------------------------------------------------------------------------------------------------
async def run_scene(open_side: OpenSide, scene: Scene, picture: bytes, *, swaps: int, requests: int) -> Found:
    """Swaps under load, in a server of its own."""
    async with open_side(scene, picture) as side:
        target, found, run = side.make_target(picture), Found(scene.name, side.name), Run()
        await run_closed(target, clients=2, requests=100)
        closed = await run_closed(target, clients=2, requests=200)
        found.rate = RATE_SHARE * len(closed.answered) / closed.lasted_s
        done = asyncio.Event()
        loading = asyncio.create_task(run_open(target, rate=found.rate, seconds=END_AFTER_S, run=run, until=done))
        try:
            windows = await _swap_on(side, scene, found, swaps)
            while len(run.shots) < requests:  # noqa: ASYNC110 - the load tells of no single shot
                await asyncio.sleep(POLL_S)
        finally:
            done.set()
            await loading
    _measure(found, run, windows)
    return found


async def _swap_on(side: Side, scene: Scene, found: Found, swaps: int) -> list[tuple[float, float]]:
    windows, refused, costs = [], [], []
    await asyncio.sleep(STEADY_S if side.name == OURS else PEER_STEADY_S)
    for number in range(1, swaps + 1):
        said = await side.swap(scene.files[number % len(scene.files)])
        windows.append((said.began_s, said.freed_s))
        refused += [said.error] if said.error else []
        costs.append(said.load_cpu_s)
        await asyncio.sleep(BETWEEN_S)
    found.swaps, found.refused = swaps, tuple(refused)
    found.load_cpu_s = median(costs)
    found.swap_s = median(ended - began for began, ended in windows)
    return windows


def _measure(found: Found, run: Run, windows: Sequence[tuple[float, float]]) -> None:
    inside, steady = [], []
    for shot in run.answered:
        due_s = run.began_s + shot.due_s
        touches = any(due_s < ended and due_s + shot.took_s > began for began, ended in windows)
        (inside if touches else steady).append(shot.took_s)
    found.requests, found.failed = len(run.shots), len(run.shots) - len(run.answered)
    found.faults = tuple(sorted({shot.fault or str(shot.status) for shot in run.shots if shot not in run.answered}))
    found.steady_p50_s, found.steady_p99_s = get_quantile(steady, 0.5), get_quantile(steady, 0.99)
    found.window_p99_s, found.worst_s = get_quantile(inside, 0.99), max(inside, default=0.0)


async def run_memory(scene: Scene, picture: bytes) -> float:
    """Memory of our whole tree after MEMORY_SWAPS swaps / after one; without pages of files, which others share."""
    sizes = []
    async with open_ours(scene, picture) as side:
        for number in range(1, MEMORY_SWAPS + 1):
            await side.swap(scene.files[number % len(scene.files)])
            await run_closed(side.make_target(picture), clients=2, requests=20)
            sizes.append(read_own_bytes(side.pid))
    return sizes[-1] / sizes[0]


# --- all of it --------------------------------------------------------------------------------------------------------
def measure(options: argparse.Namespace) -> Figures:
    """All scenes and peers in turns, `--runs` times; those that must fail and memory once."""
    figures = Figures()
    swaps, requests = (math.ceil(whole / options.runs) for whole in (options.swaps, options.requests))
    with tempfile.TemporaryDirectory() as name:
        site, path = make_site(Path(name), FASTESTDET)
        picture, scenes = path.read_bytes(), make_scenes(site)
        for _ in range(options.runs):
            for scene in [one for one in scenes if not one.fails]:
                _take(figures, open_ours, scene, picture, swaps=swaps, requests=requests)
            if options.peers:
                _measure_peers(figures, scenes[0], picture)
        for scene in [one for one in scenes if one.fails]:
            _take(figures, open_ours, scene, picture, swaps=options.swaps, requests=options.requests)
        for scene in [one for one in scenes if one.in_memory]:
            figures.memory[scene.name] = asyncio.run(run_memory(scene, picture))
    return figures


def _measure_peers(figures: Figures, scene: Scene, picture: bytes) -> None:
    unmade = make_environments([one.peer.environment for one in CHANGING])
    for one in [one for one in CHANGING if one.name not in figures.missing]:
        if one.peer.environment in unmade:
            figures.missing[one.name] = unmade[one.peer.environment]
            continue
        try:
            _take(figures, one.open, scene, picture, swaps=PEER_SWAPS, requests=PEER_REQUESTS)
        except (NotStarted, OSError, StopIteration, TimeoutError) as error:
            figures.missing[one.name] = str(error)[:200] or type(error).__name__


def _take(figures: Figures, open_side: OpenSide, scene: Scene, picture: bytes, *, swaps: int, requests: int) -> None:
    found = asyncio.run(run_scene(open_side, scene, picture, swaps=swaps, requests=requests))
    figures.found.append(found)
    print(f"    {found.side}: {_make_row([found])}", file=sys.stderr, flush=True)


# --- judging and telling ----------------------------------------------------------------------------------------------
def make_checks(figures: Figures, scenes: Sequence[tuple[str, float, bool]]) -> list[Check]:
    """Every figure that is asked of ours; `scenes` are (name, bound of p99, whether every other version must fail)."""
    checks = []
    for name, bound, fails in scenes:
        found = [one for one in figures.found if one.side == OURS and one.scene == name]
        checks.append(Check(f"{name}: requests that failed", [sum(one.failed for one in found)], 0))
        checks.append(Check(f"{name}: requests", [sum(one.requests for one in found)], REQUESTS, True))
        checks.append(Check(f"{name}: swaps", [sum(one.swaps for one in found)], SWAPS, True))
        if fails:
            shares = [len(one.refused) / max(1, one.swaps // 2) for one in found]
            checks.append(Check(f"{name}: versions refused with an error / bad ones", shares, 1.0, True))
            continue
        checks.append(Check(f"{name}: p99 in a swap / steady", [one.p99_ratio for one in found], bound))
        if bound == P99_SLOW_MAX:
            checks.append(Check(f"{name}: CPU s of a load", [one.load_cpu_s for one in found], SLOW_MIN_S, True))
        checks.append(Check(f"{name}: longest in a swap / steady p99", [one.worst_ratio for one in found], WORST_MAX))
    checks += [
        Check(f"{name}: memory after {MEMORY_SWAPS} swaps / 1", [one], MEMORY_MAX)
        for name, one in figures.memory.items()
    ]
    return checks


def make_table(figures: Figures) -> str:
    """All sides as a Markdown table, medians of their runs."""
    head = (
        "| server | scene | requests/s | swaps | s of a swap | failed / requests | steady p50 ms | steady p99 ms"
        " | p99 in a swap / steady | longest / steady p99 | refused versions |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"
    )
    groups: dict[tuple[str, str], list[Found]] = {}
    for one in figures.found:
        groups.setdefault((one.side, one.scene), []).append(one)
    rows = [f"| {side} | {_make_row(found)} |" for (side, _), found in groups.items()]
    rows += [f"| {name} | missing: {reason} |||||||||" for name, reason in figures.missing.items()]
    return head + "\n".join(rows) + "\n"


def _make_row(found: Sequence[Found]) -> str:
    cells = [
        found[0].scene,
        f"{median(one.rate for one in found):.0f}",
        str(sum(one.swaps for one in found)),
        f"{median(one.swap_s for one in found):.2f}",
        f"{sum(one.failed for one in found)} / {sum(one.requests for one in found)}",
        f"{1000 * median(one.steady_p50_s for one in found):.1f}",
        f"{1000 * median(one.steady_p99_s for one in found):.1f}",
        f"{median(one.p99_ratio for one in found):.2f}",
        f"{median(one.worst_ratio for one in found):.2f}",
        ", ".join(sorted({code for one in found for code in one.refused})),
    ]
    return " | ".join(cells)


def make_section(figures: Figures, checks: Sequence[Check], took_s: float) -> str:
    """What stands in docs/benchmarks.md."""
    return (
        "## Changing models under load\n\n"
        "Open loop at half of what each server answers in a closed one, a plain pooled keep-alive client without retry;"
        " a swap lasts from the order until the old model is freed. FastestDet (ONNX), an SSD (LiteRT), 640x480 JPEG;"
        " the slow ones are the same models with over a second of work for the engine before the first answer. Ours are"
        " the device's own slots behind its own HTTP server (`serving/swap_server.py`)."
        f" ({describe_machine()}; the whole run took {took_s:.0f} s.)\n\n"
        f"{make_table(figures)}\n{make_checks_table(checks)}"
    )


def _give_up(*_: object) -> None:
    raise SystemExit(f"FALLS SHORT: not done after {END_AFTER_S / 60:.1f} minutes")


def main() -> int:
    """Runs all, prints, writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--swaps", type=int, default=SWAPS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, END_AFTER_S)
    began = time.monotonic()
    figures = measure(options)
    names = dict.fromkeys(one.scene for one in figures.found)
    checks = make_checks(figures, [one.get_bounds() for one in make_scenes(None) if one.name in names])
    section = make_section(figures, checks, time.monotonic() - began)
    print(make_table(figures), make_checks_table(checks), sep="\n")
    return report(options, "make bench-swap", figures=figures, checks=checks, section=section)


if __name__ == "__main__":
    sys.exit(main())
