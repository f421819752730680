"""All that a module of Microsoft's device SDK does while it is there, with both versions, over every way in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeferry.wire.service_api import Identity
from service_view import open_service_view

pytestmark = pytest.mark.needs_azure_sdk
A, B = Identity("d", "a"), Identity("d", "b")


async def test_twin_patch_report_output_input_and_method(open_sdk_hub: Any, open_module: Any) -> None:
    async with (
        open_sdk_hub() as hub,
        open_module(hub, "a") as a,
        open_module(hub, "b") as b,
        open_service_view(hub) as view,
    ):
        await a.send("twin")
        assert (await a.expect("twin"))["desired"] == {"$version": 1}
        await view.patch_desired(A, {"first": 1})
        assert await a.expect("patch") == {"first": 1, "$version": 2}
        await view.patch_desired(A, {"first": None, "second": {"x": [1, 2]}})
        assert await a.expect("patch") == {"first": None, "second": {"x": [1, 2]}, "$version": 3}
        await view.put_desired(A, {"third": 3})
        assert await a.expect("patch") == {"second": None, "third": 3, "$version": 4}
        await a.send("twin")
        assert (await a.expect("twin"))["desired"] == {"third": 3, "$version": 4}
        await a.send('report {"LatestAIModelFileName": "a.zip"}')
        await a.expect("reported")
        assert await view.fetch_reported(A) == {"LatestAIModelFileName": "a.zip"}
        await a.send('output out {"local_model_path": "x"}')
        await a.expect("sent")
        assert await b.expect("input") == "in"
        got = b.seen[-1]
        assert json.loads(got["body"]) == {"local_model_path": "x"} and got["message_id"] == "mid-1"
        assert got["properties"]["colour"] == "a+b c/ä"
        stored = (await hub.read_messages())[0]
        assert (stored.identity, stored.output, stored.properties["colour"]) == (A, "out", "a+b c/ä")
        answer = await view.call_method(A, "reload now", {"deep": [1]})
        assert answer == {"status": 207, "payload": {"echo": {"deep": [1]}}}
        assert (await view.fetch_twin(A))["connectionState"] == "Connected"
