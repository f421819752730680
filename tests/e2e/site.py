"""A hub and devices as real processes, for the stories told in this folder."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from edgeferry.app.processes import Process, Processes, open_processes, wait_for_json
from edgeferry.wire.iothub_auth import make_sas_token, parse_connection_string
from edgeferry.wire.service_api import Identity, add_api_version, get_identity_path, get_method_path, get_twin_path

SDK_SCRIPT = Path(__file__).parent / "sdk" / "operator_of_the_guide.py"
DEVICE = "turbine-3"


CLASSIC_FIELDS = ("FileName", "DownloadUrl", "ContentMD5")


@dataclass
class Device:
    """A running device process."""

    process: Process
    api: str
    storage: Path

    async def wait_ready(self, timeout_s: float = 90) -> None:
        async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as http:
            while True:
                assert self.process.running, self.process.read_log_tail()
                try:
                    async with http.get(f"{self.api}/readyz") as reply:
                        if reply.status == 200:
                            return
                except aiohttp.ClientError:
                    pass  # not listening yet
                await asyncio.sleep(0.1)

    async def score(self, picture: bytes, query: str = "") -> Any:
        async with aiohttp.ClientSession() as http, http.post(f"{self.api}/score{query}", data=picture) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.json()


@dataclass
class Site:
    """A running hub with its folder; `service` and `owner` are connection strings of policies."""

    folder: Path
    processes: Processes
    ready: dict[str, Any]
    service: str
    owner: str

    @property
    def hub_data(self) -> list[str]:
        return ["--data", str(self.folder / "hub")]

    async def add_module(self, module: str) -> None:
        await self.processes.run(["hub", "device", "add", DEVICE, "--module", module, *self.hub_data])

    async def add_module_at_once(self, module: str) -> None:
        """As `add_module`, of a device that is there already, and without the time that a command takes to start."""
        identity = {"deviceId": DEVICE, "moduleId": module}
        await self.call_service("PUT", get_identity_path(Identity(DEVICE, module)), identity)

    async def get_connection(self, module: str) -> str:
        """The module's connection string, made of what the registry shows."""
        shown = await self.call_service("GET", get_identity_path(Identity(DEVICE, module)))
        key = shown["authentication"]["symmetricKey"]["primaryKey"]
        host = parse_connection_string(self.service).host_name.partition(":")[0]
        return f"HostName={host};DeviceId={DEVICE};ModuleId={module};SharedAccessKey={key}"

    async def get_generation(self, module: str) -> str:
        shown = json.loads(await self.processes.run(["hub", "device", "show", DEVICE, "--json", *self.hub_data]))
        return str(shown["modules"][module]["generation_id"])

    async def start_device(
        self, module: str, *extra: str, storage: Path | None = None, settings: str = "", **environment: str
    ) -> Device:
        """Starts a device process as `module`, that authenticates with its connection string unless told otherwise."""
        storage = storage or self.folder / f"storage-{module}"
        storage.mkdir(exist_ok=True)
        port = find_free_port()
        config = self.folder / f"{module}.toml"
        config.write_text(settings if "probation_s" in settings else f"probation_s = 1.0\n{settings}")
        words = ["device", "run", "--storage", str(storage), "--port", str(port), "--config", str(config)]
        words += ["--mqtt-port", str(self.ready["mqtt_port"]), "--ca-file", self.ready["ca_path"], *extra]
        if "IOTEDGE_WORKLOADURI" not in environment:
            environment["EDGEFERRY_CONNECTION_STRING"] = await self.get_connection(module)
        process = await self.processes.start(f"device-{module}", words, **environment)
        return Device(process, f"http://127.0.0.1:{port}", storage)

    async def call_service(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One call of the hub's service REST."""
        service = parse_connection_string(self.owner)
        expires_at = int(time.time()) + 600
        token = make_sas_token(
            service.host_name, service.shared_access_key, expires_at, policy=service.shared_access_key_name
        )
        tls = ssl.create_default_context(cafile=self.ready["ca_path"])
        headers = {"Authorization": token, **({"If-Match": '"*"'} if method == "PATCH" else {})}
        url = f"https://{service.host_name}{add_api_version(path)}"
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.request(method, url, json=body, ssl=tls) as reply,
        ):
            assert reply.status == 200, await reply.text()
            return dict(await reply.json())

    async def run_sdk(self, python: Path, *words: str) -> dict[str, Any]:
        """Runs the guide's operator script with Microsoft's SDK."""
        environment = {
            **os.environ,
            "SERVICE_CONNECTION_STRING": self.service,
            "REQUESTS_CA_BUNDLE": self.ready["ca_path"],
        }
        child = await asyncio.create_subprocess_exec(
            str(python),
            str(SDK_SCRIPT),
            *words,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, complained = await child.communicate()
        assert child.returncode == 0, complained.decode()[-2000:]
        return dict(json.loads(printed))

    async def read_messages(self) -> list[dict[str, Any]]:
        """What reached `$upstream`."""
        printed = await self.processes.run(["hub", "messages", "--json", *self.hub_data])
        return [json.loads(line) for line in printed.splitlines() if line.strip()]


@dataclass
class Twin:
    """The twin of a module, as an operator reads and writes it through the hub's REST."""

    site: Site
    module: str

    async def set(self, **desired: Any) -> int:
        """Sends a twin patch of desired properties; returns their new `$version`."""
        answer = await self._call("PATCH", get_twin_path, {"properties": {"desired": desired}})
        return int(answer["properties"]["desired"]["$version"])

    async def set_bundle(self, file_name: Any, url: Any, md5: Any = None) -> int:
        """Sets the guide's three fields; None takes one out."""
        return await self.set(**dict(zip(CLASSIC_FIELDS, (file_name, url, md5), strict=True)))

    async def read(self) -> dict[str, Any]:
        """Desired and reported properties."""
        return dict((await self._call("GET", get_twin_path))["properties"])

    async def call(self, method: str, payload: Any = None) -> dict[str, Any]:
        """A direct method: `{"status", "payload"}`."""
        body = {"methodName": method, "payload": payload or {}, "responseTimeoutInSeconds": 10}
        return await self._call("POST", get_method_path, body)

    async def wait(self, check: Callable[[dict[str, Any]], Any], timeout_s: float = 45) -> dict[str, Any]:
        """The reported properties, once `check` holds for them."""
        reported: dict[str, Any] = {}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            reported = (await self.read())["reported"]
            if check(reported):
                return reported
            await asyncio.sleep(0.1)
        raise AssertionError(f"the twin of {self.module} still reports {json.dumps(reported)}")

    async def wait_active(self, file_name: str, version: int, timeout_s: float = 45) -> dict[str, Any]:
        """Waits until the classic update is in use, settled, and nothing is wrong any more."""

        def is_active(reported: dict[str, Any]) -> bool:
            section = reported.get("edgeferry", {})
            model = section.get("models", {}).get("default", {})
            settled = model.get("state") == "ACTIVE" and "error" not in model and "error" not in section
            return settled and reported["LatestAIModelFileName"] == file_name and section["observed"] >= version

        return await self.wait(is_active, timeout_s)

    async def wait_error(self, version: int, code: str | None = None, timeout_s: float = 45) -> dict[str, Any]:
        """The error that is reported once `version` of the desired properties was observed; `code` is waited for."""

        def find(reported: dict[str, Any]) -> dict[str, Any] | None:
            section = reported.get("edgeferry", {})
            if section.get("observed", 0) < version:
                return None
            model = section.get("models", {}).get("default", {})
            error = section.get("error") or model.get("error")
            under_way = model.get("state") not in ("ACTIVE", "REJECTED", "WAITING", "ROLLED_BACK", "SUPERSEDED", None)
            return None if under_way or not error or (code and error["code"] != code) else error

        return dict(find(await self.wait(find, timeout_s)) or {})

    async def _call(self, method: str, get_path: Callable[[Identity], str], body: Any = None) -> dict[str, Any]:
        return await self.site.call_service(method, get_path(Identity(DEVICE, self.module)), body)


@asynccontextmanager
async def open_site(folder: Path, *hub_words: str) -> AsyncIterator[Site]:
    async with open_processes(folder / "logs") as processes:
        ready = folder / "ready.json"
        words = ["hub", "run", "--data", str(folder / "hub"), "--mqtt-port", "0", "--https-port", "0"]
        words += ["--ready-file", str(ready), *hub_words]
        hub = await processes.start("hub", words)
        found = await wait_for_json(ready, hub, timeout_s=60)
        words = ["hub", "device", "connection-string", "--data", str(folder / "hub"), "--policy"]
        service, owner = [(await processes.run([*words, policy])).strip() for policy in ("service", "iothubowner")]
        yield Site(folder, processes, found, service, owner)


@asynccontextmanager
async def open_plain_server(folder: Path) -> AsyncIterator[str]:
    """`python -m http.server`: no ranges, no etag."""
    port = find_free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    child = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        await child.wait()


async def wait_for_port(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.05)


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
