"""Measures patches between versions beside every peer: bytes by class of change, memory, CPU time, and full downloads.

Prints tables, takes `--json FILE`, writes its section of docs/benchmarks.md with `--write FILE`, and exits non-zero
naming each shortfall. What is asked is delta_judge.py; the pairs are delta_pairs.py's, the corpus is made before
(`make bench-delta`); slim versions are bench_slim.py's.

Rules:
- Bytes are the same on every machine. CPU times are this machine's, and judged: applying is measured alone, making two
  at a time on two cores.
- Peers of a pair are measured once and kept (.cache/delta-peers.json); `--fresh` measures them again.
- It ends in time: what has not begun after `END_AFTER_S` is left out, and named as a shortfall.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from delta_judge import MB, Cost, FullRow, LargeRow, Made, PairRow, find_shortfalls, summarise
from delta_lanes import Lanes, Step
from delta_large import METADATA_KIND, read_weights, write_large_pair
from delta_ours import apply_patch, make_full, make_patch
from delta_pairs import (
    CORPUS,
    GENERIC,
    MODELS,
    RESEARCH,
    SHARED,
    THIRD_PARTY,
    WITHOUT_BASE,
    VersionPair,
    find_models,
    find_shared_pairs,
    list_pairs,
)
from delta_peers import CACHE, PeerCache, find_missing, get_peer, measure_peers
from delta_slim import SLIM_WEIGHT, Slim, measure_slim
from delta_tables import make_cost_table, make_full_table, make_large_table, make_pair_table, make_summary_table
from page_sections import write_section

from edgeferry.delta.tensors import find_float_ranges, find_tensors

LARGE_MB = (32, 125, 500)
WORKERS = 2
END_AFTER_S = 20 * 60
"""No step begins later; the corpus before it and the steps that have begun still end within 25 minutes."""
FLOAT_SHARE_MIN = 0.5
"""From this share of float tensors on, a file is a float model."""
OWN_WEIGHTS = ("fine-tune", "structure", "retrained")


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was measured; `unmeasured`: what there was no time for."""

    pairs: list[PairRow]
    fulls: list[FullRow]
    large: list[LargeRow]
    slim: Slim
    unmeasured: list[str] = field(default_factory=list)

    @property
    def shortfalls(self) -> list[str]:
        """What falls short, in words."""
        late = [f"not measured, time was up: {name}" for name in self.unmeasured]
        return [*find_shortfalls(self.pairs, self.fulls, self.large), *self.slim.shortfalls, *late]


# --- peers ------------------------------------------------------------------------------------------------------------
Job = tuple[Path, Path, tuple[str, ...]]


def measure_all_peers(jobs: Sequence[Job], cache: PeerCache, lanes: Lanes) -> list[dict[str, int]]:
    """Bytes by peer for each (base, target, peers); empty where time was up. What was measured is kept at once."""

    def keep(step: Step[dict[str, int]], sizes: dict[str, int]) -> None:
        cache.sizes.update(sizes)
        cache.write()
        _tell(step.name)

    with ProcessPoolExecutor(lanes.count) as pool:
        steps = [
            Step(f"peers of {job[1]}", job[1].stat().st_size, partial(_measure_job, pool, job, cache.sizes))
            for job in jobs
        ]
        found = lanes.run(steps, keep)
    return [{get_peer(key): size_bytes for key, size_bytes in (sizes or {}).items()} for sizes in found]


def _measure_job(pool: ProcessPoolExecutor, job: Job, known: dict[str, int]) -> dict[str, int]:
    base, target, peers = job
    return pool.submit(_measure_files, base, target, dict(known), peers).result()


def _measure_files(base: Path, target: Path, known: dict[str, int], peers: tuple[str, ...]) -> dict[str, int]:
    return measure_peers(base.read_bytes(), target.read_bytes(), known=known, peers=peers)


# --- ours -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Work:
    """A patch to make and to apply; without a base, a coded file. `prepare` writes the two versions, where needed."""

    kind: str
    name: str
    base: Path | None
    target: Path
    out: Path
    weight: float
    prepare: Callable[[], object] | None = None

    def make(self) -> Made:
        """In a child."""
        if self.prepare:
            self.prepare()
        return make_patch(self.base, self.target, self.out) if self.base else make_full(self.target, self.out)

    def apply(self) -> Cost:
        """In a child; the result was compared."""
        return apply_patch(self.base, self.out, self.target)


