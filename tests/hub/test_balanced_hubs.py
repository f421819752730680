"""Two hub processes behind one TCP balancer: kills, Microsoft's SDK, and a fleet that does everything at once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from balancer import Balancer, open_balancer
from edgeferry.app.hub_settings import make_connection_string
from edgeferry.hub.identity_records import make_record
from edgeferry.storage.hub_store import open_tables
from edgeferry.twin.document import make_twin
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_topics import DESIRED_PATCH_FILTER, TWIN_RESPONSE_FILTER
from edgeferry.wire.service_api import Identity
from hub.hub_processes import HubProcess, Service, open_process, open_service
from polling import poll
from raw_mqtt import RawClient, open_raw

A, B = Identity("d", "a"), Identity("d", "b")


@dataclass
class Fleet:
    """Two hubs, their services, and the balancer before them: by MQTT it is one hub (`raw_mqtt.MqttDoor`)."""

    hubs: list[HubProcess]
    services: list[Service]
    balancer: Balancer
    host_name: str
    url: str = field(repr=False)

    @property
    def mqtt_port(self) -> int:
        return self.balancer.port

    @property
    def ca_pem_path(self) -> Path:
        return self.hubs[0].ca_pem_path

    def add_modules(self, *identities: Identity) -> list[str]:
        """Registers modules with their devices; returns connection strings."""
        made = []
        with open_tables(self.hubs[0].folder, self.url) as tables, tables.transaction():
            for identity in identities:
                for one in (Identity(identity.device_id), identity):
                    if tables.find_identity(one) is None:
                        tables.add_identity(make_record(one, time.time()), make_twin(time.time()))
                made.append(make_connection_string(self.host_name, tables.require_identity(identity)))
        return made

    def get_last_chosen(self) -> int:
        """Which hub got the newest connection."""
        port = self.balancer.chosen[-1][1]
        return [hub.mqtt_port for hub in self.hubs].index(port)

    async def restart(self, number: int) -> None:
        """Starts a hub that was killed, on other ports."""
        old = ("127.0.0.1", self.hubs[number].mqtt_port)
        await self.hubs[number].start()
        self.balancer.servers[self.balancer.servers.index(old)] = ("127.0.0.1", self.hubs[number].mqtt_port)


@asynccontextmanager
async def open_fleet(folder: Path, url: str, *, host: str = "localhost", port: int = 0) -> AsyncIterator[Fleet]:
    """Two hubs of one fleet behind a balancer on `host`."""
    async with AsyncExitStack() as stack:
        hubs, services = [], []
        for name in ("one", "two"):
            hub = await stack.enter_async_context(open_process(folder / name, url, "--host-name", host))
            hubs.append(hub)
            services.append(await stack.enter_async_context(open_service(hub, hub.folder, url)))
        servers = [("127.0.0.1", hub.mqtt_port) for hub in hubs]
        balancer = await stack.enter_async_context(open_balancer(servers, host=host, port=port))
        yield Fleet(hubs, services, balancer, host, url)


# --- kills ------------------------------------------------------------------------------------------------------------
async def test_modules_of_a_killed_hub_come_back_through_the_balancer(tmp_path: Path, database_url: str) -> None:
    async with open_fleet(tmp_path, database_url) as fleet, AsyncExitStack() as stack:
        identities = [Identity(f"d{number}", "a") for number in range(12)]
        texts = fleet.add_modules(*identities)
        clients: list[RawClient] = []
        for number, text in enumerate(texts):
            client = await stack.enter_async_context(open_raw(fleet))
            assert await client.connect(text) == mqtt.ConnAck(0, False)
            await client.subscribe(DESIRED_PATCH_FILTER)
            topic = f"devices/d{number}/modules/a/messages/events/%24.on=x"
            await client.send(mqtt.Publish(topic, b"%d" % number, 1, 1))
            assert await client.receive() == mqtt.PubAck(1)
            clients.append(client)
        used = [server[1] for server in fleet.balancer.chosen]
        assert {used.count(hub.mqtt_port) for hub in fleet.hubs} == {6}
        versions = [await fleet.services[1].write_desired(identity, {"kept": 1}) for identity in identities]
        await fleet.hubs[1].kill()
        cut = [number for number, port in enumerate(used) if port == fleet.hubs[1].mqtt_port]
        for number in cut:
            while await clients[number].receive() is not None:
                pass
            clients[number] = await stack.enter_async_context(open_raw(fleet))
            assert await clients[number].connect(texts[number]) == mqtt.ConnAck(0, True)
        for number, identity in enumerate(identities):
            twin = await fleet.services[0].read_twin(identity)
            assert twin["properties"]["desired"]["$version"] == versions[number]
            assert twin["connectionState"] == "Connected"
            live = await fleet.services[0].write_desired(identity, {"live": number})
            await expect_version(clients[number], live)
        with open_tables(tmp_path, database_url) as tables, tables.transaction(writes=False):
            stored = [one.payload for one in tables.queues.read_upstream()]
        assert stored == [b"%d" % number for number in range(12)]


async def expect_version(client: RawClient, version: int) -> None:
    """Reads patches up to this `$version`."""
    while True:
        packet = await client.receive()
        assert isinstance(packet, mqtt.Publish), packet
        if json.loads(packet.payload)["$version"] == version:
            return


# --- Microsoft's SDK --------------------------------------------------------------------------------------------------
@pytest.mark.needs_azure_sdk
async def test_the_device_sdk_works_whichever_hub_it_lands_on_and_after_the_kill_of_the_one_that_holds_it(
    tmp_path: Path, database_url: str, loopback_address: str, open_device: Any
) -> None:
    async with open_fleet(tmp_path, database_url, host=loopback_address, port=8883) as fleet:
        sender, receiver = fleet.add_modules(A, B)
        async with open_device(fleet, sender) as a:
            await a.expect("ready")
            holder = fleet.get_last_chosen()
            async with open_device(fleet, receiver) as b:
                await b.expect("ready")
                assert fleet.get_last_chosen() != holder
                await work_all_ways(fleet, [0, 1], a, b)
                for turn in range(2):
                    held_here = (holder + turn) % 2
                    await fleet.hubs[held_here].kill()
                    await wait_callable(fleet.services[1 - held_here], A)
                    await wait_callable(fleet.services[1 - held_here], B)
                    await work_all_ways(fleet, [1 - held_here], a, b)
                    await fleet.restart(held_here)
                    await work_all_ways(fleet, [0, 1], a, b)


async def work_all_ways(fleet: Fleet, numbers: list[int], a: Any, b: Any) -> None:
    """Patch, method, report and input, through each of these hubs."""
    for number in numbers:
        service, mark = fleet.services[number], random.randrange(1_000_000)
        version = await service.write_desired(A, {"mark": mark})
        while (patch := await a.expect("patch", 40.0)).get("$version") != version:
            assert patch["$version"] < version
        assert patch["mark"] == mark
        status, answer = await service.call_method(B, "m", payload={"deep": [mark]}, responseTimeoutInSeconds=20)
        assert (status, answer) == (200, {"status": 207, "payload": {"echo": {"deep": [mark]}}})
        await a.send(f'report {{"mark": {mark}}}')
        await a.expect("reported", 40.0)
        assert (await service.read_twin(A))["properties"]["reported"]["mark"] == mark
        await a.send(f"output out {mark}")
        while await b.expect("input", 40.0) == "in" and json.loads(b.seen[-1]["body"]) != mark:
            pass


async def wait_callable(service: Service, identity: Identity) -> None:
    """Waits until a module answers methods; one that is about to be given up does not."""

    async def is_callable() -> bool:
        status, _ = await service.call_method(identity, "m", responseTimeoutInSeconds=5)
        return status == 200

    await poll(is_callable, 60.0)


# --- everything at once -----------------------------------------------------------------------------------------------
MODULES, PATCHES, MESSAGES = 200, 5, 3


async def test_a_fleet_over_both_hubs_loses_nothing_under_load(tmp_path: Path, database_url: str) -> None:
    chance = random.Random(7)
    async with open_fleet(tmp_path, database_url) as fleet, AsyncExitStack() as stack:
        identities = [Identity(f"d{number}", "a") for number in range(MODULES)]
        texts = fleet.add_modules(*identities)
        modules = [Module(identity, text) for identity, text in zip(identities, texts, strict=True)]
        began = time.monotonic()
        for part in range(0, MODULES, 20):
            await asyncio.gather(*(one.open(stack, fleet) for one in modules[part : part + 20]))
        connected, cpu = time.monotonic(), [read_cpu_s(hub) for hub in fleet.hubs]
        writes = [(one.identity, n) for one in modules for n in range(PATCHES)]
        chance.shuffle(writes)
        gate = asyncio.Semaphore(64)

        async def write(identity: Identity, n: int) -> None:
            async with gate:
                await fleet.services[chance.randrange(2)].write_desired(identity, {"n": n, f"n{n}": n})

        await asyncio.gather(*(write(*one) for one in writes), *(one.work() for one in modules))
        ended = time.monotonic()
        used = [read_cpu_s(hub) - before for hub, before in zip(fleet.hubs, cpu, strict=True)]
        for one in modules:
            await one.check(fleet.services[chance.randrange(2)])
        with open_tables(tmp_path, database_url) as tables, tables.transaction(writes=False):
            upstream = tables.queues.read_upstream(limit=10 * MODULES)
        assert sorted(one.payload for one in upstream) == sorted(
            b"%d" % n for _ in range(MODULES) for n in range(MESSAGES)
        )
    per_hub = ", ".join(f"{seconds:.1f}" for seconds in used)
    print(f"\n{MODULES} modules over two hubs: connected in {connected - began:.1f} s;", end=" ")
    print(
        f"{len(writes)} patches, {MODULES * MESSAGES} reports and messages each in {ended - connected:.1f} s;", end=" "
    )
    print(f"CPU of the hubs {per_hub} s")


def read_cpu_s(hub: HubProcess) -> float:
    """CPU seconds that a hub has used."""
    assert hub.process is not None
    fields = Path(f"/proc/{hub.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Module:
    """One module of the load: it reports and sends, and notes every patch."""

    identity: Identity
    text: str = field(repr=False)
    client: RawClient = field(init=False, repr=False)
    patches: list[dict[str, Any]] = field(default_factory=list)
    acknowledged: set[int] = field(default_factory=set)
    reported: set[str] = field(default_factory=set)

    async def open(self, stack: AsyncExitStack, fleet: Fleet) -> None:
        self.client = await stack.enter_async_context(open_raw(fleet))
        assert await self.client.connect(self.text) == mqtt.ConnAck(0, False)
        await self.client.subscribe(DESIRED_PATCH_FILTER, TWIN_RESPONSE_FILTER)

    async def work(self) -> None:
        """Sends all it has, then reads until everything has come."""
        events = f"devices/{self.identity.device_id}/modules/a/messages/events/%24.on=x"
        for n in range(MESSAGES):
            await self.client.send(mqtt.Publish(events, b"%d" % n, 1, n + 1))
            await self.client.send(
                mqtt.Publish(f"$iothub/twin/PATCH/properties/reported/?$rid={n}", b'{"n": %d}' % n, 0)
            )
        while len(self.patches) < PATCHES or len(self.acknowledged) < MESSAGES or len(self.reported) < MESSAGES:
            self._note(await self.client.receive(60.0))

    def _note(self, packet: mqtt.Packet | None) -> None:
        if isinstance(packet, mqtt.PubAck):
            self.acknowledged.add(packet.packet_id)
            return
        assert isinstance(packet, mqtt.Publish), packet
        if packet.topic.startswith("$iothub/twin/res/204/"):
            self.reported.add(packet.topic)
        else:
            assert packet.topic.startswith("$iothub/twin/PATCH/properties/desired/"), packet.topic
            self.patches.append(json.loads(packet.payload))

    async def check(self, service: Service) -> None:
        """Nothing lost, nothing twice, in order; and what it saw is what a GET says."""
        await self.client.send(mqtt.Publish("$iothub/twin/GET/?$rid=get", b"", 0))
        answer = await self.client.receive()
        assert isinstance(answer, mqtt.Publish) and answer.topic.startswith("$iothub/twin/res/200/"), answer
        seen: dict[str, Any] = {}
        for patch in self.patches:
            seen |= patch
        desired = json.loads(answer.payload)["desired"]
        assert [patch["$version"] for patch in self.patches] == list(range(2, PATCHES + 2))
        assert seen == desired and len(desired) == PATCHES + 2
        twin = (await service.read_twin(self.identity))["properties"]
        assert {key: twin["desired"][key] for key in seen} == seen
        assert twin["reported"]["n"] == MESSAGES - 1 and twin["reported"]["$version"] == MESSAGES + 1
