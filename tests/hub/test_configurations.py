"""Automatic configurations over each store: who gets them, how they hold, what is counted, what is too much."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from edgeferry.errors import Conflict, LimitExceeded, NotFound, RequestInvalid
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.identity_records import make_record
from edgeferry.storage.hub_queues import QueuedMessage
from edgeferry.storage.hub_store import HubStore
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.configuration import CONFIGURATIONS_MAX, DESIRED, EDGE_AGENT, EDGE_HUB
from edgeferry.twin.document import SECTION_MAX_BYTES, Json, make_twin
from edgeferry.wire.iothub_topics import Telemetry
from edgeferry.wire.service_api import Identity
from hub.hub_rooms import A, B, Clock, D, attach, open_rooms, until

X = f"{DESIRED}.x"
AGENT, HUB = Identity("d", EDGE_AGENT), Identity("d", EDGE_HUB)
WAIT_MAX_S = 0.5  # of one write while a pass goes over the fleet


@pytest.fixture
async def rooms(store: HubStore, clock: Clock) -> AsyncIterator[HubRooms]:
    """One device with two modules."""
    async with open_rooms(store, clock) as made:
        for identity in (D, A, B):
            await made.registry.add(make_record(identity, clock()))
        yield made


class Author:
    """Writes configurations, each a second after the one before."""

    def __init__(self, rooms: HubRooms, clock: Clock) -> None:
        self.rooms, self.clock = rooms, clock

    async def put(self, name: str, content: Json, condition: str = "*", priority: int = 0, **more: Any) -> Json:
        self.clock.now += 1
        body = {"id": name, "content": content, "targetCondition": condition, "priority": priority, **more}
        return await self.rooms.configurations.write(name, body, None, must_exist=False)

    async def count(self, name: str) -> tuple[int, int]:
        """Targeted and applied."""
        results = (await self.rooms.configurations.show(name))["systemMetrics"]["results"]
        return results["targetedCount"], results["appliedCount"]


@pytest.fixture
def author(rooms: HubRooms, clock: Clock) -> Author:
    return Author(rooms, clock)


def device(value: Any, path: str = X) -> Json:
    return {"deviceContent": {path: value}}


async def read(rooms: HubRooms, identity: Identity = D) -> Json:
    return dict((await rooms.twins.read(identity)).twin.desired.body)


async def write(rooms: HubRooms, identity: Identity, *, replace_all: bool = False, **body: Any) -> None:
    desired = {"properties": {"desired": body.pop("desired")}} if "desired" in body else {}
    await rooms.twins.write(identity, {**body, **desired}, if_match=None, replace_all=replace_all)


async def add(rooms: HubRooms, *identities: Identity) -> None:
    for identity in identities:
        await rooms.registry.add(make_record(identity, rooms.clock()))


async def list_modules(rooms: HubRooms, device_id: str = "d") -> set[str | None]:
    records = await rooms.db.read(lambda tables: [one.record for one in tables.read_modules(device_id)])
    return {one.identity.module_id for one in records}


async def test_a_write_that_contradicts_is_put_back_and_the_device_is_told(rooms: HubRooms, author: Author) -> None:
    link = await attach(rooms, D)
    await author.put("c", device({"a": 1}))
    await until(lambda: len(link.patches) == 1)
    await write(rooms, D, desired={"x": {"a": 2, "b": 3}, "own": 1})
    await write(rooms, D, desired={"x": None})
    await write(rooms, D, desired={"other": 1}, replace_all=True)
    await until(lambda: len(link.patches) == 7)
    assert await read(rooms) == {"x": {"a": 1}, "other": 1}
    bare = [{key: value for key, value in patch.items() if key != "$version"} for patch in link.patches]
    assert bare[0] == {"x": {"a": 1}}
    assert bare[2::2] == [{"x": {"a": 1, "b": None}}, {"x": {"a": 1}}, {"x": {"a": 1}}]
    assert [patch["$version"] for patch in link.patches] == list(range(2, 9))


async def test_one_json_type_is_not_put_for_another(rooms: HubRooms, author: Author) -> None:
    await author.put("c", device(1))
    await write(rooms, D, desired={"x": True})
    assert (await read(rooms))["x"] is not True


async def test_applying_twice_changes_nothing(rooms: HubRooms, author: Author) -> None:
    link = await attach(rooms, D)
    await author.put("low", device({"a": 1, "n": None}), priority=1)
    await author.put("high", device(None, f"{X}.a"), priority=2)
    await author.put("agent", {"modulesContent": {EDGE_AGENT: {DESIRED: {"modules": {"a": {}}}}}})
    before = [await rooms.twins.read(one) for one in (D, A, AGENT)]
    told = len(link.patches)
    for _ in range(2):
        await rooms.configurations.apply_all()
        await write(rooms, B, tags={"n": 1})
    after = [await rooms.twins.read(one) for one in (D, A, AGENT)]
    assert [one.twin for one in before] == [one.twin for one in after]
    assert len(link.patches) == told


async def test_who_comes_later_gets_it_with_the_registration(rooms: HubRooms, author: Author) -> None:
    await author.put("c", device(1))
    await author.put("m", {"moduleContent": {X: 2}}, "FROM devices.modules WHERE moduleId = 'late'")
    await author.put("e", {"modulesContent": {"late": {f"{DESIRED}.y": 3}, "never": {X: 1}}})
    await add(rooms, Identity("e"), Identity("e", "late"))
    assert await read(rooms, Identity("e")) == {"x": 1}
    assert await read(rooms, Identity("e", "late")) == {"x": 2, "y": 3}


async def test_a_write_of_tags_brings_it_in_the_same_transaction(rooms: HubRooms, author: Author) -> None:
    await author.put("c", device(1), "tags.site = 'north'")
    await author.put("m", {"moduleContent": {X: 2}}, "FROM devices.modules WHERE tags.site = 'north'")
    assert await read(rooms) == {} and await author.count("c") == (0, 0)
    written = await rooms.twins.write(D, {"tags": {"site": "north"}}, if_match=None, replace_all=False)
    assert written.twin.desired.body == {"x": 1}
    await write(rooms, A, tags={"site": "north"})
    assert await read(rooms, A) == {"x": 2} and await read(rooms, B) == {}
    assert await author.count("c") == await author.count("m") == (1, 1)


async def test_what_a_device_reports_brings_it_with_the_next_pass(rooms: HubRooms, author: Author) -> None:
    await author.put("c", device(1), "properties.reported.model = '4000x'")
    await rooms.twins.report(D, {"model": "4000x"})
    await rooms.configurations.apply_all()
    assert await read(rooms) == {"x": 1}


async def test_a_desired_property_may_choose_too(rooms: HubRooms, author: Author) -> None:
    await author.put("c", device(1), "properties.desired.role = 'gate'")
    await write(rooms, D, desired={"role": "gate"})
    assert await read(rooms) == {"role": "gate", "x": 1}


async def test_two_that_take_turns_end_each_pass(rooms: HubRooms, author: Author) -> None:
    async with asyncio.timeout(20):
        await author.put("a", device("b", f"{DESIRED}.mode"), "properties.desired.mode = 'a'")
        await author.put("b", device("a", f"{DESIRED}.mode"), "properties.desired.mode = 'b'")
        await write(rooms, D, desired={"mode": "a"})
        await rooms.configurations.apply_all()
    assert (await read(rooms))["mode"] in ("a", "b")


async def test_an_empty_condition_is_for_nobody(rooms: HubRooms, author: Author) -> None:
    await author.put("c", device(1), "")
    assert await read(rooms) == {} and await author.count("c") == (0, 0)


async def test_the_highest_wins_for_each_path_and_the_newer_of_equal_ones(rooms: HubRooms, author: Author) -> None:
    await author.put("old", {"deviceContent": {X: 1, f"{DESIRED}.y": 1}}, priority=5)
    await author.put("new", device(2), priority=5)
    await author.put("low", {"deviceContent": {X: 3, f"{DESIRED}.z": 3}}, priority=4)
    assert await read(rooms) == {"x": 2, "y": 1, "z": 3}
    assert await author.count("new") == (1, 1)


async def test_changing_an_old_one_does_not_make_it_newer(rooms: HubRooms, author: Author) -> None:
    old = await author.put("old", device(1))
    await author.put("new", device(2))
    author.clock.now += 1
    await rooms.configurations.write("old", {**old, "labels": {"a": "b"}}, old["etag"], must_exist=True)
    assert await read(rooms) == {"x": 2}
    shown = await rooms.configurations.show("old")
    assert shown["createdTimeUtc"] == old["createdTimeUtc"] < shown["lastUpdatedTimeUtc"]


@pytest.mark.parametrize("way", ["delete", "condition", "tags"])
async def test_what_ends_takes_nothing_back_but_the_next_lower_takes_its_place(
    rooms: HubRooms, author: Author, way: str
) -> None:
    await write(rooms, D, tags={"t": 1})
    await author.put("low", device("low"), priority=1)
    high = await author.put(
        "high", {"deviceContent": {X: "high", f"{DESIRED}.y": "high"}}, "tags.t = 1 OR tags.u = 1", priority=2
    )
    assert await read(rooms) == {"x": "high", "y": "high"}
    if way == "delete":
        await rooms.configurations.delete("high", high["etag"])
    elif way == "condition":
        body = {**high, "targetCondition": "tags.t = 2"}
        await rooms.configurations.write("high", body, high["etag"], must_exist=True)
    else:
        await write(rooms, D, tags={"t": 2})
    assert await read(rooms) == {"x": "low", "y": "high"}


async def test_a_deployment_makes_the_modules_it_names(rooms: HubRooms, author: Author) -> None:
    agent = {"modules": {"loader": {"type": "docker"}}, "systemModules": {"edgeHub": {}}}
    await author.put("base", {"modulesContent": {EDGE_AGENT: {DESIRED: agent}, EDGE_HUB: {DESIRED: {"routes": {}}}}})
    layer = {EDGE_AGENT: {f"{DESIRED}.modules.infer": {"type": "docker"}}, "infer": {X: 1}}
    await author.put("layer", {"modulesContent": layer}, priority=1)
    await add(rooms, Identity("e"))
    for name in ("d", "e"):
        assert await list_modules(rooms, name) >= {EDGE_AGENT, EDGE_HUB, "loader", "infer"}
        assert set((await read(rooms, Identity(name, EDGE_AGENT)))["modules"]) == {"loader", "infer"}
        assert await read(rooms, Identity(name, "infer")) == {"x": 1}
    assert await author.count("base") == await author.count("layer") == (2, 2)


async def test_of_two_whole_deployments_the_higher_counts_alone(rooms: HubRooms, author: Author) -> None:
    def base(name: str) -> Json:
        return {"modulesContent": {EDGE_AGENT: {DESIRED: {"modules": {name: {}}}}, name: {X: name}}}

    await author.put("device", device(1), priority=0)
    await author.put("high", base("high"), priority=9)
    await author.put("low", base("low"), priority=8)
    assert await read(rooms, AGENT) == {"modules": {"high": {}}}
    assert "low" not in await list_modules(rooms) and await read(rooms) == {"x": 1}
    assert (await author.count("high"), await author.count("low")) == ((1, 1), (1, 0))


@pytest.mark.parametrize(("deployment", "module", "x"), [(1, 2, "module"), (2, 1, "deployment")])
async def test_what_a_deployment_and_a_module_configuration_say_of_one_module_is_ranked_too(
    rooms: HubRooms, author: Author, deployment: int, module: int, x: str
) -> None:
    await author.put("d", {"modulesContent": {"a": {X: "deployment", f"{DESIRED}.y": 1}}}, priority=deployment)
    condition = "FROM devices.modules WHERE moduleId = 'a'"
    await author.put("m", {"moduleContent": {X: "module", f"{DESIRED}.z": 1}}, condition, priority=module)
    before = (await rooms.twins.read(A)).twin
    assert before.desired.body == {"x": x, "y": 1, "z": 1}
    await rooms.configurations.apply_all()
    await write(rooms, B, tags={"n": 1})
    assert (await rooms.twins.read(A)).twin == before


async def test_metrics_are_counted_one_by_one(rooms: HubRooms, author: Author) -> None:
    await rooms.twins.report(D, {"ok": True})
    await add(rooms, Identity("e"))
    queries = {
        "all": "SELECT deviceId FROM devices",
        "good": "SELECT deviceId FROM devices WHERE properties.reported.ok = true",
        "modules": "SELECT * FROM devices.modules",
    }
    await author.put("c", device(1), metrics={"queries": queries})
    shown = await rooms.configurations.show("c")
    assert shown["metrics"] == {"queries": queries, "results": {"all": 2, "good": 1, "modules": 2}}
    assert [one["metrics"]["queries"] for one in await rooms.configurations.show_all(10)] == [queries]


async def test_content_is_applied_to_one_device_once(rooms: HubRooms) -> None:
    await add(rooms, Identity("e"))
    agent = {"modules": {"loader": {"type": "docker"}}}
    content = {EDGE_AGENT: {DESIRED: agent}, EDGE_HUB: {DESIRED: {}}, "a": {DESIRED: {"x": 1}}}
    await write(rooms, A, desired={"old": 1})
    await rooms.configurations.apply_content("d", {"modulesContent": content})
    assert await list_modules(rooms) == {"a", "b", "loader", EDGE_AGENT, EDGE_HUB}
    assert await list_modules(rooms, "e") == set()
    assert await read(rooms, A) == {"x": 1}
    await write(rooms, A, desired={"x": 2})
    await rooms.configurations.apply_all()
    assert await read(rooms, A) == {"x": 2}
    with pytest.raises(NotFound):
        await rooms.configurations.apply_content("gone", {"modulesContent": content})


async def test_content_that_passes_a_limit_is_refused_and_changes_nothing(rooms: HubRooms) -> None:
    await write(rooms, D, desired=make_large("own", SECTION_MAX_BYTES // 2))
    before = await rooms.twins.read(D)
    content = {"modulesContent": {"a": {X: 1}}, "deviceContent": {X: make_large("y", SECTION_MAX_BYTES * 3 // 4)}}
    with pytest.raises(LimitExceeded):
        await rooms.configurations.apply_content("d", content)
    assert (await rooms.twins.read(D)).twin == before.twin and await read(rooms, A) == {}


def make_large(name: str, size_bytes: int) -> Json:
    """An object of about that many bytes as twins count them."""
    return {name: {f"k{n}": "x" * 1000 for n in range(size_bytes // 1000)}}


async def test_one_that_is_too_large_for_a_twin_is_skipped_there_and_stops_nothing_else(
    rooms: HubRooms, author: Author
) -> None:
    await write(rooms, D, desired=make_large("own", SECTION_MAX_BYTES // 2))
    await add(rooms, Identity("e"))
    await author.put("small", device("small"), priority=1)
    with capture_logs() as logs:
        large = {"deviceContent": {f"{DESIRED}.large": make_large("y", SECTION_MAX_BYTES * 3 // 4), X: "large"}}
        await author.put("large", large, priority=2)
        await author.put("upper", device("upper", f"{DESIRED}.u"), priority=3)
    assert any(one["log_level"] == "warning" and "large" in one.values() for one in logs)
    assert (await author.count("small"), await author.count("large")) == ((2, 1), (2, 1))
    found = await read(rooms)
    assert (found["x"], found["u"], "large" in found) == ("small", "upper", False)
    assert (await read(rooms, Identity("e")))["x"] == "large"
    await add(rooms, Identity("f"), Identity("d", "c"))
    await write(rooms, D, tags={"a": 1}, desired={"more": 1})
    before = (await rooms.twins.read(D)).twin
    await rooms.configurations.apply_all()
    assert (await rooms.twins.read(D)).twin == before
    assert (await read(rooms))["more"] == 1 and (await read(rooms, Identity("f")))["x"] == "large"
    await write(rooms, D, desired={"own": None})
    assert (await read(rooms))["x"] == "large"


async def test_a_deployment_that_is_too_large_for_one_module_does_not_stop_a_registration(
    rooms: HubRooms, author: Author
) -> None:
    half = SECTION_MAX_BYTES * 3 // 4
    await author.put("base", {"modulesContent": {EDGE_AGENT: {DESIRED: make_large("a", half)}}})
    await author.put("layer", {"modulesContent": {EDGE_AGENT: {X: make_large("b", half)}}}, priority=1)
    await add(rooms, Identity("e"))
    assert set(await read(rooms, Identity("e", EDGE_AGENT))) == {"a"}
    assert (await author.count("base"), await author.count("layer")) == ((2, 2), (2, 0))


async def test_there_are_so_many_configurations_and_no_more(rooms: HubRooms, author: Author) -> None:
    for n in range(CONFIGURATIONS_MAX):
        await author.put(f"c{n}", device(n), "")
    with pytest.raises(LimitExceeded):
        await author.put("one-more", device(1), "")
    etag = (await rooms.configurations.show("c0"))["etag"]
    await rooms.configurations.write("c0", {"id": "c0", "content": device(0), "priority": 3}, etag, must_exist=True)
    await rooms.configurations.delete("c1", None)
    await author.put("one-more", device(1), "")
    assert len(await rooms.configurations.show_all(1000)) == CONFIGURATIONS_MAX


async def test_creating_and_changing_are_told_apart(rooms: HubRooms, author: Author) -> None:
    made = await author.put("c", device(1))
    with pytest.raises(Conflict) as found:
        await author.put("c", device(2))
    assert found.value.values["service_code"] == "ConfigurationAlreadyExists"
    changed = await rooms.configurations.write("c", {**made, "priority": 7}, made["etag"], must_exist=True)
    assert changed["priority"] == 7 and changed["etag"] != made["etag"]
    for work in (
        rooms.configurations.write("c", {**made, "priority": 8}, made["etag"], must_exist=True),
        rooms.configurations.delete("c", made["etag"]),
    ):
        with pytest.raises(Conflict) as found:
            await work
        assert found.value.values["service_code"] == "PreconditionFailed"
    with pytest.raises(NotFound):
        await rooms.configurations.write("gone", {**made, "id": "gone"}, None, must_exist=True)
    assert (await rooms.configurations.show("c"))["priority"] == 7


async def test_the_id_in_the_body_is_that_of_the_path(rooms: HubRooms) -> None:
    with pytest.raises(RequestInvalid):
        await rooms.configurations.write("c", {"id": "other", "content": device(1)}, None, must_exist=False)


@pytest.mark.parametrize("size_bytes", [0, SECTION_MAX_BYTES * 3 // 4])
async def test_a_write_waits_shortly_while_a_pass_goes_over_a_large_fleet(
    rooms: HubRooms, author: Author, size_bytes: int
) -> None:
    now = rooms.clock()
    for start in range(0, 2000, 200):
        names = [Identity(f"f{n:04}") for n in range(start, start + 200)]
        await rooms.db.write(lambda tables, names=names: fill(tables, names, now))
    put = asyncio.create_task(author.put("c", device({"n": 1, **make_large("large", size_bytes)})))
    waits = await measure_writes(rooms, put)
    assert await author.count("c") == (2001, 2001)
    waits += await measure_writes(rooms, asyncio.create_task(rooms.configurations.apply_all()))
    print(f"{len(waits)} writes during passes, {size_bytes} bytes a twin, longest wait {max(waits):.3f} s")
    assert max(waits) < WAIT_MAX_S


async def test_a_page_whose_time_is_over_ends_and_the_pass_goes_on(
    rooms: HubRooms, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(rooms, Identity("e"), Identity("f"))
    monkeypatch.setattr("edgeferry.hub.configurations.PAGE_S", -1.0)
    pages, original = [], rooms.db.write

    async def count(work: Any) -> Any:
        pages.append(work)
        return await original(work)

    await author.put("c", device(1))
    monkeypatch.setattr(rooms.db, "write", count)
    await rooms.configurations.apply_all()
    assert len(pages) == 4  # one for each device, and one that finds no more
    assert await author.count("c") == (3, 3)


def fill(tables: HubTables, names: list[Identity], now: float) -> None:
    for name in names:
        tables.add_identity(make_record(name, now), make_twin(now))


async def measure_writes(rooms: HubRooms, work: asyncio.Task[Any]) -> list[float]:
    """How long each of many writes took until the work was done."""
    waits = []
    while not work.done():
        began = time.monotonic()
        await write(rooms, A, desired={"n": len(waits)})
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    await work
    return waits


async def read_queue(rooms: HubRooms) -> list[QueuedMessage]:
    return await rooms.db.read(lambda tables: tables.queues.read(B, after=0, limit=10))


async def test_routes_of_a_deployment_replace_the_hubs_with_their_own_times(rooms: HubRooms, author: Author) -> None:
    routes = {
        "own": {"route": 'FROM /messages/* INTO BrokeredEndpoint("/modules/b/inputs/own")', "timeToLiveSecs": 5},
        "plain": 'FROM /messages/* INTO BrokeredEndpoint("/modules/b/inputs/plain")',
    }
    desired = {"schemaVersion": "1.1", "routes": routes, "storeAndForwardConfiguration": {"timeToLiveSecs": 30}}
    base = {EDGE_AGENT: {DESIRED: {}}, EDGE_HUB: {DESIRED: desired}}
    await author.put("base", {"modulesContent": base}, "deviceId = 'd'")
    await add(rooms, Identity("e"), Identity("e", "a"), Identity("e", "b"))
    await rooms.router.accept(A, Telemetry("x", {}), b"hi")
    queued = await read_queue(rooms)
    assert {one.input: one.expires_at - rooms.clock() for one in queued} == {"own": 5.0, "plain": 30.0}
    await rooms.router.accept(Identity("e", "a"), Telemetry("x", {}), b"hi")
    others = await rooms.db.read(lambda tables: tables.queues.read(Identity("e", "b"), after=0, limit=10))
    assert [one.input for one in others] == ["i"]


async def test_a_layer_adds_a_route(rooms: HubRooms, author: Author) -> None:
    own = 'FROM /messages/* INTO BrokeredEndpoint("/modules/b/inputs/{}")'
    base = {EDGE_AGENT: {DESIRED: {}}, EDGE_HUB: {DESIRED: {"routes": {"one": own.format("one")}}}}
    await author.put("base", {"modulesContent": base})
    layer = {"modulesContent": {EDGE_HUB: {f"{DESIRED}.routes.two": own.format("two")}}}
    await author.put("layer", layer, priority=1)
    await rooms.router.accept(A, Telemetry("x", {}), b"hi")
    assert {one.input for one in await read_queue(rooms)} == {"one", "two"}


async def test_a_broken_route_is_told_once_not_with_every_message(rooms: HubRooms) -> None:
    routes = {"good": "FROM /messages/* INTO $upstream", "bad": f"FROM nowhere {rooms.hub_id}"}
    declared = {EDGE_AGENT: {DESIRED: {}}, EDGE_HUB: {DESIRED: {"routes": routes}}}
    await rooms.configurations.apply_content("d", {"modulesContent": declared})
    with capture_logs() as logs:
        for _ in range(3):
            await rooms.router.accept(A, Telemetry("x", {}), b"hi")
    assert [one["route"] for one in logs] == ["bad"]
    assert len(await rooms.db.read(lambda tables: tables.queues.read_upstream())) == 3


@pytest.mark.parametrize(
    "desired",
    [
        {"routes": 5},
        {"routes": {"r": 7, "s": {"route": 7}, "t": {"timeToLiveSecs": 5}, "u": None}},
        {"routes": {"r": {"route": "FROM /messages/* INTO $upstream", "timeToLiveSecs": "soon"}}},
        {"routes": {"r": {"route": "FROM /messages/* INTO $upstream", "timeToLiveSecs": -1}}},
        {"routes": {"r": "FROM /messages/* INTO $upstream"}, "storeAndForwardConfiguration": 5},
        {"routes": {"r": "FROM /messages/* INTO $upstream"}, "storeAndForwardConfiguration": {"timeToLiveSecs": "x"}},
        {"routes": {"r": "FROM /messages/* INTO $upstream"}, "storeAndForwardConfiguration": {"timeToLiveSecs": -5}},
        {"routes": {"r": "FROM /messages/* INTO $upstream"}, "storeAndForwardConfiguration": {"timeToLiveSecs": True}},
    ],
)
async def test_a_deployment_with_broken_routes_does_not_end_the_sender(rooms: HubRooms, desired: Json) -> None:
    await rooms.configurations.apply_content("d", {"modulesContent": {EDGE_HUB: {DESIRED: desired}}})
    await rooms.router.accept(A, Telemetry("x", {}), b"hi")
