"""What is asked of patches, as rows and rules: the arithmetic of `make bench-delta`.

Pure: values in, words out. delta_peers.py and delta_ours.py measure, delta_tables.py shows, bench_delta.py runs it all.

Rules:
- "Best" is the smallest of the generic peers, pair by pair.
- Every rule that fails gives one line that names pair or class, the figure and what is asked.
- A class without a pair falls short: nothing passes by not being measured.
- MB is 10^6 bytes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from delta_pairs import GENERIC, KINDS, RESEARCH, WITHOUT_BASE

MB = 1_000_000
OVER_BEST_MAX_BYTES = 64
MEAN_ASKED = {"fine-tune": 1.5, "head-only": 1.12, "retrained": 1.10}
EACH_ASKED = {"structure": 10.0}
RESEARCH_ASKED = 1.15
RESEARCH_KIND = SERIES_KIND = "fine-tune"
TENSOR_RATE, REMAINDER_RATE = 8 * MB, 40 * MB
"""Output bytes per CPU second, from RATE_FROM_BYTES on."""
RATE_FROM_BYTES, SMALL_APPLY_MAX_S = 4 * MB, 1.0
MAKE_MAX_S, MAKE_BYTES = 60.0, 10 * MB
LARGEST_BYTES, GROWTH_MAX = 500 * MB, 1.5
"""The largest model of the series, and its cost per MB against that of the smallest one."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds, and anonymous memory above the imports in bytes."""

    cpu_s: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Made:
    """A patch or coded file: its size, the way that won, the memory that it states, and what making it cost.

    `remainder_only`: no tensor is coded as such.
    """

    size_bytes: int
    way: str
    memory_bytes: int
    cost: Cost
    remainder_only: bool = False


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair, measured. `peers` holds bytes by peer; `tensor_bytes` is the target's largest tensor."""

    kind: str
    name: str
    target_bytes: int
    tensor_bytes: int
    peers: dict[str, int]
    ours: Made
    apply: Cost

    @property
    def best(self) -> tuple[str, int]:
        """The best generic peer and its bytes."""
        return min(((peer, self.peers[peer]) for peer in GENERIC if peer in self.peers), key=lambda one: one[1])

    @property
    def gain(self) -> float:
        """Best generic peer / ours."""
        return self.best[1] / self.ours.size_bytes


@dataclass(frozen=True, slots=True)
class FullRow:
    """One float model without a base."""

    name: str
    target_bytes: int
    peers: dict[str, int]
    ours: Made


@dataclass(frozen=True, slots=True)
class LargeRow:
    """One size of the generated models; `kind` is what changed in it."""

    kind: str
    target_bytes: int
    tensor_bytes: int
    ours: Made
    apply: Cost


@dataclass(frozen=True, slots=True)
class Summary:
    """One class of change: its pairs, and best generic peer / ours over them."""

    kind: str
    pairs: int
    mean: float
    median: float
    worst: float
    asked: str
    shortfalls: list[str]


# --- rules ------------------------------------------------------------------------------------------------------------
def find_shortfalls(pairs: Sequence[PairRow], fulls: Sequence[FullRow], large: Sequence[LargeRow]) -> list[str]:
    """Everything that falls short, a line each."""
    found = [text for one in summarise(pairs) for text in one.shortfalls]
    found += judge_research(pairs)
    for row in pairs:
        found += [f"{row.kind}, {row.name}: {text}" for text in judge_costs(row)]
        found += [f"{row.kind}, {row.name}: {text}" for text in judge_make(row)]
    for one in large:
        found += [f"generated, {one.kind}, {_show_mb(one)}: {text}" for text in judge_costs(one)]
    return [*found, *judge_growth(large), *judge_full(fulls)]


def summarise(rows: Sequence[PairRow]) -> list[Summary]:
    """Each class with its figures and shortfalls."""
    return [_summarise_kind(kind, [row for row in rows if row.kind == kind]) for kind in KINDS]


def _summarise_kind(kind: str, rows: list[PairRow]) -> Summary:
    asked = _tell_asked(kind)
    if not rows:
        return Summary(kind, 0, math.nan, math.nan, math.nan, asked, [f"{kind}: no pair was measured"])
    gains = [row.gain for row in rows]
    mean, median, worst = statistics.geometric_mean(gains), statistics.median(gains), min(gains)
    shortfalls = [f"{kind}, {row.name}: {text}" for row in rows for text in judge_bytes(row)]
    if mean < MEAN_ASKED.get(kind, 0):
        shortfalls.insert(0, f"{kind}: geometric mean {mean:.3f}, at least {MEAN_ASKED[kind]} asked")
    return Summary(kind, len(rows), mean, median, worst, asked, shortfalls)


def _tell_asked(kind: str) -> str:
    if kind in MEAN_ASKED:
        return f"mean >= {MEAN_ASKED[kind]:.2f}"
    return f"each >= {EACH_ASKED[kind]:.0f}" if kind in EACH_ASKED else f"each within {OVER_BEST_MAX_BYTES} bytes"


