"""Signed updates: published, deployed and taken as the commands do it; whatever is tampered with is refused.

One device with a pinned root walks from 1.0.0 to 1.1.0, which then serves through all that is bad. A bad case overlays
the published folder on its way to the device: what lies in it stays good, and is taken in the end.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from e2e.origin import SIGNATURE, Behaviour, Origin, answer_status
from e2e.site import DEVICE, Device, Site, Twin, find_free_port
from e2e.world import Asker, World, list_children, open_asker, read_tree
from edgeferry.storage.blob_store import open_blob_store
from edgeferry.trust.draft import open_draft
from edgeferry.trust.keys import KeyFolder
from edgeferry.trust.signer import Desk, commit, refresh

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
MODEL = "detector"
SCENE = "pump-room.jpg"
"""Holds gauges, a worker and a leak."""


@dataclass
class Publisher:
    """The operator: a folder of published models and its keys, and what each version's report said."""

    site: Site
    models: Path
    folder: Path
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def keys(self) -> Path:
        return self.folder.parent / f"{self.folder.name}-keys"

    async def init(self) -> None:
        await self.site.processes.run(["repo", "init", "--to", str(self.folder), "--keys", str(self.keys)])

    async def publish(self, version: str, *extra: str) -> None:
        words = ["publish", str(self.models / MODEL / version / "detector.onnx"), "--name", MODEL, "--version", version]
        words += ["--to", str(self.folder), "--keys", str(self.keys), "--json", *extra]
        self.reports[version] = json.loads(await self.site.processes.run(words))

    def list_metadata(self) -> list[str]:
        """Paths of all metadata but the root and the bundle object."""
        found = sorted((self.folder / "metadata").glob("*.json"))
        return [f"metadata/{path.name}" for path in found if not path.name.endswith(".root.json")]

    def sign_again(self) -> None:
        """New metadata of every role: a device that has seen the old one has to fetch it."""
        desk = Desk(open_blob_store(str(self.folder), {}), KeyFolder(self.keys), dt.datetime.now(dt.UTC))
        draft = open_draft(desk.store, desk.keys)
        draft.changed |= {"targets", MODEL}
        commit(draft, desk)

    def get_newest(self, role: str) -> str:
        """Path of the newest metadata of `role`."""
        found = [path for path in self.list_metadata() if path.endswith(f".{role}.json")]
        return max(found, key=lambda path: int(path.removeprefix("metadata/").partition(".")[0]))

    def get_blob(self, version: str) -> str:
        digest = str(self.reports[version]["files"][0]["blob"]).removeprefix("sha256:")
        return f"blobs/sha256/{digest[:2]}/{digest}"


@dataclass
class Shop:
    """A device that serves 1.1.0, its publisher, and the origin between them."""

    device: Device
    twin: Twin
    origin: Origin
    publisher: Publisher
    asker: Asker
    tree: dict[str, Any] = field(default_factory=dict)
    children: int = 0
    tries: int = 1

    def get_desired(self, wanted: str, /, **other: Any) -> dict[str, Any]:
        """Our section that asks for the version `wanted`, for the first time or once more."""
        self.tries += 1
        model = {"version": wanted, "manifest": self.publisher.reports[wanted]["manifest"], "try": self.tries}
        return {"repo": f"{self.origin.url}/repo", "models": {MODEL: {**model, **other}}}

    async def wait_active(self, version: str, observed: int = 0, timeout_s: float = 30) -> dict[str, Any]:
        def is_active(reported: dict[str, Any]) -> bool:
            model = get_model(reported)
            settled = model.get("state") == "ACTIVE" and "error" not in model
            return settled and model["active"] == version and reported["edgeferry"]["observed"] >= observed

        return await self.twin.wait(is_active, timeout_s)

    async def refuse(self, code: str, desired: dict[str, Any]) -> dict[str, Any]:
        """Asks for something bad, sees it refused with `code`, and goes back to 1.1.0; returns the error."""
        assert get_model((await self.twin.read())["reported"])["active"] == "1.1.0"  # else an earlier case has failed
        version = await self.twin.set(edgeferry=desired)

        def find(reported: dict[str, Any]) -> Any:
            model = get_model(reported)
            told = reported["edgeferry"]["observed"] >= version and model.get("state") in ("REJECTED", "WAITING")
            return told and model.get("error", {}).get("code") == code

        error = dict(get_model(await self.twin.wait(find))["error"])
        assert error["advice"]
        assert error["message"]
        self.origin.files.clear()
        self.origin.behaviours.clear()
        await self.wait_active("1.1.0", await self.twin.set(edgeferry={"models": {MODEL: self.good}}))
        await self.require_untouched()
        return error

    @property
    def good(self) -> dict[str, Any]:
        return {"version": "1.1.0", "manifest": self.publisher.reports["1.1.0"]["manifest"], "try": 1}

    async def require_untouched(self) -> None:
        asked = self.asker.asked
        while self.asker.asked < asked + 2:
            await asyncio.sleep(0.02)
        [(status, answer)] = self.asker.answers
        assert status == 200
        assert "leak" in {found["Class"] for found in answer}
        assert read_stored(self.device) == self.tree
        assert len(list_children(self.device.process.pid)) == self.children

    def overlay(self, path: str, data: bytes | Behaviour) -> None:
        """Puts something else in the place of an object of the repository."""
        if isinstance(data, bytes):
            self.origin.files[f"repo/{path}"] = data
        else:
            self.origin.behaviours[f"repo/{path}"] = data

    def read(self, path: str) -> bytes:
        return (self.publisher.folder / path).read_bytes()


