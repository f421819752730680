"""The service REST, called by Microsoft's unmodified azure-iot-hub."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from edgeferry.app.hub import RunningHub
from edgeferry.transport.mqtt import HubConnection, HubIdentity, MethodCall, make_key_sign, open_hub_connection
from edgeferry.wire.iothub_auth import parse_connection_string

pytestmark = pytest.mark.needs_azure_sdk
KEY, KEY_2 = (base64.b64encode(letter * 32).decode() for letter in (b"k", b"l"))


async def test_devices_and_modules_are_made_shown_and_deleted(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        device = await call("add_device", "dev", KEY)
        assert device["deviceId"] == "dev" and device["authentication"]["symmetricKey"]["primaryKey"] == KEY
        assert (await call("add_device", "dev", KEY)) == {"refused": 409, "code": "DeviceAlreadyExists"}
        assert (await call("add_module", "none", "m", KEY)) == {"refused": 404, "code": "DeviceNotFound"}
        module = await call("add_module", "dev", "m", KEY)
        assert module["moduleId"] == "m" and module["managedBy"] == "me"
        assert (await call("get_module", "dev", "m"))["generationId"] == module["generationId"]
        assert [one["deviceId"] for one in await call("get_devices", 10)] == ["dev"]
        assert [one["moduleId"] for one in await call("get_modules", "dev")] == ["m"]
        assert (await call("statistics"))["totalDeviceCount"] == 1
        disabled = await call("update_device", "dev", device["etag"], KEY, "disabled")
        assert disabled["status"] == "disabled" and disabled["etag"] != device["etag"]
        assert (await call("update_device", "dev", device["etag"], KEY, "disabled")) == {
            "refused": 412,
            "code": "PreconditionFailed",
        }
        assert (await call("statistics"))["disabledDeviceCount"] == 1
        changed = await call("update_module", "dev", "m", module["etag"], KEY_2)
        assert changed["authentication"]["symmetricKey"] == {"primaryKey": KEY_2, "secondaryKey": KEY_2}
        stale = {"refused": 412, "code": "PreconditionFailed"}
        assert (await call("update_module", "dev", "m", module["etag"], KEY)) == stale
        assert (await call("delete_module", "dev", "m", module["etag"])) == stale
        assert (await call("delete_device", "dev", device["etag"])) == stale
        await call("delete_module", "dev", "m", changed["etag"])
        assert (await call("get_module", "dev", "m")) == {"refused": 404, "code": "ModuleNotFound"}
        await call("add_module", "dev", "m2", KEY)
        await call("delete_device", "dev", "*")
        assert await call("query", "SELECT * FROM devices.modules") == []
        assert (await call("get_device", "dev")) == {"refused": 404, "code": "DeviceNotFound"}


async def test_a_module_twin_is_read_patched_and_replaced_under_its_etag(hub: RunningHub, open_service: Any) -> None:
    await hub.add_module("d", "m")
    async with open_service(hub) as call:
        twin = await call("get_module_twin", "d", "m")
        assert twin["properties"]["desired"]["$version"] == 1
        patched = await call("update", "d", "m", {"FileName": "a.zip", "deep": {"x": 1, "y": 2}}, twin["etag"])
        assert patched["properties"]["desired"]["FileName"] == "a.zip" and patched["etag"] != twin["etag"]
        stale = await call("update", "d", "m", {"FileName": "b.zip"}, twin["etag"])
        assert stale == {"refused": 412, "code": "PreconditionFailed"}
        merged = await call("update", "d", "m", {"deep": {"x": None}, "more": [1, {"z": "ä"}]}, None)
        desired = merged["properties"]["desired"]
        assert desired["deep"] == {"y": 2} and desired["more"] == [1, {"z": "ä"}] and desired["$version"] == 3
        replaced = await call("replace", "d", "m", {"only": True}, merged["etag"])
        wanted = {"only": True, "$version": 4}
        assert {key: value for key, value in replaced["properties"]["desired"].items() if key != "$metadata"} == wanted
        assert (await call("update", "d", "m", {"a.b": 1}, None)) == {"refused": 400, "code": "ArgumentInvalid"}
        long = await call("update", "d", "m", {"long": "x" * 5000}, None)
        assert long == {"refused": 413, "code": "MessageTooLarge"}
        assert (await call("get_module_twin", "d", "m"))["properties"]["desired"]["$version"] == 4


async def test_a_device_twin_is_patched_and_replaced_with_its_tags(hub: RunningHub, open_service: Any) -> None:
    await hub.add_device("d")
    async with open_service(hub) as call:
        twin = await call("get_twin", "d")
        patched = await call("update_device_twin", "d", {"x": 1}, twin["etag"])
        assert patched["properties"]["desired"]["x"] == 1 and patched["version"] > twin["version"]
        stale = {"refused": 412, "code": "PreconditionFailed"}
        assert (await call("update_device_twin", "d", {"x": 2}, twin["etag"])) == stale
        assert (await call("replace_device_twin", "d", {"y": 2}, {"a": 1}, twin["etag"])) == stale
        await call("tag", "d", {"old": 1})
        replaced = await call("replace_device_twin", "d", {"y": 2}, {"a": {"b": 1}}, "*")
        assert replaced["tags"] == {"a": {"b": 1}}
        assert {key: value for key, value in replaced["properties"]["desired"].items() if key[0] != "$"} == {"y": 2}
        assert (await call("get_twin", "none")) == {"refused": 404, "code": "DeviceNotFound"}


async def test_no_more_devices_are_listed_than_were_asked_for(hub: RunningHub, open_service: Any) -> None:
    for number in range(4):
        await hub.add_device(f"d{number}")
    async with open_service(hub) as call:
        assert len(await call("get_devices", 3)) == 3
        assert [one["deviceId"] for one in await call("get_devices")] == ["d0", "d1", "d2", "d3"]


async def test_tags_and_queries(hub: RunningHub, open_service: Any) -> None:
    for device in ("d1", "d2"):
        await hub.add_module(device, "m")
    async with open_service(hub) as call:
        assert (await call("tag", "d1", {"site": "north"}))["tags"] == {"site": "north"}
        devices = await call("query", "SELECT * FROM devices")
        assert [one["deviceId"] for one in devices] == ["d1", "d2"] and devices[0]["tags"] == {"site": "north"}
        modules = await call("query", "select *  from devices.modules")
        assert [(one["deviceId"], one["moduleId"]) for one in modules] == [("d1", "m"), ("d2", "m")]
        refused = await call("query", "SELECT * FROM twins")
        assert refused == {"refused": 400, "code": "ArgumentInvalid"}


async def make_identity(hub: RunningHub) -> HubIdentity:
    """Module m of device d, as our own device signs in."""
    known = parse_connection_string(await hub.add_module("d", "m"))
    sign, ca_pem = make_key_sign(known.shared_access_key), hub.ca_pem_path.read_bytes()
    return HubIdentity(host=known.host_name, device="d", module="m", sign=sign, ca_pem=ca_pem, port=hub.mqtt_port)


async def answer_methods(connection: HubConnection) -> None:
    """Says what was called, with what, and 404 to every name but `status`."""
    async for event in connection.events():
        assert isinstance(event, MethodCall)
        status = 200 if event.name == "status" else 404
        await connection.answer_method(event.rid, status, payload={"called": event.name, "with": event.payload})


PAYLOADS = [
    {"models": ["detector", "ä"], "deep": {"n": 1.5, "none": None}},
    [1, [2]],
    "text",
    7,
    -1.5,
    True,
    {},
    [],
    "",
]


async def test_a_method_of_a_connected_module_answers_with_its_status_and_payload(
    hub: RunningHub, open_service: Any
) -> None:
    identity = await make_identity(hub)
    async with open_service(hub) as call, open_hub_connection(identity) as connection:
        answering = asyncio.create_task(answer_methods(connection))
        for payload in PAYLOADS:
            answer = await call("call", "d", "m", "status", payload, 10)
            assert answer == {"status": 200, "payload": {"called": "status", "with": payload}}
        refused = await call("call", "d", "m", "other", None, 10)
        assert refused == {"status": 404, "payload": {"called": "other", "with": ""}}  # the SDK says "" for None
        assert not answering.done()
        answering.cancel()


async def test_a_method_that_is_not_answered_in_time_is_a_timeout(hub: RunningHub, open_service: Any) -> None:
    identity = await make_identity(hub)
    async with open_service(hub) as call, open_hub_connection(identity):
        assert (await call("call", "d", "m", "status", None, 5)) == {"refused": 504, "code": "GatewayTimeout"}
        assert (await call("service_statistics"))["connectedDeviceCount"] == 1


async def test_a_method_of_a_module_that_is_not_there_is_refused(hub: RunningHub, open_service: Any) -> None:
    await hub.add_module("d", "m")
    async with open_service(hub) as call:
        assert (await call("call", "d", "m", "status", None, 5)) == {"refused": 404, "code": "DeviceNotOnline"}
        assert (await call("call", "d", None, "status", None, 5)) == {"refused": 404, "code": "DeviceNotOnline"}
        assert (await call("call", "d", "x", "status", None, 5)) == {"refused": 404, "code": "ModuleNotFound"}
        assert (await call("call", "x", None, "status", None, 5)) == {"refused": 404, "code": "DeviceNotFound"}


async def test_a_method_waits_for_a_module_that_comes_within_the_time_to_connect(
    hub: RunningHub, open_service: Any
) -> None:
    identity = await make_identity(hub)
    async with open_service(hub) as call:
        calling = asyncio.create_task(call("call", "d", "m", "status", 1, 10, 10))
        async with open_hub_connection(identity) as connection:
            answering = asyncio.create_task(answer_methods(connection))
            assert await calling == {"status": 200, "payload": {"called": "status", "with": 1}}
            answering.cancel()
