"""The service REST, called by hand: tokens, bounds, and what service SDKs never send."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from edgeferry.app.hub import RunningHub
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire import service_api as api
from edgeferry.wire.iothub_auth import make_sas_token
from edgeferry.wire.service_api import Identity
from hub.service_caller import Caller
from raw_mqtt import open_raw

D_M = Identity("d", "m")
KEY = "A" * 43 + "="


async def test_only_a_good_token_of_the_policy_is_let_in(hub: RunningHub, call: Caller) -> None:
    await hub.add_module("d", "m")
    path = api.get_twin_path(D_M)
    record = await hub.rooms.registry.read(D_M)
    good = [call.token(), call.token("localhost"), call.token(f"LOCALHOST:{hub.https_port}/twins/d")]
    bad = [
        "",
        "Bearer x",
        call.token("elsewhere"),
        call.token("localhost/twins/e"),
        call.token("localhost/twins/d/modules/mm"),
        call.token(key=record.primary_key),
        call.token(policy=None),
        call.token(policy="owner"),
        call.token(policy="iothubowner", key=hub.policies.keys["service"]),
        make_sas_token("localhost", hub.policies.keys["service"], int(time.time()) - 1, "service"),
    ]
    assert [(await call("GET", path, token=token))[0] for token in good] == [200] * len(good)
    assert [(await call("GET", path, token=token))[0] for token in bad] == [401] * len(bad)


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        ("iothubowner", {"read", "write", "twin", "query", "configure"}),
        ("service", {"twin", "query"}),
        ("registryRead", {"read", "query"}),
        ("registryReadWrite", {"read", "write", "query", "configure"}),
    ],
)
async def test_a_policy_opens_what_it_is_for_and_nothing_else(
    hub: RunningHub, call: Caller, policy: str, allowed: set[str]
) -> None:
    await hub.add_module("d", "m")
    token = call.token(policy=policy)
    configuration = b'{"id": "c", "content": {"deviceContent": {"properties.desired.x": 1}}}'
    answers = {
        "read": await call("GET", "/devices/d", token=token),
        "write": await call("PUT", "/devices/new", token=token, data=b"{}"),
        "twin": await call("GET", "/twins/d/modules/m", token=token),
        "query": await call("POST", "/devices/query", token=token, data=b'{"query": "SELECT * FROM devices"}'),
        "configure": await call("PUT", "/configurations/c", token=token, data=configuration),
    }
    assert {name for name, (status, _, _) in answers.items() if status == 200} == allowed
    refused = [answer for name, answer in answers.items() if name not in allowed]
    assert all((status, code) == (401, "IotHubUnauthorizedAccess") for status, _, code in refused)
    assert not any(key.encode() in body for _, body, _ in refused for key in hub.policies.keys.values())


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "ArgumentInvalid"),
        (b"[]", 400, "ArgumentInvalid"),
        (b'{"tags": 5}', 400, "ArgumentInvalid"),
        (b'{"properties": []}', 400, "ArgumentInvalid"),
        (b'{"properties": {"desired": {"$x": 1}}}', 400, "ArgumentInvalid"),
        (b'{"properties": {"desired": {"n": 4503599627370496}}}', 413, "MessageTooLarge"),
        (b" " * 3_000_000, 413, "MessageTooLarge"),
        (b"{}", 200, None),
    ],
)
async def test_a_twin_write_is_checked(
    hub: RunningHub, call: Caller, data: bytes, status: int, code: str | None
) -> None:
    await hub.add_module("d", "m")
    for method in ("PATCH", "PUT"):
        found = await call(method, api.get_twin_path(D_M), data=data)
        assert (found[0], found[2]) == (status, code)


@pytest.mark.parametrize("tag", ['"*"', "*"])
async def test_a_star_matches_any_etag(hub: RunningHub, call: Caller, tag: str) -> None:
    await hub.add_module("d", "m")
    assert (await call("PATCH", api.get_twin_path(D_M), data=b"{}", **{"If-Match": tag}))[0] == 200
    assert (await call("DELETE", api.get_identity_path(D_M), **{"If-Match": tag}))[0] == 204


@pytest.mark.parametrize("device", ["a%2Fb", "a%20b", "a%00", "a%2Bb", "a%23", "x" * 129])
async def test_an_id_that_means_something_in_a_topic_is_refused(call: Caller, device: str) -> None:
    from yarl import URL

    url = URL(f"{call.hub.service_url}/devices/{device}?api-version=2021-04-12", encoded=True)
    async with call.session.put(url, headers={"Authorization": call.token()}, data=b"{}") as answer:
        assert answer.status in (400, 404)
    assert (await call("GET", "/devices"))[1] == b"[]"


@pytest.mark.parametrize(
    "keys", [b'{"primaryKey": "x"}', b'{"primaryKey": "AAAA", "secondaryKey": "AAAA"}', b"[1]", b'{"primaryKey": 5}']
)
async def test_a_weak_or_broken_key_is_refused(call: Caller, keys: bytes) -> None:
    body = b'{"authentication": {"symmetricKey": ' + keys + b"}}"
    assert (await call("PUT", "/devices/d", data=body))[0] == 400


async def test_a_method_without_an_answer_times_out(hub: RunningHub, call: Caller) -> None:
    from edgeferry.wire.iothub_topics import METHOD_FILTER
    from raw_mqtt import open_raw

    text = await hub.add_module("d", "m")
    async with open_raw(hub) as client:
        await client.connect(text)
        body = b'{"methodName": "x", "responseTimeoutInSeconds": 1}'
        assert (await call("POST", api.get_method_path(D_M), data=body))[2] == "DeviceNotOnline"
        await client.subscribe(METHOD_FILTER)
        assert (await call("POST", api.get_method_path(D_M), data=body))[::2] == (504, "GatewayTimeout")


@pytest.mark.parametrize(
    "body", [b"{}", b'{"methodName": ""}', b'{"methodName": "m", "responseTimeoutInSeconds": 999}']
)
async def test_a_method_request_is_checked(hub: RunningHub, call: Caller, body: bytes) -> None:
    await hub.add_module("d", "m")
    assert (await call("POST", api.get_method_path(D_M), data=body))[0] == 400


@pytest.mark.parametrize("host", ["[::1", "", "a b", "localhost:x"])
async def test_a_broken_host_header_is_refused(call: Caller, host: str) -> None:
    assert (await call("GET", "/devices", Host=host))[0] in (400, 401)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/devices/d", {"status": "disabled"}),
        ("/devices/d/modules/m", {"authentication": {"symmetricKey": {"primaryKey": KEY, "secondaryKey": KEY}}}),
    ],
)
async def test_a_change_over_rest_ends_the_connections_that_it_shuts_out(
    hub: RunningHub, call: Caller, path: str, change: dict[str, Any]
) -> None:
    text = await hub.add_module("d", "m")
    async with open_raw(hub) as client:
        assert await client.connect(text) == mqtt.ConnAck(0, False)
        status, _, _ = await call("PUT", path, data=json.dumps(change).encode(), **{"If-Match": '"*"'})
        assert status == 200
        assert await client.receive() is None


async def test_deleting_a_device_ends_the_connections_of_its_modules(hub: RunningHub, call: Caller) -> None:
    text = await hub.add_module("d", "m")
    async with open_raw(hub) as client:
        await client.connect(text)
        assert (await call("DELETE", "/devices/d"))[0] == 204
        assert await client.receive() is None


@pytest.mark.parametrize("managed_by", [7, {"a": 1}, ["x"], "x" * 129])
async def test_an_owner_that_is_no_name_is_refused(hub: RunningHub, call: Caller, managed_by: object) -> None:
    await hub.add_device("d")
    body = json.dumps({"managedBy": managed_by}).encode()
    status, _, code = await call("PUT", "/devices/d/modules/m", data=body)
    assert (status, code) == (400, "ArgumentInvalid")


async def test_no_twin_shows_a_key(hub: RunningHub, call: Caller) -> None:
    await hub.add_module("d", "m")
    record = await hub.rooms.registry.read(D_M)
    _, body, _ = await call("GET", api.get_twin_path(D_M))
    assert record.primary_key.encode() not in body and record.secondary_key.encode() not in body


async def test_a_twin_at_its_limits_is_written_back_as_it_was_read(hub: RunningHub, call: Caller) -> None:
    await hub.add_module("d", "m")
    desired = {f"k{n:010}": n for n in range(1700)}
    body = json.dumps({"properties": {"desired": desired}}).encode()
    status, read, _ = await call("PATCH", "/twins/d/modules/m", data=body)
    assert status == 200 and len(read) > 128 * 1024
    status, again, _ = await call("PUT", "/twins/d/modules/m", data=read)
    assert (
        status == 200
        and json.loads(again)["properties"]["desired"].keys() == json.loads(read)["properties"]["desired"].keys()
    )


async def test_a_twin_of_empty_values_has_a_bound_too(hub: RunningHub, call: Caller) -> None:
    await hub.add_module("d", "m")
    body = json.dumps({"properties": {"desired": {f"{n:x}": {} for n in range(5000)}}}).encode()
    assert (await call("PATCH", "/twins/d/modules/m", data=body))[::2] == (413, "MessageTooLarge")


@pytest.mark.parametrize(("size", "status"), [(128 * 1024 - 2, 404), (128 * 1024 - 1, 400)])
async def test_a_methods_payload_may_be_as_long_as_documented(
    hub: RunningHub, call: Caller, size: int, status: int
) -> None:
    await hub.add_module("d", "m")
    body = json.dumps({"methodName": "m", "payload": "x" * size}).encode()
    assert (await call("POST", "/twins/d/modules/m/methods", data=body))[0] == status  # 404: it is not online
