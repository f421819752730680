"""Load on a hub over its real protocols, a ledger of what it acknowledged, and the proof that it kept all of it.

Rules:
- Only what was acknowledged enters the ledger: PUBACK, SUBACK, a twin answer 204, HTTP 200.
- Before the kill every call succeeds; after it a call may fail in any way that a broken connection or a refusal can.
- A device has a sender `a` and a receiver `b`. What `a` sends to its output `out` goes to `$upstream` and to `b`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from edgeferry.storage.hub_queues import UPSTREAM_MAX_ROWS
from edgeferry.storage.hub_store import open_tables
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire import service_api as api
from edgeferry.wire.iothub_topics import (
    DESIRED_PATCH_FILTER,
    MESSAGE_ID_KEY,
    DesiredPatch,
    InputMessage,
    ReportedPatch,
    Telemetry,
    TwinResponse,
    get_input_filter,
    make_uplink_topic,
    parse_downlink,
)
from edgeferry.wire.service_api import Identity
from hub_process import Client, HubProcess, HubStart, Rest

ROUTES = (
    'FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint("/modules/b/inputs/in")',
    "FROM /messages/* INTO $upstream",
)
CONFIGURATION = "load"
DEVICES = 3
BURST = 6
PAUSE_S = 0.01
DRAIN_S = 3.0
CHECK_TIMEOUT_S = 60.0


@dataclass
class Counter:
    """A number that rises in a section of a twin: the last one sent, and the last one acknowledged with its version."""

    sent: int = 0
    acknowledged: int = 0
    version: int = 0


@dataclass
class Ledger:
    """What a hub acknowledged in one round, beside what it was asked for."""

    name: str
    keys: dict[Identity, str] = field(default_factory=dict, repr=False)
    reported: dict[Identity, Counter] = field(default_factory=dict)
    desired: dict[Identity, Counter] = field(default_factory=dict)
    configuration: Counter = field(default_factory=Counter)
    subscribed: set[Identity] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    routed: dict[Identity, set[str]] = field(default_factory=dict)
    delivered: dict[Identity, set[str]] = field(default_factory=dict)

    @property
    def devices(self) -> list[str]:
        return [f"{self.name}-{number}" for number in range(DEVICES)]

    def count(self) -> dict[str, int]:
        """How much was acknowledged of each kind."""
        return {
            "registrations": len(self.keys),
            "messages": len(self.stored),
            "inputs": sum(map(len, self.routed.values())),
            "reported": sum(one.acknowledged for one in self.reported.values()),
            "desired": sum(one.acknowledged for one in self.desired.values()),
            "subscriptions": len(self.subscribed),
        }


@dataclass
class Load:
    """Everything at once on one hub, until it is killed."""

    hub: HubProcess
    rest: Rest
    ledger: Ledger
    is_killed: bool = False
    _kill_at_next: Callable[[], None] | None = None

    async def run(self, lasts_s: float, kill: Callable[[], None], *, at_acknowledgement: bool = False) -> None:
        """Loads for some seconds, kills, and waits until everything has noticed.

        `at_acknowledgement`: kills in the very moment in which the next acknowledgement is read.
        """
        work = [*map(self._run_device, self.ledger.devices), self._register_devices(), self._write_configuration()]
        tasks = [asyncio.create_task(self._live(one)) for one in work]
        early, _ = await asyncio.wait(tasks, timeout=lasts_s, return_when=asyncio.FIRST_COMPLETED)
        self._kill_at_next = kill
        if at_acknowledgement:
            await asyncio.wait(tasks, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        self._note()
        _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
        for task in late:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        defects = [one for one in outcomes if isinstance(one, Exception)]
        assert not defects and not early, (defects, early)

    def _note(self) -> None:
        """Something was acknowledged just now."""
        if self._kill_at_next is not None:
            kill, self._kill_at_next, self.is_killed = self._kill_at_next, None, True
            kill()

    async def _live(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (OSError, aiohttp.ClientError):
            if not self.is_killed:
                raise

    async def _run_device(self, device_id: str) -> None:
        a, b = Identity(device_id, "a"), Identity(device_id, "b")
        for identity in (Identity(device_id), a, b):
            await register(self.rest, self.ledger, identity)
            self._note()
        keys = self.ledger.keys
        async with self.hub.open_client(b, keys[b]) as receiver, self.hub.open_client(a, keys[a]) as sender:
            await subscribe(receiver, self.ledger)
            self._note()
            async with asyncio.TaskGroup() as group:
                for work in (self._receive(receiver), self._send(sender), self._write_desired(b)):
                    group.create_task(self._live(work))

    async def _receive(self, client: Client) -> None:
        while True:
            await take_delivery(client, self.ledger)

    async def _send(self, client: Client) -> None:
        """Bursts of messages and a reported patch, all on their way before the first answer."""
        mids: dict[int, str] = {}
        counter = self.ledger.reported.setdefault(client.identity, Counter())
        while True:
            counter.sent += 1
            mids = {number: f"{client.identity.device_id}:{counter.sent}:{number}" for number in range(1, BURST + 1)}
            packets = [make_message(client, mid, number) for number, mid in mids.items()]
            self.ledger.sent |= set(mids.values())
            await client.raw.send(*packets, make_report(client, counter.sent))
            await self._collect(client, mids, counter)
            await asyncio.sleep(PAUSE_S)

    async def _collect(self, client: Client, mids: dict[int, str], counter: Counter) -> None:
        """Notes every acknowledgement of a burst."""
        waiting = set(mids)
        while waiting or counter.acknowledged < counter.sent:
            packet = await client.receive()
            if isinstance(packet, mqtt.PubAck):
                waiting.remove(packet.packet_id)
                note_stored(self.ledger, client.identity, mids[packet.packet_id])
                self._note()
                continue
            assert isinstance(packet, mqtt.Publish), packet
            answer = parse_downlink(packet.topic, device_id=client.identity[0], module_id=client.identity[1])
            assert isinstance(answer, TwinResponse) and answer.rid == str(counter.sent), packet
            if answer.status != 204 or answer.version is None:
                raise ConnectionError(f"a report was answered with {answer.status}")
            counter.acknowledged, counter.version = counter.sent, answer.version
            self._note()

    async def _write_desired(self, identity: Identity) -> None:
        while True:
            await write_desired(self.rest, self.ledger, identity)
            self._note()
            await asyncio.sleep(PAUSE_S)

    async def _register_devices(self) -> None:
        number = 0
        while True:
            number += 1
            await register(self.rest, self.ledger, Identity(f"{self.ledger.name}-more-{number}"))
            self._note()
            await asyncio.sleep(2 * PAUSE_S)

    async def _write_configuration(self) -> None:
        counter = self.ledger.configuration
        while True:
            counter.sent += 1
            content = {"deviceContent": {"properties.desired.never": 1}}
            body = {"id": CONFIGURATION, "content": content, "targetCondition": "tags.none = 'x'", "priority": 1}
            body["labels"] = {"round": self.ledger.name, "n": str(counter.sent)}
            is_there = (await self.rest("GET", f"/configurations/{CONFIGURATION}"))[0] == 200
            await ask(
                self.rest, "PUT", f"/configurations/{CONFIGURATION}", body, **({"If_Match": "*"} if is_there else {})
            )
            counter.acknowledged = counter.sent
            self._note()
            await asyncio.sleep(5 * PAUSE_S)


# --- single calls -----------------------------------------------------------------------------------------------------
async def ask(rest: Rest, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """A call that must succeed; raises ConnectionError when it is refused."""
    status, answer, code = await rest(method, path, body, **headers)
    if status != 200:
        raise ConnectionError(f"{method} {path} was answered with {status} {code}")
    return answer


async def register(rest: Rest, ledger: Ledger, identity: Identity) -> None:
    body = {"deviceId": identity.device_id, **({"moduleId": identity.module_id} if identity.module_id else {})}
    answer = await ask(rest, "PUT", api.get_identity_path(identity), body)
    ledger.keys[identity] = answer["authentication"]["symmetricKey"]["primaryKey"]


async def write_desired(rest: Rest, ledger: Ledger, identity: Identity) -> int:
    """Writes the next number; returns its `$version`."""
    counter = ledger.desired.setdefault(identity, Counter())
    counter.sent += 1
    body = {"properties": {"desired": {"n": counter.sent}}}
    answer = await ask(rest, "PATCH", api.get_twin_path(identity), body)
    counter.acknowledged, counter.version = counter.sent, answer["properties"]["desired"]["$version"]
    return counter.version


async def subscribe(client: Client, ledger: Ledger) -> None:
    device_id, module_id = client.identity
    filters = (DESIRED_PATCH_FILTER, get_input_filter(device_id, module_id or ""))
    await client.raw.send(mqtt.Subscribe(9, tuple((one, 1) for one in filters)))
    answer = await client.receive()
    assert answer == mqtt.SubAck(9, (1, 1))
    ledger.subscribed.add(client.identity)


async def take_delivery(client: Client, ledger: Ledger) -> int | None:
    """Takes the next message and acknowledges it; returns the version of a desired patch."""
    message, _ = await client.receive_message()
    if isinstance(message, DesiredPatch):
        return message.version
    assert isinstance(message, InputMessage) and message.name == "in"
    ledger.delivered.setdefault(client.identity, set()).add(str(message.properties[MESSAGE_ID_KEY]))
    return None


async def send_message(client: Client, ledger: Ledger, mid: str) -> None:
    """Sends one message that is routed to `b`, and waits for its PUBACK."""
    ledger.sent.add(mid)
    await client.publish(mid.encode(), {MESSAGE_ID_KEY: mid})
    note_stored(ledger, client.identity, mid, output="out")


def note_stored(ledger: Ledger, sender: Identity, mid: str, output: str | None = None) -> None:
    ledger.stored.add(mid)
    if (output or get_output(mid)) == "out":
        ledger.routed.setdefault(Identity(sender.device_id, "b"), set()).add(mid)


def get_output(mid: str) -> str:
    """Every second message goes to `b` too."""
    return "out" if int(mid.rpartition(":")[2]) % 2 else "up"


def make_message(client: Client, mid: str, packet_id: int) -> mqtt.Publish:
    message = Telemetry(get_output(mid), {MESSAGE_ID_KEY: mid})
    topic = make_uplink_topic(message, device_id=client.identity.device_id, module_id=client.identity.module_id)
    return mqtt.Publish(topic, mid.encode(), 1, packet_id)


def make_report(client: Client, number: int) -> mqtt.Publish:
    device_id, module_id = client.identity
    topic = make_uplink_topic(ReportedPatch(str(number)), device_id=device_id, module_id=module_id)
    return mqtt.Publish(topic, msgspec.json.encode({"n": number}))


# --- the proof --------------------------------------------------------------------------------------------------------
async def check_kept(hub: HubProcess, rest: Rest, ledger: Ledger) -> None:
    """Everything that one round's ledger says is there; devices are found as they were left."""
    await check_registrations(rest, ledger)
    await check_twins(rest, ledger)
    async with asyncio.timeout(CHECK_TIMEOUT_S), asyncio.TaskGroup() as group:
        for device_id in ledger.devices:
            group.create_task(check_device(hub, rest, ledger, device_id))
    newest = list(ledger.keys.items())[-1:]  # the one most easily lost
    for identity, key in newest:
        async with hub.open_client(identity, key):
            pass


