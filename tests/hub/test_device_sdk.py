"""The MQTT door, spoken to by Microsoft's unmodified azure-iot-device over every way in."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from edgeferry.app.hub import HubSettings, RunningHub, open_hub
from edgeferry.wire.iothub_auth import parse_connection_string
from edgeferry.wire.service_api import Identity, MethodRequest
from polling import poll

pytestmark = pytest.mark.needs_azure_sdk
ROUTES = (
    'FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint("/modules/b/inputs/in")',
    "FROM /messages/* INTO $upstream",
)
Opener = Callable[..., AbstractAsyncContextManager[RunningHub]]
A, B = Identity("d", "a"), Identity("d", "b")


@pytest.fixture
def open_sdk_hub(tmp_path: Path, loopback_address: str) -> Opener:
    """A hub on port 8883 of an address of its own; opened again it goes on with the same folder."""

    def start(**more: Any) -> AbstractAsyncContextManager[RunningHub]:
        more = {"https_port": 0, "host_names": (loopback_address,), "routes": ROUTES, **more}
        return open_hub(HubSettings(tmp_path / "hub", loopback_address, **more))

    return start


async def write_desired(hub: RunningHub, desired: dict[str, Any], *, replace_all: bool = False) -> None:
    await hub.rooms.twins.write(A, {"properties": {"desired": desired}}, if_match=None, replace_all=replace_all)


async def read_reported(hub: RunningHub) -> dict[str, Any]:
    return (await hub.rooms.twins.read(A))[1].reported.body


@pytest.mark.parametrize("way", ["tcp", "websockets"])
async def test_twin_patch_report_output_input_and_method(open_sdk_hub: Opener, open_device: Any, way: str) -> None:
    doors, words = ({"https_port": 443, "mqtt_port": 0}, [way]) if way == "websockets" else ({}, [])
    async with open_sdk_hub(**doors) as hub:
        sender, receiver = await hub.add_module("d", "a"), await hub.add_module("d", "b")
        await write_desired(hub, {"first": 1})
        async with open_device(hub, sender, *words) as a, open_device(hub, receiver, *words) as b:
            await a.expect("ready")
            await b.expect("ready")
            await a.send("twin")
            assert (await a.expect("twin"))["desired"] == {"first": 1, "$version": 2}
            await write_desired(hub, {"first": None, "second": {"x": [1, 2]}})
            assert await a.expect("patch") == {"first": None, "second": {"x": [1, 2]}, "$version": 3}
            await write_desired(hub, {"third": 3}, replace_all=True)
            assert await a.expect("patch") == {"second": None, "third": 3, "$version": 4}
            await a.send('report {"LatestAIModelFileName": "a.zip"}')
            await a.expect("reported")
            assert await read_reported(hub) == {"LatestAIModelFileName": "a.zip"}
            await a.send('output out {"local_model_path": "x"}')
            await a.expect("sent")
            assert await b.expect("input") == "in"
            got = b.seen[-1]
            assert json.loads(got["body"]) == {"local_model_path": "x"} and got["message_id"] == "mid-1"
            assert got["properties"]["colour"] == "a+b c/ä"
            stored = (await hub.read_messages())[0]
            assert (stored.identity, stored.output, stored.properties["colour"]) == (A, "out", "a+b c/ä")
            answer = await hub.rooms.methods.call(A, MethodRequest("reload now", {"deep": [1]}, 10.0))
            assert answer == {"status": 207, "payload": {"echo": {"deep": [1]}}}
            assert await hub.rooms.db.read(lambda tables: tables.read_queued_ids(B)) == set()


async def test_a_report_against_the_limits_is_refused_and_the_client_goes_on(
    open_sdk_hub: Opener, open_device: Any
) -> None:
    async with open_sdk_hub() as hub, open_device(hub, await hub.add_module("d", "a")) as a:
        await a.expect("ready")
        await a.send(f"report {json.dumps({'long': 'x' * 5000})}")
        await a.expect("failed")
        await a.send('report {"a.b": 1}')
        await a.expect("failed")
        await a.send('report {"good": 1}')
        await a.expect("reported")
        assert await read_reported(hub) == {"good": 1}


async def test_live_patches_methods_and_inputs_still_arrive_after_a_restart_of_the_hub(
    open_sdk_hub: Opener, open_device: Any
) -> None:
    async with open_sdk_hub() as hub:
        sender, receiver = await hub.add_module("d", "a"), await hub.add_module("d", "b")
        a_peer, b_peer = open_device(hub, sender), open_device(hub, receiver)
        a, b = await a_peer.__aenter__(), await b_peer.__aenter__()
        await a.expect("ready")
        await b.expect("ready")
    try:
        async with open_sdk_hub() as hub:
            await write_desired(hub, {"while": "away"})

            async def both_are_back() -> bool:
                return bool(hub.rooms.presence.find(A) and hub.rooms.presence.find(B))

            await poll(both_are_back, 40.0)
            patch = await a.expect("patch", 40.0)
            while patch.get("while") != "away":
                patch = await a.expect("patch")
            await write_desired(hub, {"live": 1})
            assert (await a.expect("patch"))["live"] == 1
            assert (await hub.rooms.methods.call(B, MethodRequest("m", None, 10.0)))["status"] == 207
            await a.send("output out 1")
            assert await b.expect("input") == "in"
    finally:
        await a_peer.__aexit__(None, None, None)
        await b_peer.__aexit__(None, None, None)


async def test_a_message_for_a_module_that_is_away_waits_for_it(open_sdk_hub: Opener, open_device: Any) -> None:
    async with open_sdk_hub() as hub:
        sender, receiver = await hub.add_module("d", "a"), await hub.add_module("d", "b")
        async with open_device(hub, sender) as a:
            await a.expect("ready")
            await a.send('output out "kept"')
            await a.expect("sent")
    async with open_sdk_hub() as hub, open_device(hub, receiver) as b:
        assert await b.expect("input") == "in"
        assert b.seen[-1]["body"] == '"kept"'


async def test_a_wrong_key_is_refused_at_once(open_sdk_hub: Opener, open_device: Any) -> None:
    async with open_sdk_hub() as hub:
        one, other = await hub.add_module("d", "a"), await hub.add_module("d", "b")
        key = parse_connection_string(other).shared_access_key
        wrong = one.replace(parse_connection_string(one).shared_access_key, key)
        async with open_device(hub, wrong) as a:
            assert await a.expect("failed") == "CredentialError"


async def test_the_renewal_of_a_token_is_not_offline(open_sdk_hub: Opener, open_device: Any) -> None:
    async with open_sdk_hub() as hub, open_device(hub, await hub.add_module("d", "a"), "122") as a:
        await a.expect("ready")
        assert await a.expect("connected", 20.0) in (True, False)
        first = hub.rooms.presence.find(A)

        async def is_another() -> bool:
            assert hub.rooms.presence.get_facts(A).is_connected
            return hub.rooms.presence.find(A) not in (None, first)

        await poll(is_another, 20.0)
        await write_desired(hub, {"after": "renewal"})
        while "after" not in await a.expect("patch"):
            pass


async def test_a_device_identity_connects_and_sends(open_sdk_hub: Opener, open_device: Any) -> None:
    async with open_sdk_hub() as hub, open_device(hub, await hub.add_device("solo")) as a:
        await a.expect("ready")
        await a.send("plain 1")
        await a.expect("sent")
        assert [str(one.identity) for one in await hub.read_messages()] == ["solo"]


async def test_a_module_connects_with_an_edge_connection_string(open_sdk_hub: Opener, run_sdk: Any) -> None:
    async with open_sdk_hub() as hub:
        text = f"{await hub.add_module('d', 'a')};GatewayHostName={hub.settings.host_name}"
        text = text.replace(f"HostName={hub.settings.host_name};Dev", "HostName=cloud.example;Dev")
        edge = {"EdgeHubConnectionString": text, "EdgeModuleCACertificateFile": str(hub.ca_pem_path)}
        async with run_sdk(Path(__file__).parent / "sdk" / "device_peer.py", "edge", **edge) as a:
            await a.expect("ready")
            await a.send("twin")
            assert (await a.expect("twin"))["desired"] == {"$version": 1}


async def test_a_module_connects_through_the_workload_api(open_sdk_hub: Opener, run_sdk: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    async with open_sdk_hub(workload_socket=path, workload_device="d") as hub:
        await hub.add_module("d", "a")
        record = await hub.rooms.registry.read(A)
        edge = {
            "IOTEDGE_IOTHUBHOSTNAME": "cloud.example",
            "IOTEDGE_DEVICEID": "d",
            "IOTEDGE_MODULEID": "a",
            "IOTEDGE_GATEWAYHOSTNAME": hub.settings.host_name,
            "IOTEDGE_MODULEGENERATIONID": record.generation_id,
            "IOTEDGE_WORKLOADURI": f"unix://{path}",
            "IOTEDGE_APIVERSION": "2019-01-30",
        }
        async with run_sdk(Path(__file__).parent / "sdk" / "device_peer.py", "edge", **edge) as a:
            await a.expect("ready")
            await a.send("output out 5")
            await a.expect("sent")
            assert (await hub.read_messages())[0].identity == A
