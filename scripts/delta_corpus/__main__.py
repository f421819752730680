"""Makes the corpus of version pairs: `.venv-models/bin/python -m scripts.delta_corpus [--to FOLDER] [--only WORD]`.

Writes `FOLDER/<class>/<name>/{v1,v2}.{onnx,tflite}` and `FOLDER/corpus.json`, and prints a line per pair. A pair that
is there already is not made again, and a net that was trained for one pair serves the others: after a change of an edit
or a recipe, remove the folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from scripts.delta_corpus.pairs import ROOT, Pair, list_pairs

NETS, WORKERS = "nets", 2


def main() -> int:
    """Makes what is missing and writes the index."""
    parser = argparse.ArgumentParser(prog="python -m scripts.delta_corpus", description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / ".cache" / "delta-corpus", help="folder of the corpus")
    parser.add_argument("--only", default="", help="only pairs with this word in their class or name")
    options = parser.parse_args()
    pairs, started_s = list_pairs(), time.monotonic()
    nets = group_by_net([pair for pair in pairs if options.only in f"{pair.kind}/{pair.name}"])
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        made = [pool.submit(make_pairs, list(names), options.to) for names in nets]
        for future in as_completed(made):
            future.result()
            write_index(options.to, pairs)
    print(f"{time.monotonic() - started_s:.0f} s")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
