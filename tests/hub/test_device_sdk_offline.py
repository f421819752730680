"""What happened while a module of Microsoft's device SDK was away reaches it when it is back, over every way in."""

from __future__ import annotations

from typing import Any

import pytest

from edgeferry.wire.service_api import Identity
from service_view import open_service_view

pytestmark = pytest.mark.needs_azure_sdk
A, B = Identity("d", "a"), Identity("d", "b")


async def test_patches_and_inputs_of_the_time_away_arrive_on_return_and_live_ones_after(
    open_sdk_hub: Any, open_module: Any
) -> None:
    async with (
        open_sdk_hub() as hub,
        open_module(hub, "a") as a,
        open_module(hub, "b") as b,
        open_service_view(hub) as view,
    ):
        await view.patch_desired(B, {"before": 1})
        assert await b.expect("patch") == {"before": 1, "$version": 2}
        await b.send("leave")
        await b.expect("left")
        await view.patch_desired(B, {"before": None, "while": "away"})
        await view.patch_desired(B, {"again": [1]})
        for text in ("1", "2"):
            await a.send(f"output out {text}")
            await a.expect("sent")
        await b.send("come")
        await b.expect("came")
        assert await _collect(b, "patch", 1) == [{"while": "away", "again": [1], "$version": 4}]
        assert sorted(await _collect(b, "body", 2)) == ["1", "2"], "the SDK hands each message to another thread"
        await view.patch_desired(B, {"live": True})
        assert (await _collect(b, "patch", 2))[1] == {"live": True, "$version": 5}
        assert (await view.call_method(B, "m"))["status"] == 207


async def _collect(peer: Any, key: str, count: int) -> list[Any]:
    """The values of `key` since the peer left, once there are `count`; lines of other keys may stand between."""
    left = next(number for number, line in enumerate(peer.seen) if "left" in line)
    while len(found := [line[key] for line in peer.seen[left:] if key in line]) < count:
        await peer.expect(key)
    return found
