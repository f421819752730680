"""A running hub on a full disk, on either store: it refuses what it cannot keep, serves what it has, goes on later."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeferry.hub.policies import OWNER_POLICY
from edgeferry.wire import service_api as api
from edgeferry.wire.iothub_topics import MESSAGE_ID_KEY
from edgeferry.wire.service_api import Identity
from hub_process import Client, HubProcess, Rest, open_hub_process, read_policy_key, run_beside
from small_disk import LimitedSite, Site, open_site

TRIES_MAX = 400
"""A database goes on for a while in the pages that it has."""
REFUSED = (503, "ServiceUnavailable")
READER, REPORTER, SENDER = Identity("d", "reader"), Identity("d", "reporter"), Identity("d", "sender")
dice = random.Random(5)


@pytest.fixture(params=["sqlite", "postgres"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A hub on an empty store of either kind on a small disk."""
    with open_site(request.param, tmp_path / "site", request) as opened:
        yield opened


@dataclass
class World:
    """Everybody at work: the service, and three modules that are connected."""

    site: Site
    hub: HubProcess
    rest: Rest
    keys: dict[Identity, str] = field(repr=False)
    clients: dict[Identity, Client]
    registered: int = 0
    acknowledged: set[str] = field(default_factory=set)

    async def register(self) -> tuple[int, str | None]:
        self.registered += 1
        name = f"more-{self.registered}"
        status, _, code = await self.rest("PUT", f"/devices/{name}", {"deviceId": name})
        return status, code

    async def patch(self) -> tuple[int, str | None]:
        body = {"properties": {"desired": make_large()}}
        status, _, code = await self.rest("PATCH", api.get_twin_path(READER), body)
        return status, code

    async def report(self) -> int:
        return await self.clients[REPORTER].report(make_large())

    async def publish(self) -> bool:
        """Whether the next message was acknowledged; else the connection was closed."""
        mid = f"m{len(self.acknowledged)}"
        try:
            await self.clients[SENDER].publish(dice.randbytes(60_000), {MESSAGE_ID_KEY: mid})
        except ConnectionError:
            return False
        self.acknowledged.add(mid)
        return True

    async def read_everything(self) -> None:
        """GET twin through both doors, and the list of devices."""
        twin = await self.clients[READER].get_twin()
        status, body, _ = await self.rest("GET", api.get_twin_path(READER))
        assert status == 200 and body["properties"]["desired"]["$version"] == twin["desired"]["$version"]
        assert (await self.rest("GET", "/devices"))[0] == 200


def make_large() -> dict[str, str]:
    """A patch of nearly all that a section may hold, which no database can make smaller."""
    return {f"k{number}": base64.b64encode(dice.randbytes(2_900)).decode() for number in range(7)}


@asynccontextmanager
async def open_world(site: Site) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        hub = site.hub = await stack.enter_async_context(open_hub_process(site.start))
        owner_key = await read_policy_key(site.start, OWNER_POLICY, site.beside)
        rest = await stack.enter_async_context(hub.open_rest(owner_key))
        await rest("PUT", "/devices/d", {"deviceId": "d"})
        keys, clients = {}, {}
        for one in (READER, REPORTER, SENDER):
            body = {"deviceId": one.device_id, "moduleId": one.module_id}
            _, answer, _ = await rest("PUT", api.get_identity_path(one), body)
            keys[one] = answer["authentication"]["symmetricKey"]["primaryKey"]
            clients[one] = await stack.enter_async_context(hub.open_client(one, keys[one]))
        yield World(site, hub, rest, keys, clients)


async def repeat(act: Callable[[], Awaitable[Any]], *, until: Any, before: Any) -> None:
    """Acts until the outcome is `until`; every outcome before that is `before`."""
    for _ in range(TRIES_MAX):
        if (outcome := await act()) == until:
            return
        assert outcome == before
    raise AssertionError(f"{until} never came")


async def test_a_hub_on_a_full_disk_refuses_writes_serves_reads_and_goes_on_when_there_is_room(site: Site) -> None:
    async with open_world(site) as world:
        assert await world.patch() == await world.register() == (200, None)
        assert await world.report() == 204 and await world.publish()
        site.fill()
        await repeat(world.patch, until=REFUSED, before=(200, None))
        await repeat(world.report, until=503, before=204)
        await repeat(world.register, until=REFUSED, before=(200, None))
        await repeat(world.publish, until=False, before=True)
        for _ in range(20):  # a read that shares a transaction with a write that is refused
            await asyncio.gather(world.read_everything(), world.register())
        await repeat(world.report, until=503, before=204)  # on the same connection as before
        site.free()
        assert await world.patch() == await world.register() == (200, None)
        assert await world.report() == 204
        await world.read_everything()
        async with world.hub.open_client(SENDER, world.keys[SENDER]) as again:
            world.clients[SENDER] = again
            assert await world.publish()
        stored = await run_beside(site.start, "messages", "--json", before=site.beside)
        mids = {json.loads(line)["properties"][MESSAGE_ID_KEY] for line in stored.splitlines()}
        assert world.acknowledged <= mids
        assert world.hub.is_running
    log = world.hub.log.read_text()
    assert "Traceback" not in log and ("full" in log or isinstance(site, LimitedSite))
    assert world.hub.child.returncode == 0
