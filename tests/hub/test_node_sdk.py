"""Both doors, spoken to by Microsoft's unmodified SDKs for Node.js: azure-iothub, and azure-iot-device over MQTT.

Over WebSockets stands in test_node_sdk_websockets.py.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from edgeferry.app.hub import RunningHub
from edgeferry.wire.service_api import Identity
from service_view import open_service_view

pytestmark = pytest.mark.needs_node_sdk
KEY = base64.b64encode(b"k" * 32).decode()
A, B = Identity("d", "a"), Identity("d", "b")
STALE = {"refused": 412, "code": "PreconditionFailed"}
SAS = {"symmetricKey": {"primaryKey": KEY, "secondaryKey": KEY}}


async def test_devices_and_modules_are_made_listed_and_deleted(hub_on_443: RunningHub, open_node_service: Any) -> None:
    async with open_node_service(hub_on_443) as call:
        device = await call("create", {"deviceId": "d", "status": "enabled", "authentication": SAS})
        assert device["deviceId"] == "d" and device["authentication"]["symmetricKey"]["primaryKey"] == KEY
        again = await call("create", {"deviceId": "d", "authentication": SAS})
        assert again == {"refused": 409, "code": "DeviceAlreadyExists"}
        module = await call("addModule", {"deviceId": "d", "moduleId": "m", "managedBy": "me", "authentication": SAS})
        assert module["moduleId"] == "m" and module["managedBy"] == "me"
        assert (await call("get", "d"))["etag"] == device["etag"]
        assert (await call("getModule", "d", "m"))["generationId"] == module["generationId"]
        assert [one["deviceId"] for one in await call("list")] == ["d"]
        assert [one["moduleId"] for one in await call("getModulesOnDevice", "d")] == ["m"]
        assert (await call("getRegistryStatistics"))["totalDeviceCount"] == 1
        disabled = await call("update", {"deviceId": "d", "status": "disabled", "authentication": SAS})
        assert disabled["status"] == "disabled"
        await call("removeModule", "d", "m")
        assert (await call("getModule", "d", "m")) == {"refused": 404, "code": "ModuleNotFound"}
        await call("delete", "d")
        assert (await call("get", "d")) == {"refused": 404, "code": "DeviceNotFound"}


async def test_keys_that_are_left_empty_are_made_by_the_hub(hub_on_443: RunningHub, open_node_service: Any) -> None:
    async with open_node_service(hub_on_443) as call:
        device = await call("create", {"deviceId": "d"})
        module = await call("addModule", {"deviceId": "d", "moduleId": "m"})
        made = [one["authentication"]["symmetricKey"][key] for one in (device, module) for key in SAS["symmetricKey"]]
        assert len({base64.b64decode(key) for key in made}) == 4 and all(made)
        assert (await call("update", {"deviceId": "d", "status": "disabled"}))["status"] == "disabled"


async def test_many_devices_are_made_and_removed_in_one_call(hub_on_443: RunningHub, open_node_service: Any) -> None:
    rows = [{"deviceId": f"d{number}", "authentication": SAS} for number in range(3)]
    async with open_node_service(hub_on_443) as call:
        assert (await call("addDevices", rows))["isSuccessful"] is True
        assert [one["deviceId"] for one in await call("list")] == ["d0", "d1", "d2"]
        assert (await call("removeDevices", rows[:2], True))["isSuccessful"] is True
        assert [one["deviceId"] for one in await call("list")] == ["d2"]


async def test_a_module_twin_is_read_and_changed_under_its_etag(hub_on_443: RunningHub, open_node_service: Any) -> None:
    await hub_on_443.add_module("d", "m")
    async with open_node_service(hub_on_443) as call:
        twin = await call("getModuleTwin", "d", "m")
        patch = {"properties": {"desired": {"FileName": "a.zip", "deep": {"x": 1, "y": 2}}}}
        changed = await call("updateModuleTwin", "d", "m", patch, twin["etag"])
        assert changed["properties"]["desired"]["FileName"] == "a.zip" and changed["etag"] != twin["etag"]
        assert (await call("updateModuleTwin", "d", "m", patch, twin["etag"])) == STALE
        merged = await call("updateModuleTwin", "d", "m", {"properties": {"desired": {"deep": {"x": None}}}}, "*")
        assert merged["properties"]["desired"]["deep"] == {"y": 2}
        assert (await call("changeTwin", "d", "m", {"tags": {"site": "ä"}}))["tags"] == {"site": "ä"}
        assert (await call("getTwin", "d"))["properties"]["desired"]["$version"] == 1
        assert (await call("updateTwin", "d", {"tags": {"x": 1}}, "*"))["tags"] == {"x": 1}


async def test_a_query_ends(hub_on_443: RunningHub, open_node_service: Any) -> None:
    await hub_on_443.add_module("d", "m")
    async with open_node_service(hub_on_443) as call:
        pages = await call("listPages", "SELECT * FROM devices.modules", None)
        assert [[one["moduleId"] for one in page] for page in pages] == [["m"]]
        assert [one["deviceId"] for one in await call("listTwins", "SELECT * FROM devices", 10)] == ["d"]


async def test_a_query_gives_page_after_page(hub_on_443: RunningHub, open_node_service: Any) -> None:
    for number in range(5):
        await hub_on_443.add_device(f"d{number}")
    async with open_node_service(hub_on_443) as call:
        pages = await call("listPages", "SELECT * FROM devices WHERE deviceId != 'd0'", 2)
        assert [[one["deviceId"] for one in page] for page in pages] == [["d1", "d2"], ["d3", "d4"]]


async def test_content_is_applied_to_a_device(hub_on_443: RunningHub, open_node_service: Any) -> None:
    await hub_on_443.add_device("d")
    agent = {"properties.desired": {"modules": {"loader": {"type": "docker"}}}}
    content = {"modulesContent": {"$edgeAgent": agent, "loader": {"properties.desired": {"x": 1}}}}
    async with open_node_service(hub_on_443) as call:
        assert not await call("applyConfigurationContentOnDevice", "d", content)
        assert (await call("getModuleTwin", "d", "loader"))["properties"]["desired"]["x"] == 1


async def test_configurations_are_made_changed_and_removed(hub_on_443: RunningHub, open_node_service: Any) -> None:
    content = {"modulesContent": {"m": {"properties.desired.x": 1}}}
    fields = {"id": "c", "content": content, "targetCondition": "tags.a = 1", "priority": 1}
    async with open_node_service(hub_on_443) as call:
        made = await call("addConfiguration", fields)
        assert (await call("getConfiguration", "c"))["content"] == content
        changed = await call("updateConfiguration", {**fields, "priority": 2, "etag": made["etag"]})
        assert changed["priority"] == 2
        assert (await call("updateConfiguration", {**fields, "priority": 3, "etag": made["etag"]})) == STALE
        assert (await call("updateConfiguration", {**fields, "priority": 3}, True))["priority"] == 3
        assert [one["id"] for one in await call("getConfigurations")] == ["c"]
        await call("removeConfiguration", "c")
        assert (await call("getConfiguration", "c")) == {"refused": 404, "code": "ConfigurationNotFound"}


async def test_twin_patch_report_output_input_and_method(
    hub_on_443: RunningHub, open_node_module: Any, open_node_service: Any
) -> None:
    async with (
        open_node_module("mqtt", hub_on_443, "a") as a,
        open_node_module("mqtt", hub_on_443, "b") as b,
        open_service_view(hub_on_443) as view,
        open_node_service(hub_on_443) as call,
    ):
        await talk(hub_on_443, a, b, view)
        method = {"methodName": "status", "payload": {"deep": [1]}, "responseTimeoutInSeconds": 10}
        assert await call("invoke", "d", "a", method) == {"status": 207, "payload": {"echo": {"deep": [1]}}}
        assert await call("invoke", "d", None, method) == {"refused": 404, "code": "DeviceNotOnline"}


async def test_modules_come_in_through_the_workload_api_and_a_gateway(open_sdk_hub: Any, open_node_module: Any) -> None:
    async with (
        open_sdk_hub() as hub,
        open_node_module("mqtt", hub, "a", way="workload") as a,
        open_node_module("mqtt", hub, "b", way="gateway") as b,
        open_service_view(hub) as view,
    ):
        await talk(hub, a, b, view)


async def talk(hub: RunningHub, a: Any, b: Any, view: Any) -> None:
    """Everything that a module does; `view` is another's."""
    assert (await a.expect("patch"))["$version"] == 1, "this SDK tells the whole first"
    await view.patch_desired(A, {"first": {"x": [1, 2]}})
    assert await a.expect("patch") == {"first": {"x": [1, 2]}, "$version": 2}
    await a.send("twin")
    assert (await a.expect("twin"))["desired"] == {"first": {"x": [1, 2]}, "$version": 2}
    await a.send('report {"LatestAIModelFileName": "a.zip"}')
    await a.expect("reported")
    assert await view.fetch_reported(A) == {"LatestAIModelFileName": "a.zip"}
    await a.send('output out {"local_model_path": "x"}')
    await a.expect("sent")
    assert await b.expect("input") == "in"
    got = b.seen[-1]
    assert json.loads(got["body"]) == {"local_model_path": "x"}
    assert got["properties"]["colour"] == "a+b c/ä" and got["message_id"] == "mid-1"
    stored = (await hub.read_messages())[0]
    assert (stored.identity, stored.output, stored.properties["colour"]) == (A, "out", "a+b c/ä")
    assert await view.call_method(B, "status", {"n": 1}) == {"status": 207, "payload": {"echo": {"n": 1}}}
