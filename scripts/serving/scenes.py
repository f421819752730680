"""The scenes of bench-serve: load in rounds, cold starts, large pictures, overload. They measure and do not judge.

Rules:
- One round asks the limit and then every server, at each number of clients; a ratio is taken within its round.
- CPU is that of the whole tree of processes; in process, under several clients, there are as many callers as cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .load import Run, get_quantile, run_closed, run_open
from .machine import read_cpu_s, read_pss_bytes
from .peers import HERE, RAW, ROOT
from .servers import Limit, NotStarted, Server, Site, open_ours, open_peer

CLIENTS = {1: 150, 4: 200, 16: 160}
"""Clients at once -> requests of one round."""
SLOW_SHARE = 0.25
"""Of these requests for a server that needs several times the CPU of the others."""
CALLERS = 2
"""Of the limit under several clients, as the engine of each server runs so many inferences at once."""
OVERLOAD_S = 3.0
SETTLE_S = 0.5
IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One server under so many clients in one round, against the limit of that round."""

    server: str
    clients: int
    cpu_s: float
    limit_cpu_s: float
    p50_ratio: float
    p99_ratio: float
    rate: float
    failed: int

    @property
    def cpu_ratio(self) -> float:
        """CPU of an answer / CPU of an answer in process."""
        return self.cpu_s / self.limit_cpu_s


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds until the first answer, and memory when idle after it."""

    server: str
    cold_s: float
    idle_bytes: int


@dataclass(frozen=True, slots=True)
class Overload:
    """One pair: half of what the server can, then twice as much as it can."""

    steady_p99_s: float
    accepted_p99_s: float
    refused_p99_s: float
    accepted: int
    refused: int
    failed: int


def run_starts(site: Site, picture: Path, rounds: int) -> list[Start]:
    """Starts edgeferry and bare ASGI in turns."""
    data, starts = picture.read_bytes(), []
    for _ in range(rounds):
        for opened in (open_ours(site, data), open_peer(RAW, site, data)):
            with opened as server:
                time.sleep(IDLE_S)
                starts.append(Start(server.name, server.cold_s, read_pss_bytes(server.process.pid)))
    return starts


def run_rounds(servers: Sequence[Server], limit: Limit, picture: Path, rounds: int) -> list[Sample]:
    """All servers under load, in turns and in another order each time."""
    data, samples, order = picture.read_bytes(), [], list(servers)
    slow = {server.name for server in servers if _is_slow(server, data)}
    for number in range(rounds):
        random.Random(number).shuffle(order)
        for clients, requests in CLIENTS.items():
            callers = min(clients, CALLERS, len(os.sched_getaffinity(0)))
            limit_cpu_s, took_s = limit.run(picture, callers=callers, requests=requests)
            limit_p50_s = get_quantile(took_s, 0.5)
            for server in order:
                count = int(requests * SLOW_SHARE) if server.name in slow else requests
                run, cpu_s = _load(server, data, clients, count)
                times = [shot.took_s for shot in run.answered]
                p50, p99 = get_quantile(times, 0.5) / limit_p50_s, get_quantile(times, 0.99) / limit_p50_s
                rate, failed = len(run.answered) / run.lasted_s, count - len(run.answered)
                samples.append(Sample(server.name, clients, cpu_s, limit_cpu_s, p50, p99, rate, failed))
    return samples


def run_large(server: Server, limit: Limit, picture: Path, rounds: int) -> list[float]:
    """CPU of a large picture's answer / CPU in process, by round."""
    data, count, ratios = picture.read_bytes(), 40, []
    _load(server, data, 2, count)
    for _ in range(rounds):
        limit_cpu_s, _ = limit.run(picture, callers=1, requests=count)
        ratios.append(_load(server, data, 1, count)[1] / limit_cpu_s)
    return ratios


def run_overload(server: Server, picture: Path, rounds: int) -> list[Overload]:
    """Half of what it can, then twice as much as it can, in turns."""
    data = picture.read_bytes()
    target = server.make_target(data)
    capacity = len((run := _load(server, data, 4, 200)[0]).answered) / run.lasted_s
    pairs = []
    for _ in range(rounds):
        steady = asyncio.run(run_open(target, rate=capacity / 2, seconds=OVERLOAD_S))
        over = asyncio.run(run_open(target, rate=capacity * 2, seconds=OVERLOAD_S))
        pairs.append(_make_overload(steady, _drop_beginning(over)))
    return pairs


def _drop_beginning(run: Run) -> Run:
    """What was due once the server had noticed that this is no burst."""
    return Run(shots=[shot for shot in run.shots if shot.due_s >= SETTLE_S], lasted_s=run.lasted_s - SETTLE_S)


def run_decoders(site: Site) -> dict[str, Any]:
    """What decoding.py finds; raises NotStarted."""
    command = [ROOT / ".venv-serve-web" / "bin" / "python", HERE / "decoding.py", site.folder]
    environment = {**os.environ, **site.make_variables()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise NotStarted(f"decoding.py: {done.stderr[-300:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def open_peers(
    stack: ExitStack, site: Site, picture: bytes, peers: Sequence[Any]
) -> tuple[list[Server], dict[str, str]]:
    """Starts all that can be started; tells why of the others."""
    servers, missing = [], {}
    for peer in peers:
        try:
            servers.append(stack.enter_context(open_peer(peer, site, picture)))
        except (NotStarted, OSError, StopIteration) as error:
            missing[peer.name] = str(error) or type(error).__name__
    return servers, missing


def _make_overload(steady: Run, over: Run) -> Overload:
    return Overload(
        get_quantile([shot.took_s for shot in steady.answered], 0.99),
        get_quantile([shot.took_s for shot in over.answered], 0.99),
        get_quantile([shot.took_s for shot in over.refused], 0.99),
        len(over.answered),
        len(over.refused),
        len(over.failed) + len(steady.failed) + len(steady.refused),
    )


def _is_slow(server: Server, picture: bytes) -> bool:
    """Warms it up, and looks whether it needs several times what others need."""
    _load(server, picture, 4, 20)
    return _load(server, picture, 1, 20)[1] > 0.02


def _load(server: Server, picture: bytes, clients: int, requests: int) -> tuple[Run, float]:
    """The run, and CPU seconds of a request."""
    before = read_cpu_s(server.process.pid)
    run = asyncio.run(run_closed(server.make_target(picture), clients=clients, requests=requests))
    return run, (read_cpu_s(server.process.pid) - before) / requests
