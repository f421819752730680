"""Makes pairs and the index of the corpus. A module of its own, so that the processes that make pairs can load it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from scripts.delta_corpus.pairs import Pair, list_pairs

NETS = "nets"


def group_by_net(pairs: list[Pair]) -> list[set[tuple[str, str]]]:
    """The pairs (class, name) of one net each, most pairs first: only one process trains a net."""
    groups: dict[str, set[tuple[str, str]]] = {}
    for pair in pairs:
        groups.setdefault(pair.name.split("-", 1)[0], set()).add((pair.kind, pair.name))
    return sorted(groups.values(), key=len, reverse=True)


def make_pairs(chosen: list[tuple[str, str]], folder: Path) -> None:
    """Makes the pairs of these classes and names, in the table's order."""
    for pair in list_pairs():
        if (pair.kind, pair.name) in chosen:
            make_pair(pair, folder)


def make_pair(pair: Pair, folder: Path) -> None:
    """Writes a pair unless it is there, and prints its sizes."""
    base, target = pair.paths(folder)
    started_s, found = time.process_time(), base.exists() and target.exists()
    if not found:
        base.parent.mkdir(parents=True, exist_ok=True)
        for path, source in ((base, pair.base), (target, pair.target)):
            write_whole(path, source.read(folder / NETS))
    v1, v2 = base.read_bytes(), target.read_bytes()
    equal, took_s = measure_equal(v1, v2), time.process_time() - started_s
    how = "was there" if found else f"{took_s:.1f} s"
    print(f"{pair.kind:10} {pair.name:45} {len(v1):>10,} {len(v2):>10,} {equal:7.1%} equal  {how}", flush=True)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears only when it is complete."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def measure_equal(base: bytes, target: bytes) -> float:
    """Share of the target's bytes that stand at the same offset in the base."""
    common = min(len(base), len(target))
    same = np.frombuffer(base, np.uint8, common) == np.frombuffer(target, np.uint8, common)
    return int(same.sum()) / max(len(target), 1)


def write_index(folder: Path, pairs: list[Pair]) -> None:
    """Writes `corpus.json`: class, name and the two paths of every pair that is there."""
    rows = []
    for pair in pairs:
        base, target = pair.paths(folder)
        if base.exists() and target.exists():
            places = {"base": str(base.relative_to(folder)), "target": str(target.relative_to(folder))}
            rows.append({"class": pair.kind, "name": pair.name} | places)
    write_whole(folder / "corpus.json", (json.dumps(rows, indent=1) + "\n").encode())
