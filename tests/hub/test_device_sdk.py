"""What both versions of Microsoft's device SDK are refused, and what waits for them; a device is no less than a module.

What they can do over every way in stands in test_device_sdk_ways.py, _offline.py, _restart.py and _renewal.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeferry.wire.iothub_auth import parse_connection_string
from edgeferry.wire.service_api import Identity
from service_view import open_service_view

pytestmark = pytest.mark.needs_azure_sdk
A = Identity("d", "a")


async def test_a_report_against_the_limits_is_refused_and_the_client_goes_on(
    open_sdk_hub: Any, open_device: Any
) -> None:
    async with open_sdk_hub() as hub, open_device(hub, await hub.add_module("d", "a")) as a:
        await a.expect("ready")
        await a.send(f"report {json.dumps({'long': 'x' * 5000})}")
        await a.expect("failed")
        await a.send('report {"a.b": 1}')
        await a.expect("failed")
        await a.send('report {"good": 1}')
        await a.expect("reported")
        async with open_service_view(hub) as view:
            assert await view.fetch_reported(A) == {"good": 1}


async def test_a_message_for_a_module_that_is_away_waits_for_it(open_sdk_hub: Any, open_device: Any) -> None:
    async with open_sdk_hub() as hub:
        sender, receiver = await hub.add_module("d", "a"), await hub.add_module("d", "b")
        async with open_device(hub, sender) as a:
            await a.expect("ready")
            await a.send('output out "kept"')
            await a.expect("sent")
    async with open_sdk_hub() as hub, open_device(hub, receiver) as b:
        assert await b.expect("input") == "in"
        assert b.seen[-1]["body"] == '"kept"'


async def test_a_wrong_key_is_refused_at_once(open_sdk_hub: Any, open_device: Any) -> None:
    async with open_sdk_hub() as hub:
        one, other = await hub.add_module("d", "a"), await hub.add_module("d", "b")
        key = parse_connection_string(other).shared_access_key
        wrong = one.replace(parse_connection_string(one).shared_access_key, key)
        async with open_device(hub, wrong) as a:
            assert await a.expect("failed") == "CredentialError"


async def test_a_device_identity_takes_patches_and_methods_reports_and_sends(
    open_sdk_hub: Any, open_device: Any
) -> None:
    solo = Identity("solo")
    async with (
        open_sdk_hub() as hub,
        open_device(hub, await hub.add_device("solo")) as a,
        open_service_view(hub) as view,
    ):
        await a.expect("ready")
        await view.patch_desired(solo, {"x": 1})
        assert await a.expect("patch") == {"x": 1, "$version": 2}
        await a.send('report {"y": 2}')
        await a.expect("reported")
        assert await view.fetch_reported(solo) == {"y": 2}
        assert (await view.call_method(solo, "m", [1])) == {"status": 207, "payload": {"echo": [1]}}
        await a.send("plain 1")
        await a.expect("sent")
        assert [str(one.identity) for one in await hub.read_messages()] == ["solo"]