async def check_registrations(rest: Rest, ledger: Ledger) -> None:
    found = await asyncio.gather(*(ask(rest, "GET", api.get_identity_path(one)) for one in ledger.keys))
    keys = [one["authentication"]["symmetricKey"]["primaryKey"] for one in found]
    assert keys == list(ledger.keys.values())


async def check_twins(rest: Rest, ledger: Ledger) -> None:
    for section, counters in (("reported", ledger.reported), ("desired", ledger.desired)):
        for identity, counter in counters.items():
            twin = (await ask(rest, "GET", api.get_twin_path(identity)))["properties"][section]
            assert counter.acknowledged <= twin.get("n", 0) <= counter.sent, (identity, section, counter)
            assert twin["$version"] >= counter.version, (identity, section, counter)


async def check_configuration(rest: Rest, ledger: Ledger) -> None:
    """The last configuration of a round; a later round writes over it."""
    counter = ledger.configuration
    if not counter.acknowledged:
        return
    found = (await ask(rest, "GET", f"/configurations/{CONFIGURATION}"))["labels"]
    assert found["round"] == ledger.name and counter.acknowledged <= int(found["n"]) <= counter.sent


async def check_device(hub: HubProcess, rest: Rest, ledger: Ledger, device_id: str) -> None:
    """`b` comes back without subscribing: all that was routed to it arrives, then a live input and a live patch."""
    a, b = Identity(device_id, "a"), Identity(device_id, "b")
    if a not in ledger.keys or b not in ledger.keys:
        return
    async with hub.open_client(b, ledger.keys[b]) as receiver, hub.open_client(a, ledger.keys[a]) as sender:
        if b in ledger.subscribed:
            assert receiver.had_session
        else:
            await subscribe(receiver, ledger)
        await send_message(sender, ledger, f"{device_id}:live:{len(ledger.sent)}")
        version, seen = await write_desired(rest, ledger, b), 0
        while seen < version or not ledger.routed[b] <= ledger.delivered.get(b, set()):
            seen = max(seen, await take_delivery(receiver, ledger) or 0)
        assert ledger.delivered[b] <= ledger.sent


def check_upstream(start: HubStart, ledgers: Iterable[Ledger]) -> None:
    """Every acknowledged message of these rounds lies in `$upstream`, and nothing that nobody sent."""
    found: set[str] = set()
    last, rows = 0, 0
    with open_tables(start.data, start.database_url) as tables:
        while page := tables.queues.read_upstream(after=last, limit=5000):
            found |= {str(one.properties[MESSAGE_ID_KEY]) for one in page}
            last, rows = page[-1].id, rows + len(page)
    assert rows < UPSTREAM_MAX_ROWS, "the oldest were trimmed: send less"
    for ledger in ledgers:
        assert ledger.stored <= found, sorted(ledger.stored - found)[:5]
    assert found <= set().union(*(ledger.sent for ledger in ledgers))