def read_stored(device: Device) -> dict[str, Any]:
    """All that lies in the storage but `trust/`, which remembers the newest metadata seen."""
    return {path: found for path, found in read_tree(device.storage).items() if not path.startswith("edgeferry/trust")}


def get_model(reported: dict[str, Any]) -> dict[str, Any]:
    return dict(reported.get("edgeferry", {}).get("models", {}).get(MODEL, {}))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(world: World, demo_models: Path) -> AsyncIterator[Shop]:
    """Walks to 1.1.0 through the commands, asserting on the way."""
    publisher = Publisher(world.site, demo_models, world.folder / "repo")
    await publisher.init()
    await publisher.publish("1.0.0", "--golden", str(demo_models / "golden" / "v1.0"))
    world.origin.folders["repo"] = publisher.folder
    root = ("--root", str(publisher.keys / "root.json"))
    async with world.open_device(*root, settings="probation_s = 0.1\n") as (device, twin):
        scene = (demo_models / "scenes" / SCENE).read_bytes()
        shop = Shop(device, twin, world.origin, publisher, Asker())
        await deploy(shop, "1.0.0")
        await shop.wait_active("1.0.0")
        found = {found["Class"] for found in await device.score(scene)}
        assert {"gauge", "worker"} <= found
        assert "leak" not in found
        await publisher.publish("1.1.0", "--golden", str(demo_models / "golden" / "v1.1"))
        await deploy(shop, "1.1.0")
        await shop.wait_active("1.1.0")
        assert "leak" in {found["Class"] for found in await device.score(scene)}
        await publisher.publish("1.2.0", "--patch-budget", "0")  # taken whole: what is tampered with is the full file
        await publisher.publish("1.3.0-bad")
        shop.tree, shop.children = read_stored(device), len(list_children(device.process.pid))
        async with open_asker(device, scene, pause_s=0.05) as shop.asker:
            yield shop


async def deploy(shop: Shop, version: str) -> None:
    site = shop.publisher.site
    words = ["deploy", "--model", MODEL, "--version", version, "--device", f"{DEVICE}/{shop.twin.module}"]
    words += ["--repo", f"{shop.origin.url}/repo", "--site", str(shop.publisher.folder)]
    await site.processes.run([*words, "--ca-file", site.ready["ca_path"]], EDGEFERRY_HUB=site.service)


async def test_a_version_whose_answers_are_wrong_is_refused_on_its_golden_truth(shop: Shop) -> None:
    error = await shop.refuse("golden_mismatch", shop.get_desired("1.3.0-bad"))
    assert "serves on" in error["advice"] or "training" in error["advice"]


# --- tampered with ----------------------------------------------------------------------------------------------------
def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def hide_bundle(shop: Shop) -> None:
    shop.overlay(f"metadata/{MODEL}.bundle.zst", answer_status(404))


def tamper(role: str) -> Callable[[Shop], None]:
    """Changes what the role's metadata says, and leaves its signature."""

    def change(shop: Shop) -> None:
        path = "metadata/timestamp.json" if role == "timestamp" else shop.publisher.get_newest(role)
        document = json.loads(shop.read(path))
        document["signed"]["expires"] = "2035-01-01T00:00:00Z"
        hide_bundle(shop)
        shop.overlay(path, json.dumps(document).encode())

    return change


def unsign(shop: Shop) -> None:
    """A folder that somebody without the keys has made: everything is there but signatures."""
    hide_bundle(shop)
    for path in shop.publisher.list_metadata():
        document = json.loads(shop.read(path))
        shop.overlay(path, json.dumps({**document, "signatures": []}).encode())


def remove_metadata(shop: Shop) -> None:
    hide_bundle(shop)
    for path in shop.publisher.list_metadata():
        shop.overlay(path, answer_status(404))


