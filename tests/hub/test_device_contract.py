"""What every device client may rely on: one suite over Microsoft's unmodified SDK, both versions, and our own client.

A client says `patch` when the desired properties have changed; what it was given with it differs (SDKs: the patch,
ours: the whole section), so each step asks for the whole twin, which is what a device acts on.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from device_ways import WAYS
from edgeferry.wire.service_api import Identity
from fixtures_azure import DEVICE_SDKS, make_runner
from hub.conftest import SDK, start_module
from other_programs import require_environment
from polling import poll
from service_view import ServiceView, open_service_view

pytestmark = pytest.mark.needs_azure_sdk
A, B = Identity("d", "a"), Identity("d", "b")
Open = Callable[..., Any]


@pytest.fixture(params=["ours", *DEVICE_SDKS])
def run_client(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs each client's script."""
    if request.param == "ours":
        return partial(make_runner(sys.executable), Path(__file__).parent / "own_peer.py")
    python = require_environment(request.param, f"azure-iot-device {DEVICE_SDKS[request.param]}")
    return partial(make_runner(str(python), "-W", "ignore"), SDK / "device_peer.py")


@pytest.fixture(params=list(WAYS))
def open_client(request: pytest.FixtureRequest, run_client: Callable[..., Any]) -> Open:
    """`async with open_client(hub, "a") as peer`: module `a` of device `d`, by each way in."""

    @asynccontextmanager
    async def start(hub: Any, module: str) -> AsyncIterator[Any]:
        how = await start_module(hub, module, request.param)
        async with run_client(*how.words, **how.environment) as peer:
            await peer.expect("ready")
            yield peer

    return start


async def expect_desired(peer: Any, view: ServiceView, identity: Identity) -> None:
    """The client's desired section is the service's, after however many bells."""
    wanted = (await view.fetch_twin(identity))["properties"]["desired"]
    wanted = {key: value for key, value in wanted.items() if key != "$metadata"}

    async def is_same() -> bool:
        await peer.send("twin")
        return bool((await peer.expect("twin"))["desired"] == wanted)

    await poll(is_same, 30.0)


async def test_twin_bell_report_output_input_and_method(open_sdk_hub: Any, open_client: Open) -> None:
    async with (
        open_sdk_hub() as hub,
        open_client(hub, "a") as a,
        open_client(hub, "b") as b,
        open_service_view(hub) as view,
    ):
        await expect_desired(a, view, A)
        for write in ({"first": 1}, {"first": None, "second": {"x": [1, 2], "ä": None}}):
            await view.patch_desired(A, write)
            await a.expect("patch")
            await expect_desired(a, view, A)
        await view.put_desired(A, {"third": 3.5})
        await a.expect("patch")
        await expect_desired(a, view, A)
        await a.send('report {"edgeferry": {"observed": 4}, "gone": 1}')
        await a.expect("reported")
        await a.send('report {"gone": null}')
        await a.expect("reported")
        assert await view.fetch_reported(A) == {"edgeferry": {"observed": 4}}
        await a.send('output out {"local_model_path": "x"}')
        await a.expect("sent")
        assert await b.expect("input") == "in"
        assert (b.seen[-1]["body"], b.seen[-1]["message_id"]) == ('{"local_model_path": "x"}', "mid-1")
        [stored] = await hub.read_messages()
        assert (stored.identity, stored.output, stored.properties["$.ct"]) == (A, "out", "application/json")
        answer = await view.call_method(A, "rollback", {"model": "detector"})
        assert answer == {"status": 207, "payload": {"echo": {"model": "detector"}}}


async def test_what_happened_while_it_was_away_is_there_when_it_is_back(open_sdk_hub: Any, open_client: Open) -> None:
    async with (
        open_sdk_hub() as hub,
        open_client(hub, "a") as a,
        open_client(hub, "b") as b,
        open_service_view(hub) as view,
    ):
        await b.send("leave")
        await b.expect("left")
        await view.patch_desired(B, {"kept": 1, "gone": 1})
        await view.patch_desired(B, {"gone": None})
        for text in ("1", "2"):
            await a.send(f"output out {text}")
            await a.expect("sent")
        await b.send("come")
        await b.expect("came")

        async def both_are_here() -> bool:
            await b.send("twin")
            await b.expect("twin")
            return len([line for line in b.seen if "input" in line]) >= 2

        await poll(both_are_here, 30.0)
        bodies = [line["body"] for line in b.seen if "input" in line]
        assert sorted(bodies) == ["1", "2"], "the SDK for Python hands each message to another thread: no order is told"
        await expect_desired(b, view, B)
        assert (await view.call_method(B, "m"))["status"] == 207


async def test_after_a_restart_of_the_hub_everything_arrives_again(open_sdk_hub: Any, open_client: Open) -> None:
    async with AsyncExitStack() as stack:
        async with open_sdk_hub() as hub:
            a = await stack.enter_async_context(open_client(hub, "a"))
            b = await stack.enter_async_context(open_client(hub, "b"))
        async with open_sdk_hub() as hub, open_service_view(hub) as view:

            async def both_are_back() -> bool:
                return all([(await view.fetch_twin(one))["connectionState"] == "Connected" for one in (A, B)])

            await poll(both_are_back, 40.0)
            await view.patch_desired(A, {"live": 1})
            await a.expect("patch", 40.0)
            await expect_desired(a, view, A)
            assert (await view.call_method(B, "m"))["status"] == 207
            await a.send("output out 1")
            await a.expect("sent")
            assert await b.expect("input") == "in"
