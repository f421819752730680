"""Bad input over the service REST: refused with 4xx and a code, never with 5xx, on either store; nothing in the log."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgeferry.app.hub import HubSettings, open_hub
from edgeferry.hub.openapi import OPERATIONS
from edgeferry.hub.openapi_schemas import BODY_EXAMPLES
from edgeferry.twin.document import JSON_DEPTH_MAX
from edgeferry.wire.service_api import Identity
from hub_caller import ServiceCaller, open_caller
from schemathesis_runs import stay_connected

D_M = Identity("d", "m")
IDS = ["a%00b", "%ED%A0%80", "%FF", "%C3%A9", "%F0%9F%92%A9", "a%0Ab", "a%20", "a%2Fb", "a%5Cb", "a%25%00", "x" * 129]
IDS += ["x" * 8000, "%00", "%7F", "%C2%85"]
BODIES = {
    "nothing": b"",
    "NUL": b"\0",
    "half a text": b'{"query": "SEL',
    "no UTF-8": b'{"methodName": "\xff"}',
    "a surrogate": b'{"methodName": "\\ud800"}',
    "a surrogate in UTF-8": b'{"methodName": "\xed\xa0\x80"}',
    "UTF-16": '{"methodName": "x"}'.encode("utf-16"),
    "NaN": b'{"priority": NaN}',
    "Infinity": b'{"priority": -Infinity}',
    "1e999": b'{"priority": 1e999}',
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 20_000,
    "two values": b"{}{}",
    "a number": b"5",
    "null": b"null",
    "gzip": b"\x1f\x8b\x08\x00",
    "too deep": b'{"x": ' + b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX + b"}",
}
CONTENT = {"deviceContent": {"properties.desired.a": 1}}
VALUES: dict[tuple[str, str], list[Any]] = {
    ("PUT", "/devices/new"): [
        {"authentication": 5},
        {"authentication": []},
        {"authentication": {"symmetricKey": []}},
        {"authentication": {"symmetricKey": {"primaryKey": "\0", "secondaryKey": "\0"}}},
        {"authentication": {"symmetricKey": {"primaryKey": "é" * 24, "secondaryKey": None}}},
        {"status": 0},
        {"status": {}},
        {"status": "Enabled"},
    ],
    ("PUT", "/devices/d/modules/new"): [{"managedBy": "a\0"}, {"managedBy": 5}, {"managedBy": "x" * 129}],
    ("POST", "/devices"): [
        [{}],
        [5],
        [{"id": None}],
        [{"id": 5}],
        [{"id": "a\0"}],
        [{"id": "d", "moduleId": 5}],
        [{"id": "d", "moduleId": ["m"]}],
        [{"id": "new", "importMode": []}],
        [{"id": "new", "importMode": ""}],
        [{"id": f"n{number}"} for number in range(101)],
        {"id": "new"},
    ],
    ("PATCH", "/twins/d"): [
        {"tags": []},
        {"tags": {"a\0": 1}},
        {"tags": {"": 1}},
        {"tags": {"a": 10**30}},
        {"properties": 5},
        {"properties": {"desired": {"$a": 1}}},
        {"properties": {"desired": {"a": "x" * 5000}}},
        {"properties": {"desired": {"a": 10**400}}},
    ],
    ("POST", "/twins/d/modules/m/methods"): [
        {"methodName": 5},
        {"methodName": ""},
        {"methodName": "x" * 101},
        {"methodName": "x", "responseTimeoutInSeconds": False},
        {"methodName": "x", "responseTimeoutInSeconds": ""},
        {"methodName": "x", "responseTimeoutInSeconds": 1e300},
        {"methodName": "x", "responseTimeoutInSeconds": 10**400},
        {"methodName": "x", "connectTimeoutInSeconds": -1},
        {"methodName": "x", "payload": "x" * 130_000},
    ],
    ("POST", "/devices/query"): [{"query": 5}, {"query": "\0"}, {"query": "SELECT * FROM devices WHERE a = '"}, {}],
    ("PUT", "/configurations/new"): [
        {},
        {"content": None},
        {"content": {}},
        {"content": {"deviceContent": []}},
        {"content": {"deviceContent": {"properties.reported.a": 1}}},
        {"content": {"modulesContent": {"a b": {"properties.desired.a": 1}}}},
        {"content": {"modulesContent": {"$edgeAgent": {"properties.desired": {"modules": {"a\0": {}}}}}}},
        {"content": CONTENT, "metrics": 5},
        {"content": CONTENT, "metrics": []},
        {"content": CONTENT, "metrics": {"queries": [1]}},
        {"content": CONTENT, "metrics": {"queries": {"a": 5}}},
        {"content": CONTENT, "labels": 5},
        {"content": CONTENT, "labels": {"a": None}},
        {"content": CONTENT, "priority": -1},
        {"content": CONTENT, "priority": True},
        {"content": CONTENT, "priority": 10**400},
        {"content": CONTENT, "targetCondition": 5},
        {"content": CONTENT, "targetCondition": "\0"},
        {"content": CONTENT, "id": "old"},
    ],
    ("POST", "/configurations/testQueries"): [
        {"targetCondition": 5},
        {"customMetricQueries": []},
        {"customMetricQueries": {"a": None}},
    ],
}


@pytest.fixture(params=["SQLite", "PostgreSQL"])
async def call(request: pytest.FixtureRequest, tmp_path: Path, quiet_log: None) -> AsyncIterator[ServiceCaller]:
    """Speaks to a hub with the device d and its module m."""
    url = request.getfixturevalue("database_url") if request.param == "PostgreSQL" else None
    async with open_hub(HubSettings(tmp_path / "hub", database_url=url, mqtt_port=0, https_port=0)) as hub:
        await hub.add_module("d", "m")
        async with open_caller(hub) as caller:
            yield caller


async def _refuses(call: ServiceCaller, method: str, path: str, **more: Any) -> bool:
    answer = await call(method, path, **more)
    return 400 <= answer.status < 500 and answer.code is not None


async def test_no_bad_id_gets_through(call: ServiceCaller) -> None:
    taken = [
        (method, path, one)
        for (method, path), operation in OPERATIONS.items()
        for one in IDS
        if "{" in path
        and not await _refuses(
            call,
            method,
            path.format(device=one, module=one, name=one),
            body=BODY_EXAMPLES[operation.body] if operation.body else None,
        )
    ]
    assert taken == []


async def test_no_body_that_is_no_good_json_gets_through(call: ServiceCaller) -> None:
    taken = [
        (method, path, what)
        for (method, path), operation in OPERATIONS.items()
        for what, body in BODIES.items()
        if operation.body and not await _refuses(call, method, path.format(device="d", module="m", name="c"), body=body)
    ]
    assert taken == []


async def test_no_bad_value_gets_through(call: ServiceCaller) -> None:
    taken = [
        (method, path, value)
        for (method, path), values in VALUES.items()
        for value in values
        if not await _refuses(call, method, path, body=json.dumps(value).encode())
    ]
    assert taken == []
    assert [one["deviceId"] for one in json.loads((await call("GET", "/devices")).body)] == ["d"]
    assert json.loads((await call("GET", "/configurations")).body) == []


@pytest.mark.parametrize("top", ["", "0", "-1", "1.5", "x", "1e3", "%00", "%D9%A3"])
async def test_a_bad_number_of_rows_is_refused(call: ServiceCaller, top: str) -> None:
    assert await _refuses(call, "GET", "/devices", query=f"top={top}")
    assert await _refuses(call, "GET", "/configurations", query=f"top={top}")


@pytest.mark.parametrize("named", [["a\0", None], ["a", "m\0"], ["", None], [5], {}, "x" * 2000, None])
async def test_a_continuation_token_of_the_callers_own_making_is_refused(call: ServiceCaller, named: Any) -> None:
    token = base64.urlsafe_b64encode(json.dumps(named).encode()).decode()
    for text in (token, token[:-1], "!" + token):
        headers = {"x-ms-continuation": text}
        assert await _refuses(call, "POST", "/devices/query", body=BODY_EXAMPLES["Query"], headers=headers)


@pytest.mark.parametrize("text", ["\0", "\u2028", "\U0001f4a9", "a\0b" * 100])
async def test_any_text_may_stand_in_a_twin(call: ServiceCaller, text: str) -> None:
    written = await call("PATCH", "/twins/d", body={"tags": {"a": text}, "properties": {"desired": {"a": text}}})
    assert written.status == 200
    twin = json.loads((await call("GET", "/twins/d")).body)
    assert (twin["tags"]["a"], twin["properties"]["desired"]["a"]) == (text, text)


@pytest.mark.parametrize("name", ["a/b", "#", "+", "\0", "\U0001f4a9", "a b", "%2F"])
async def test_a_method_of_any_name_reaches_the_device(call: ServiceCaller, name: str) -> None:
    async with stay_connected(call.hub, D_M) as answered:
        payload = {"big": 10**30, "deep": json.loads("[" * 90 + "]" * 90), "text": "\0"}
        answer = await call("POST", "/twins/d/modules/m/methods", body={"methodName": name, "payload": payload})
    assert (answer.status, json.loads(answer.body)) == (200, {"status": 200, "payload": payload})
    assert len(answered) == 1


async def test_a_configuration_that_a_twin_cannot_take_harms_nobody_else(call: ServiceCaller) -> None:
    paths = {f"properties.desired.part{number}": "x" * 4000 for number in range(5)}
    desired = {f"own{number}": "x" * 4000 for number in range(5)}
    assert (await call("PUT", "/devices/full", body={})).status == 200
    assert (await call("PATCH", "/twins/full", body={"properties": {"desired": desired}})).status == 200
    body = {"content": {"deviceContent": paths}, "targetCondition": "deviceId IN ['d', 'full', 'late']"}
    assert (await call("PUT", "/configurations/large", body=body)).status == 200
    assert (await call("PUT", "/devices/late", body={})).status == 200
    assert (await call("PATCH", "/twins/full", body={"tags": {"a": 1}})).status == 200
    shown = json.loads((await call("GET", "/configurations/large")).body)
    assert shown["systemMetrics"]["results"] == {"targetedCount": 3, "appliedCount": 2}
