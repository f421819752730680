"""The tables of `make bench-delta`, in Markdown. What is asked, and whether it holds, is delta_judge.py's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from delta_judge import (
    MB,
    RESEARCH_ASKED,
    RESEARCH_KIND,
    FullRow,
    LargeRow,
    PairRow,
    get_memory_bound,
    get_rate,
    judge_costs,
    judge_full,
    judge_make,
    judge_research,
    measure_growth,
    measure_research,
    summarise,
)
from delta_pairs import GENERIC, RESEARCH, WITHOUT_BASE


def make_summary_table(rows: Sequence[PairRow]) -> str:
    """The classes with what is asked of them."""
    lines = [
        [
            one.kind,
            one.pairs,
            f"{one.mean:.2f}",
            f"{one.median:.2f}",
            f"{one.worst:.2f}",
            one.asked,
            _say(one.shortfalls),
        ]
        for one in summarise(rows)
    ]
    for peer, mean in measure_research(rows).items():
        short = [text for text in judge_research(rows) if peer in text]
        lines.append(
            [f"{RESEARCH_KIND}, {peer} / ours", "", f"{mean:.2f}", "", "", f"mean >= {RESEARCH_ASKED}", _say(short)]
        )
    head = "class | pairs | geometric mean | median | worst | asked | holds"
    return make_table(head, "l r r r r l l", lines)


def make_pair_table(rows: Iterable[PairRow]) -> str:
    """Every pair with every peer."""
    peers = (*GENERIC, *RESEARCH)
    lines = (
        [row.kind, row.name, f"{row.target_bytes:,}", *(_show(row.peers.get(peer)) for peer in peers)]
        + [f"{row.ours.size_bytes:,}", row.ours.way, f"{row.gain:.2f}"]
        + [f"{row.peers[peer] / row.ours.size_bytes:.2f}" if peer in row.peers else "" for peer in RESEARCH]
        for row in rows
    )
    head = " | ".join(("class | pair | bytes", *peers, "ours | way | best / ours | FM-Delta / ours | BitX / ours"))
    return make_table(head, "l l r" + " r" * len(peers) + " r l r r r", lines)


def make_cost_table(rows: Iterable[PairRow]) -> str:
    """What making and applying each patch cost."""
    lines = ([row.kind, row.name, *_show_costs(row), _say([*judge_costs(row), *judge_make(row)])] for row in rows)
    return make_table(f"class | pair | {_COST_HEAD} | holds", f"l l {_COST_ALIGN} l", lines)


def make_large_table(rows: Sequence[LargeRow]) -> str:
    """The generated series."""
    lines = ([row.kind, *_show_costs(row), _say(judge_costs(row))] for row in rows)
    grown = (f"{name} {growth:.2f}" for name, growth in measure_growth(rows).items())
    table = make_table(f"what changed | {_COST_HEAD} | holds", f"l {_COST_ALIGN} l", lines)
    return f"{table}\nPer MB, largest against smallest: {', '.join(grown) or 'not measured'}.\n"


def make_full_table(rows: Iterable[FullRow]) -> str:
    """Float models without a base."""
    head = " | ".join(("model | bytes", *WITHOUT_BASE, "ours | way | best / ours | holds"))
    return make_table(head, "l r r r r r l r l", map(_make_full_line, rows))


def _make_full_line(row: FullRow) -> list[str]:
    peers = [row.peers[peer] for peer in WITHOUT_BASE]
    sizes = [f"{size_bytes:,}" for size_bytes in (row.target_bytes, *peers, row.ours.size_bytes)]
    return [row.name, *sizes, row.ours.way, f"{min(peers) / row.ours.size_bytes:.3f}", _say(judge_full([row]))]


_COST_HEAD = (
    "output MB | make CPU s | make MB | apply CPU s | apply MB per CPU s | apply anonymous MB | stated MB | allowed MB"
)
_COST_ALIGN = "r r r r r r r r"


def _show_costs(row: PairRow | LargeRow) -> list[str]:
    figures = (
        row.ours.cost.memory_bytes,
        row.apply.memory_bytes,
        row.ours.memory_bytes,
        get_memory_bound(row.tensor_bytes),
    )
    make_mb, apply_mb, stated, bound = (f"{figure / MB:,.1f}" for figure in figures)
    times = [f"{row.ours.cost.cpu_s:.2f}", make_mb, f"{row.apply.cpu_s:.3f}", f"{get_rate(row) / MB:,.1f}"]
    return [f"{row.target_bytes / MB:,.2f}", *times, apply_mb, stated, bound]


def make_table(head: str, align: str, lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table; `align` holds l or r for each column."""
    marks = "|".join("--:" if mark == "r" else "---" for mark in align.split())
    return "\n".join(_iterate_lines(head, marks, lines)) + "\n"


def _iterate_lines(head: str, marks: str, lines: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {head} |"
    yield f"|{marks}|"
    for line in lines:
        yield f"| {' | '.join(map(str, line))} |"


def _show(size_bytes: int | None) -> str:
    return "missing" if size_bytes is None else f"{size_bytes:,}"


def _say(shortfalls: Sequence[str]) -> str:
    return "no" if shortfalls else "yes"
