"""schemathesis against a running hub (over HTTPS, with a token of the owner's policy) or API: its command as a child.

Rules:
- What the description's examples name is there all the time, also after a DELETE or a change of keys that schemathesis
  made: a twin of each is connected and answers methods, so that good answers are checked too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeferry.app.hub import RunningHub, ensure_device, make_connection_string
from edgeferry.errors import EdgeferryError
from edgeferry.hub.openapi_schemas import PARAMETERS
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import make_sas_token
from edgeferry.wire.iothub_topics import METHOD_FILTER
from edgeferry.wire.service_api import Identity
from other_programs import require_environment
from raw_mqtt import RawClient, open_raw

FOLDER = Path(__file__).parent / "hub" / "schemathesis"
API_CONFIG = Path(__file__).parent / "serve" / "schemathesis" / "schemathesis.toml"
API_ALIASES = r"^/\{project\}/|^/customvision/|/nostore$"
"""Twenty-two further paths of two routes: handlers and bodies are those of /image and /url."""
DEVICE = Identity(PARAMETERS["device"]["example"])
MODULE = Identity(DEVICE.device_id, PARAMETERS["module"]["example"])
RUN_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Outcome:
    """What the command said, and how many methods were answered meanwhile."""

    exit_code: int
    text: str
    methods: int


async def run_schemathesis(hub: RunningHub, folder: Path, *options: str) -> Outcome:
    """Runs every check that the configuration does not turn off; `options` say how long."""
    host = f"localhost:{hub.https_port}"
    token = make_sas_token(host, hub.policies.keys["iothubowner"], int(time.time() + RUN_TIMEOUT_S), "iothubowner")
    words = [f"{hub.service_url}/openapi.json", "--header", f"Authorization: {token}", "--tls-verify"]
    words += [str(hub.ca_pem_path), "--request-timeout", "20", *options]
    environ = {"PYTHONPATH": str(FOLDER), "SCHEMATHESIS_HOOKS": "hooks"}
    async with stay_connected(hub, DEVICE, MODULE) as answered:
        exit_code, text = await _run(FOLDER / "schemathesis.toml", words, environ, folder)
    return Outcome(exit_code, text, len(answered))


async def run_schemathesis_on_api(url: str, folder: Path, *options: str) -> Outcome:
    """The same against an inference API that anyone may call."""
    words = [f"{url}/openapi.json", "--request-timeout", "20", "--exclude-path-regex", API_ALIASES, *options]
    exit_code, text = await _run(API_CONFIG, words, {}, folder)
    return Outcome(exit_code, text, 0)


async def _run(config: Path, words: list[str], environ: dict[str, str], folder: Path) -> tuple[int, str]:
    python = await asyncio.to_thread(require_environment, "schemathesis", "schemathesis")
    words = ["-m", "schemathesis.cli", f"--config-file={config}", "run", *words, "--no-color"]
    child = await asyncio.create_subprocess_exec(
        python,
        *words,
        env={**os.environ, **environ},
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(child.communicate(), RUN_TIMEOUT_S)
    finally:
        if child.returncode is None:
            child.kill()
    return child.returncode or 0, output.decode("utf-8", "replace")


@asynccontextmanager
async def stay_connected(hub: RunningHub, *identities: Identity, answers: bool = True) -> AsyncIterator[list[str]]:
    """Keeps these registered and connected; yields the topics of the methods that were answered, once all are there."""
    answered: list[str] = []
    arrivals = [asyncio.Event() for _ in identities]
    async with asyncio.TaskGroup() as group:
        pairs = zip(identities, arrivals, strict=True)
        tasks = [group.create_task(_stay(hub, one, arrival, answered if answers else None)) for one, arrival in pairs]
        for arrival in arrivals:
            await asyncio.wait_for(arrival.wait(), 30.0)
        yield answered
        for task in tasks:
            task.cancel()


async def _stay(hub: RunningHub, identity: Identity, arrival: asyncio.Event, answered: list[str] | None) -> None:
    while True:
        with contextlib.suppress(EdgeferryError, OSError, TimeoutError):
            text = await _ensure(hub, identity)
            async with open_raw(hub) as client:
                if await client.connect(text) == mqtt.ConnAck(0, False) and await client.subscribe(METHOD_FILTER):
                    arrival.set()
                    await _take_methods(client, answered)
        await asyncio.sleep(0.05)


async def _take_methods(client: RawClient, answered: list[str] | None) -> None:
    while (packet := await client.receive(3600.0)) is not None:
        if answered is not None and isinstance(packet, mqtt.Publish):
            rid = packet.topic.rpartition("=")[2]
            await client.send(mqtt.Publish(f"$iothub/methods/res/200/?$rid={rid}", packet.payload))
            answered.append(packet.topic)


async def _ensure(hub: RunningHub, identity: Identity) -> str:
    """Its connection string; registers it when it is missing."""
    await hub.rooms.db.write(lambda tables: ensure_device(tables, identity.device_id, hub.settings.clock()))
    if identity.module_id is not None:
        with contextlib.suppress(EdgeferryError):
            await hub.add_module(identity.device_id, identity.module_id)
    return make_connection_string(hub.settings.host_name, await hub.rooms.registry.read(identity))
