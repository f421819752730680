"""Hostile connections to a running hub, 200 and in full 5,000: it closes what it must, answers, keeps its memory.

Streams are those of hostile_mqtt.py, signed with real keys; some begin after a good CONNECT, some speak no TLS. How a
connection must end is read off the same bytes by `read_as_hub`. Connections of one identity displace each other: a
hub may always close, and must when the bytes say so.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeferry.hub.mqtt_pipe import UNKNOWN_MAX_BYTES
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import parse_connection_string
from hostile_mqtt import DEVICE, MODULE, cut, make_body, make_connect, make_stream, read_as_hub
from polling import poll
from raw_mqtt import RawClient

HUB = (sys.executable, "-m", "edgeferry.cli.main", "hub")
SEED = 20261126
AT_ONCE = 4
WARM_UP = 100  # connections until the hub's caches are filled
GROWTH_MAX_KB = 24 * 1024
END_TIMEOUT_S = 20.0
TWIN_GET = mqtt.Publish("$iothub/twin/GET/?$rid=last", b" ")


@dataclass(frozen=True)
class Hub:
    """A hub in a process of its own, its log in a file, and a good CONNECT for each of its two identities."""

    process: asyncio.subprocess.Process
    port: int
    log: Path
    tls: ssl.SSLContext
    keys: Mapping[str | None, str]

    @property
    def connects(self) -> dict[str | None, mqtt.Connect]:
        return {module: make_connect(module, key=key) for module, key in self.keys.items()}

    def read_resident_kb(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    @asynccontextmanager
    async def open_client(self, *, in_the_clear: bool = False) -> AsyncIterator[RawClient]:
        tls = None if in_the_clear else self.tls
        reader, writer = await asyncio.open_connection("localhost", self.port, ssl=tls)
        try:
            yield RawClient(reader, writer)
        finally:
            writer.transport.abort()


def run_command(data: Path, *words: str) -> dict[str, str]:
    done = subprocess.run(
        [*HUB, "device", *words, "--data", str(data), "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def read_keys(data: Path) -> dict[str | None, str]:
    run_command(data, "add", DEVICE, "--module", MODULE)
    texts = {
        None: run_command(data, "connection-string", DEVICE),
        MODULE: run_command(data, "connection-string", DEVICE, "--module", MODULE),
    }
    return {
        module: parse_connection_string(text["connection_string"]).shared_access_key for module, text in texts.items()
    }


@asynccontextmanager
async def open_hub_process(folder: Path) -> AsyncIterator[Hub]:
    data, ready, log = folder / "hub", folder / "ready.json", folder / "log"
    keys = await asyncio.to_thread(read_keys, data)
    ports = ("--mqtt-port", "0", "--https-port", "0", "--ready-file", str(ready), "--log-level", "debug")
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            *HUB, "run", "--data", str(data), *ports, stdout=subprocess.DEVNULL, stderr=output
        )

    async def is_ready() -> bool:
        assert child.returncode is None, log.read_text()[-2000:]
        return ready.exists()

    try:
        await poll(is_ready, 60.0)
        facts = json.loads(ready.read_text())
        tls = ssl.create_default_context(cafile=facts["ca_path"])
        yield Hub(child, facts["mqtt_port"], log, tls, keys)
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def say(client: RawClient, chunks: list[bytes], dice: random.Random) -> bool:
    """Sends the chunks, some with a pause between; False when the hub has closed meanwhile."""
    try:
        for chunk in chunks:
            client.writer.write(chunk)
            await client.writer.drain()
            await asyncio.sleep(0.001 if dice.random() < 0.05 else 0)
    except (ConnectionError, ssl.SSLError):
        return False
    return True


async def is_closed(client: RawClient, *, after: type[mqtt.PingResp] | None = None) -> bool:
    """Reads what the hub answers until it closes, or until it has answered `after`; all of it must be MQTT."""
    async with asyncio.timeout(END_TIMEOUT_S):
        while (packet := await client.receive(END_TIMEOUT_S)) is not None:
            if after is not None and isinstance(packet, after):
                return False
    return True


async def try_connection(hub: Hub, seed: int) -> str:
    """One hostile connection; returns how it ended."""
    dice = random.Random(seed)
    kind, module = dice.random(), dice.choice((None, MODULE))
    if kind < 0.05:
        async with hub.open_client(in_the_clear=True) as client:
            await say(client, cut(make_stream(dice, hub.connects), dice), dice)
            return "in the clear"
    before = mqtt.encode(hub.connects[module]) if kind < 0.5 else b""
    chunks = cut(make_body(dice, module) if before else make_stream(dice, hub.connects), dice)
    wanted = read_as_hub([before, *chunks], unknown_max_bytes=UNKNOWN_MAX_BYTES, known_max_bytes=mqtt.PACKET_MAX_BYTES)
    async with hub.open_client() as client:
        if before:
            client.writer.write(before)
            answer = await client.receive(END_TIMEOUT_S)
            assert answer is None or (isinstance(answer, mqtt.ConnAck) and answer.code == mqtt.CONNACK_ACCEPTED)
        still_open = await say(client, chunks, dice)
        if wanted.is_over:
            assert await is_closed(client)
            return "closed as it must be"
        if wanted.unfinished_bytes or not still_open or not await say(client, [mqtt.encode(mqtt.PingReq())], dice):
            return "left in the middle"
        return "closed" if await is_closed(client, after=mqtt.PingResp) else "answers"


async def fuzz(hub: Hub, seeds: range) -> Counter[str]:
    """Tries connections, some at once; a failure is told with its seed."""
    ends, rest = Counter[str](), iter(seeds)

    async def work() -> None:
        for seed in rest:
            try:
                ends[await try_connection(hub, seed)] += 1
            except Exception as failure:
                failure.add_note(f"seed {seed}")
                raise

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return ends


async def require_unharmed(hub: Hub) -> None:
    """A good client is answered; the log tells of no defect and of no key."""
    async with hub.open_client() as client:
        await client.send(hub.connects[MODULE], TWIN_GET)
        assert isinstance(await client.receive(), mqtt.ConnAck)
        answer = await client.receive()
        assert isinstance(answer, mqtt.Publish) and answer.topic == "$iothub/twin/res/200/?$rid=last"
    said = hub.log.read_text(errors="replace")
    assert "Traceback" not in said and "mqtt connection failed" not in said, said[-4000:]
    assert "mqtt connection refused" in said and "mqtt connection closed" in said
    assert not any(key in said for key in hub.keys.values())


async def require_survives(folder: Path, count: int) -> None:
    async with open_hub_process(folder) as hub:
        await fuzz(hub, range(SEED, SEED + WARM_UP))
        before_kb = hub.read_resident_kb()
        ends = await fuzz(hub, range(SEED + WARM_UP, SEED + WARM_UP + count))
        growth_kb = hub.read_resident_kb() - before_kb
        print(dict(ends), f"{before_kb} KB before, grew by {growth_kb} KB")
        assert sum(ends.values()) == count
        assert min(ends[end] for end in ("closed as it must be", "answers", "left in the middle", "in the clear")) > 0
        assert growth_kb < GROWTH_MAX_KB
        await require_unharmed(hub)
    assert hub.process.returncode == 0


@pytest.mark.soak
async def test_a_hub_survives_two_hundred_hostile_connections(tmp_path: Path) -> None:
    await require_survives(tmp_path, 200)


@pytest.mark.soak_full
async def test_a_hub_survives_five_thousand_hostile_connections(tmp_path: Path) -> None:
    await require_survives(tmp_path, 5_000)
