"""A whole device in this process, against a real hub and a published folder, with workers as real processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edgeferry.agent.control import ask_agent
from edgeferry.agent.machine import State
from edgeferry.app.device import RunningDevice, open_device
from edgeferry.app.device_folder import init_device_folder, read_folder_status
from edgeferry.app.hub import HubSettings, RunningHub, open_hub
from edgeferry.app.operator import DeployTerms, Place, PublishFiles, deploy_version, make_repository, publish_files
from edgeferry.config import DeviceConfig
from edgeferry.errors import ConfigInvalid, EdgeferryError, StorageBusy
from edgeferry.twin.document import merge
from edgeferry.wire.service_api import Identity
from polling import poll


@dataclass
class Yard:
    """A hub with a published folder, and one device's settings."""

    hub: RunningHub
    folder: Path
    config: DeviceConfig
    gauge: Path

    @property
    def place(self) -> Place:
        return Place(str(self.folder / "published"), self.folder / "keys", {})

    def publish(self, version: str, model_file: str = "gauge.onnx") -> None:
        files = PublishFiles(self.gauge / model_file, "gauge", version, labels=self.gauge / "labels.txt")
        publish_files(files, self.place, say=lambda text: None)

    async def deploy(self, version: str) -> None:
        terms = DeployTerms(
            devices=("turbine/ferry",),
            hub=self.hub.service_connection_string,
            environ={},
            model="gauge",
            version=version,
            repo=f"{self.hub.service_url}/files",
            ca_file=self.hub.ca_pem_path,
        )
        outcome = await deploy_version(terms)
        assert not [report for report in outcome.devices if report.error], outcome

    async def read_reported(self) -> dict[str, Any]:
        twin = (await self.hub.rooms.twins.read(Identity("turbine", "ferry"))).twin
        return dict(merge({}, twin.reported.body))


@pytest.fixture
async def yard(tmp_path: Path, demo_models: Path) -> AsyncIterator[Yard]:
    published = tmp_path / "published"
    published.mkdir()
    settings = HubSettings(tmp_path / "hub", mqtt_port=0, https_port=0, files=published)
    async with open_hub(settings) as hub:
        config = DeviceConfig(
            storage=str(tmp_path / "storage"),
            connection_string=await hub.add_module("turbine", "ferry"),
            ca_file=str(hub.ca_pem_path),
            mqtt_port=hub.mqtt_port,
            port=0,
            probation_s=0.2,
            root=str(tmp_path / "root.json"),
        )
        yard = Yard(hub, tmp_path, config, demo_models / "gauge" / "1.0.0")
        (tmp_path / "root.json").write_bytes(make_repository(yard.place))
        yield yard


async def wait_active(device: RunningDevice, version: str) -> None:
    async def check() -> bool:
        models = device.get_status().models
        found = [one for one in models if (one.active, one.state) == (version, State.ACTIVE)]
        failed = [one for one in models if one.state in (State.REJECTED, State.FAILED)]
        assert not failed, failed
        return bool(found)

    await poll(check, timeout_s=60)


async def predict(device: RunningDevice, picture: bytes) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{device.url}/v1/models/gauge/predict", data=picture) as reply,
    ):
        assert reply.status == 200, await reply.text()
        return dict(await reply.json())


@asynccontextmanager
async def running(config: DeviceConfig) -> AsyncIterator[RunningDevice]:
    async with open_device(config) as device:
        yield device