def list_work(pairs: Sequence[VersionPair], models: Sequence[tuple[str, Path]], folder: Path) -> list[Work]:
    """The pairs', then the models'."""
    given: list[tuple[str, str, Path | None, Path]] = [(one.kind, one.name, one.base, one.target) for one in pairs]
    given += [("full download", name, None, path) for name, path in models]
    return [
        Work(kind, f"{kind}, {name}", base, target, folder / f"{index}.patch", target.stat().st_size)
        for index, (kind, name, base, target) in enumerate(given)
    ]


def list_large_work(source: VersionPair, sizes_mb: Sequence[int], folder: Path) -> list[Work]:
    """The generated series, and its smallest size with nothing changed but metadata."""
    found, weights = [], read_weights(source)
    for kind, size_mb in [*((source.kind, size_mb) for size_mb in sizes_mb), (METADATA_KIND, min(sizes_mb))]:
        place = folder / f"{kind}-{size_mb}"
        place.mkdir()
        pair = VersionPair(kind, f"generated, {kind}, {size_mb} MB", place / "v1.onnx", place / "v2.onnx")
        prepare = partial(write_large_pair, weights, size_mb * MB, pair)
        found.append(Work(kind, pair.name, pair.base, pair.target, place / "patch", size_mb * MB, prepare))
    return found


# --- what is measured -------------------------------------------------------------------------------------------------
def list_float_models(models: Iterable[tuple[str, Path]], pairs: Iterable[VersionPair]) -> list[tuple[str, Path]]:
    """Models and targets that consist of floats, each once; no corpus target that is mostly another's weights."""
    seen: dict[bytes, tuple[str, Path]] = {}
    for name, path in (*models, *_list_own_targets(pairs)):
        data = path.read_bytes()
        floats = sum(one.elements * one.width for one in find_float_ranges(data))
        if floats >= FLOAT_SHARE_MIN * len(data):
            seen.setdefault(data, (name, path))
    return list(seen.values())


def _list_own_targets(pairs: Iterable[VersionPair]) -> list[tuple[str, Path]]:
    """Of the corpus one target for each change to each net in each format: training it longer codes no differently."""
    first: dict[tuple[str, ...], VersionPair] = {}
    for pair in pairs:
        if pair.name.startswith(THIRD_PARTY):
            first[(pair.name,)] = pair
        elif pair.kind in OWN_WEIGHTS:
            first.setdefault((pair.kind, *pair.name.split("-")[:3]), pair)
    return [(pair.name, pair.target) for pair in first.values()]


def find_source(pairs: Iterable[VersionPair]) -> VersionPair:
    """The largest float32 fine-tune: what the generated series repeats."""
    tuned = sorted((one for one in pairs if one.kind == "fine-tune"), key=lambda one: -one.target.stat().st_size)
    found = next((one for one in tuned if read_weights(one)), None)
    if found is None:
        raise SystemExit("no fine-tune of float32 to make large models from")
    return found


def measure(pairs: list[VersionPair], cache: PeerCache, large_mb: Sequence[int], *, end_s: float) -> Findings:
    """Peers, then everything that is made, then every patch applied alone."""
    models, lanes = list_float_models(find_models(MODELS, SHARED), pairs), Lanes(WORKERS, end_s)
    jobs: list[Job] = [(pair.base, pair.target, (*GENERIC, *RESEARCH)) for pair in pairs]
    peers = measure_all_peers(jobs, cache, lanes)
    peers += measure_all_peers([(path, path, WITHOUT_BASE) for _, path in models], cache, lanes)  # targets: known now
    with tempfile.TemporaryDirectory(dir=cache.path.parent) as name:
        works = list_work(pairs, models, Path(name))
        source = find_source(pairs)
        large = list_large_work(source, large_mb, Path(name)) if large_mb else []
        ours, slim = measure_ours([*works, *large], Path(name), lanes)
        found = zip(pairs, peers, ours, strict=False)
        rows = [make_pair_row(pair, sizes, one) for pair, sizes, one in found if sizes and one]
        alone = zip(models, peers[len(pairs) :], ours[len(pairs) :], strict=False)
        fulls = [
            FullRow(name, path.stat().st_size, sizes, one[0]) for (name, path), sizes, one in alone if sizes and one
        ]
        tensor_bytes = max(one.base.nbytes for one in read_weights(source))
        generated = zip(large, ours[len(works) :], strict=True)
        series = [
            LargeRow(one.kind, one.target.stat().st_size, tensor_bytes, *found) for one, found in generated if found
        ]
    return Findings(rows, fulls, series, slim, lanes.skipped)


