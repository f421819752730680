"""Configurations of a fleet, made by Microsoft's unmodified azure-iot-hub: what they set, on whom, what they tell.

Rules:
- A configuration sets desired properties on every device or module that matches, within two seconds, also on one that
  matches later; of two the one of higher priority has each path; what was set stays when a configuration is deleted.
- `modulesContent` sets modules of devices that match; `moduleContent` sets modules that match themselves.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edgeferry.app.hub import RunningHub
from polling import poll

pytestmark = pytest.mark.needs_azure_sdk
WITHIN_S = 2.0
NORTH = "tags.site = 'north'"
GONE = {"refused": 404, "code": "ConfigurationNotFound"}
STALE = {"refused": 412, "code": "PreconditionFailed"}


def make(name: str, content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A configuration for the devices of the north, as the peer's calls take it."""
    return {"id": name, "content": content, "target_condition": NORTH, "priority": 10, **fields}


def for_module(**desired: Any) -> dict[str, Any]:
    """Content that sets desired properties of module `m`."""
    return {"modules_content": {"m": {"properties.desired": desired}}}


async def get_desired(call: Any, device: str, module: str | None = "m") -> dict[str, Any]:
    """Desired properties without what the hub adds."""
    twin = await (call("get_module_twin", device, module) if module else call("get_twin", device))
    return {name: value for name, value in twin["properties"]["desired"].items() if not name.startswith("$")}


async def expect_desired(call: Any, wanted: dict[str, Any], device: str, module: str | None = "m") -> None:
    """Waits for desired properties no longer than a configuration may take."""
    found: dict[str, Any] = {}

    async def is_set() -> bool:
        found.clear()
        found.update(await get_desired(call, device, module))
        return found == wanted

    try:
        await poll(is_set, WITHIN_S)
    except TimeoutError:
        assert found == wanted


async def add_site(hub: RunningHub, call: Any, site: str, *devices: str) -> None:
    """Devices with a module `m`, and a tag that says where they are."""
    for device in devices:
        await hub.add_module(device, "m")
        await call("tag", device, {"site": site})


