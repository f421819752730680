"""A hub that restarts is the same hub to modules of Microsoft's device SDK: they never subscribe again."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from edgeferry.wire.service_api import Identity
from polling import poll
from service_view import open_service_view

pytestmark = pytest.mark.needs_azure_sdk
A, B = Identity("d", "a"), Identity("d", "b")


async def test_patches_methods_and_inputs_still_arrive_after_a_restart_of_the_hub(
    open_sdk_hub: Any, open_module: Any
) -> None:
    async with AsyncExitStack() as stack:
        async with open_sdk_hub() as hub:
            a = await stack.enter_async_context(open_module(hub, "a"))
            b = await stack.enter_async_context(open_module(hub, "b"))
        async with open_sdk_hub() as hub, open_service_view(hub) as view:
            await view.patch_desired(A, {"while": "away"})

            async def both_are_back() -> bool:
                return all([(await view.fetch_twin(one))["connectionState"] == "Connected" for one in (A, B)])

            await poll(both_are_back, 40.0)
            patch = await a.expect("patch", 40.0)
            while patch.get("while") != "away":
                patch = await a.expect("patch")
            await view.patch_desired(A, {"live": 1})
            assert await a.expect("patch") == {"live": 1, "$version": 3}
            assert (await view.call_method(B, "m"))["status"] == 207
            await a.send("output out 1")
            await a.expect("sent")
            assert await b.expect("input") == "in"
