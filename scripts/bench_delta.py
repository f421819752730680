"""Measures patches between versions beside every peer: bytes by class of change, memory, CPU time, and full downloads.

Prints tables, takes `--json FILE`, writes its section of docs/benchmarks.md with `--write FILE`, and exits non-zero
naming each shortfall. What is asked is delta_judge.py; the pairs are delta_pairs.py's, the corpus is made before
(`make bench-delta`).

Rules:
- Bytes are the same on every machine. CPU times are this machine's, and judged: applying is measured alone, making two
  at a time on two cores.
- Peers of a pair are measured once and kept (.cache/delta-peers.json); `--fresh` measures them again.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from delta_judge import MB, FullRow, LargeRow, Made, PairRow, find_shortfalls, summarise
from delta_large import METADATA_KIND, read_weights, write_large_pair
from delta_ours import apply_patch, make_full, make_patch
from delta_pairs import (
    CORPUS,
    GENERIC,
    RESEARCH,
    SHARED,
    THIRD_PARTY,
    WITHOUT_BASE,
    VersionPair,
    find_shared_pairs,
    list_pairs,
)
from delta_peers import CACHE, PeerCache, find_missing, get_peer, measure_peers
from delta_tables import make_cost_table, make_full_table, make_large_table, make_pair_table, make_summary_table
from page_sections import write_section

from edgeferry.delta.tensors import find_float_ranges, find_tensors

LARGE_MB = (62, 125, 250, 500)
WORKERS = 2
END_AFTER_S = 24 * 60
FLOAT_SHARE_MIN = 0.5
"""From this share of float tensors on, a file is a float model."""
OWN_WEIGHTS = ("fine-tune", "structure", "retrained")


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was measured."""

    pairs: list[PairRow]
    fulls: list[FullRow]
    large: list[LargeRow]

    @property
    def shortfalls(self) -> list[str]:
        """What falls short, in words."""
        return find_shortfalls(self.pairs, self.fulls, self.large)


# --- peers ------------------------------------------------------------------------------------------------------------
Job = tuple[Path, Path, tuple[str, ...]]


def measure_all_peers(jobs: Sequence[Job], cache: PeerCache) -> list[dict[str, int]]:
    """Bytes by peer for each (base, target, peers), two at a time; what was measured is kept at once."""
    found = []
    with ProcessPoolExecutor(WORKERS) as pool:
        for job, sizes in zip(jobs, pool.map(_measure_job, [(job, cache.sizes) for job in jobs]), strict=True):
            cache.sizes.update(sizes)
            cache.write()
            found.append({get_peer(key): size_bytes for key, size_bytes in sizes.items()})
            _tell(f"peers: {job[1]}")
    return found


def _measure_job(given: tuple[Job, dict[str, int]]) -> dict[str, int]:
    (base, target, peers), known = given
    return measure_peers(base.read_bytes(), target.read_bytes(), known=known, peers=peers)


# --- ours -------------------------------------------------------------------------------------------------------------
def measure_pairs(pairs: Sequence[VersionPair], peers: Sequence[dict[str, int]], folder: Path) -> Iterator[PairRow]:
    """Makes the patches two at a time, then applies them one by one."""
    patches = [folder / f"{index}.patch" for index in range(len(pairs))]
    with ThreadPoolExecutor(WORKERS) as pool:
        made = pool.map(lambda one: make_patch(one[0].base, one[0].target, one[1]), zip(pairs, patches, strict=True))
        rows = list(zip(pairs, peers, patches, made, strict=True))
    for pair, sizes, patch, ours in rows:
        cost = apply_patch(pair.base, patch, pair.target)
        data = pair.target.read_bytes()
        yield PairRow(pair.kind, pair.name, len(data), _find_largest(data), sizes, ours, cost)
        _tell(f"ours: {pair.kind}, {pair.name}: {ours.size_bytes:,} bytes ({ours.way})")


def measure_fulls(models: Sequence[tuple[str, Path]], peers: Sequence[dict[str, int]], folder: Path) -> list[FullRow]:
    """Codes each model without a base, decodes and compares."""
    patches = [folder / f"{index}.full" for index in range(len(models))]
    with ThreadPoolExecutor(WORKERS) as pool:
        made = list(pool.map(lambda one: _measure_full(one[0][1], one[1]), zip(models, patches, strict=True)))
    return [
        FullRow(name, path.stat().st_size, sizes, ours)
        for (name, path), sizes, ours in zip(models, peers, made, strict=True)
    ]


def _measure_full(target: Path, out: Path) -> Made:
    ours = make_full(target, out)
    apply_patch(None, out, target)
    return ours


def measure_large(source: VersionPair, sizes_mb: Sequence[int], folder: Path) -> Iterator[LargeRow]:
    """The generated series alone, one size at a time, and its smallest size with nothing changed but metadata."""
    weights = read_weights(source)
    for kind, size_mb in [*((source.kind, size_mb) for size_mb in sizes_mb), (METADATA_KIND, min(sizes_mb))]:
        _tell(f"generated: {kind}, {size_mb} MB, from {source.name}")
        pair, patch = write_large_pair(weights, size_mb * MB, folder, kind=kind), folder / "patch"
        ours = make_patch(pair.base, pair.target, patch)
        cost = apply_patch(pair.base, patch, pair.target)
        largest = max(one.base.nbytes for one in weights)
        yield LargeRow(kind, pair.target.stat().st_size, largest, ours, cost)


