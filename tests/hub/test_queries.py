"""Queries of the service REST, called by hand: pages and their tokens, projections, counts, refusals."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edgeferry.app.hub import RunningHub
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.identity_records import make_record
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.document import make_twin, write_twin
from edgeferry.wire import service_api as api
from edgeferry.wire.service_api import Identity
from hub.service_caller import Caller

TWINS = 250
EVEN = "SELECT * FROM devices WHERE tags.n >= 0 AND tags.even = true"


class Asker:
    """Asks queries, and remembers the headers of the last answer."""

    def __init__(self, call: Caller) -> None:
        self.call, self.headers = call, {}

    async def __call__(
        self, query: Any, *, token: str = "", size: int | str | None = None, status: int = 200, body: bytes = b""
    ) -> Any:
        url = self.call.hub.service_url + api.add_api_version("/devices/query")
        sent = {"Authorization": self.call.token(), "x-ms-continuation": token}
        sent |= {} if size is None else {"x-ms-max-item-count": str(size)}
        data = body or json.dumps({"query": query}).encode()
        async with self.call.session.post(url, headers=sent, data=data) as answer:
            self.headers = dict(answer.headers)
            assert answer.status == status, (await answer.text())[:300]
            return await answer.json()

    @property
    def token(self) -> str:
        return str(self.headers.get("x-ms-continuation", ""))

    async def pages(self, query: str, size: int) -> AsyncIterator[list[Any]]:
        """Page after page; each next one is asked for after the caller is done with the one before."""
        yield await self(query, size=size)
        while self.token:
            yield await self(query, token=self.token, size=size)


@pytest.fixture
def ask(call: Caller) -> Asker:
    return Asker(call)


async def fill(rooms: HubRooms, *, module: str | None = None) -> None:
    """Devices with a number as a tag, or a module on each."""

    def work(tables: HubTables) -> None:
        for n in range(TWINS):
            tags = {"n": n, "even": n % 2 == 0}
            twin, _ = write_twin(make_twin(1.0), tags=tags, desired={"level": n}, now=1.0)
            tables.add_identity(make_record(Identity(f"d{n:03}", module), 1.0), twin)

    await rooms.db.write(work)


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_pages_hold_each_twin_once(hub: RunningHub, ask: Asker, size: int) -> None:
    await fill(hub.rooms)
    found = []
    async for page in ask.pages(EVEN, size):
        assert len(page) <= size and ask.headers["x-ms-item-type"] == "Twin"
        found += [row["deviceId"] for row in page]
    assert found == [f"d{n:03}" for n in range(0, TWINS, 2)]


async def test_pages_hold_each_twin_once_while_others_come_and_go(hub: RunningHub, ask: Asker) -> None:
    await fill(hub.rooms)
    found: list[str] = []
    added = 0
    async for page in ask.pages(EVEN, 10):
        found += [row["deviceId"] for row in page]
        last = found[-1]
        await hub.rooms.registry.delete(Identity(last), None)  # the very one that the token stands on
        await hub.add_device(f"{last}a{added}")  # matches nothing
        await hub.add_device(f"a{added}")  # before what was seen
        added += 1
        if int(last[1:]) + 3 < TWINS:
            await hub.rooms.registry.delete(Identity(f"d{int(last[1:]) + 3:03}"), None)  # odd: matched nothing
    assert found == [f"d{n:03}" for n in range(0, TWINS, 2)] and added > 12


async def test_who_is_added_behind_the_page_is_found_and_who_is_deleted_is_not(hub: RunningHub, ask: Asker) -> None:
    await fill(hub.rooms)
    await ask("SELECT * FROM devices", size=100)
    token = ask.token
    await hub.rooms.registry.delete(Identity("d120"), None)
    await hub.add_device("d120-new")
    rest = [row["deviceId"] for row in await ask("SELECT * FROM devices", token=token, size=200)]
    assert "d120-new" in rest and "d120" not in rest and len(rest) == TWINS - 100


async def test_modules_are_paged_by_device_and_module(hub: RunningHub, ask: Asker) -> None:
    await fill(hub.rooms)
    for module in ("a", "b"):
        await fill(hub.rooms, module=module)
    found = []
    async for page in ask.pages("SELECT * FROM devices.modules WHERE tags.even = true", 13):
        found += [(row["deviceId"], row["moduleId"]) for row in page]
    assert found == [(f"d{n:03}", module) for n in range(0, TWINS, 2) for module in ("a", "b")]


async def test_columns_are_projected_and_typed_raw(hub: RunningHub, ask: Asker) -> None:
    await fill(hub.rooms)
    query = "SELECT deviceId, tags.n AS number, properties.desired.level, tags.gone FROM devices WHERE tags.n = 7"
    assert await ask(query) == [{"deviceId": "d007", "number": 7, "level": 7}]
    assert ask.headers["x-ms-item-type"] == "Raw" and ask.token == ""
    pages = [page async for page in ask.pages("SELECT deviceId FROM devices", 60)]
    assert sorted(row["deviceId"] for page in pages for row in page) == [f"d{n:03}" for n in range(TWINS)]


async def test_a_count_is_one_row(hub: RunningHub, ask: Asker) -> None:
    await fill(hub.rooms)
    await fill(hub.rooms, module="m")
    assert await ask("SELECT COUNT() AS total FROM devices WHERE tags.even = true") == [{"total": TWINS // 2}]
    assert ask.headers["x-ms-item-type"] == "Raw" and ask.token == ""
    [row] = await ask("SELECT COUNT() FROM devices.modules WHERE moduleId = 'm'", size=1)
    assert [*row.values()] == [TWINS]
    [row] = await ask("SELECT COUNT() AS none FROM devices WHERE deviceId = 'nobody'")
    assert row == {"none": 0}


async def test_no_answer_is_an_empty_page(ask: Asker) -> None:
    assert await ask("SELECT * FROM devices") == []
    assert ask.token == "" and ask.headers["x-ms-item-type"] == "Twin"


@pytest.mark.parametrize("size", [0, -1, "x", "1.5"])
async def test_a_page_size_that_is_none_is_refused(ask: Asker, size: int | str) -> None:
    assert "ErrorCode:ArgumentInvalid" in (await ask("SELECT * FROM devices", size=size, status=400))["Message"]


async def test_a_page_size_above_the_bound_is_the_bound(hub: RunningHub, ask: Asker) -> None:
    await fill(hub.rooms)
    size = 10**9
    found = [row["deviceId"] for row in await ask("SELECT * FROM devices", size=size)]
    while ask.token:
        found += [row["deviceId"] for row in await ask("SELECT * FROM devices", size=size, token=ask.token)]
    assert len(set(found)) == len(found) == TWINS


def encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "!!!!",
        "%00",
        encode("null"),
        encode("{}"),
        encode("[]"),
        encode("[5, null]"),
        encode('["d"'),
        encode('["d", null, 7]'),
        encode('["", null]'),
        encode('["a b", null]'),
        encode(r'["a\u0000", null]'),
        encode(r'["\ud800", null]'),
        encode(json.dumps(["d" * 500, None])),
        "A" * 4000,
        encode("[" * 500),
    ],
)
async def test_a_token_of_no_page_is_refused(hub: RunningHub, ask: Asker, token: str) -> None:
    await fill(hub.rooms)
    answer = await ask("SELECT * FROM devices", token=token, status=400)
    assert "ErrorCode:ArgumentInvalid" in answer["Message"]
    assert ask.headers[api.ERROR_HEADER] == "ArgumentInvalid"


@pytest.mark.parametrize(
    "query",
    [
        None,
        7,
        [],
        "",
        "SELECT",
        "SELECT * FROM",
        "SELECT * FROM devices WHERE",
        "SELECT * FROM devices.jobs",
        "SELECT * FROM devices WHERE tags.a =",
        "SELECT TOP 5 * FROM devices",
        "SELECT * FROM devices; DROP TABLE identities",
        "SELECT * FROM devices WHERE " + "(" * 3000 + "1 = 1" + ")" * 3000,
        "SELECT * FROM devices WHERE " + "NOT " * 3000 + "tags.a = 1",
        "SELECT * FROM devices WHERE tags.a = '" + "x" * 100_000 + "'",
        "SELECT * FROM devices WHERE tags.a = '\ud800'",
    ],
)
async def test_a_query_that_cannot_be_read_is_refused(ask: Asker, query: Any) -> None:
    answer = await ask(query, status=400)
    assert "ErrorCode:ArgumentInvalid" in answer["Message"]
    assert ask.headers[api.ERROR_HEADER] == "ArgumentInvalid"


@pytest.mark.parametrize("body", [b"x", b"[]", b"{}", b'"SELECT * FROM devices"', b"\xff\xfe"])
async def test_a_body_that_is_no_query_is_refused(ask: Asker, body: bytes) -> None:
    await ask(None, body=body, status=400)


async def test_queries_and_conditions_are_tried_out_by_name(call: Caller) -> None:
    tried = {
        "targetCondition": "tags.a =",
        "customMetricQueries": {
            "good": "SELECT deviceId FROM devices",
            "bad": "SELECT FROM devices",
            "long": "x" * 9999,
        },
    }
    status, body, _ = await call("POST", "/configurations/testQueries", data=json.dumps(tried).encode())
    answer = json.loads(body)
    assert status == 200 and answer["targetConditionError"]
    assert answer["customMetricQueryErrors"].keys() == {"bad", "long"}
    good = {"targetCondition": "*", "customMetricQueries": {"good": "SELECT deviceId FROM devices"}}
    for one in (good, {}, {**good, "targetCondition": ""}, {"targetCondition": None, "customMetricQueries": None}):
        _, body, _ = await call("POST", "/configurations/testQueries", data=json.dumps(one).encode())
        assert not any(json.loads(body).values())


@pytest.mark.parametrize(
    "tried", [[], {"targetCondition": 7}, {"customMetricQueries": []}, {"customMetricQueries": {"a": 7}}]
)
async def test_what_cannot_be_tried_out_is_refused(call: Caller, tried: Any) -> None:
    status, _, code = await call("POST", "/configurations/testQueries", data=json.dumps(tried).encode())
    assert (status, code) == (400, "ArgumentInvalid")


async def test_configurations_over_rest_follow_their_etags(call: Caller) -> None:
    async def put(priority: int, tag: str | None = None, name: str = "c") -> tuple[int, Any, str | None]:
        content = {"deviceContent": {"properties.desired.x": 1}}
        data = {"id": name, "content": content, "targetCondition": "*", "priority": priority}
        more = {} if tag is None else {"If-Match": tag}
        return await call("PUT", f"/configurations/{name}", data=json.dumps(data).encode(), **more)

    async def delete(tag: str | None = None) -> tuple[int, str | None]:
        status, _, code = await call("DELETE", "/configurations/c", **({} if tag is None else {"If-Match": tag}))
        return status, code

    assert (await put(1, '"*"'))[::2] == (404, "ConfigurationNotFound")
    status, body, _ = await put(1)
    first = json.loads(body)["etag"]
    assert status == 200
    assert (await put(2))[::2] == (409, "ConfigurationAlreadyExists")
    status, body, _ = await put(2, f'"{first}"')
    second = json.loads(body)["etag"]
    assert status == 200 and second != first and json.loads(body)["priority"] == 2
    assert (await put(3, f'"{first}"'))[::2] == (412, "PreconditionFailed")
    assert (await put(4, '"*"'))[0] == 200
    assert await delete(f'"{second}"') == (412, "PreconditionFailed")
    assert (await put(1, name="other"))[0] == 200
    listed = json.loads((await call("GET", "/configurations"))[1])
    assert [(one["id"], one["priority"]) for one in listed] == [("c", 4), ("other", 1)]
    assert json.loads((await call("GET", "/configurations/c"))[1]) == listed[0]
    assert await delete('"*"') == (204, None)
    assert await delete() == (404, "ConfigurationNotFound")
    assert (await call("GET", "/configurations/c"))[::2] == (404, "ConfigurationNotFound")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"content": {}}, "InvalidConfigurationContent"),
        ({"content": {"deviceContent": {"x": 1}}}, "InvalidConfigurationContent"),
        ({"targetCondition": "tags.a ="}, "InvalidConfigurationTargetCondition"),
        ({"metrics": {"queries": {"m": "SELECT"}}}, "InvalidConfigurationCustomMetricsQuery"),
        ({"priority": -1}, "ArgumentInvalid"),
        ({"metrics": [1]}, "ArgumentInvalid"),
        ({"labels": {"a": 1}}, "ArgumentInvalid"),
        ({"id": "other"}, "ArgumentInvalid"),
    ],
)
async def test_a_configuration_that_cannot_be_read_is_refused(call: Caller, change: dict[str, Any], code: str) -> None:
    good = {"id": "c", "content": {"deviceContent": {"properties.desired.x": 1}}, "targetCondition": "*"}
    status, _, found = await call("PUT", "/configurations/c", data=json.dumps(good | change).encode())
    assert (status, found) == (400, code)
    assert json.loads((await call("GET", "/configurations"))[1]) == []


async def test_content_is_applied_over_rest_once(hub: RunningHub, call: Caller) -> None:
    await hub.add_device("d")
    agent = {"properties.desired": {"modules": {"loader": {}}}}
    data = json.dumps({"modulesContent": {"$edgeAgent": agent, "$edgeHub": {"properties.desired": {}}}}).encode()
    assert (await call("POST", "/devices/d/applyConfigurationContent", data=data))[0] == 204
    modules = json.loads((await call("GET", "/devices/d/modules"))[1])
    assert {one["moduleId"] for one in modules} == {"$edgeAgent", "$edgeHub", "loader"}
    assert (await call("POST", "/devices/gone/applyConfigurationContent", data=data))[::2] == (404, "DeviceNotFound")
    wrong = [b"{}", b'{"moduleContent": {"properties.desired.x": 1}}']
    assert [(await call("POST", "/devices/d/applyConfigurationContent", data=one))[0] for one in wrong] == [400, 400]