Ours = tuple[Made, Cost]


def measure_ours(works: Sequence[Work], folder: Path, lanes: Lanes) -> tuple[list[Ours | None], Slim]:
    """Makes every patch, and slim versions beside them; then applies one patch at a time. None where time was up."""
    slim: list[Slim] = []
    steps: list[Step[Made | None]] = [Step(f"making {work.name}", work.weight, work.make) for work in works]
    steps.append(Step("slim versions", SLIM_WEIGHT, lambda: slim.append(measure_slim(folder))))
    made = lanes.run(steps, _tell_made)[:-1]
    ready = [work for work, one in zip(works, made, strict=True) if one]
    alone = Lanes(1, lanes.end_s, lanes.skipped)
    costs = alone.run([Step(f"applying {work.name}", work.weight, work.apply) for work in ready], _tell_cost)
    by_name = dict(zip((work.name for work in ready), costs, strict=True))
    found = ((one, by_name.get(work.name)) for work, one in zip(works, made, strict=True))
    return [(one, cost) if one and cost else None for one, cost in found], slim[0] if slim else Slim("", [], [])


def make_pair_row(pair: VersionPair, sizes: dict[str, int], ours: Ours) -> PairRow:
    """One pair with its peers and ours."""
    data = pair.target.read_bytes()
    return PairRow(pair.kind, pair.name, len(data), _find_largest(data), sizes, *ours)


def _find_largest(data: bytes) -> int:
    return max((one.size_bytes for one in find_tensors(data)), default=0)


def _tell_made(step: Step[Made | None], made: Made | None) -> None:
    _tell(f"{step.name}: {made.size_bytes:,} bytes ({made.way}), {made.cost.cpu_s:.1f} CPU s" if made else step.name)


def _tell_cost(step: Step[Cost], cost: Cost) -> None:
    _tell(f"{step.name}: {cost.cpu_s:.2f} CPU s")


# --- what is shown ----------------------------------------------------------------------------------------------------
WHY_INT8 = """\
Retrained int8 is a class of its own. What a retrained model gains comes from the exponents of floats, which have few
values; nothing in these files is float, and their bytes are at their entropy already (7.1 of 8 bits). So they are asked
only what everything is asked: never larger than the best peer and 64 bytes. Unrelated files (two different models,
damaged ones, a text) are asked the same.
"""


def make_parts(found: Findings) -> dict[str, str]:
    """Title and text of each part."""
    return {
        "Patches, by class of change": (
            "Best generic peer / ours, whole patch with header, for each pair; bytes are the same on every machine. No"
            f" patch may be more than 64 bytes above the best peer.\n\n{make_summary_table(found.pairs)}\n{WHY_INT8}"
        ),
        "Patches, pair by pair": f"Bytes.\n\n{make_pair_table(found.pairs)}",
        "Patches: what making and applying cost": make_cost_table(found.pairs),
        "Large models": f"Generated from one fine-tune by repetition with noise.\n\n{make_large_table(found.large)}",
        "Full downloads without a base": make_full_table(found.fulls),
        "Slim versions": found.slim.section or "Not measured.\n",
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
        "slim": found.slim.rows,
        "shortfalls": found.shortfalls,
    }


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--fresh", action="store_true", help="measure the peers again")
    parser.add_argument("--minutes", type=float, default=END_AFTER_S / 60, help="after these nothing begins any more")
    parser.add_argument("--large-mb", type=int, nargs="*", default=LARGE_MB, help="sizes of the generated models")
    return parser.parse_args()


def main() -> int:
    """Measures, prints, writes; returns the exit code."""
    options, began = _read_options(), time.monotonic()
    pairs = list_pairs(options.corpus, SHARED)
    for text in find_missing() + ([] if find_shared_pairs(SHARED) else [f"no third-party pairs at {SHARED}"]):
        _tell(f"MISSING: {text}")
    cache = PeerCache.read(options.cache, fresh=options.fresh)
    found = measure(pairs, cache, options.large_mb, end_s=began + options.minutes * 60)
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
