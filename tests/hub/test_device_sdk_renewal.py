"""Tokens that Microsoft's device SDK renews every few seconds for a minute: nobody notices.

Rules:
- The SDK renews its token 120 s before it ends: one of 122 s is renewed every two seconds or so.
- The two modules renew side by side, one with its key, one through the workload API.
- A method whose request meets the very moment between two connections is called again, as callers of IoT Hub must;
  this is seldom, and counted.
- An input whose acknowledgement met that moment is delivered again, as QoS 1 says: none is lost, none overtakes
  another, and how often this happens is counted too.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from edgeferry.wire.service_api import Identity
from service_view import ServiceRefused, ServiceView, open_service_view

pytestmark = pytest.mark.needs_azure_sdk
A, B = Identity("d", "a"), Identity("d", "b")
TTL, LASTS_S, RENEWALS_MIN, CALLED_AGAIN_MAX, DELIVERED_AGAIN_MAX = "ttl=122", 60.0, 12, 3, 3


@pytest.mark.soak
async def test_renewing_for_a_minute_is_never_offline_and_loses_nothing(open_sdk_hub: Any, open_by_way: Any) -> None:
    async with (
        open_sdk_hub() as hub,
        open_by_way("connection_string", hub, "a", TTL) as a,
        open_by_way("workload", hub, "b", TTL) as b,
        open_service_view(hub) as view,
        watch_states(view) as states,
    ):
        ends_at, turn, called_again = time.monotonic() + LASTS_S, 0, 0
        while time.monotonic() < ends_at:
            turn += 1
            called_again += await do_turn(view, a, b, turn)
        assert called_again <= CALLED_AGAIN_MAX
        came = [line["body"] for line in b.seen if "body" in line]
        assert [body for body, _ in itertools.groupby(came)] == [str(one + 1) for one in range(turn)]
        assert len(came) - turn <= DELIVERED_AGAIN_MAX
        for peer in (a, b):
            assert sum(line.get("connected") is True for line in peer.seen) >= RENEWALS_MIN
    assert states == {"Connected"}


async def do_turn(view: ServiceView, a: Any, b: Any, turn: int) -> int:
    """One of each: a twin patch and a method to both, an output of `a` that is an input of `b`. Counts second calls."""
    called_again = 0
    for peer, identity in ((a, A), (b, B)):
        await view.patch_desired(identity, {"turn": turn})
        while (await peer.expect("patch"))["turn"] != turn:
            pass
        called_again += await call(view, identity, turn)
    await a.send(f"output out {turn}")
    await a.expect("sent")
    while await b.expect("input") and b.seen[-1]["body"] != str(turn):
        pass
    await asyncio.sleep(0.3)
    return called_again


async def call(view: ServiceView, identity: Identity, turn: int) -> int:
    """Calls a method; tells how often it had to be called again."""
    for again in range(CALLED_AGAIN_MAX):
        try:
            answer = await view.call_method(identity, "m", turn, timeout_s=5)
        except ServiceRefused as refused:
            assert refused.status == 504
        else:
            assert answer == {"status": 207, "payload": {"echo": turn}}
            return again
    raise AssertionError(f"{identity} answered no method")


@asynccontextmanager
async def watch_states(view: ServiceView) -> AsyncIterator[set[str]]:
    """Every connection state of both modules that the service saw while the block ran."""
    states: set[str] = set()

    async def watch() -> None:
        while True:
            for identity in (A, B):
                states.add((await view.fetch_twin(identity))["connectionState"])
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield states
        assert not watching.done()
    finally:
        watching.cancel()
