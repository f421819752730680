"""bench-serve: its load client tells what came back, and its figures are judged as they are asked."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # the scripts are no package: they find each other in their folder

from bench_serve import Check, Figures, make_checks, make_table  # noqa: E402
from serving.load import Target, get_quantile, run_closed, run_open  # noqa: E402
from serving.machine import list_tree, read_cpu_s, read_pss_bytes  # noqa: E402
from serving.scenes import Sample  # noqa: E402

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def open_server(*answers: bytes) -> AsyncIterator[Target]:
    """Answers request after request with `answers` in turn; an empty one closes the connection."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            answer = left.pop(0) if len(left) > 1 else left[0]
            writer.write(answer)
            if not answer or b"Connection: close" in answer:
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/score", b"picture")


async def test_closed_clients_ask_until_all_is_asked() -> None:
    async with open_server(OK) as target:
        run = await run_closed(target, clients=3, requests=20)
    assert [len(run.answered), run.refused, run.failed] == [20, [], []]
    assert {shot.body for shot in run.shots} == {b"ok"}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_answers_of_every_form_are_read(answer: bytes) -> None:
    async with open_server(answer) as target:
        run = await run_closed(target, clients=1, requests=3)
    assert [shot.body for shot in run.answered] == [b"ok"] * 3


async def test_what_is_refused_is_not_what_fails() -> None:
    busy = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    async with open_server(OK, busy, b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", b"", OK) as target:
        run = await run_closed(target, clients=1, requests=5)
    assert [shot.status for shot in run.shots] == [200, 503, 500, 0, 200]
    assert [len(run.refused), len(run.failed)] == [1, 2]
    assert run.failed[1].fault == "ConnectionResetError"


async def test_open_load_keeps_its_pace() -> None:
    async with open_server(OK) as target:
        run = await run_open(target, rate=100, seconds=0.3)
    assert [shot.due_s for shot in sorted(run.shots, key=lambda one: one.due_s)] == pytest.approx(
        [number / 100 for number in range(30)]
    )


def test_quantiles_are_values_that_were_measured() -> None:
    assert [get_quantile(range(1, 101), share) for share in (0.5, 0.99, 1.0)] == [51, 100, 100]
    assert get_quantile([], 0.5) == 0


async def test_a_tree_holds_its_children() -> None:
    command = f"{sys.executable} -c 'import time; sum(range(3_000_000)); print(1, flush=True); time.sleep(30)' & wait"
    shell = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
    assert shell.stdout is not None
    await shell.stdout.readline()
    tree = list_tree(shell.pid)
    assert len(tree) == 2
    assert read_cpu_s(shell.pid) > 0
    assert read_pss_bytes(shell.pid) > read_pss_bytes(tree[1]) > 0
    os.kill(tree[1], signal.SIGTERM)
    await shell.wait()


def make_figures(cpu_s: float) -> Figures:
    samples = [
        Sample(server, clients, cost, 0.010, 1.1, 1.5, 90.0, 0)
        for server, cost in (("edgeferry", cpu_s), ("MLServer", 0.012))
        for clients in (1, 4, 16)
        for _ in range(3)
    ]
    return Figures(samples=samples, missing={"LitServe": "no such package"})


def test_figures_that_hold_hold_and_a_missing_peer_fails_nothing() -> None:
    figures = make_figures(0.0105)
    assert all(check.holds for check in make_checks(figures))
    assert "| LitServe | missing: no such package" in make_table(figures)


def test_cpu_above_the_bound_and_above_a_peer_falls_short() -> None:
    short = [check.name for check in make_checks(make_figures(0.013)) if not check.holds]
    assert short == [
        "CPU of a request / in process, 4 clients",
        "CPU of a request / MLServer",
    ]


def test_ahead_means_not_worse_within_the_spread() -> None:
    assert Check("one", [0.98, 1.02, 1.05], 1.0, by_best=True).holds
    assert not Check("one", [1.01, 1.02, 1.05], 1.0, by_best=True).holds
    assert not Check("one", [0.98, 1.02, 1.05], 1.0).holds
