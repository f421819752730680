"""kill -9, full disks and a database that is away, under load: nothing that a hub acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.soak.hub_load import (
    ROUTES,
    Ledger,
    Load,
    check_configuration,
    check_device,
    check_kept,
    check_registrations,
    check_twins,
    check_upstream,
    register,
)

from edgeferry.hub.policies import OWNER_POLICY, POLICIES
from edgeferry.storage.hub_store import open_tables
from edgeferry.wire import service_api as api
from edgeferry.wire.iothub_topics import MESSAGE_ID_KEY
from edgeferry.wire.service_api import Identity
from fixtures_postgres import Postgres
from hub_process import Client, HubProcess, HubStart, Rest, open_hub_process, read_policy_key, run_beside
from polling import poll
from small_disk import open_site

SEED = 20261125
LONGEST_LOAD_S = 1.5
LONGEST_START_S = 2.0


@pytest.fixture(params=["sqlite", "postgres"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> HubStart:
    """A hub on an empty store of either kind."""
    url = request.getfixturevalue("database_url") if request.param == "postgres" else None
    return HubStart(tmp_path / "site", url, ROUTES)


def read_policy_keys(start: HubStart) -> dict[str, str | None]:
    with open_tables(start.data, start.database_url) as tables:
        return {name: tables.find_setting(f"policy.{name}") for name in POLICIES}


async def kill_while_it_starts(start: HubStart, after_s: float) -> None:
    """kill -9 somewhere between the first file and the open door."""
    with start.log.open("ab") as log:
        child = await asyncio.create_subprocess_exec(*start.get_words(), stdout=log, stderr=log)
    await asyncio.sleep(after_s)
    assert child.returncode is None, start.log.read_text()[-2000:]
    child.kill()
    await child.wait()


async def check_all(hub: HubProcess, rest: Rest, start: HubStart, ledgers: list[Ledger]) -> None:
    """What every round acknowledged, also those before the last kill."""
    for ledger in ledgers:
        await check_registrations(rest, ledger)
        await check_twins(rest, ledger)
    check_upstream(start, ledgers)


async def live_through_kills(start: HubStart, count: int, seed: int) -> Counter[str]:
    """Kills the hub `count` times; returns how much it had acknowledged."""
    dice, ledgers = random.Random(seed), list[Ledger]()
    start.folder.mkdir()
    for _ in range(count // 3):
        await kill_while_it_starts(start, dice.uniform(0, LONGEST_START_S))
    async with open_hub_process(start) as hub:
        owner_key, authority, keys = await read_policy_key(start, OWNER_POLICY), hub.authority, read_policy_keys(start)
    for number in range(count + 1):
        async with open_hub_process(start) as hub, hub.open_rest(owner_key) as rest:
            assert hub.authority == authority and read_policy_keys(start) == keys
            for ledger in ledgers[-1:]:
                await check_configuration(rest, ledger)
                await check_kept(hub, rest, ledger)
                old = dice.choice(ledgers)
                await check_device(hub, rest, old, dice.choice(old.devices))
            if number == count:
                await check_all(hub, rest, start, ledgers)
                break
            ledgers.append(Ledger(f"round{number}"))
            load, is_at_acknowledgement = Load(hub, rest, ledgers[-1]), dice.random() < 0.5
            await load.run(dice.uniform(0, LONGEST_LOAD_S), hub.kill, at_acknowledgement=is_at_acknowledgement)
            check_upstream(start, ledgers)
    return sum((Counter(ledger.count()) for ledger in ledgers), Counter[str]())


@pytest.mark.soak
async def test_a_hub_that_is_killed_at_random_moments_loses_nothing_it_acknowledged(start: HubStart) -> None:
    figures = await live_through_kills(start, 10, SEED)
    print(figures)
    assert min(figures.values()) >= 10 and len(figures) == 6


@pytest.mark.soak_full
async def test_a_hub_that_is_killed_fifty_times_loses_nothing_it_acknowledged(start: HubStart) -> None:
    figures = await live_through_kills(start, 50, SEED + 1)
    print(figures)
    assert min(figures.values()) >= 50 and len(figures) == 6


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_hub_whose_disk_is_full_again_and_again_loses_nothing_it_acknowledged(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dice, ledgers = random.Random(SEED), [Ledger(f"round{number}") for number in range(3)]
    with open_site(kind, tmp_path / "site", request) as site:
        site.start.routes = ROUTES
        async with open_hub_process(site.start) as hub:
            site.hub = hub
            async with hub.open_rest(await read_policy_key(site.start, OWNER_POLICY, site.beside)) as rest:
                for ledger in ledgers:
                    lasts_s = dice.uniform(0.3, LONGEST_LOAD_S)
                    await Load(hub, rest, ledger).run(lasts_s, site.fill, at_acknowledgement=True)
                    site.free()
                    await check_configuration(rest, ledger)
                    await check_kept(hub, rest, ledger)
                stored = await run_beside(site.start, "messages", "--json", before=site.beside)
        mids = {json.loads(line)["properties"][MESSAGE_ID_KEY] for line in stored.splitlines()}
        assert set().union(*(ledger.stored for ledger in ledgers)) <= mids
        assert hub.child.returncode == 0 and "Traceback" not in hub.log.read_text()


async def check_refusals(hub: HubProcess, rest: Rest, clients: list[Client], key: str) -> None:
    """What a hub says whose database is away: 503 where that can be said, else the end of the connection."""
    twin = api.get_twin_path(clients[0].identity)
    for method, path, body in (
        ("GET", twin, None),
        ("PATCH", twin, {"properties": {"desired": {"n": 1}}}),
        ("PUT", "/devices/away", {"deviceId": "away"}),
    ):
        status, _, code = await rest(method, path, body)
        assert (status, code) == (503, "ServiceUnavailable")
    assert [await client.report({"n": 1}) for client in clients] == [503, 503]
    with pytest.raises(ConnectionError):
        await clients[0].get_twin()
    with pytest.raises(ConnectionError):
        await clients[1].publish(b"", {})
    with pytest.raises(ConnectionError):
        async with hub.open_client(clients[0].identity, key):
            pass
    assert hub.is_running


@pytest.mark.soak_full
async def test_a_hub_outlives_kill_9_of_its_database_and_loses_nothing_it_acknowledged(
    postgres: Postgres, tmp_path: Path
) -> None:
    assert postgres.sql("SHOW fsync") == "on"
    start, ledger, idle = HubStart(tmp_path / "site", postgres.make_database(), ROUTES), Ledger("r"), Ledger("idle")
    async with open_hub_process(start) as hub, AsyncExitStack() as stack:
        owner_key = await read_policy_key(start, OWNER_POLICY)
        rest, clients = await stack.enter_async_context(hub.open_rest(owner_key)), list[Client]()
        for name in ("one", "two"):
            await register(rest, idle, Identity(name))
            opened = hub.open_client(Identity(name), idle.keys[Identity(name)])
            clients.append(await stack.enter_async_context(opened))
        try:
            await Load(hub, rest, ledger).run(LONGEST_LOAD_S, postgres.kill, at_acknowledgement=True)
            await check_refusals(hub, rest, clients, idle.keys[clients[0].identity])
        finally:
            if postgres.server is None:
                postgres.start()

        async def is_back() -> bool:
            return (await rest("GET", "/devices/one"))[0] == 200

        await poll(is_back)
        await check_kept(hub, rest, ledger)
        await check_configuration(rest, ledger)
        await check_registrations(rest, idle)
        check_upstream(start, [ledger])
        assert hub.is_running and "Traceback" not in hub.log.read_text()
    assert min(ledger.count().values()) > 0
