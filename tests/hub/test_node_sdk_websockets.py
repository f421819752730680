"""The MQTT door over WebSockets on port 443, spoken to by Microsoft's unmodified device SDK for Node.js."""

from __future__ import annotations

from typing import Any

import pytest

from edgeferry.app.hub import RunningHub
from edgeferry.wire.service_api import Identity
from service_view import open_service_view

pytestmark = pytest.mark.needs_node_sdk
A, B = Identity("d", "a"), Identity("d", "b")


async def test_twin_patch_report_output_input_and_method(hub_on_443: RunningHub, open_node_module: Any) -> None:
    async with (
        open_node_module("websockets", hub_on_443, "a") as a,
        open_node_module("websockets", hub_on_443, "b", way="gateway") as b,
        open_service_view(hub_on_443) as view,
    ):
        assert (await a.expect("patch"))["$version"] == 1
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
        assert await view.call_method(B, "status", {"n": 1}) == {"status": 207, "payload": {"echo": {"n": 1}}}


async def test_a_module_over_websockets_speaks_to_one_over_tcp(hub_on_443: RunningHub, open_node_module: Any) -> None:
    async with (
        open_node_module("websockets", hub_on_443, "a") as a,
        open_node_module("mqtt", hub_on_443, "b") as b,
        open_service_view(hub_on_443) as view,
    ):
        await a.send("output out 1")
        await a.expect("sent")
        assert await b.expect("input") == "in"
        for one in (A, B):
            assert (await view.fetch_twin(one))["connectionState"] == "Connected"
