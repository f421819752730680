"""A hub with a published repository on the right of a link and a device on the left, each a real process.

What this file leaves to others: the link (`thin_link.py`), what is to be true of an update (tests, `make bench-link`).

Rules:
- What is deployed is prepared once, in `Prepared`, and copied for each site: a site starts in the time that its
  processes take, and its device is one that has never seen anything.
- Nothing but the device crosses the link: the agent is asked through its socket, the operator's words run on the right.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.tiny_models import make_quadrant_bundle
from edgeferry.agent.control import ask_agent
from edgeferry.errors import LinkError
from edgeferry.storage.repository import Repository
from link.profiles import Profile
from link.thin_link import End, Link, open_link, stop

COMMAND = (sys.executable, "-m", "edgeferry.cli.main")
DEVICE, MODULE, MODEL, VERSION = "barge-1", "ferry", "quadrants", "1.0.0"
MQTT_PORT, HTTPS_PORT = 8883, 8443
QUICK = "probation_s = 0.5\n"
START_TIMEOUT_S = 60.0
_STEP_S = 0.05


@dataclass(frozen=True)
class Prepared:
    """A folder with a published model and a hub that has deployed it.

    `artifact_bytes` is what travels of the model itself, `payload_bytes` of all that is downloaded
    of its version: small files come along with its manifest.
    """

    folder: Path
    artifact_bytes: int
    payload_bytes: int


def prepare(folder: Path, ballast_bytes: int) -> Prepared:
    """Publishes a model of about `ballast_bytes` and deploys it to a device that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    site, hub, place = folder / "site", ("--data", folder / "hub"), ("--to", folder / "site", "--keys", folder / "keys")
    run_command("repo", "init", *place)
    model = folder / "model.zip"
    model.write_bytes(make_quadrant_bundle(ballast_bytes=ballast_bytes))
    report = json.loads(run_command("publish", model, "--name", MODEL, "--version", VERSION, "--json", *place))
    run_command("hub", "device", "add", DEVICE, "--module", MODULE, *hub)
    with open_link(Profile("ethernet", 100_000_000, 0.0)) as link, _open_hub(link.right, folder) as ready:
        service = run_command("hub", "device", "connection-string", "--service", *hub).strip()
        words = ["--model", MODEL, "--version", VERSION, "--device", f"{DEVICE}/{MODULE}", "--ca-file"]
        words += [ready["ca_path"], "--repo", f"{ready['service_url']}/files", "--site", str(site)]
        link.right.run([*COMMAND, "deploy", *words], env={**os.environ, "EDGEFERRY_HUB": service})
    key = run_command("hub", "device", "connection-string", DEVICE, "--module", MODULE, *hub).strip()
    (folder / "identity").write_text(key)
    largest = max(int(found["coded_size"]) for found in report["files"])
    return Prepared(folder, largest, int(report["download_bytes"]))


