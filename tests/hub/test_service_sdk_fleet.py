"""What a fleet is asked and made with, called by Microsoft's unmodified azure-iot-hub: conditions, pages, bulk.

Configurations stand in test_service_sdk_configurations.py.

Rules:
- Only what Microsoft documents is asked: a comparison with what is not there is never left to decide a row.
- Each condition is asked of four devices, and of a module of each that holds the same.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from edgeferry.app.hub import RunningHub
from edgeferry.transport.mqtt import HubIdentity, make_key_sign, open_hub_connection
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import parse_connection_string
from polling import poll
from raw_mqtt import open_raw

pytestmark = pytest.mark.needs_azure_sdk
KEY, KEY_2 = (base64.b64encode(letter * 32).decode() for letter in (b"k", b"l"))
TAGS = {
    "n1": {"site": "north", "rank": 1, "line": {"name": "x-1"}},
    "n2": {"site": "north", "rank": 2},
    "s1": {"site": "south", "rank": 10, "line": {"name": "it's"}},
    "s2": {"rank": "10"},
}
DESIRED = {
    "n1": {"model": "detector", "limit": 0.5, "on": True},
    "n2": {"model": "poses", "limit": 1, "on": False},
    "s1": {"model": "detector", "limit": 2},
    "s2": {},
}
REPORTED = {"n1": {"state": {"version": 3}}, "s1": {"state": {"version": 12}}}
CONDITIONS = {
    "tags.site = 'north'": ["n1", "n2"],
    'tags.site = "north"': ["n1", "n2"],
    "tags.site != 'north' AND is_defined(tags.site)": ["s1"],
    "tags.rank < 10": ["n1", "n2"],
    "tags.rank <= 2": ["n1", "n2"],
    "tags.rank > 1": ["n2", "s1"],
    "tags.rank >= 10": ["s1"],
    "tags.rank = 10": ["s1"],
    "tags.rank = '10'": ["s2"],
    "tags.line.name = 'x-1'": ["n1"],
    "tags.line.name = 'it\\'s'": ["s1"],
    "properties.desired.model = 'detector'": ["n1", "s1"],
    "properties.desired.limit < 1.5": ["n1", "n2"],
    "properties.desired.on = true": ["n1"],
    "properties.desired.on = false": ["n2"],
    "properties.reported.state.version > 3": ["s1"],
    "properties.reported.state.version >= 3": ["n1", "s1"],
    "is_defined(tags.site)": ["n1", "n2", "s1"],
    "NOT is_defined(tags.site)": ["s2"],
    "IS_DEFINED(properties.reported.state)": ["n1", "s1"],
    "is_defined(tags.line.name) AND tags.rank > 1": ["s1"],
    "tags.site IN ['north', 'west']": ["n1", "n2"],
    "tags.rank IN [1, 10]": ["n1", "s1"],
    "NOT tags.rank IN [1, 10] AND is_defined(tags.site)": ["n2"],
    "deviceId = 's2'": ["s2"],
    "deviceId != 's2'": ["n1", "n2", "s1"],
    "deviceId IN ['n1', 's2', 'none']": ["n1", "s2"],
    "tags.site = 'north' AND properties.desired.model = 'poses'": ["n2"],
    "tags.site = 'south' OR properties.desired.model = 'poses'": ["n2", "s1"],
    "tags.site = 'south' OR tags.site = 'north' AND tags.rank = 2": ["n2", "s1"],
    "(tags.site = 'south' OR tags.site = 'north') AND tags.rank = 2": ["n2"],
    "is_defined(tags.site) AND NOT (tags.site = 'north' AND tags.rank = 2)": ["n1", "s1"],
    "not deviceId = 'n1' and tags.rank < 10": ["n2"],
    "tags.none.deeper = 1": [],
    "connectionState = 'Connected'": [],
    "connectionState = 'Disconnected' AND tags.rank < 2": ["n1"],
}
OF_MODULES = {
    "moduleId = 'm'": ["n1", "n2", "s1", "s2"],
    "moduleId != 'm'": [],
    "moduleId IN ['m'] AND deviceId = 'n1'": ["n1"],
}
WRONG = [
    "",
    "tags.site =",
    "tags.site = 'north",
    "tags.site 'north'",
    "(tags.site = 'north'",
    "is_defined(",
    "tags.site IN ['north'",
    "tags.site = 'north'; DROP TABLE twins",
    "NOT",
    "(" * 5000 + "deviceId = 'a'" + ")" * 5000,
    "NOT " * 5000 + "deviceId = 'a'",
]


async def report(hub: RunningHub, connection_string: str, reported: dict[str, Any]) -> None:
    """What a device or a module says of itself, once."""
    async with open_raw(hub) as client:
        await client.connect(connection_string, clean=True)
        topic = "$iothub/twin/PATCH/properties/reported/?$rid=1"
        await client.send(mqtt.Publish(topic, json.dumps(reported).encode(), 1, 7))
        while (packet := await client.receive()) != mqtt.PubAck(7):
            assert packet is not None


async def make_fleet(hub: RunningHub, call: Any) -> None:
    """Four devices, each with a module `m`; a device and its module hold the same tags and properties."""
    for device, tags in TAGS.items():
        strings = await hub.add_device(device), await hub.add_module(device, "m")
        await call("tag", device, tags)
        await call("tag_module", device, "m", tags)
        await call("update_device_twin", device, DESIRED[device], "*")
        await call("update", device, "m", DESIRED[device], "*")
        for connection_string in strings if device in REPORTED else ():
            await report(hub, connection_string, REPORTED[device])

    async def all_have_left() -> bool:
        found = [await find(call, of, "connectionState = 'Connected'") for of in ("devices", "devices.modules")]
        return found == [[], []]

    await poll(all_have_left)


async def find(call: Any, source: str, condition: str) -> Any:
    """Ids of the devices found, or the refusal."""
    found = await call("query", f"SELECT * FROM {source} WHERE {condition}")
    return sorted(one["deviceId"] for one in found) if isinstance(found, list) else found


async def test_conditions_pick_devices_and_modules(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        await make_fleet(hub, call)
        assert {text: await find(call, "devices", text) for text in CONDITIONS} == CONDITIONS
        assert {text: await find(call, "devices.modules", text) for text in CONDITIONS} == CONDITIONS
        assert {text: await find(call, "devices.modules", text) for text in OF_MODULES} == OF_MODULES
        everything = await call("query", "select * from devices where deviceId = 'n1'")
        assert everything == [await call("get_twin", "n1")]


async def test_who_is_connected_can_be_asked(hub: RunningHub, open_service: Any) -> None:
    known = parse_connection_string(await hub.add_module("d", "m"))
    await hub.add_module("d", "away")
    sign, ca_pem = make_key_sign(known.shared_access_key), hub.ca_pem_path.read_bytes()
    identity = HubIdentity(host=known.host_name, device="d", module="m", sign=sign, ca_pem=ca_pem, port=hub.mqtt_port)
    async with open_service(hub) as call, open_hub_connection(identity):
        for state, module in (("Connected", "m"), ("Disconnected", "away")):
            found = await call("query", f"SELECT * FROM devices.modules WHERE connectionState = '{state}'")
            assert [one["moduleId"] for one in found] == [module]


@pytest.mark.parametrize("source", ["devices", "devices.modules"])
async def test_a_condition_that_is_none_is_refused_at_once(hub: RunningHub, open_service: Any, source: str) -> None:
    await hub.add_module("d", "m")
    async with open_service(hub) as call:
        refused = {"refused": 400, "code": "ArgumentInvalid"}
        assert {text[:60]: await find(call, source, text) for text in WRONG} == {text[:60]: refused for text in WRONG}


async def test_pages_give_every_row_once_whatever_is_written_between(hub: RunningHub, open_service: Any) -> None:
    for number in range(7):
        await hub.add_module(f"d{number}", "m")
    async with open_service(hub) as call:
        for source in ("devices", "devices.modules WHERE moduleId = 'm'"):
            rows, token, sizes = [], None, []
            while not sizes or token:
                page = await call("page", f"SELECT * FROM {source}", token, 3)
                rows += [one["deviceId"] for one in page["items"]]
                sizes.append(len(page["items"]))
                token = page["token"]
                await call("tag", "d0", {"seen": len(rows)})
            assert rows == [f"d{number}" for number in range(7)] and sizes == [3, 3, 1]
            assert page["type"] == "Twin"
            assert token is None, (
                "the last page has no header x-ms-continuation: SDKs for Node.js go on while there is one"
            )


async def test_a_token_of_no_page_is_refused(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        for token in ("nonsense", "A" * 10_000, "-1"):
            assert (await call("page", "SELECT * FROM devices", token, 3)) == {
                "refused": 400,
                "code": "ArgumentInvalid",
            }


async def test_many_devices_are_made_changed_and_deleted_in_one_call(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        made = await call("bulk", [{"id": f"d{n}", "key": KEY, "import_mode": "create"} for n in range(100)])
        assert made["isSuccessful"] is True and not made.get("errors")
        assert len(await call("get_devices")) == 100
        rows = [
            {"id": "d0", "import_mode": "delete"},
            {"id": "d1", "import_mode": "update", "key": KEY_2, "status": "disabled"},
            {"id": "d2", "import_mode": "create", "key": KEY},
            {"id": "none", "import_mode": "delete"},
        ]
        mixed = await call("bulk", rows)
        assert mixed["isSuccessful"] is False
        errors = {one["deviceId"]: one["errorCode"] for one in mixed["errors"]}
        assert errors == {"d2": "DeviceAlreadyExists", "none": "DeviceNotFound"}
        assert (await call("get_device", "d0"))["refused"] == 404
        changed = await call("get_device", "d1")
        assert changed["status"] == "disabled"
        assert changed["authentication"]["symmetricKey"]["primaryKey"] == KEY_2
        assert (await call("statistics"))["totalDeviceCount"] == 99


async def test_an_update_of_a_module_changes_who_manages_it(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        await call("add_device", "d", KEY)
        module = await call("add_module", "d", "m", KEY)
        assert (await call("update_module", "d", "m", module["etag"], KEY))["managedBy"] == "another"
        assert (await call("get_module", "d", "m"))["managedBy"] == "another"


async def test_what_is_said_of_a_device_is_kept(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        await call("add_edge_device", "d", KEY, "not delivered")
        device = await call("get_device", "d")
        assert (device["status"], device.get("statusReason")) == ("disabled", "not delivered")
        assert device["capabilities"]["iotEdge"] is True
        assert (await call("get_twin", "d"))["capabilities"]["iotEdge"] is True


async def test_a_device_with_a_certificate_is_not_made_into_one_with_keys(hub: RunningHub, open_service: Any) -> None:
    async with open_service(hub) as call:
        refused = await call("add_device_with_x509", "d", "A" * 40)
        assert refused == {"refused": 400, "code": "ArgumentInvalid"}
        assert (await call("get_device", "d")) == {"refused": 404, "code": "DeviceNotFound"}