def _find_largest(data: bytes) -> int:
    return max((one.size_bytes for one in find_tensors(data)), default=0)


# --- what is measured -------------------------------------------------------------------------------------------------
def list_float_models(pairs: Sequence[VersionPair]) -> list[tuple[str, Path]]:
    """Each target that consists of floats, once; none of our own whose weights are mostly another's."""
    seen: dict[bytes, tuple[str, Path]] = {}
    for pair in (one for one in pairs if one.kind in OWN_WEIGHTS or one.name.startswith(THIRD_PARTY)):
        data = pair.target.read_bytes()
        floats = sum(one.elements * one.width for one in find_float_ranges(data))
        if floats >= FLOAT_SHARE_MIN * len(data):
            seen.setdefault(data, (pair.name, pair.target))
    return list(seen.values())


def find_source(pairs: Sequence[VersionPair]) -> VersionPair:
    """The largest float32 fine-tune: what the generated series repeats."""
    found = [pair for pair in pairs if pair.kind == "fine-tune" and read_weights(pair)]
    if not found:
        raise SystemExit("no fine-tune of float32 to make large models from")
    return max(found, key=lambda pair: sum(one.base.nbytes for one in read_weights(pair)))


def measure(pairs: list[VersionPair], cache: PeerCache, large_mb: Sequence[int]) -> Findings:
    """Peers, then ours, then full downloads, then large models."""
    models = list_float_models(pairs)
    jobs: list[Job] = [(pair.base, pair.target, (*GENERIC, *RESEARCH)) for pair in pairs]
    peers = measure_all_peers(jobs, cache)
    alone = measure_all_peers([(path, path, WITHOUT_BASE) for _, path in models], cache)
    with tempfile.TemporaryDirectory(dir=cache.path.parent) as name:
        folder = Path(name)
        rows = list(measure_pairs(pairs, peers, folder))
        fulls = measure_fulls(models, alone, folder)
        large = list(measure_large(find_source(pairs), large_mb, folder)) if large_mb else []
    return Findings(rows, fulls, large)


# --- what is shown ----------------------------------------------------------------------------------------------------
def make_parts(found: Findings) -> dict[str, str]:
    """Title and text of each part; a further measurement (slim: bytes against loss) adds its own here."""
    return {
        "Patches, by class of change": (
            "Best generic peer / ours, whole patch with header, for each pair; bytes are the same on every machine. No"
            f" patch may be more than 64 bytes above the best peer.\n\n{make_summary_table(found.pairs)}"
        ),
        "Patches, pair by pair": f"Bytes.\n\n{make_pair_table(found.pairs)}",
        "Patches: what making and applying cost": make_cost_table(found.pairs),
        "Large models": f"Generated from one fine-tune by repetition with noise.\n\n{make_large_table(found.large)}",
        "Full downloads without a base": make_full_table(found.fulls),
    }


def make_section(parts: dict[str, str], took_s: float) -> str:
    """What stands in docs/benchmarks.md."""
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    head = f"CPU times are this machine's ({machine}; the whole run took {took_s:.0f} s).\n\n"
    return head + "\n".join(f"## {title}\n\n{text}" for title, text in parts.items())


def make_figures(found: Findings) -> dict[str, object]:
    """What `--json` writes."""
    return {
        "classes": [asdict(one) for one in summarise(found.pairs)],
        "pairs": [{**asdict(row), "best": row.best, "gain": row.gain} for row in found.pairs],
        "full": [asdict(row) for row in found.fulls],
        "large": [asdict(row) for row in found.large],
        "shortfalls": found.shortfalls,
    }


def _give_up(*_: object) -> None:
    raise SystemExit(f"FALLS SHORT: not done after {END_AFTER_S / 60:.0f} minutes")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--fresh", action="store_true", help="measure the peers again")
    parser.add_argument("--large-mb", type=int, nargs="*", default=LARGE_MB, help="sizes of the generated models")
    return parser.parse_args()


def main() -> int:
    """Measures, prints, writes; returns the exit code."""
    options, began = _read_options(), time.monotonic()
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(END_AFTER_S)
    pairs = list_pairs(options.corpus, SHARED)
    for text in find_missing() + ([] if find_shared_pairs(SHARED) else [f"no third-party pairs at {SHARED}"]):
        _tell(f"MISSING: {text}")
    found = measure(pairs, PeerCache.read(options.cache, fresh=options.fresh), options.large_mb)
    parts = make_parts(found)
    print(make_section(parts, time.monotonic() - began))
    if options.json:
        options.json.write_text(json.dumps(make_figures(found), indent=1) + "\n")
    if options.write:
        write_section(options.write, "make bench-delta", make_section(parts, time.monotonic() - began))
    for text in found.shortfalls:
        print(f"FALLS SHORT: {text}")
    return 1 if found.shortfalls else 0


if __name__ == "__main__":
    sys.exit(main())