def judge_bytes(row: PairRow) -> list[str]:
    """The patch's size against the best peer."""
    peer, size_bytes = row.best
    found = []
    if row.gain < EACH_ASKED.get(row.kind, 0):
        found.append(f"{peer} / ours is {row.gain:.2f}, at least {EACH_ASKED[row.kind]:.0f} asked")
    over = row.ours.size_bytes - size_bytes
    if over > OVER_BEST_MAX_BYTES:
        found.append(f"{over:,} bytes above {peer} ({size_bytes:,}), at most {OVER_BEST_MAX_BYTES} asked")
    return found


def judge_research(rows: Sequence[PairRow]) -> list[str]:
    """Each research baseline / ours on the class where both are beaten."""
    found = []
    for peer, mean in measure_research(rows).items():
        if not mean >= RESEARCH_ASKED:
            found.append(f"{RESEARCH_KIND}: {peer} / ours is {mean:.3f}, at least {RESEARCH_ASKED} asked")
    return found


def measure_research(rows: Sequence[PairRow]) -> dict[str, float]:
    """Geometric mean of each research baseline / ours; not a number without a pair."""
    chosen = [row for row in rows if row.kind == RESEARCH_KIND]
    return {
        peer: statistics.geometric_mean(row.peers[peer] / row.ours.size_bytes for row in chosen) if chosen else math.nan
        for peer in RESEARCH
    }


def judge_costs(row: PairRow | LargeRow) -> list[str]:
    """Applying: memory and CPU time."""
    stated, used, bound = row.ours.memory_bytes, row.apply.memory_bytes, get_memory_bound(row.tensor_bytes)
    found = []
    if used > stated:
        found.append(f"applying took {used:,} bytes of memory, its header states {stated:,}")
    if stated > bound:
        found.append(f"the header states {stated:,} bytes of memory, at most {bound:,} allowed")
    if row.target_bytes < RATE_FROM_BYTES:
        if row.apply.cpu_s > SMALL_APPLY_MAX_S:
            found.append(f"applying took {row.apply.cpu_s:.2f} CPU s, at most {SMALL_APPLY_MAX_S:.0f} asked")
        return found
    rate, asked = get_rate(row), REMAINDER_RATE if row.ours.remainder_only else TENSOR_RATE
    if rate < asked:
        found.append(f"applying gave {rate / MB:.1f} MB a CPU second, at least {asked / MB:.0f} asked")
    return found


def get_memory_bound(tensor_bytes: int) -> int:
    """What a patch may ever ask for: 96 MB, or 32 MB and twice the largest tensor."""
    return max(96 * MB, 32 * MB + 2 * tensor_bytes)


def get_rate(row: PairRow | LargeRow) -> float:
    """Output bytes per CPU second of applying."""
    return row.target_bytes / max(row.apply.cpu_s, 1e-6)


def judge_make(row: PairRow) -> list[str]:
    """Making: CPU time, in proportion above 10 MB."""
    allowed, used = MAKE_MAX_S * max(1.0, row.target_bytes / MAKE_BYTES), row.ours.cost.cpu_s
    return [f"making took {used:.1f} CPU s, at most {allowed:.0f} asked"] if used > allowed else []


def judge_growth(rows: Sequence[LargeRow]) -> list[str]:
    """No cost per MB of the largest model is far above that of the smallest one."""
    series = get_series(rows)
    if not series or series[-1].target_bytes < LARGEST_BYTES:
        return [f"generated: no model of {LARGEST_BYTES / MB:.0f} MB was measured"]
    return [
        f"{name} per MB grows {growth:.2f} times up to {_show_mb(series[-1])}, at most {GROWTH_MAX} asked"
        for name, growth in measure_growth(rows).items()
        if growth > GROWTH_MAX
    ]


def _show_mb(row: LargeRow) -> str:
    return f"{row.target_bytes / MB:,.0f} MB"


def get_series(rows: Sequence[LargeRow]) -> list[LargeRow]:
    """The sizes of one kind of change, smallest first."""
    return sorted((row for row in rows if row.kind == SERIES_KIND), key=lambda row: row.target_bytes)


def measure_growth(rows: Sequence[LargeRow]) -> dict[str, float]:
    """Cost per MB of the largest / that of the smallest, for each cost; empty below two sizes."""
    series = get_series(rows)
    if len(series) < 2:
        return {}
    first, last = (_get_costs(row) for row in (series[0], series[-1]))
    ratio = series[0].target_bytes / series[-1].target_bytes
    return {name: last[name] / max(first[name], 1e-6) * ratio for name in first}


def _get_costs(row: LargeRow) -> dict[str, float]:
    return {
        "CPU time of making": row.ours.cost.cpu_s,
        "memory of making": float(row.ours.cost.memory_bytes),
        "CPU time of applying": row.apply.cpu_s,
        "memory of applying": float(row.apply.memory_bytes),
    }


def judge_full(rows: Sequence[FullRow]) -> list[str]:
    """Without a base: smaller than each of ZIP, xz and zstd."""
    return [
        f"full download, {row.name}: {row.ours.size_bytes:,} bytes, {peer} takes {row.peers[peer]:,}"
        for row in rows
        for peer in WITHOUT_BASE
        if row.ours.size_bytes >= row.peers[peer]
    ]
