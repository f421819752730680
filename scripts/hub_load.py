"""The clients of the load bench, a process of their own: thousands of modules and the operator who patches their twins.

Reads a JSON line for each step from standard input, answers each with one on standard output; progress goes to standard
error. Usage: python scripts/hub_load.py SITE_FILE

Rules:
- A module does what Microsoft's Python SDK does: TLS with the name checked, SAS, clean session 0, one SUBSCRIBE for
  each filter at the first connection and none later, QoS 1 up, 60 s for a connect.
- Nothing is tried twice: what fails is counted.
"""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import sys
import time
from asyncio.sslproto import SSLProtocol
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from edgeferry.errors import EdgeferryError
from edgeferry.transport.http import HttpClient, HttpSettings, open_http
from edgeferry.transport.tls import make_tls_context
from edgeferry.wire import iothub_topics as topics
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.file_signatures import SERVICE_POLICY
from edgeferry.wire.iothub_auth import make_client_id, make_resource, make_sas_token, make_user_name
from edgeferry.wire.service_api import Identity, add_api_version, get_twin_path

HOST_NAME = "localhost"
CONNECT_TIMEOUT_S = 60.0
TOKEN_LIFE_S = 3600
KEEPALIVE_S = 180
PING_EVERY_S = 60.0
AT_ONCE = 500
"""Connects under way at a time when a fleet comes up; in a storm it is all of them."""
OPERATOR_POOLS = 4
"""Clients of the service REST; each keeps eight connections open."""
OPERATOR_CALLS = 32
ACKNOWLEDGED_WITHIN_S = 300.0
TLS_BUFFER_BYTES = 16 * 1024
SOURCES = [f"127.0.1.{number}" for number in range(1, 51)]
"""A fleet does not come from one address, and has more connections than one address has ports."""
FILTERS = (topics.TWIN_RESPONSE_FILTER, topics.DESIRED_PATCH_FILTER)


@dataclass(slots=True)
class Module:
    """One module: what it needs to connect, and what has come of the round of twin patches that runs."""

    identity: Identity
    source: str
    connect: bytes
    line: Line | None = None
    has_session: bool = False
    got_round: int = 0
    acknowledged_round: int = 0
    taken_over_round: int = 0


@dataclass(slots=True)
class Tally:
    """What went wrong, counted by its name; and how many answers a round of twin patches still waits for."""

    failures: Counter[str] = field(default_factory=Counter)
    open_answers: int = 0
    all_answered: asyncio.Event = field(default_factory=asyncio.Event)

    def begin_round(self, modules: int) -> None:
        """Each module is owed two answers to its reported patch: PUBACK and 204."""
        self.open_answers = 2 * modules
        self.all_answered.clear()

    def count_answer(self) -> None:
        """One of them has come."""
        self.open_answers -= 1
        if not self.open_answers:
            self.all_answered.set()