async def test_a_version_goes_from_publish_to_answer_and_serves_without_any_hub_after_a_restart(
    yard: Yard, demo_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    picture = next((demo_models / "gauge").rglob("*.jpg")).read_bytes()
    await asyncio.to_thread(yard.publish, "1.0.0")
    async with running(yard.config) as device:
        await yard.deploy("1.0.0")
        await wait_active(device, "1.0.0")
        answer = await predict(device, picture)
        assert answer["version"] == "1.0.0"
        await poll(lambda: has_reported(yard, "ACTIVE"))
        [message] = await poll(yard.hub.read_messages)
        assert b"models/gauge/versions/1.0.0/gauge.onnx" in message.payload
        with pytest.raises(StorageBusy):
            async with running(yard.config):
                pass
        status = await ask_agent(device.repository.socket_path, "status")
        assert status.answer["connected"]
    lonely = DeviceConfig(storage=yard.config.storage, port=0)
    assert [one.active for one in read_folder_status(lonely).models] == ["1.0.0"]
    async with running(lonely) as device:
        assert (await predict(device, picture))["version"] == "1.0.0"
        assert not device.get_status().connected
    key = yard.config.connection_string.rpartition("SharedAccessKey=")[2]
    assert key not in caplog.text
    assert "sig=" not in caplog.text


async def has_reported(yard: Yard, state: str) -> bool:
    return (await yard.read_reported()).get("edgeferry", {}).get("models", {}).get("gauge", {}).get("state") == state


async def test_an_operator_rolls_back_through_the_socket(yard: Yard) -> None:
    for version, file in (("1.0.0", "gauge.onnx"), ("1.1.0", "gauge-int8.tflite")):
        await asyncio.to_thread(yard.publish, version, file)
    async with running(yard.config) as device:
        for version in ("1.0.0", "1.1.0"):
            await yard.deploy(version)
            await wait_active(device, version)
        assert device.slots.get_models()["gauge"].version.version == "1.1.0"
        assert (await ask_agent(device.repository.socket_path, "rollback", {"model": "gauge"})).status == 202
        await poll(lambda: has_reported(yard, "ROLLED_BACK"))
        assert device.slots.get_models()["gauge"].version.version == "1.0.0"
        assert await read_index(device) == {"1.0.0": "READY", "1.1.0": "UNAVAILABLE"}


async def read_index(device: RunningDevice) -> dict[str, str]:
    """What v2 clients see of the versions that lie here."""
    async with aiohttp.ClientSession() as http, http.post(f"{device.url}/v2/repository/index") as reply:
        return {one["version"]: one["state"] for one in await reply.json()}


async def test_metadata_of_another_root_is_never_followed(yard: Yard, tmp_path: Path) -> None:
    other = Place(str(tmp_path / "other"), tmp_path / "other-keys", {})
    (tmp_path / "root.json").write_bytes(make_repository(other))
    await asyncio.to_thread(yard.publish, "1.0.0")
    async with running(yard.config) as device:
        await yard.deploy("1.0.0")
        await poll(lambda: has_reported(yard, "WAITING"))
        reported = (await yard.read_reported())["edgeferry"]["models"]["gauge"]
        assert reported["error"]["code"] == "metadata_untrusted"
        assert device.slots.get_models() == {}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"host": "0.0.0.0"}, ConfigInvalid),
        ({"connection_string": "HostName=h;SharedAccessKeyName=service;SharedAccessKey=a2V5"}, ConfigInvalid),
        ({"connection_string": "rubbish"}, ConfigInvalid),
        ({"ca_file": "/nowhere/ca.pem"}, EdgeferryError),
        ({"root": "/nowhere/root.json"}, EdgeferryError),
    ],
)
async def test_settings_that_cannot_work_are_refused_at_start(
    tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with running(DeviceConfig(**{"storage": str(tmp_path), "port": 0, **change})):
            pass


def test_init_pins_only_a_root_and_keeps_secrets_to_this_user(tmp_path: Path) -> None:
    (tmp_path / "rubbish.json").write_text("{}")
    config = DeviceConfig(storage=str(tmp_path / "s"), root=str(tmp_path / "rubbish.json"))
    with pytest.raises(ConfigInvalid):
        init_device_folder(config, {"root": config.root})
    config = DeviceConfig(storage=str(tmp_path / "s"), connection_string="HostName=h;DeviceId=d;SharedAccessKey=a2V5")
    folder = init_device_folder(config, {"connection_string": config.connection_string, "accept_classic": True})
    assert (folder / "device.toml").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_the_main_process_loads_neither_numpy_nor_an_engine() -> None:
    code = (
        "import sys, edgeferry.app.device, edgeferry.cli.device_commands;"
        "print([name for name in ('numpy', 'onnxruntime', 'ai_edge_litert', 'PIL', 'simplejpeg', 'obstore',"
        " 'hdiffpatch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_a_model_file_damaged_under_a_running_device_is_fetched_again_before_any_worker_loads_it(
    yard: Yard, demo_models: Path
) -> None:
    picture = next((demo_models / "gauge").rglob("*.jpg")).read_bytes()
    await asyncio.to_thread(yard.publish, "1.0.0")
    async with running(yard.config) as device:
        await yard.deploy("1.0.0")
        await wait_active(device, "1.0.0")
        file = device.slots.get_models()["gauge"].version.folder / "gauge.onnx"
        whole = file.read_bytes()
        file.chmod(0o644)
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert (await predict(device, picture))["version"] == "1.0.0", "the worker that runs has its own"
        os.kill(find_worker(device), signal.SIGKILL)
        await poll(lambda: is_like(file, whole), timeout_s=30)
        await wait_active(device, "1.0.0")
        assert (await predict(device, picture))["version"] == "1.0.0"


def find_worker(device: RunningDevice) -> int:
    serving = device.slots._slots["gauge"].serving
    assert serving is not None
    return int(serving.worker.port.pid)  # type: ignore[attr-defined] # a real worker has one


async def is_like(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data