async def test_configurations_are_made_read_listed_changed_and_deleted(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        fields = make("c1", for_module(x=1), labels={"who": "me"}, metrics={"all": "SELECT deviceId FROM devices"})
        made = await call("add_configuration", fields)
        assert (made["id"], made["priority"], made["targetCondition"]) == ("c1", 10, NORTH)
        assert made["content"]["modulesContent"] == {"m": {"properties.desired": {"x": 1}}}
        assert made["labels"] == {"who": "me"} and made["metrics"]["queries"] == fields["metrics"]
        assert made["createdTimeUtc"] and made["etag"]
        read = await call("get_configuration", "c1")
        assert [read[name] for name in ("etag", "content", "labels")] == [
            made[name] for name in ("etag", "content", "labels")
        ]
        assert (await call("add_configuration", fields)) == {"refused": 409, "code": "ConfigurationAlreadyExists"}
        changed = await call("update_configuration", fields | {"priority": 20}, made["etag"])
        assert changed["priority"] == 20 and changed["etag"] != made["etag"]
        assert (await call("update_configuration", fields | {"priority": 30}, made["etag"])) == STALE
        assert (await call("update_configuration", fields | {"priority": 30}, f'"{changed["etag"]}"'))["priority"] == 30
        assert (await call("update_configuration", fields | {"priority": 40}, "*"))["priority"] == 40
        await call("add_configuration", make("c2", for_module(x=2)))
        assert sorted(one["id"] for one in await call("get_configurations")) == ["c1", "c2"]
        assert len(await call("get_configurations", 1)) == 1
        assert (await call("delete_configuration", "c1", changed["etag"])) == STALE
        assert (await call("delete_configuration", "c1")) is None
        assert (await call("get_configuration", "c1")) == GONE
        assert (await call("delete_configuration", "c1")) == GONE


async def test_the_content_of_a_configuration_cannot_be_changed(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        made = await call("add_configuration", make("c", for_module(x=1)))
        refused = await call("update_configuration", make("c", for_module(x=2)), made["etag"])
        assert refused == {"refused": 400, "code": "CannotModifyImmutableConfigurationContent"}
        assert (await call("get_configuration", "c"))["content"] == made["content"]


async def test_it_is_set_on_those_that_match_and_on_those_that_match_later(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        await add_site(hub, call, "north", "n1")
        await add_site(hub, call, "south", "s1")
        await call("update", "n1", "m", {"kept": 1}, "*")
        await call("add_configuration", make("c", {"modules_content": {"m": {"properties.desired.x": {"new": 2}}}}))
        await expect_desired(call, {"kept": 1, "x": {"new": 2}}, "n1")
        await add_site(hub, call, "north", "n2")
        await expect_desired(call, {"x": {"new": 2}}, "n2")
        assert await get_desired(call, "s1") == {}
        await call("tag", "s1", {"site": "north"})
        await expect_desired(call, {"x": {"new": 2}}, "s1")
        await hub.add_device("n3")
        await call("tag", "n3", {"site": "north"})
        await hub.add_module("n3", "m")
        await expect_desired(call, {"x": {"new": 2}}, "n3")


async def test_a_device_is_set_by_device_content(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        await add_site(hub, call, "north", "n1")
        await call("add_configuration", make("c", {"device_content": {"properties.desired.x.y": [1, {"z": 2}]}}))
        await expect_desired(call, {"x": {"y": [1, {"z": 2}]}}, "n1", None)
        assert await get_desired(call, "n1") == {}


async def test_modules_are_set_by_a_condition_of_their_own(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        await add_site(hub, call, "north", "n1")
        await hub.add_module("n1", "other")
        condition = "FROM devices.modules WHERE moduleId = 'm' AND tags.kind = 'camera'"
        content = {"module_content": {"properties.desired.x": 1}}
        await call("add_configuration", make("c", content, target_condition=condition))
        await call("tag_module", "n1", "m", {"kind": "camera"})
        await call("tag_module", "n1", "other", {"kind": "camera"})
        await expect_desired(call, {"x": 1}, "n1")
        assert await get_desired(call, "n1", "other") == {}


async def test_of_two_the_higher_priority_has_each_path(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        await add_site(hub, call, "north", "n1")
        layers = {"high": (20, {"x": "high", "z": "high"}), "low": (10, {"x": "low", "y": "low"})}
        for name, (priority, paths) in layers.items():
            desired = {f"properties.desired.{path}": value for path, value in paths.items()}
            await call("add_configuration", make(name, {"modules_content": {"m": desired}}, priority=priority))
        await expect_desired(call, {"x": "high", "y": "low", "z": "high"}, "n1")
        await call("delete_configuration", "high")
        await expect_desired(call, {"x": "low", "y": "low", "z": "high"}, "n1")
        await call("delete_configuration", "low")
        await asyncio.sleep(WITHIN_S)
        assert await get_desired(call, "n1") == {"x": "low", "y": "low", "z": "high"}


async def test_a_configuration_that_is_done_writes_no_more(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        await add_site(hub, call, "north", "n1")
        await call("add_configuration", make("c", for_module(x=1)))
        await expect_desired(call, {"x": 1}, "n1")
        version = (await call("get_module_twin", "n1", "m"))["properties"]["desired"]["$version"]
        await call("tag", "n1", {"other": 1})
        await asyncio.sleep(WITHIN_S)
        assert (await call("get_module_twin", "n1", "m"))["properties"]["desired"]["$version"] == version


async def test_metrics_count_who_is_targeted_who_is_set_and_what_was_asked(hub: RunningHub, open_service: Any) -> None:
    asked = {
        "everybody": "SELECT deviceId FROM devices",
        "south": "SELECT * FROM devices WHERE tags.site = 'south'",
        "set": "SELECT deviceId, moduleId FROM devices.modules WHERE properties.desired.x = 1",
    }
    async with open_service(hub) as call:
        await add_site(hub, call, "north", "n1", "n2")
        await add_site(hub, call, "south", "s1")
        await call("add_configuration", make("c", for_module(x=1), metrics=asked))
        await expect_desired(call, {"x": 1}, "n2")
        wanted = ({"targetedCount": 2, "appliedCount": 2}, {"everybody": 3, "south": 1, "set": 2})

        async def read() -> bool:
            found = await call("get_configuration", "c")
            system, own = found["systemMetrics"]["results"], found["metrics"]["results"]
            return wanted == ({name: system.get(name) for name in wanted[0]}, own)

        await poll(read, WITHIN_S)


async def test_conditions_and_metrics_can_be_tried(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        good = await call("test_queries", NORTH, {"all": "SELECT deviceId FROM devices"})
        assert not good.get("targetConditionError") and not good.get("customMetricQueryErrors")
        modules = await call("test_queries", "FROM devices.modules WHERE moduleId = 'm'", {})
        assert not modules.get("targetConditionError")
        bad = await call("test_queries", "tags.site = ", {"all": "SELECT deviceId FROM devices", "bad": "SELECT FROM"})
        assert bad["targetConditionError"] and list(bad["customMetricQueryErrors"]) == ["bad"]


@pytest.mark.parametrize(
    "flaw, code",
    [
        ({"target_condition": "tags.site ="}, "InvalidConfigurationTargetCondition"),
        ({"metrics": {"bad": "SELECT FROM"}}, "InvalidConfigurationCustomMetricsQuery"),
        ({"content": {}}, "InvalidConfigurationContent"),
        ({"content": {"modules_content": {"m": {"tags.x": 1}}}}, "InvalidConfigurationContent"),
        ({"content": {"device_content": {"properties.reported.x": 1}}}, "InvalidConfigurationContent"),
    ],
)
async def test_a_configuration_that_is_none_is_refused(
    hub: RunningHub, open_service: Any, flaw: dict[str, Any], code: str
) -> None:
    async with open_service(hub) as call:
        refused = await call("add_configuration", make("c", for_module(x=1)) | flaw)
        assert refused == {"refused": 400, "code": code}
        assert await call("get_configurations") == []


DEPLOYMENT = {
    "$edgeAgent": {
        "properties.desired": {
            "schemaVersion": "1.1",
            "modules": {"loader": {"type": "docker"}, "infer": {"type": "docker"}},
            "systemModules": {"edgeAgent": {"type": "docker"}, "edgeHub": {"type": "docker"}},
        }
    },
    "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {}}},
    "loader": {"properties.desired": {"FileName": "a.zip"}},
}


async def test_content_applied_to_one_device_is_written_at_once_and_makes_its_modules(
    hub: RunningHub, open_service: Any
) -> None:
    async with open_service(hub) as call:
        await hub.add_device("d")
        await hub.add_device("other")
        assert await call("apply", "d", {"modules_content": DEPLOYMENT}) is None
        modules = {one["moduleId"] for one in await call("get_modules", "d")}
        assert modules == {"$edgeAgent", "$edgeHub", "loader", "infer"}
        assert await get_desired(call, "d", "loader") == {"FileName": "a.zip"}
        assert await get_desired(call, "d", "infer") == {}
        assert await get_desired(call, "d", "$edgeHub") == DEPLOYMENT["$edgeHub"]["properties.desired"]
        key = (await call("get_module", "d", "loader"))["authentication"]["symmetricKey"]["primaryKey"]
        again = DEPLOYMENT | {"loader": {"properties.desired": {"FileName": "b.zip"}}}
        assert await call("apply", "d", {"modules_content": again}) is None
        assert await get_desired(call, "d", "loader") == {"FileName": "b.zip"}
        assert (await call("get_module", "d", "loader"))["authentication"]["symmetricKey"]["primaryKey"] == key
        assert await call("get_modules", "other") == []
        unknown = await call("apply", "none", {"modules_content": DEPLOYMENT})
        assert unknown == {"refused": 404, "code": "DeviceNotFound"}


async def test_hundreds_are_set_in_the_time_of_one(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        await add_site(hub, call, "north", *(f"n{number:03}" for number in range(200)))
        await call("add_configuration", make("c", for_module(x=1)))

        async def all_are_set() -> bool:
            found = await call("query", "SELECT * FROM devices.modules WHERE properties.desired.x = 1")
            return len(found) == 200

        await poll(all_are_set, WITHIN_S)