class Line(asyncio.Protocol):
    """One connection of a module, over when it has ended."""

    def __init__(self, module: Module, tally: Tally) -> None:
        self._module, self._tally = module, tally
        self._decoder = mqtt.PacketDecoder()
        self._subscribed = 0
        self._is_dropped = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open, TLS included."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._module.connect)

    def data_received(self, data: bytes) -> None:
        """Bytes of the hub."""
        for packet in self._decoder.feed(data):
            match packet:
                case mqtt.ConnAck():
                    self._begin(packet)
                case mqtt.SubAck():
                    self._count_filter(packet)
                case mqtt.Publish():
                    self._take(packet)
                case mqtt.PubAck(number):
                    self._take_over(number)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended; by our own will only when it was dropped."""
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError("closed before it was admitted"))
        elif not self._is_dropped:
            self._tally.failures["connection lost"] += 1

    def ping(self) -> None:
        """Shows that the module is alive."""
        self._transport.write(mqtt.encode(mqtt.PingReq()))

    def drop(self) -> None:
        """Ends without a word, as a module whose power fails."""
        self._is_dropped = True
        self._transport.abort()

    def _begin(self, answer: mqtt.ConnAck) -> None:
        if answer.code != mqtt.CONNACK_ACCEPTED:
            self.ready.set_exception(ConnectionRefusedError(f"CONNACK {answer.code}"))
        elif answer.session_present != self._module.has_session:
            self.ready.set_exception(ConnectionRefusedError(f"session present: {answer.session_present}"))
        elif answer.session_present:
            self.ready.set_result(None)
        else:
            for number, name in enumerate(FILTERS, 1):
                self._transport.write(mqtt.encode(mqtt.Subscribe(number, ((name, 0),))))

    def _count_filter(self, answer: mqtt.SubAck) -> None:
        self._subscribed += mqtt.SUBACK_REFUSED not in answer.codes
        if self._subscribed == len(FILTERS):
            self._module.has_session = True
            self.ready.set_result(None)

    def _take(self, packet: mqtt.Publish) -> None:
        device_id, module_id = self._module.identity
        match topics.parse_downlink(packet.topic, device_id=device_id, module_id=module_id):
            case topics.DesiredPatch():
                number = json.loads(packet.payload)["models"]["detector"]["try"]
                self._module.got_round = number
                topic = topics.make_uplink_topic(
                    topics.ReportedPatch(str(number)), device_id=device_id, module_id=module_id
                )
                self._transport.write(mqtt.encode(mqtt.Publish(topic, make_reported(number), 1, number)))
            case topics.TwinResponse(rid, status):
                if status != 204:
                    self._tally.failures[f"reported patch answered {status}"] += 1
                elif self._module.acknowledged_round != int(rid):
                    self._module.acknowledged_round = int(rid)
                    self._tally.count_answer()

    def _take_over(self, number: int) -> None:
        if self._module.taken_over_round != number:
            self._module.taken_over_round = number
            self._tally.count_answer()


class Fleet:
    """All modules of a hub, and its operator."""

    def __init__(self, site: dict[str, Any]) -> None:
        self._site = site
        self._ca = Path(site["ca_path"]).read_bytes()
        self._tls: ssl.SSLContext | None = make_tls_context(self._ca, system_too=False) if site["tls"] else None
        self._modules = [
            _make_module(Identity(device_id, module_id), key, SOURCES[number % len(SOURCES)])
            for number, (device_id, module_id, key) in enumerate(site["modules"])
        ]
        self._tally = Tally()

    async def connect(self, at_once: int) -> dict[str, Any]:
        """Brings all modules up."""
        began, gate = time.monotonic(), asyncio.Semaphore(at_once)
        waits: list[float] = []

        async def bring(module: Module) -> None:
            async with gate:
                waits.append(await self._bring(module))
                if len(waits) % max(1, len(self._modules) // 5) == 0:
                    _tell(f"{len(waits):,} connected")

        await asyncio.gather(*map(bring, self._modules))
        return {"seconds": time.monotonic() - began, "longest_s": max(waits), **self._take_failures()}

    async def drop(self) -> dict[str, Any]:
        """Ends all connections at once and without a word."""
        for module in self._modules:
            if module.line is not None:
                module.line.drop()
        return {}

    async def patch(self, number: int) -> dict[str, Any]:
        """One twin patch to each module through the service REST, until each has reported and been answered."""
        began = time.monotonic()
        self._tally.begin_round(len(self._modules))
        await self._send_patches(number)
        sent_s = time.monotonic() - began
        try:
            async with asyncio.timeout(ACKNOWLEDGED_WITHIN_S):
                await self._tally.all_answered.wait()
        except TimeoutError:
            self._tally.failures["not acknowledged in time"] += 1
        return {
            "sent_s": sent_s,
            "seconds": time.monotonic() - began,
            "delivered": sum(module.got_round == number for module in self._modules),
            "acknowledged": sum(module.acknowledged_round == number for module in self._modules),
            **self._take_failures(),
        }

    async def keep_alive(self) -> None:
        """Pings for every module, one after the other, for ever."""
        while True:
            for module in self._modules:
                if module.line is not None and module.line.ready.done():
                    module.line.ping()
                await asyncio.sleep(PING_EVERY_S / len(self._modules))

    async def _bring(self, module: Module) -> float:
        began = time.monotonic()
        module.line = None
        name = HOST_NAME if self._tls else None
        patience = CONNECT_TIMEOUT_S if self._tls else None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, line = await asyncio.get_running_loop().create_connection(
                    lambda: Line(module, self._tally),
                    "127.0.0.1",
                    self._site["mqtt_port"],
                    ssl=self._tls,
                    server_hostname=name,
                    ssl_handshake_timeout=patience,
                    local_addr=(module.source, 0),
                )
                await line.ready
                module.line = line
        except OSError as error:  # TimeoutError and ssl.SSLError are among them
            self._tally.failures[f"connect: {type(error).__name__} {error}".strip()] += 1
        return time.monotonic() - began

    async def _send_patches(self, number: int) -> None:
        body, waiting = make_desired(number), iter(self._modules)
        expires_at = int(time.time()) + TOKEN_LIFE_S
        token = make_sas_token(HOST_NAME, self._site["service_key"], expires_at, SERVICE_POLICY)
        headers = {"Authorization": token, "Content-Type": "application/json"}

        async def work(http: HttpClient) -> None:
            for module in waiting:
                url = self._site["service_url"] + add_api_version(get_twin_path(module.identity))
                try:
                    answer = await http.fetch(url, max_bytes=1 << 20, method="PATCH", body=body, headers=headers)
                    if answer.status != 200:
                        self._tally.failures[f"PATCH answered {answer.status}"] += 1
                except EdgeferryError as error:
                    self._tally.failures[f"PATCH: {error.code}"] += 1

        async with AsyncExitStack() as stack:
            settings = HttpSettings(self._ca)
            pools = [await stack.enter_async_context(open_http(settings)) for _ in range(OPERATOR_POOLS)]
            await asyncio.gather(*(work(pools[one % OPERATOR_POOLS]) for one in range(OPERATOR_CALLS)))

    def _take_failures(self) -> dict[str, Any]:
        failures, self._tally.failures = self._tally.failures, Counter()
        return {"failures": dict(failures)}


def make_desired(number: int) -> bytes:
    """The body of a twin patch as large as one that asks for a new version of a model."""
    model = {"version": f"1.{number}.0", "manifest": f"sha256:{number:064x}", "try": number}
    return json.dumps({"properties": {"desired": {"models": {"detector": model}}}}).encode()


def make_reported(number: int) -> bytes:
    """A reported patch of a usual size."""
    model = {"state": "active", "version": f"1.{number}.0", "manifest": f"sha256:{number:064x}", "try": number}
    return json.dumps({"models": {"detector": model}}).encode()


def _make_module(identity: Identity, key: str, source: str) -> Module:
    device_id, module_id = identity
    token = make_sas_token(make_resource(HOST_NAME, device_id, module_id), key, int(time.time()) + TOKEN_LIFE_S)
    user_name = make_user_name(HOST_NAME, device_id, module_id, client_type="bench")
    client_id = make_client_id(device_id, module_id)
    connect = mqtt.Connect(client_id, False, KEEPALIVE_S, user_name, token.encode())
    return Module(identity, source, mqtt.encode(connect))


def _tell(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)


async def serve_steps(fleet: Fleet) -> None:
    """Does what each line of standard input asks for, until there is none."""
    pinging = asyncio.create_task(fleet.keep_alive())
    while line := await asyncio.to_thread(sys.stdin.readline):
        step = json.loads(line)
        match step["do"]:
            case "connect":
                answer = await fleet.connect(step.get("at_once", AT_ONCE))
            case "patch":
                answer = await fleet.patch(step["round"])
            case "drop":
                answer = await fleet.drop()
            case other:
                raise SystemExit(f"no such step: {other}")
        print(json.dumps(answer), flush=True)
    pinging.cancel()


async def main() -> None:
    """Reads the site's file and serves."""
    site = json.loads(Path(sys.argv[1]).read_text())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    SSLProtocol.max_size = TLS_BUFFER_BYTES
    await serve_steps(Fleet(site))


if __name__ == "__main__":
    asyncio.run(main())
