"""`edgeferry hub run` as a real process on either store, and its two doors: MQTT over TLS, and the service REST."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire import service_api as api
from edgeferry.wire.iothub_auth import ConnectionString, make_sas_token, parse_connection_string
from edgeferry.wire.iothub_topics import (
    Bag,
    Downlink,
    ReportedPatch,
    Telemetry,
    TwinGet,
    TwinResponse,
    make_uplink_topic,
    parse_downlink,
)
from edgeferry.wire.service_api import Identity
from polling import poll
from raw_mqtt import RawClient

COMMAND = (sys.executable, "-m", "edgeferry.cli.main", "hub")
START_TIMEOUT_S = 60.0


@dataclass
class HubStart:
    """How a hub is started, again and again, on one store. `before`: words that run in front of its command."""

    folder: Path
    database_url: str | None = None
    routes: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    @property
    def data(self) -> Path:
        return self.folder / "hub"

    @property
    def ready(self) -> Path:
        return self.folder / "ready.json"

    @property
    def log(self) -> Path:
        return self.folder / "hub.log"

    def get_store_words(self) -> list[str]:
        return ["--data", str(self.data), *(("--database", self.database_url) if self.database_url else ())]

    def get_words(self) -> list[str]:
        ports = ("--mqtt-port", "0", "--https-port", "0", "--ready-file", str(self.ready))
        routes = [word for route in self.routes for word in ("--route", route)]
        return [*self.before, *COMMAND, "run", *self.get_store_words(), *ports, *routes]


@dataclass
class HubProcess:
    """A running hub. `root`: where its own view of the file system lies."""

    child: asyncio.subprocess.Process
    facts: dict[str, Any]
    log: Path
    authority: str = field(default="", repr=False)

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.child.pid}/root")

    @property
    def is_running(self) -> bool:
        return self.child.returncode is None

    def make_tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.authority)

    @asynccontextmanager
    async def open_socket(self) -> AsyncIterator[RawClient]:
        """A TLS connection to the MQTT door; nobody has said CONNECT yet."""
        reader, writer = await asyncio.open_connection("localhost", self.facts["mqtt_port"], ssl=self.make_tls())
        try:
            yield RawClient(reader, writer)
        finally:
            writer.close()

    @asynccontextmanager
    async def open_client(self, identity: Identity, key: str) -> AsyncIterator[Client]:
        """A client whose CONNECT (clean session 0) was accepted."""
        text = str(ConnectionString("localhost", key, *identity))
        async with self.open_socket() as raw:
            accepted = await raw.connect(text)
            if accepted is None or accepted == mqtt.ConnAck(mqtt.CONNACK_UNAVAILABLE):
                raise ConnectionError("the hub closed the connection, or is not available")
            assert isinstance(accepted, mqtt.ConnAck) and accepted.code == mqtt.CONNACK_ACCEPTED, accepted
            yield Client(raw, identity, accepted.session_present)

    @asynccontextmanager
    async def open_rest(self, policy_key: str) -> AsyncIterator[Rest]:
        """The service REST under the policy iothubowner."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.make_tls())) as session:
            yield Rest(session, self.facts["service_url"], policy_key)

    def kill(self) -> None:
        """kill -9, by its id."""
        os.kill(self.child.pid, signal.SIGKILL)


