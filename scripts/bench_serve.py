"""Measures serving against the same pipeline in one process and against the servers that a user would pick instead.

Prints a table, takes `--json FILE`, writes its section of docs/benchmarks.md with `--write FILE`, and exits non-zero
when a figure falls short. The scenes stand in serving/scenes.py, the peers in serving/peers.py.

Rules:
- Judged are ratios, each the median of pairs measured in turns, with their spread; milliseconds are for scale only.
- A peer that cannot be had is told as missing, with the reason; nothing is judged against it.
- It ends in time: after `END_AFTER_S` it gives up, which is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from make_sdk_env import make_environment
from page_sections import write_section
from PIL import Image
from serving.machine import describe_machine
from serving.peers import PEERS, RAW
from serving.scenes import (
    Overload,
    Sample,
    Start,
    open_peers,
    run_decoders,
    run_large,
    run_overload,
    run_rounds,
    run_starts,
)
from serving.servers import Limit, NotStarted, Site, open_ours

from edgeferry.app.local_models import open_local_versions

OURS = "edgeferry"
SHARED = Path(os.environ.get("EDGEFERRY_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "models"
MODEL = Path("detection") / "yolox_nano.onnx"
"""The model at hand whose answer costs about 10 ms of CPU in process, pipeline and all, on such machines."""
PICTURE = (640, 480)
LARGE = (4000, 3000)
LARGE_FROM = ("dog_bicycle_car.jpg", "person_dog_horse.jpg", "cat.jpg")
ROUNDS = 13
"""Single rounds differ by up to 7 %, as much as lies between a figure and what is asked; medians of 13 by 1 %."""
END_AFTER_S = 24 * 60


@dataclass(frozen=True, slots=True)
class Check:
    """One figure: the median of its pairs, their spread, and the bound that it must keep."""

    name: str
    values: Sequence[float]
    bound: float
    at_least: bool = False
    by_best: bool = False

    @property
    def value(self) -> float:
        """What is judged."""
        return median(self.values)

    @property
    def holds(self) -> bool:
        """Whether it keeps the bound; `by_best`: not worse within the spread."""
        value = (max if self.at_least else min)(self.values) if self.by_best else self.value
        return value >= self.bound if self.at_least else value <= self.bound

    def tell(self) -> str:
        """A row of the table."""
        sign, spread = ">=" if self.at_least else "<=", f"{min(self.values):.3f} .. {max(self.values):.3f}"
        return (
            f"| {self.name} | {self.value:.3f} | {spread} | {sign} {self.bound:g} | {'yes' if self.holds else 'no'} |"
        )


@dataclass(slots=True)
class Figures:
    """All that was measured."""

    samples: list[Sample] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    overload: list[Overload] = field(default_factory=list)
    decoders: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def list_ours(self, clients: int, read: Callable[[Sample], float]) -> list[float]:
        """A figure of ours by round."""
        return self.list_by_round(OURS, clients, read)

    def list_by_round(self, server: str, clients: int, read: Callable[[Sample], float]) -> list[float]:
        """A figure of a server by round."""
        return [read(one) for one in self.samples if one.server == server and one.clients == clients]

    def compare(self, server: str, clients: int, read: Callable[[Sample], float]) -> list[float]:
        """Ours / that of a server, by round."""
        pairs = zip(self.list_ours(clients, read), self.list_by_round(server, clients, read), strict=True)
        return [ours / theirs for ours, theirs in pairs]


# --- judging ----------------------------------------------------------------------------------------------------------
def make_checks(figures: Figures) -> list[Check]:
    """Every figure that is asked for and was measured."""
    checks = [*_check_load(figures), *_check_peers(figures)]
    checks += _check_starts(figures.starts) if figures.starts else []
    checks += _check_overload(figures.overload) if figures.overload else []
    return checks + (_check_decoders(figures.decoders) if figures.decoders else [])


def _check_load(figures: Figures) -> list[Check]:
    by_clients = {
        clients: figures.list_ours(clients, lambda one: 1 / one.cpu_s)
        for clients in sorted({s.clients for s in figures.samples})
    }
    alone = by_clients.get(1, [])
    return [
        Check("CPU of a request / in process, 4 clients", figures.list_ours(4, lambda one: one.cpu_ratio), 1.08),
        Check("p50 / p50 in process, 1 client", figures.list_ours(1, lambda one: one.p50_ratio), 1.15),
        Check("p99 / p50 in process, 1 client", figures.list_ours(1, lambda one: one.p99_ratio), 1.6),
        *(
            Check(
                f"answers per CPU second, {clients} clients / 1 client",
                [many / one for many, one in zip(by_clients[clients], alone, strict=True)],
                0.95,
                at_least=True,
            )
            for clients in by_clients
            if clients > 1
        ),
        Check("requests that failed, all servers", [float(sum(one.failed for one in figures.samples))], 0),
    ]


def _check_peers(figures: Figures) -> list[Check]:
    checks = []
    for peer in PEERS:
        if peer.name in figures.missing or not figures.list_by_round(peer.name, 4, lambda one: one.cpu_s):
            continue
        if peer.is_guide:
            checks.append(Check("CPU of a request / guide style", figures.compare(peer.name, 4, _get_cpu), 0.37))
        if peer.switches:
            ratios = figures.compare(peer.name, 4, _get_cpu)
            checks.append(Check(f"CPU of a request / {peer.name}", ratios, 1.0, by_best=True))
    return checks


def _get_cpu(sample: Sample) -> float:
    return sample.cpu_s


def _check_starts(starts: Sequence[Start]) -> list[Check]:
    ours = [one for one in starts if one.server == OURS]
    raw = [one for one in starts if one.server == RAW.name]
    pairs = list(zip(ours, raw, strict=True))
    return [
        Check("cold start / bare ASGI", [a.cold_s / b.cold_s for a, b in pairs], 1.6),
        Check("idle memory / bare ASGI", [a.idle_bytes / b.idle_bytes for a, b in pairs], 1.6),
    ]


def _check_overload(pairs: Sequence[Overload]) -> list[Check]:
    return [
        Check("twice capacity: p99 of the accepted / steady", [a.accepted_p99_s / a.steady_p99_s for a in pairs], 2.0),
        Check("twice capacity: ms to be refused, p99", [1000 * one.refused_p99_s for one in pairs], 10.0),
        Check("twice capacity: neither answered nor refused", [float(sum(one.failed for one in pairs))], 0),
    ]


def _check_decoders(told: dict[str, Any]) -> list[Check]:
    return [
        Check("12 megapixels: CPU to decode / OpenCV whole", told["decode_ratios"], 0.33),
        Check("12 megapixels: boxes kept", [told["kept"] / max(1, told["boxes"])], 0.9, at_least=True),
        Check("12 megapixels: largest shift of a score", [told["score_shift"]], 0.15),
    ]


# --- the page ---------------------------------------------------------------------------------------------------------
def make_table(figures: Figures) -> str:
    """The servers as a Markdown table."""
    head = (
        "| server | CPU of a request ms | / in process, 1 client | 4 clients | 16 clients | p50 / in process, 1 client"
        " | p99 / p50 in process | answers/s, 4 clients | 16 clients |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    )
    names = dict.fromkeys(one.server for one in figures.samples)
    rows = [_make_row(figures, name) for name in names]
    rows += [f"| {name} | missing: {reason[:200]} |||||||||" for name, reason in figures.missing.items()]
    return head + "\n".join(rows) + "\n"


def _make_row(figures: Figures, name: str) -> str:
    def tell(clients: int, read: Callable[[Sample], float], form: str = ".2f") -> str:
        return f"{median(figures.list_by_round(name, clients, read)):{form}}"

    cells = [name, tell(4, lambda one: 1000 * one.cpu_s)]
    cells += [tell(clients, lambda one: one.cpu_ratio, ".3f") for clients in (1, 4, 16)]
    cells += [tell(1, lambda one: one.p50_ratio), tell(1, lambda one: one.p99_ratio)]
    return f"| {' | '.join([*cells, tell(4, lambda one: one.rate, '.0f'), tell(16, lambda one: one.rate, '.0f')])} |"


def make_checks_table(checks: Sequence[Check]) -> str:
    """What was asked, as a Markdown table."""
    head = "| figure | median | spread | asked | holds |\n|---|--:|--:|--:|---|\n"
    return head + "\n".join(check.tell() for check in checks) + "\n"


def make_section(figures: Figures, checks: Sequence[Check], took_s: float) -> str:
    """What stands in docs/benchmarks.md."""
    limit_ms = 1000 * median(one.limit_cpu_s for one in figures.samples if one.clients == 1)
    large = f"{median(figures.large):.3f} x the CPU in process" if figures.large else "not measured"
    starts = ", ".join(
        f"{name} {median(one.cold_s for one in figures.starts if one.server == name):.2f} s and"
        f" {median(one.idle_bytes for one in figures.starts if one.server == name) / 1e6:.0f} MB"
        for name in dict.fromkeys(one.server for one in figures.starts)
    )
    return (
        "## Serving\n\n"
        f"YOLOX-Nano (COCO, 416x416, ONNX), {PICTURE[0]}x{PICTURE[1]} JPEG, the same pipeline in every server;"
        f" the limit is that pipeline in a loop in one process ({limit_ms:.1f} ms of CPU an answer)."
        f" CPU is that of the whole tree of processes, judged at 4 clients. Medians of {ROUNDS} rounds in turns; with"
        f" several clients the limit has two callers."
        f" ({describe_machine()}; the whole run took {took_s:.0f} s.)\n\n"
        f"{make_table(figures)}\n{make_checks_table(checks)}\n"
        f"A picture of 12 megapixels: {large}. Cold start to the first answer and idle memory (PSS): {starts or '-'}.\n"
    )


# --- the run ----------------------------------------------------------------------------------------------------------
def make_site(folder: Path, published: Path = MODEL) -> tuple[Site, Path]:
    """A COCO detector with its spec, and the pictures; returns the site and the usual picture."""
    model, labels = folder / published.name, SHARED / "detection" / "coco80.names"
    shutil.copyfile(SHARED / published, model)
    with open_local_versions([model], labels=labels) as versions:
        (folder / "spec.json").write_bytes(msgspec.json.encode(versions[0].spec))
    for name in LARGE_FROM:
        with Image.open(SHARED / "images" / name) as image:
            image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(folder / f"large-{name}", quality=90)
    picture = folder / "picture.jpg"
    with Image.open(SHARED / "images" / LARGE_FROM[0]) as image:
        image.convert("RGB").resize(PICTURE, Image.Resampling.BICUBIC).save(picture, quality=90)
    return Site(folder, model, labels), picture


def make_environments(names: Sequence[str]) -> dict[str, str]:
    """Makes the peers' environments; returns why some cannot be made."""
    missing = {}
    for name in dict.fromkeys(names):
        try:
            make_environment(name)
        except (subprocess.SubprocessError, OSError) as error:
            missing[name] = f"its environment cannot be made: {str(getattr(error, 'stderr', '') or error)[-160:]}"
    return missing