def run_command(*words: str | Path) -> str:
    """What a command of ours prints."""
    return subprocess.run([*COMMAND, *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Device:
    """A device process on the left."""

    child: subprocess.Popen[bytes]
    storage: Path
    log: Path

    @property
    def is_running(self) -> bool:
        """False once it has ended."""
        return self.child.poll() is None

    def find_status(self) -> dict[str, Any] | None:
        """What `device status --json` shows; None while the agent does not listen."""
        try:
            return asyncio.run(ask_agent(Repository(self.storage).socket_path, "status")).answer
        except (LinkError, OSError):
            return None

    def find_state(self) -> str | None:
        """The state of the one model."""
        models = (self.find_status() or {}).get("models")
        return str(models[0]["state"]) if models else None

    def kill(self) -> None:
        """kill -9, by its id."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def stop(self) -> None:
        """Ends it as an operator does."""
        stop(self.child)


@dataclass
class ThinSite:
    """A site on a link."""

    link: Link
    folder: Path
    ready: dict[str, Any]
    identity: str = field(repr=False)

    def start_device(self, *extra: str, name: str = "device", settings: str = QUICK) -> Device:
        """Starts the device, for the first time or again; `name` is that of its storage folder."""
        storage, config, log_path = (self.folder / f"{name}{end}" for end in ("", ".toml", ".log"))
        storage.mkdir(exist_ok=True)
        config.write_text(settings)
        words: list[str | Path] = ["device", "run", "--storage", storage, "--config", config, "--port", "8080"]
        words += ["--ca-file", self.ready["ca_path"], "--root", self.folder / "site" / "metadata" / "1.root.json"]
        environment = {**os.environ, "EDGEFERRY_CONNECTION_STRING": self.identity}
        with log_path.open("ab") as log:
            child = self.link.left.start([*COMMAND, *words, *extra], stdout=log, stderr=log, env=environment)
        return Device(child, storage, log_path)

    def wait_state(self, device: Device, state: str, timeout_s: float) -> None:
        """Waits until the update of `device` is in `state`."""
        self.wait(device, lambda: device.find_state() == state, timeout_s)

    def wait_connected(self, device: Device, timeout_s: float) -> None:
        """Waits until `device` has its hub."""
        self.wait(device, lambda: bool((device.find_status() or {}).get("connected")), timeout_s)

    def wait_downloaded(self, device: Device, size_bytes: int, timeout_s: float) -> None:
        """Waits until so many bytes have come from the repository's port."""
        self.wait(device, lambda: self.link.counts().down.sum_stream_bytes(HTTPS_PORT) >= size_bytes, timeout_s)

    def wait(self, device: Device, check: Callable[[], bool], timeout_s: float) -> None:
        """Waits until `check` holds; raises AssertionError when the device ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not check():
            assert device.is_running, device.log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"{device.find_status()}\n{device.log.read_text()[-2000:]}"
            time.sleep(_STEP_S)

    def wait_quiet(self, quiet_s: float, timeout_s: float = 60.0) -> None:
        """Waits until nothing has crossed the link for so long."""
        deadline = time.monotonic() + timeout_s
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < quiet_s:
            assert time.monotonic() < deadline, "the link never becomes quiet"
            crossed = self.link.counts().left_ip_bytes
            if crossed != seen:
                seen, since = crossed, time.monotonic()
            time.sleep(_STEP_S)

    def read_reported(self) -> dict[str, Any]:
        """What the device has reported of the model, as the hub's twin has it."""
        shown = json.loads(run_command("hub", "device", "show", DEVICE, "--json", "--data", self.folder / "hub"))
        found: dict[str, Any] = shown["modules"][MODULE]["twin"]["reported"]["edgeferry"]["models"][MODEL]
        return found


@contextmanager
def open_thin_site(link: Link, prepared: Prepared, folder: Path) -> Iterator[ThinSite]:
    """A hub that runs on the right of `link` on a copy of what was prepared; no device runs yet."""
    shutil.copytree(prepared.folder, folder, dirs_exist_ok=True)
    with _open_hub(link.right, folder) as ready:
        yield ThinSite(link, folder, ready, (folder / "identity").read_text())


@contextmanager
def _open_hub(end: End, folder: Path) -> Iterator[dict[str, Any]]:
    ready, log_path = folder / "ready.json", folder / "hub.log"
    ready.unlink(missing_ok=True)
    words: Sequence[str | Path] = ["hub", "run", "--data", folder / "hub", "--files", folder / "site"]
    words = [*words, "--listen", end.address, "--host-name", end.address, "--ready-file", ready]
    with log_path.open("ab") as log:
        hub = end.start([*COMMAND, *words], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.is_file():
            assert hub.poll() is None, log_path.read_text()[-2000:]
            assert time.monotonic() < deadline, "the hub does not start"
            time.sleep(_STEP_S)
        yield json.loads(ready.read_text())
    finally:
        stop(hub)
