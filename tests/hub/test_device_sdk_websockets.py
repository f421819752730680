"""The MQTT door over WebSockets on port 443, spoken to by both versions of Microsoft's device SDK over every way in."""

from __future__ import annotations

from typing import Any

import pytest

from edgeferry.app.hub import RunningHub
from edgeferry.wire.service_api import Identity
from service_view import open_service_view

pytestmark = pytest.mark.needs_azure_sdk
A, B = Identity("d", "a"), Identity("d", "b")


async def test_twin_patch_report_output_input_and_method(hub_on_443: RunningHub, open_module: Any) -> None:
    async with (
        open_module(hub_on_443, "a", "websockets") as a,
        open_module(hub_on_443, "b", "websockets") as b,
        open_service_view(hub_on_443) as view,
    ):
        await view.patch_desired(A, {"first": {"x": [1, 2]}})
        assert await a.expect("patch") == {"first": {"x": [1, 2]}, "$version": 2}
        await a.send("twin")
        assert (await a.expect("twin"))["desired"] == {"first": {"x": [1, 2]}, "$version": 2}
        await a.send('report {"x": 1}')
        await a.expect("reported")
        assert await view.fetch_reported(A) == {"x": 1}
        await a.send(f'output out "{"x" * 100_000}"')
        await a.expect("sent")
        assert await b.expect("input") == "in" and len(b.seen[-1]["body"]) == 100_002
        assert await view.call_method(B, "m", {"n": 1}) == {"status": 207, "payload": {"echo": {"n": 1}}}
        assert (await view.fetch_twin(B))["connectionState"] == "Connected"
        await b.send("leave")
        await b.expect("left")
        await view.patch_desired(B, {"while": "away"})
        await b.send("come")
        await b.expect("came")
        assert await _find_patch_since_left(b) == {"while": "away", "$version": 2}


async def _find_patch_since_left(peer: Any) -> Any:
    """The patch, which the SDK may have handed over before it said that it had come."""
    left = next(number for number, line in enumerate(peer.seen) if "left" in line)
    found = [line["patch"] for line in peer.seen[left:] if "patch" in line]
    return found[0] if found else await peer.expect("patch")