@dataclass
class Client:
    """A connected device or module. `had_session`: the hub knew its session."""

    raw: RawClient
    identity: Identity
    had_session: bool

    async def receive(self, timeout_s: float = 20.0) -> mqtt.Packet:
        """The next packet; raises ConnectionError at the end of the connection."""
        packet = await self.raw.receive(timeout_s)
        if packet is None:
            raise ConnectionError("the hub closed the connection")
        return packet

    async def receive_message(self, timeout_s: float = 20.0) -> tuple[Downlink, mqtt.Publish]:
        """The next message, acknowledged."""
        while not isinstance(packet := await self.receive(timeout_s), mqtt.Publish):
            pass
        if packet.packet_id is not None:
            await self.raw.send(mqtt.PubAck(packet.packet_id))
        device_id, module_id = self.identity
        return parse_downlink(packet.topic, device_id=device_id, module_id=module_id), packet

    async def report(self, patch: Any, rid: str = "1") -> int:
        """Reports at QoS 0; returns the status of the answer."""
        device_id, module_id = self.identity
        topic = make_uplink_topic(ReportedPatch(rid), device_id=device_id, module_id=module_id)
        await self.raw.send(mqtt.Publish(topic, json.dumps(patch).encode()))
        answer, _ = await self.receive_message()
        assert isinstance(answer, TwinResponse) and answer.rid == rid, answer
        return answer.status

    async def get_twin(self, rid: str = "1") -> Any:
        """The twin as the hub answers; raises ConnectionError when it closes the connection instead."""
        device_id, module_id = self.identity
        topic = make_uplink_topic(TwinGet(rid), device_id=device_id, module_id=module_id)
        await self.raw.send(mqtt.Publish(topic, b" "))
        answer, packet = await self.receive_message()
        assert answer == TwinResponse(rid, 200), answer
        return json.loads(packet.payload)

    async def publish(self, payload: bytes, properties: Bag, packet_id: int = 1) -> None:
        """Sends a message at QoS 1; returns at its PUBACK, raises ConnectionError when there is none."""
        device_id, module_id = self.identity
        topic = make_uplink_topic(Telemetry("out", properties), device_id=device_id, module_id=module_id)
        await self.raw.send(mqtt.Publish(topic, payload, 1, packet_id))
        assert await self.receive() == mqtt.PubAck(packet_id)


@dataclass
class Rest:
    """Calls with a good token."""

    session: aiohttp.ClientSession
    base: str
    policy_key: str = field(repr=False)

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, str | None]:
        """Status, body and error code (both places that carry it agree)."""
        token = make_sas_token("localhost", self.policy_key, int(time.time()) + 3600, "iothubowner")
        sent = {"Authorization": token, **{name.replace("_", "-"): value for name, value in headers.items()}}
        url = self.base + api.add_api_version(path)
        async with self.session.request(method, url, headers=sent, json=body) as answer:
            data, code = await answer.read(), answer.headers.get(api.ERROR_HEADER)
            assert answer.status < 400 or code == api.find_error_code(data)
            return answer.status, json.loads(data) if data else None, code


@asynccontextmanager
async def open_hub_process(start: HubStart) -> AsyncIterator[HubProcess]:
    """A hub that listens; whatever still runs at the end is ended by its id."""
    start.folder.mkdir(parents=True, exist_ok=True)
    start.ready.unlink(missing_ok=True)
    with start.log.open("ab") as log:
        child = await asyncio.create_subprocess_exec(*start.get_words(), stdout=log, stderr=log)

    async def is_ready() -> bool:
        assert child.returncode is None, start.log.read_text()[-2000:]
        return start.ready.exists()

    try:
        await poll(is_ready, START_TIMEOUT_S)
        hub = HubProcess(child, json.loads(start.ready.read_text()), start.log)
        assert hub.facts["pid"] == child.pid
        hub.authority = Path(f"{hub.root}{hub.facts['ca_path']}").read_text()
        yield hub
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def run_beside(start: HubStart, *words: str, before: Sequence[str] = ()) -> str:
    """What `edgeferry hub ...` prints on the same store."""
    command = [*before, *COMMAND, *words, *start.get_store_words()]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    printed, _ = await child.communicate()
    assert child.returncode == 0
    return printed.decode()


async def read_policy_key(start: HubStart, policy: str, before: Sequence[str] = ()) -> str:
    """The key that `hub device connection-string --policy` prints."""
    printed = await run_beside(start, "device", "connection-string", "--policy", policy, before=before)
    return parse_connection_string(printed.strip()).shared_access_key
