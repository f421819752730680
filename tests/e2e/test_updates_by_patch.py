"""Updates by patch as the commands do them: published, deployed, fetched and applied, every byte on the way counted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
import pytest_asyncio

from e2e.site import DEVICE, Device, Twin
from e2e.world import QUICK, World
from edgeferry.model.digest import Digest

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
MODEL = "detector"
PATCH_MAX_BYTES = 25_000
METADATA_MAX_BYTES = 4_096
"""What all metadata of one update may take."""


@dataclass
class Shop:
    """A published folder, and a device that trusts it, behind an origin that counts what it sends."""

    world: World
    models: Path
    folder: Path
    device: Device
    twin: Twin
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def publish(self, version: str, model: Path, *extra: str) -> dict[str, Any]:
        words = ["publish", str(model), "--name", MODEL, "--version", version, "--json", *extra]
        words += ["--to", str(self.folder), "--keys", str(self.folder.parent / "keys")]
        words += ["--ca-file", self.world.site.ready["ca_path"]]
        said = await self.world.site.processes.run(words, EDGEFERRY_HUB=self.world.site.service)
        self.reports[version] = json.loads(said)
        return self.reports[version]

    async def deploy(self, version: str) -> dict[str, int]:
        """Deploys and waits; returns what crossed meanwhile: bytes by path."""
        self.world.origin.sent_bytes.clear()
        words = ["deploy", "--model", MODEL, "--version", version, "--device", f"{DEVICE}/{self.twin.module}"]
        words += ["--repo", f"{self.world.origin.url}/repo", "--site", str(self.folder)]
        words += ["--ca-file", self.world.site.ready["ca_path"]]
        await self.world.site.processes.run(words, EDGEFERRY_HUB=self.world.site.service)
        await self.twin.wait(lambda reported: is_active(reported, version))
        return {path: size for path, size in self.world.origin.sent_bytes.items() if not path.startswith("repo/met")}

    @property
    def metadata_bytes(self) -> int:
        return sum(size for path, size in self.world.origin.sent_bytes.items() if path.startswith("repo/met"))

    def read_active(self) -> bytes:
        folder = self.device.storage / "edgeferry" / "models" / MODEL
        version = json.loads((folder / "active").read_bytes())["version"]
        return (folder / "versions" / version / "detector.onnx").read_bytes()


def is_active(reported: dict[str, Any], version: str) -> bool:
    model = reported.get("edgeferry", {}).get("models", {}).get(MODEL, {})
    return (model.get("state"), model.get("active")) == ("ACTIVE", version)


def get_blob_path(digest: str) -> str:
    return f"repo/{Digest.from_str(digest).blob_path}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(world: World, demo_models: Path) -> AsyncIterator[Shop]:
    """A device that runs 1.0.0."""
    folder = world.folder / "published" / "site"
    keys = folder.parent / "keys"
    await world.site.processes.run(["repo", "init", "--to", str(folder), "--keys", str(keys)])
    world.origin.folders["repo"] = folder
    async with world.open_device("--root", str(keys / "root.json"), settings=QUICK) as (device, twin):
        shop = Shop(world, demo_models, folder, device, twin)
        golden = str(demo_models / "golden" / "v1.0")
        await shop.publish("1.0.0", demo_models / MODEL / "1.0.0" / "detector.onnx", "--golden", golden)
        await shop.deploy("1.0.0")
        yield shop


async def test_a_device_updates_by_a_patch_that_is_made_from_what_it_runs(shop: Shop) -> None:
    model = shop.models / MODEL / "1.1.0" / "detector.onnx"
    report = await shop.publish("1.1.0", model, "--golden", str(shop.models / "golden" / "v1.0"))
    [patch] = report["patches"]
    assert (patch["base"], report["update_bytes"]) == ("1.0.0", patch["size"])
    fetched = await shop.deploy("1.1.0")
    assert list(fetched.values()) == [patch["size"]]
    assert patch["size"] < PATCH_MAX_BYTES
    assert shop.metadata_bytes < METADATA_MAX_BYTES
    assert shop.read_active() == model.read_bytes()
    scene = (shop.models / "scenes" / "pump-room.jpg").read_bytes()
    assert "leak" in {found["Class"] for found in await shop.device.score(scene)}


async def test_the_hub_says_which_version_patches_are_made_from(shop: Shop) -> None:
    """Runs behind the one above: the device runs 1.1.0 now, and nobody runs 1.0.0 any more."""
    near = make_near_version(shop, 1)
    report = await shop.publish("1.1.1", near)
    assert [patch["base"] for patch in report["patches"]] == ["1.1.0"]
    assert [update["base"] for update in report["updates"]] == ["1.1.0"]


async def test_a_device_that_missed_a_version_takes_patch_over_patch(shop: Shop) -> None:
    """Runs behind the one above: 1.1.1 has a patch from 1.1.0, 1.1.2 one from 1.1.1 only; the device runs 1.1.0."""
    near = make_near_version(shop, 2)
    report = await shop.publish("1.1.2", near, "--base", "1.1.1")
    fetched = await shop.deploy("1.1.2")
    sizes = [shop.reports[version]["patches"][0]["size"] for version in ("1.1.1", "1.1.2")]
    assert list(fetched.values()) == sizes
    assert get_blob_path(report["files"][0]["blob"]) not in fetched
    assert shop.metadata_bytes < METADATA_MAX_BYTES
    assert shop.read_active() == near.read_bytes()


def make_near_version(shop: Shop, number: int) -> Path:
    """The detector 1.1.0 under another description: nothing but metadata differs."""
    model = onnx.load(shop.models / MODEL / "1.1.0" / "detector.onnx")
    model.doc_string = f"trained again, number {number}"
    path = shop.world.folder / f"near-{number}" / "detector.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    return path