def change_manifest(shop: Shop) -> None:
    digest = str(shop.publisher.reports["1.2.0"]["manifest"]).removeprefix("sha256:")
    path = f"targets/{MODEL}/1.2.0/{digest}.manifest.json"
    hide_bundle(shop)
    shop.overlay(path, shop.read(path).replace(b'"worker"', b'"walker"'))


def change_blob(change: Callable[[bytes], bytes]) -> Callable[[Shop], None]:
    def overlay(shop: Shop) -> None:
        path = shop.publisher.get_blob("1.2.0")
        shop.overlay(path, change(shop.read(path)))

    return overlay


def answer_all(behaviour: Behaviour) -> Callable[[Shop], None]:
    """The same answer for every object of the repository."""

    def overlay(shop: Shop) -> None:
        for path in shop.publisher.folder.rglob("*"):
            if path.is_file():
                shop.overlay(str(path.relative_to(shop.publisher.folder)), behaviour)

    return overlay


async def send_portal(_: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>Please log in</html>", content_type="text/html")


TAMPERED: dict[str, tuple[Callable[[Shop], None], str]] = {
    "the timestamp": (tamper("timestamp"), "metadata_untrusted"),
    "the snapshot": (tamper("snapshot"), "metadata_untrusted"),
    "the targets": (tamper("targets"), "metadata_untrusted"),
    "the role of the model": (tamper(MODEL), "metadata_untrusted"),
    "every signature": (unsign, "metadata_untrusted"),
    "no metadata at all": (remove_metadata, "object_missing"),
    "the manifest": (change_manifest, "metadata_untrusted"),
    "one bit of the blob": (change_blob(lambda data: flip(data, len(data) // 2)), "digest_mismatch"),
    "noise for the blob": (change_blob(lambda data: bytes(len(data))), "digest_mismatch"),
    "a blob cut short": (change_blob(lambda data: data[: len(data) // 2]), "link_broken"),
    "a blob with more behind it": (change_blob(lambda data: data + b"more"), "link_broken"),
    "a refusal of everything": (answer_all(answer_status(403)), "access_denied"),
    "a server that fails": (answer_all(answer_status(500)), "server_failed"),
    "a captive portal": (answer_all(send_portal), "captive_portal"),
}


@pytest.mark.parametrize("name", list(TAMPERED))
async def test_what_was_tampered_with_is_refused_and_the_live_version_serves_on(shop: Shop, name: str) -> None:
    overlay, code = TAMPERED[name]
    shop.publisher.sign_again()
    overlay(shop)
    await shop.refuse(code, shop.get_desired("1.2.0"))


async def test_another_digest_in_the_twin_than_in_the_repository_is_refused(shop: Shop) -> None:
    desired = shop.get_desired("1.2.0", manifest="sha256:" + "5" * 64)
    await shop.refuse("digest_mismatch", desired)


async def test_the_digest_of_another_version_is_refused(shop: Shop) -> None:
    desired = shop.get_desired("1.2.0", manifest=shop.publisher.reports["1.0.0"]["manifest"])
    await shop.refuse("digest_mismatch", desired)


async def test_a_version_that_is_not_published_is_missing(shop: Shop) -> None:
    await shop.refuse("object_missing", shop.get_desired("1.2.0", version="9.9.9"))


async def test_metadata_that_has_expired_is_refused_and_fresh_metadata_is_taken_after_it(shop: Shop) -> None:
    stale = shop.publisher.folder.parent / "stale"
    shutil.copytree(shop.publisher.folder, stale)
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=60)
    refresh(Desk(open_blob_store(str(stale), {}), KeyFolder(shop.publisher.keys), past))
    shop.origin.folders["repo"] = stale
    try:
        version = await shop.twin.set(edgeferry=shop.get_desired("1.2.0"))
        reported = await shop.twin.wait(
            lambda reported: get_model(reported).get("error") and observes(reported, version)
        )
        error = get_model(reported)["error"]
        assert error["code"] == "metadata_expired"
        assert "refresh" in error["advice"]
    finally:
        shop.origin.folders["repo"] = shop.publisher.folder
    await shop.wait_active("1.1.0", await shop.twin.set(edgeferry={"models": {MODEL: shop.good}}))
    await shop.require_untouched()


def observes(reported: dict[str, Any], version: int) -> bool:
    return bool(reported["edgeferry"]["observed"] >= version)


async def test_the_repository_of_somebody_else_is_refused(shop: Shop, world: World, demo_models: Path) -> None:
    stranger = Publisher(world.site, demo_models, world.folder / "stranger")
    await stranger.init()
    await stranger.publish("1.0.0", "--golden", str(demo_models / "golden" / "v1.0"))
    world.origin.folders["stranger"] = stranger.folder
    model = {"version": "1.0.0", "manifest": stranger.reports["1.0.0"]["manifest"], "try": 1}
    section = {"repo": f"{world.origin.url}/stranger", "models": {MODEL: model}}
    await shop.refuse("metadata_untrusted", section)
    shop.origin.behaviours.clear()
    for pin in (str(stranger.keys / "root.json"), "sha256:" + "1" * 64):
        async with world.open_device("--root", pin) as (device, twin):
            await twin.set(edgeferry=shop.get_desired("1.0.0"))
            reported = await twin.wait(lambda reported: get_model(reported).get("error"))
            assert get_model(reported)["error"]["code"] == "metadata_untrusted"
            assert get_model(reported)["error"]["advice"]
            assert "active" not in get_model(reported)
            assert not list((device.storage / "edgeferry" / "partial").iterdir())


# --- links ------------------------------------------------------------------------------------------------------------
async def test_a_renewed_sas_restarts_nothing_neither_at_rest_nor_in_a_download(shop: Shop) -> None:
    path = shop.publisher.get_blob("1.2.0")
    data, going_on = shop.read(path), asyncio.Event()

    async def send_slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data)), "ETag": '"1"'})
        await response.prepare(request)
        await response.write(data[:100_000])
        await going_on.wait()
        await response.write(data[100_000:])
        return response

    asked = len(shop.origin.ranges)
    version = await shop.twin.set(edgeferry={"sas": f"sv=1&sig={SIGNATURE}"})
    await shop.wait_active("1.1.0", version)
    assert len(shop.origin.ranges) == asked
    shop.overlay(path, send_slowly)
    shop.origin.ranges.clear()
    await shop.twin.set(edgeferry=shop.get_desired("1.2.0"))
    async with asyncio.timeout(20):
        while not shop.origin.list_ranges(f"repo/{path}"):
            await asyncio.sleep(0.05)
    asked = len(shop.origin.ranges)
    for number in (2, 3):
        version = await shop.twin.set(edgeferry={"sas": f"sv={number}&sig={SIGNATURE}"})
        await shop.twin.wait(lambda reported, version=version: observes(reported, version))  # type: ignore[misc]
    assert len(shop.origin.ranges) == asked
    going_on.set()
    await shop.wait_active("1.2.0")
    assert len(shop.origin.list_ranges(f"repo/{path}")) == 1
    assert SIGNATURE not in shop.device.process.log_path.read_text()
    shop.origin.behaviours.clear()
    await back_to_good(shop)


async def back_to_good(shop: Shop) -> None:
    await shop.twin.set(edgeferry={"sas": None})
    await shop.wait_active("1.1.0", await shop.twin.set(edgeferry={"models": {MODEL: shop.good}}))
    shop.asker.answers.clear()
    shop.tree = read_stored(shop.device)  # 1.2.0 is kept as the version before
    shop.children = len(list_children(shop.device.process.pid))


async def test_a_link_that_is_cut_in_mid_download_costs_no_byte_twice(shop: Shop, world: World) -> None:
    path, name = shop.publisher.get_blob("1.2.0"), "repo/" + shop.publisher.get_blob("1.2.0")
    data = shop.read(path)
    for old in (shop.origin.sent_bytes, shop.origin.ranges):
        old.clear()

    async def cut(request: web.Request) -> web.StreamResponse:
        is_early = len(shop.origin.list_ranges(name)) <= 2
        return await shop.origin.send(request, data, stop_after=250_000 if is_early else None)

    async with world.open_device("--root", str(shop.publisher.keys / "root.json")) as (device, twin):
        shop.overlay(path, cut)
        await twin.set(edgeferry=shop.get_desired("1.2.0"))
        await twin.wait(lambda reported: get_model(reported).get("active") == "1.2.0", timeout_s=40)
        await device.wait_ready()
    shop.origin.behaviours.clear()
    assert shop.origin.list_ranges(name) == ["", "bytes=250000-", "bytes=500000-"]
    assert shop.origin.sent_bytes[name] == len(data)


async def test_a_device_that_starts_without_hub_and_network_serves_what_it_had(shop: Shop, world: World) -> None:
    root = ("--root", str(shop.publisher.keys / "root.json"))
    async with world.open_device(*root, settings="probation_s = 0.1\n") as (device, twin):
        await twin.set(edgeferry=shop.get_desired("1.1.0"))
        await twin.wait(lambda reported: get_model(reported).get("state") == "ACTIVE")
        device.process.child.kill()
        await device.process.child.wait()
    asked, stored = len(world.origin.ranges), read_stored(device)
    async with world.open_device_again(twin, device.storage, *root, "--mqtt-port", str(find_free_port())) as again:
        await again.wait_ready(timeout_s=60)
        scene = (shop.publisher.models / "scenes" / SCENE).read_bytes()
        assert "leak" in {found["Class"] for found in await again.score(scene)}
        assert read_stored(again) == stored
    assert len(world.origin.ranges) == asked
