"""`edgeferry hub ...` as real processes: addresses, devices beside a running hub, messages, backup, kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeferry.storage.hub_certificates import ensure_certificates
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import parse_connection_string
from edgeferry.wire.iothub_topics import TWIN_RESPONSE_FILTER
from fixtures_postgres import Postgres
from polling import poll
from raw_mqtt import RawClient

COMMAND = (sys.executable, "-m", "edgeferry.cli.main", "hub")
EVENTS = "devices/d/modules/m/messages/events/"
REPORTED = "$iothub/twin/PATCH/properties/reported/?$rid="


@dataclass
class HubProcess:
    data: Path
    child: asyncio.subprocess.Process
    facts: dict[str, Any]

    @asynccontextmanager
    async def open_client(self, connection_string: str) -> AsyncIterator[RawClient]:
        context = ssl.create_default_context(cafile=self.facts["ca_path"])
        reader, writer = await asyncio.open_connection("localhost", self.facts["mqtt_port"], ssl=context)
        client = RawClient(reader, writer)
        try:
            assert isinstance(await client.connect(connection_string), mqtt.ConnAck)
            yield client
        finally:
            writer.close()


def run(*words: str, data: Path, code: int = 0) -> Any:
    """The JSON that a command prints, or its error lines when `code` is not 0."""
    done = subprocess.run(
        [*COMMAND, *words, "--data", str(data), "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 and done.stdout else done.stderr


@asynccontextmanager
async def open_process(data: Path, *words: str) -> AsyncIterator[HubProcess]:
    ready = data.parent / "ready.json"
    ready.unlink(missing_ok=True)
    ports = ("--mqtt-port", "0", "--https-port", "0", "--ready-file", str(ready))
    child = await asyncio.create_subprocess_exec(
        *COMMAND, "run", "--data", str(data), *ports, *words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )

    async def is_ready() -> bool:
        assert child.returncode is None, (await child.stderr.read()).decode() if child.stderr else ""
        return ready.exists()

    try:
        await poll(is_ready, 30.0)
        yield HubProcess(data, child, json.loads(ready.read_text()))
    finally:
        if child.returncode is None:
            child.terminate()
        await child.communicate()


async def test_devices_are_added_shown_and_deleted_beside_a_running_hub(tmp_path: Path) -> None:
    data = tmp_path / "hub"
    async with open_process(data, "--host-name", "hub.example") as hub:
        assert hub.facts["pid"] == hub.child.pid and Path(hub.facts["ca_path"]).is_file()
        assert run("device", "add", "d", "--module", "m", data=data) == {"added": ["d", "d/m"]}
        assert run("device", "add", "d", "--module", "m", "--module", "n", data=data) == {"added": ["d/n"]}
        assert "exist already" in run("device", "add", "d", data=data, code=1)
        assert run("device", "list", data=data)[0]["modules"] == ["m", "n"]
        shown = run("device", "show", "d", data=data)
        assert shown["modules"]["m"]["twin"]["desired"] == {"$version": 1}
        text = run("device", "connection-string", "d", "--module", "m", data=data)["connection_string"]
        assert parse_connection_string(text).host_name == "hub.example"
        assert parse_connection_string(text).shared_access_key not in json.dumps(shown)
        service = run("device", "connection-string", "--service", data=data)["connection_string"]
        assert parse_connection_string(service).host_name == f"hub.example:{hub.facts['https_port']}"
        async with hub.open_client(text) as client:
            run("device", "delete", "d", "--module", "m", data=data)
            assert await client.receive() is None
        assert "in use" in run("run", "--mqtt-port", "0", "--https-port", "0", data=data, code=1)
    assert hub.child.returncode == 0
    assert run("device", "list", data=data)[0]["modules"] == ["n"]


async def test_messages_are_printed_and_followed(tmp_path: Path) -> None:
    data = tmp_path / "hub"
    run("device", "add", "d", "--module", "m", data=data)
    text = run("device", "connection-string", "d", "--module", "m", data=data)["connection_string"]
    async with open_process(data) as hub, hub.open_client(text) as client:
        bodies = (b'{"a": [1]}', b"plain", b"\xff\x00")
        for number, body in enumerate(bodies, 1):
            await client.send(mqtt.Publish(EVENTS + "%24.on=out&k=v", body, 1, number))
            assert await client.receive() == mqtt.PubAck(number)
        follow = await asyncio.create_subprocess_exec(
            *COMMAND, "messages", "--follow", "--json", "--data", str(data), stdout=subprocess.PIPE
        )
        assert follow.stdout is not None
        try:
            lines = [json.loads(await follow.stdout.readline()) for _ in bodies]
            assert [line.get("body", line.get("body_base64")) for line in lines] == [{"a": [1]}, "plain", "/wA="]
            assert lines[0]["device"] == "d" and lines[0]["output"] == "out" and lines[0]["properties"]["k"] == "v"
            await client.send(mqtt.Publish(EVENTS, b"4", 1, 4))
            assert json.loads(await asyncio.wait_for(follow.stdout.readline(), 10))["body"] == 4
        finally:
            follow.kill()
            await follow.communicate()
    done = subprocess.run(
        [*COMMAND, "messages", "--after", "3", "--data", data], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.count("\n") == 1 and "d/m  4" in done.stdout


async def test_a_backup_taken_while_it_runs_starts_as_the_same_hub(tmp_path: Path) -> None:
    data, copy = tmp_path / "hub", tmp_path / "copy"
    run("device", "add", "d", "--module", "m", data=data)
    text = run("device", "connection-string", "d", "--module", "m", data=data)["connection_string"]
    async with open_process(data) as hub:
        run("backup", str(copy), data=data)
        authority = Path(hub.facts["ca_path"]).read_bytes()
        assert "empty folder" in run("backup", str(copy), data=data, code=1)
    async with open_process(copy) as hub, hub.open_client(text):
        assert Path(hub.facts["ca_path"]).read_bytes() == authority


async def test_every_command_works_on_a_database_and_a_hub_moves_there(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, url = tmp_path / "hub", postgres.make_database()
    run("device", "add", "d", "--module", "m", data=data)
    text = run("device", "connection-string", "d", "--module", "m", data=data)["connection_string"]
    assert run("backup", url, data=data) == {"backup": "the database"}
    monkeypatch.setenv("EDGEFERRY_HUB_DATABASE", url)
    async with open_process(data) as hub, hub.open_client(text) as client:
        assert run("device", "add", "e", "--module", "n", data=data) == {"added": ["e", "e/n"]}
        await client.send(mqtt.Publish(EVENTS, b"1", 1, 1))
        assert await client.receive() == mqtt.PubAck(1)
        assert run("messages", data=data)["body"] == 1
        assert run("device", "list", data=data)[1]["modules"] == ["n"]
        run("device", "delete", "d", "--module", "m", data=data)
        assert await client.receive() is None
    run("backup", str(tmp_path / "back"), data=data)
    monkeypatch.delenv("EDGEFERRY_HUB_DATABASE")
    assert [one["device"] for one in run("device", "list", data=tmp_path / "back")] == ["d", "e"]


@pytest.mark.parametrize(
    "url", ["postgresql://nobody:hidden@127.0.0.1:1/none", "mysql://u:hidden@h/d", "postgresql://u:hidden@h:port/d"]
)
def test_no_error_shows_what_stands_in_the_url_of_a_database(tmp_path: Path, url: str) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--data", tmp_path, "--database", url],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (1, 2) and "database" in done.stderr and "hidden" not in done.stderr + done.stdout


async def test_a_policys_connection_string_opens_the_service(tmp_path: Path) -> None:
    async with open_process(tmp_path / "hub") as hub:
        for policy in ("iothubowner", "service", "registryRead", "registryReadWrite"):
            text = run("device", "connection-string", "--policy", policy, data=hub.data)["connection_string"]
            assert parse_connection_string(text).shared_access_key_name == policy


async def test_the_operators_certificate_is_what_clients_see(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path / "own", ["hub.example", "localhost"], now=time.time())
    words = ("--tls-chain", str(files.chain), "--tls-key", str(files.key), "--tls-authority", str(files.authority))
    data = tmp_path / "hub"
    run("device", "add", "d", "--module", "m", data=data)
    text = run("device", "connection-string", "d", "--module", "m", data=data)["connection_string"]
    async with open_process(data, "--host-name", "hub.example", *words) as hub:
        assert Path(hub.facts["ca_path"]) == files.authority
        async with hub.open_client(text):
            pass
        assert not (data / "tls").exists()
    assert "other.example" in run("run", "--host-name", "other.example", *words, data=data, code=2)
    assert "go together" in run("run", *words[:2], data=data, code=2)


async def test_routes_come_from_a_deployment_manifest(tmp_path: Path) -> None:
    routes = {"r": {"route": "FROM /messages/* WHERE colour = 'red' INTO $upstream", "timeToLiveSecs": 60}}
    manifest = {"content": {"modulesContent": {"$edgeHub": {"properties.desired": {"routes": routes}}}}}
    path = tmp_path / "deployment.json"
    path.write_text(json.dumps(manifest))
    data = tmp_path / "hub"
    run("device", "add", "d", "--module", "m", data=data)
    text = run("device", "connection-string", "d", "--module", "m", data=data)["connection_string"]
    async with open_process(data, "--deployment", str(path)) as hub, hub.open_client(text) as client:
        for number, colour in enumerate(("blue", "red"), 1):
            await client.send(mqtt.Publish(f"{EVENTS}colour={colour}", b"%d" % number, 1, number))
            assert await client.receive() == mqtt.PubAck(number)
        assert run("messages", data=data)["body"] == 2
    path.write_text('{"modulesContent": {"$edgeHub": {"properties.desired": {"routes": {"r": "FROM nowhere"}}}}}')
    assert "nowhere" in run("run", "--deployment", str(path), data=data, code=2)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "--route", "FROM nowhere INTO $upstream"), 2, "config_invalid"),
        (("run", "--route", "FROM /messages/* WHERE x = 1 INTO $upstream"), 2, "condition"),
        (("run", "--listen", "203.0.113.7", "--mqtt-port", "0"), 2, "cannot listen"),
        (("run", "--workload-device", "d"), 2, "go together"),
        (("device", "list"), 2, "no hub"),
        (("device", "add", "a/b"), 2, "name_invalid"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in run(*words, data=tmp_path / "hub", code=code)


async def report_until_killed(hub: HubProcess, client: RawClient, start: int, kill_after: int) -> int:
    """Sends reported patches and messages; returns the last number that was acknowledged before the kill."""
    number = start
    while True:
        if number - start == kill_after:
            os.kill(hub.child.pid, signal.SIGKILL)
        body = json.dumps({"n": number + 1}).encode()
        try:
            await client.send(mqtt.Publish(f"{REPORTED}{number + 1}", body, 1, 1), mqtt.Publish(EVENTS, body, 1, 2))
            acknowledged = set()
            while {1, 2} - acknowledged:
                packet = await client.receive()
                if packet is None:
                    return number
                acknowledged |= {packet.packet_id} if isinstance(packet, mqtt.PubAck) else set()
        except (ConnectionError, ssl.SSLError):
            return number
        number += 1


@pytest.mark.soak
async def test_nothing_acknowledged_is_lost_when_the_hub_is_killed(tmp_path: Path) -> None:
    data, dice, done = tmp_path / "hub", random.Random(11), 0
    run("device", "add", "d", "--module", "m", data=data)
    text = run("device", "connection-string", "d", "--module", "m", data=data)["connection_string"]
    for _ in range(4):
        async with open_process(data) as hub, hub.open_client(text) as client:
            await client.subscribe(TWIN_RESPONSE_FILTER)
            done = await report_until_killed(hub, client, done, dice.randint(1, 60))
        reported = run("device", "show", "d", data=data)["modules"]["m"]["twin"]["reported"]
        assert reported["n"] in (done, done + 1)
        stored = subprocess.run(
            [*COMMAND, "messages", "--json", "--data", data], capture_output=True, text=True, timeout=60, check=False
        )
        numbers = {json.loads(line)["body"]["n"] for line in stored.stdout.splitlines()}
        assert set(range(1, done + 1)) <= numbers
    assert done > 4


async def test_the_limits_of_the_doors_can_be_chosen(tmp_path: Path) -> None:
    words = ("--connections-per-address", "1", "--packets-per-second", "20", "--packets-burst", "1")
    async with open_process(tmp_path / "hub", *words) as hub:
        run("device", "add", "d", "--module", "m", data=hub.data)
        text = run("device", "connection-string", "d", "--module", "m", data=hub.data)["connection_string"]
        async with hub.open_client(text) as client:
            with pytest.raises((OSError, ssl.SSLError)):
                async with hub.open_client(text):
                    pass
            started = asyncio.get_running_loop().time()
            await client.send(*[mqtt.PingReq()] * 11)
            assert [await client.receive() for _ in range(11)] == [mqtt.PingResp()] * 11
            assert asyncio.get_running_loop().time() - started > 0.4