def measure(options: argparse.Namespace) -> Figures:
    """Runs all scenes."""
    figures = Figures()
    unmade = make_environments([peer.environment for peer in PEERS]) if options.peers else {}
    peers = [peer for peer in PEERS if options.peers and peer.environment not in unmade]
    figures.missing = {peer.name: unmade[peer.environment] for peer in PEERS if peer.environment in unmade}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        site, picture = make_site(Path(name))
        if RAW in peers:
            _tell("cold starts")
            figures.starts = run_starts(site, picture, options.rounds)
            _tell("decoders")
            figures.decoders = run_decoders(site)
        limit = Limit(site)
        stack.callback(limit.close)
        limit.run(picture, callers=2, requests=100)
        with ExitStack() as others:
            _tell("starting the peers")
            ours = others.enter_context(open_ours(site, picture.read_bytes()))
            servers, missing = open_peers(others, site, picture.read_bytes(), peers)
            figures.missing |= missing
            _tell(f"rounds, {len(servers) + 1} servers")
            figures.samples = run_rounds([ours, *servers], limit, picture, options.rounds)
        _tell("large pictures, overload")
        ours = stack.enter_context(open_ours(site, picture.read_bytes()))
        figures.large = run_large(ours, limit, Path(name) / f"large-{LARGE_FROM[0]}", options.rounds)
        figures.overload = run_overload(ours, picture, options.rounds)
    return figures


