"""The guide's own story with real parts: Azurite, Microsoft's SDK, the guide's bundle, hub and device as processes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import shutil
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import obstore
import pytest
from obstore.store import AzureStore

from e2e.site import DEVICE, Device, Site, open_plain_server, open_site
from fixtures_azurite import ACCOUNT, KEY, Azurite

MODULE = "ferry"
CAT_BOX = (0.13, 0.09, 0.98, 0.71)
"""Where the cat is in cat.jpg (top, left, bottom, right), from models/MODELS.md."""
BUNDLE_MD5 = "wPJ4M5M4BVAkuk6fdJYODg=="

pytestmark = [pytest.mark.needs_shared, pytest.mark.needs_azure_sdk, pytest.mark.needs_azurite]


def get_overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, height) * max(0.0, width)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def assert_cat(answer: list[dict[str, Any]]) -> None:
    best = max(answer, key=lambda found: found["Score"])
    assert best["Class"] == "cat"
    assert best["Score"] >= 0.6
    assert get_overlap(tuple(best["Location"]), CAT_BOX) > 0.7


def make_yolo_bundle(shared_models: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in ("tiny_yolov3_interface_standin.onnx", "coco80.names"):
            bundle.write(shared_models / "detection" / name, name)
    return out.getvalue()


def get_md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


class BlobStore:
    """A container of Azurite, and SAS URLs into it."""

    def __init__(self, azurite: Azurite) -> None:
        container = azurite.make_container()
        self.store = AzureStore(
            container.rsplit("/", 1)[1],
            account_name=ACCOUNT,
            account_key=KEY,
            endpoint=azurite.url,
            client_options={"allow_http": True},
        )

    def upload(self, name: str, data: bytes) -> str:
        self.store.put(name, data)
        return obstore.sign(self.store, "GET", name, timedelta(hours=1))


@asynccontextmanager
async def open_story(folder: Path) -> AsyncIterator[tuple[Site, Device]]:
    route = f"FROM /messages/modules/{MODULE}/outputs/* INTO $upstream"
    async with open_site(folder, "--route", route) as site:
        await site.add_module(MODULE)
        yield site, await site.start_device(MODULE)


async def ask_until(stop: asyncio.Event, device: Device, picture: bytes) -> list[tuple[int, Any]]:
    """One client that asks again and again; every answer with its status."""
    answers: list[tuple[int, Any]] = []
    async with aiohttp.ClientSession() as http:
        while not stop.is_set():
            async with http.post(f"{device.api}/score", data=picture) as reply:
                answers.append((reply.status, await reply.json()))
    return answers


async def test_a_device_takes_the_guides_bundle_and_switches_under_load(
    tmp_path: Path, shared_models: Path, azurite: Azurite, azure_sdk_python: Path
) -> None:
    blobs = BlobStore(azurite)
    bundle = (shared_models / "classic" / "tensorflow001.zip").read_bytes()
    cat = (shared_models / "images" / "cat.jpg").read_bytes()
    street = (shared_models / "images" / "dog_bicycle_car.jpg").read_bytes()
    async with open_story(tmp_path) as (site, device):
        url = blobs.upload("tensorflow001.zip", bundle)
        await site.run_sdk(azure_sdk_python, "set", DEVICE, MODULE, "tensorflow001.zip", url, BUNDLE_MD5)
        await site.run_sdk(azure_sdk_python, "wait", DEVICE, MODULE, "tensorflow001.zip")
        assert_cat(await device.score(cat))
        [message] = [found for found in await site.read_messages() if found.get("output") == "DLModelOutput"]
        body = message["body"]
        assert body["local_model_path"] == "tensorflow001/ssd_mobilenet_v1_1_metadata_1.tflite"
        assert body["local_labelmap_path"] == "tensorflow001/labelmap.txt"
        assert (device.storage / body["local_model_path"]).is_file()
        assert not (device.storage / "tensorflow001.zip").exists()

        before = await device.score(street)
        stop = asyncio.Event()
        asking = asyncio.create_task(ask_until(stop, device, street))
        yolo = make_yolo_bundle(shared_models)
        url = blobs.upload("yolo002.zip", yolo)
        await site.run_sdk(azure_sdk_python, "set", DEVICE, MODULE, "yolo002.zip", url, get_md5(yolo))
        await site.run_sdk(azure_sdk_python, "wait", DEVICE, MODULE, "yolo002.zip")
        after = await device.score(street)
        stop.set()
        answers = await asking
        assert "dog" in {found["Class"] for found in after}
        assert "dog" not in {found["Class"] for found in before}
        assert {status for status, _ in answers} == {200}
        assert all(answer in (before, after) for _, answer in answers), "an answer of neither version"
        assert answers[0][1] == before


async def test_a_plain_server_without_ranges_or_etags_is_origin_enough(
    tmp_path: Path, shared_models: Path, azure_sdk_python: Path
) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    shutil.copy(shared_models / "classic" / "tensorflow001.zip", origin)
    cat = (shared_models / "images" / "cat.jpg").read_bytes()
    async with open_plain_server(origin) as base, open_story(tmp_path) as (site, device):
        url = f"{base}/tensorflow001.zip"
        await site.run_sdk(azure_sdk_python, "set", DEVICE, MODULE, "tensorflow001.zip", url, BUNDLE_MD5)
        await site.run_sdk(azure_sdk_python, "wait", DEVICE, MODULE, "tensorflow001.zip")
        assert_cat(await device.score(cat))


async def test_a_loader_announces_and_an_inferencer_switches(
    tmp_path: Path, shared_models: Path, azurite: Azurite, azure_sdk_python: Path
) -> None:
    blobs = BlobStore(azurite)
    storage = tmp_path / "storage"
    cat = (shared_models / "images" / "cat.jpg").read_bytes()
    target = 'BrokeredEndpoint("/modules/infer/inputs/AIMessageInput")'
    async with open_site(
        tmp_path, "--route", f"FROM /messages/modules/loader/outputs/DLModelOutput INTO {target}"
    ) as site:
        await site.add_module("loader")
        await site.add_module("infer")
        await site.start_device("loader", "--role", "loader", storage=storage)
        inferencer = await site.start_device("infer", "--role", "inferencer", storage=storage)
        url = blobs.upload("tensorflow001.zip", (shared_models / "classic" / "tensorflow001.zip").read_bytes())
        await site.run_sdk(azure_sdk_python, "set", DEVICE, "loader", "tensorflow001.zip", url, BUNDLE_MD5)
        await site.run_sdk(azure_sdk_python, "wait", DEVICE, "loader", "tensorflow001.zip")
        await inferencer.wait_ready()
        assert_cat(await inferencer.score(cat))


async def test_a_module_started_with_iot_edge_variables_finds_the_hub_through_the_workload_socket(
    tmp_path: Path, shared_models: Path, azurite: Azurite, azure_sdk_python: Path
) -> None:
    blobs = BlobStore(azurite)
    socket_path = tmp_path / "w.sock"
    async with open_site(tmp_path, "--workload-socket", str(socket_path), "--workload-device", DEVICE) as site:
        await site.add_module(MODULE)
        device = await site.start_device(
            MODULE,
            IOTEDGE_WORKLOADURI=f"unix://{socket_path}",
            IOTEDGE_IOTHUBHOSTNAME="localhost",
            IOTEDGE_GATEWAYHOSTNAME="localhost",
            IOTEDGE_DEVICEID=DEVICE,
            IOTEDGE_MODULEID=MODULE,
            IOTEDGE_MODULEGENERATIONID=await site.get_generation(MODULE),
            IOTEDGE_APIVERSION="2019-01-30",
            IOTEDGE_AUTHSCHEME="sasToken",
        )
        url = blobs.upload("tensorflow001.zip", (shared_models / "classic" / "tensorflow001.zip").read_bytes())
        await site.run_sdk(azure_sdk_python, "set", DEVICE, MODULE, "tensorflow001.zip", url, BUNDLE_MD5)
        await site.run_sdk(azure_sdk_python, "wait", DEVICE, MODULE, "tensorflow001.zip")
        assert_cat(await device.score((shared_models / "images" / "cat.jpg").read_bytes()))
