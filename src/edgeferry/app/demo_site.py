"""The demo's site: a published folder, a hub, a thin link and one device, each a real process on loopback.

What this file leaves to others: the story (`demo.py`).

Rules:
- Everything lies in one folder, made anew; every port is free and chosen by the system.
- The device reaches hub and blobs only through the link, so what the link counts is what crossed.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeferry.app.processes import Process, Processes, open_processes, wait_for_json
from edgeferry.errors import ConfigInvalid, InvariantBroken
from edgeferry.transport.relay import Link, open_relay

DEVICE = "platform-7"
MODULE = "ferry"
MODEL = "detector"
_MARK = ".edgeferry-demo"
_READY_TIMEOUT_S = 60.0
_PROBATION_S = 3.0
"""Short, since nobody watches a demo for a minute; a device's default is a minute."""


@dataclass(slots=True)
class Site:
    """A running site. `service` and `identity` are connection strings: the operator's and the device's."""

    folder: Path
    models: Path
    processes: Processes
    link: Link
    repo_url: str
    service: str
    ca_file: Path
    mqtt_port: int
    api_port: int
    identity: str = ""
    device: Process | None = None

    @property
    def api(self) -> str:
        """Base URL of the device's API."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def storage(self) -> Path:
        """The device's storage root."""
        return self.folder / "device"

    async def start_device(self) -> None:
        """Starts the device's process, for the first time or again."""
        words = ["device", "run", "--storage", str(self.storage), "--port", str(self.api_port)]
        words += ["--mqtt-port", str(self.mqtt_port), "--ca-file", str(self.ca_file)]
        words += ["--config", str(self.folder / "device.toml")]
        self.device = await self.processes.start("device", words, EDGEFERRY_CONNECTION_STRING=self.identity)

    async def publish(self, version: str, file_name: str, golden: str | None) -> dict[str, Any]:
        """Publishes `models/detector/<version>/<file_name>`, patches from what the hub says that devices run.

        Returns the publisher's report.
        """
        arguments = ["publish", str(self.models / MODEL / version / file_name), "--name", MODEL, "--version", version]
        arguments += ["--to", str(self.folder / "site"), "--keys", str(self.folder / "keys"), "--json"]
        arguments += ["--ca-file", str(self.ca_file)]
        if golden is not None:
            arguments += ["--golden", str(self.models / "golden" / golden)]
        report: dict[str, Any] = json.loads(await self.processes.run(arguments, EDGEFERRY_HUB=self.service))
        return report

    async def deploy(self, version: str) -> None:
        """Tells the hub that the device shall run `version`."""
        arguments = ["deploy", "--model", MODEL, "--version", version, "--device", f"{DEVICE}/{MODULE}"]
        arguments += ["--repo", self.repo_url, "--site", str(self.folder / "site"), "--ca-file", str(self.ca_file)]
        await self.processes.run(arguments, EDGEFERRY_HUB=self.service)

    async def read_status(self) -> dict[str, Any]:
        """What `edgeferry device status --json` prints."""
        arguments = ["device", "status", "--json", "--storage", str(self.storage)]
        status: dict[str, Any] = json.loads(await self.processes.run(arguments))
        return status

    def require_device(self) -> None:
        """Raises InvariantBroken when the device's process has ended."""
        if self.device is None or not self.device.running:
            said = self.device.read_log_tail() if self.device else ""
            raise InvariantBroken(f"the device's process ended: {said}")


@asynccontextmanager
async def open_site(folder: Path, models: Path) -> AsyncIterator[Site]:
    """A site whose hub and device run; nothing is deployed yet. All processes end with the context."""
    _make_folder(folder)
    async with open_processes(folder / "logs") as processes:
        await processes.run(["repo", "init", "--to", str(folder / "site"), "--keys", str(folder / "keys")])
        ready = await _start_hub(processes, folder)
        link = Link()
        async with (
            open_relay(link, ready["https_port"]) as https_port,
            open_relay(link, ready["mqtt_port"]) as mqtt_port,
        ):
            hub = ["--data", str(folder / "hub")]
            service = (await processes.run(["hub", "device", "connection-string", "--service", *hub])).strip()
            site = Site(
                folder=folder,
                models=models,
                processes=processes,
                link=link,
                repo_url=f"https://localhost:{https_port}/files",
                service=service,
                ca_file=Path(ready["ca_path"]),
                mqtt_port=mqtt_port,
                api_port=_find_free_port(),
            )
            await _init_device(site)
            await site.start_device()
            yield site


def _make_folder(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise ConfigInvalid(f"expected an empty folder or one of an earlier demo, found files in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).write_text("made by edgeferry demo; removed and made anew by the next one\n")


async def _start_hub(processes: Processes, folder: Path) -> dict[str, Any]:
    ready = folder / "hub-ready.json"
    arguments = ["hub", "run", "--data", str(folder / "hub"), "--files", str(folder / "site")]
    arguments += ["--mqtt-port", "0", "--https-port", "0", "--ready-file", str(ready)]
    hub = await processes.start("hub", arguments)
    found = await wait_for_json(ready, hub, timeout_s=_READY_TIMEOUT_S)
    await processes.run(["hub", "device", "add", DEVICE, "--module", MODULE, "--data", str(folder / "hub")])
    return found


async def _init_device(site: Site) -> None:
    """Provisions the device: an identity of the hub, a pinned root."""
    (site.folder / "device.toml").write_text(f"probation_s = {_PROBATION_S}\n")
    root = site.folder / "site" / "metadata" / "1.root.json"
    await site.processes.run(["device", "init", "--storage", str(site.storage), "--root", str(root)])
    words = ["hub", "device", "connection-string", DEVICE, "--module", MODULE, "--data", str(site.folder / "hub")]
    site.identity = (await site.processes.run(words)).strip()


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
