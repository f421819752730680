"""The API's socket: addresses, and a stop that lets running requests finish."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from edgeferry.app.serving import ApiAddress, open_api, open_slots, serve_models
from edgeferry.errors import ConfigInvalid, ModelUnreadable
from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, ModelSpec, Stage
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.access import Access


async def _slow(_: Request) -> PlainTextResponse:
    await asyncio.sleep(0.5)
    return PlainTextResponse("done")


@pytest.fixture
def app() -> Starlette:
    app = Starlette(routes=[Route("/slow", _slow)])
    app.state.access = Access()
    return app


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def _fetch(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as response:
        return await response.text()


async def test_stopping_answers_running_requests_and_takes_no_new_ones(
    app: Starlette, session: aiohttp.ClientSession
) -> None:
    async with open_api(app, "127.0.0.1", 0) as address:
        running = asyncio.create_task(_fetch(session, address.url + "/slow"))
        await asyncio.sleep(0.2)
    assert await running == "done"
    with pytest.raises(aiohttp.ClientConnectorError):
        await _fetch(session, address.url + "/slow")


async def test_a_failure_inside_the_block_closes_the_socket_too(app: Starlette) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_api(app, "127.0.0.1", 0) as address:
            raise ZeroDivisionError
    async with open_api(app, "127.0.0.1", address.port) as again:
        assert again.port == address.port


async def test_an_answer_does_not_wait_for_the_clients_acknowledgement(session: aiohttp.ClientSession) -> None:
    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("x" * 500)

    app = Starlette(routes=[Route("/quick", answer, methods=["POST"])])
    app.state.access = Access()
    times_s = []
    async with open_api(app, "127.0.0.1", 0) as address:
        for _ in range(25):
            started = time.perf_counter()
            async with session.post(address.url + "/quick", data=bytes(50_000)) as response:
                await response.read()
            times_s.append(time.perf_counter() - started)
    assert statistics.median(times_s) < 0.035, "Nagle's algorithm and delayed ACKs cost 40 ms an answer"


async def test_signals_stay_with_the_process(app: Starlette) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with open_api(app, "127.0.0.1", 0):
        await asyncio.sleep(0.05)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_ipv6_loopback_is_served_and_written_as_clients_write_it(
    app: Starlette, session: aiohttp.ClientSession
) -> None:
    async with open_api(app, "::1", 0) as address:
        assert address.url == f"http://[::1]:{address.port}"
        assert await _fetch(session, address.url + "/slow") == "done"
    assert ApiAddress("127.0.0.1", 80).url == "http://127.0.0.1:80"


def _make_version(folder: Path) -> StoredVersion:
    stage = Stage(
        file="m.onnx",
        task="detection",
        input=InputSpec(width=8, height=8, layout="nchw", dtype="float32"),
        answer=AnswerSpec(family="ssd"),
        labels=LabelSpec(names=("a",)),
    )
    return StoredVersion("m", "1", "i", folder, ModelSpec(stages=(stage,)))


async def test_an_unguarded_host_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="EDGEFERRY_TOKEN"):
        async with serve_models([_make_version(tmp_path)], "0.0.0.0", 0):
            pass


async def test_a_version_that_does_not_load_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelUnreadable):
        async with open_slots([_make_version(tmp_path)]):
            pass
