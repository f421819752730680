"""Signed updates from a real blob server: published into a container, fetched under a SAS, renewed in place."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from e2e.site import DEVICE, Device, Site, open_site
from fixtures_azurite import Azurite

MODULE = "ferry"
pytestmark = pytest.mark.needs_azurite


async def publish(site: Site, azurite: Azurite, container: str, model: Path, version: str) -> dict[str, Any]:
    words = ["publish", str(model), "--name", "gauge", "--version", version, "--to", container, "--json"]
    golden = ["--golden", str(model.parent.parent / "golden"), "--keys", str(site.folder / "keys")]
    return dict(json.loads(await site.processes.run([*words, *golden], **azurite.environ)))


async def deploy(site: Site, azurite: Azurite, container: str, *words: str) -> None:
    hub = ["--device", f"{DEVICE}/{MODULE}", "--repo", container, "--ca-file", site.ready["ca_path"]]
    await site.processes.run(["deploy", *words, *hub], EDGEFERRY_HUB=site.service, **azurite.environ)


async def read_device(site: Site) -> dict[str, Any]:
    shown = json.loads(await site.processes.run(["hub", "device", "show", DEVICE, "--json", *site.hub_data]))
    return dict(shown["modules"][MODULE]["twin"])


async def wait_active(site: Site, version: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            reported = (await read_device(site))["reported"]
            gauge = reported.get("edgeferry", {}).get("models", {}).get("gauge", {})
            if gauge.get("active") == version:
                return dict(reported)
            await asyncio.sleep(0.3)


async def start(site: Site, azurite: Azurite, container: str) -> Device:
    keys = ["--keys", str(site.folder / "keys")]
    await site.processes.run(["repo", "init", "--to", container, *keys], **azurite.environ)
    await site.add_module(MODULE)
    root = site.folder / "root.json"
    root.write_bytes(await fetch_root(container, azurite))
    return await site.start_device(MODULE, "--root", str(root))


async def fetch_root(container: str, azurite: Azurite) -> bytes:
    import obstore
    from obstore.store import AzureStore

    from fixtures_azurite import ACCOUNT, KEY

    name = container.rsplit("/", 1)[1]
    options = {"allow_http": True}
    store = AzureStore(name, account_name=ACCOUNT, account_key=KEY, endpoint=azurite.url, client_options=options)
    return bytes(obstore.get(store, "metadata/1.root.json").bytes())


async def test_a_version_published_into_a_container_is_fetched_under_a_sas_and_a_renewed_sas_restarts_nothing(
    tmp_path: Path, demo_models: Path, azurite: Azurite
) -> None:
    container = azurite.make_container()
    async with open_site(tmp_path) as site:
        device = await start(site, azurite, container)
        await publish(site, azurite, container, demo_models / "gauge" / "1.0.0" / "gauge.onnx", "1.0.0")
        await deploy(site, azurite, container, "--model", "gauge", "--version", "1.0.0", "--sas-expires", "2d")
        await wait_active(site, "1.0.0")
        picture = next((demo_models / "gauge" / "golden").glob("high*.jpg")).read_bytes()
        [best, *_] = await device.score(picture)
        assert best["Class"] == "high"
        before = await read_device(site)
        assert "sig=" in before["desired"]["edgeferry"]["sas"]
        await deploy(site, azurite, container, "--renew-sas", "--sas-expires", "9d")
        after = await read_device(site)
        assert after["desired"]["edgeferry"]["sas"] != before["desired"]["edgeferry"]["sas"]
        assert after["desired"]["edgeferry"]["models"] == before["desired"]["edgeferry"]["models"]
        model = demo_models / "gauge" / "1.0.0" / "gauge-int8.tflite"
        await publish(site, azurite, container, model, "1.1.0")
        await deploy(site, azurite, container, "--model", "gauge", "--version", "1.1.0")
        reported = await wait_active(site, "1.1.0")
        assert reported["edgeferry"]["models"]["gauge"].get("error") is None
        log = device.process.log_path.read_text()
        assert log.count("RESOLVING -> DOWNLOADING") == 2
        assert "sig=" not in log