def _tell(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)


def _give_up(*_: object) -> None:
    raise SystemExit(f"FALLS SHORT: not done after {END_AFTER_S / 60:.0f} minutes")


def report(options: argparse.Namespace, name: str, *, figures: Any, checks: Sequence[Check], section: str) -> int:
    """Writes what was asked for, tells what falls short; returns the exit code."""
    if options.json:
        options.json.write_text(json.dumps(asdict(figures), indent=1) + "\n")
    if options.write:
        write_section(options.write, name, section)
    short = [check for check in checks if not check.holds]
    for check in short:
        print(
            f"FALLS SHORT: {check.name} is {check.value:.3f}, {'>=' if check.at_least else '<='} {check.bound:g} asked"
        )
    return 1 if short else 0


def main() -> int:
    """Runs the scenes, prints, writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"FALLS SHORT: expected the models at {SHARED}, found none")
    for number in (signal.SIGALRM, signal.SIGTERM):  # so that the servers end too
        signal.signal(number, _give_up)
    signal.alarm(END_AFTER_S)
    began = time.monotonic()
    try:
        figures = measure(options)
    except NotStarted as error:
        raise SystemExit(f"FALLS SHORT: {error}") from error
    checks = make_checks(figures)
    section = make_section(figures, checks, time.monotonic() - began)
    print(make_table(figures), make_checks_table(checks), sep="\n")
    return report(options, "make bench-serve", figures=figures, checks=checks, section=section)


if __name__ == "__main__":
    sys.exit(main())
