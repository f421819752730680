"""What comes along in the bundle object is not fetched again: a real publisher, and the real verifier."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest
from tests.publish.desk import LABELS, make_desk, make_model, make_request, say_nothing

from agent.agent_world import World
from edgeferry.agent.machine import State
from edgeferry.agent.small_fetch import Fetch, SmallFetch
from edgeferry.app.manifests import TrustedManifests
from edgeferry.errors import LinkError
from edgeferry.link.policy import read_link_policy
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest, read_manifest_bytes
from edgeferry.publish.publisher import publish
from edgeferry.trust.bundle_object import get_bundle_path, make_bundle_object, read_bundle_object
from edgeferry.trust.signer import Desk
from polling import poll

BUNDLE = f"/repo/{get_bundle_path('gauge')}"
LABELS_PATH = f"/repo/{Digest.of(LABELS).blob_path}"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path / "desk")


@pytest.fixture
def site(world: World, desk: Desk) -> World:
    """A device that trusts the desk's root."""
    root = desk.keys.read_root()
    world.make_manifests = lambda fetcher: TrustedManifests(
        fetcher, world.repository.trust_folder, root, now=desk.now.timestamp
    )
    return world


def put(site: World, desk: Desk, version: str, **changes: object) -> Manifest:
    """Publishes a version, and has the origin serve what is published."""
    report = publish(make_request(version, **changes), desk, say=say_nothing)
    for prefix in ("metadata", "targets", "blobs"):
        for path in desk.store.list_paths(prefix):
            found = desk.store.find(path, 1 << 20)
            assert found is not None
            site.origin.files[f"/repo/{path}"] = found[0]
    path = f"/repo/targets/gauge/{version}/{Digest.from_str(report.manifest).hex}.manifest.json"
    data = site.manifests.known["gauge", version] = site.origin.files[path]
    return read_manifest_bytes(data)


def get_model_path(manifest: Manifest, kind: str) -> str:
    source = next(one for one in manifest.files[0].sources if one.kind == kind)
    return f"/repo/{Digest.from_str(source.blob).blob_path}"


async def deploy(site: World, version: str) -> list[str]:
    """Updates the device; what it asked for."""
    site.origin.requests.clear()
    site.deploy(version, model="gauge")
    await site.wait_state(State.ACTIVE, version=version, model="gauge")
    stored = site.activator.serving["gauge"]
    assert stored.version == version
    return [path for path, _ in site.origin.requests]


async def test_a_first_version_takes_two_gets_and_so_does_a_patch_with_other_labels(site: World, desk: Desk) -> None:
    first = put(site, desk, "1.0.0")
    async with site.run():
        assert await deploy(site, "1.0.0") == [BUNDLE, get_model_path(first, "full")]
        second = put(site, desk, "1.1.0", model_data=make_model(changed=40), labels_data=b"high\nlow\nodd\n")
        assert await deploy(site, "1.1.0") == [BUNDLE, get_model_path(second, "patch")]
        assert (site.activator.serving["gauge"].folder / "labels.txt").read_bytes() == b"high\nlow\nodd\n"
        assert site.list_leftovers() == []


async def test_new_labels_alone_take_nothing_beside_the_metadata(site: World, desk: Desk) -> None:
    put(site, desk, "1.0.0")
    async with site.run():
        await deploy(site, "1.0.0")
        put(site, desk, "1.1.0", labels_data=b"high\nlow\nodd\n")
        assert await deploy(site, "1.1.0") == [BUNDLE]


@pytest.mark.parametrize("labels", [None, b"high\nlow\nother\n"], ids=["not in the bundle", "damaged in the bundle"])
async def test_what_does_not_come_along_is_fetched(site: World, desk: Desk, labels: bytes | None) -> None:
    manifest = put(site, desk, "1.0.0")
    files = read_bundle_object(site.origin.files[BUNDLE])
    assert files.pop(Digest.of(LABELS).blob_path) == LABELS
    more = {Digest.of(LABELS).blob_path: labels} if labels else {}
    site.origin.files[BUNDLE] = make_bundle_object(files | more)
    async with site.run():
        assert await deploy(site, "1.0.0") == [BUNDLE, get_model_path(manifest, "full"), LABELS_PATH]
        assert (site.activator.serving["gauge"].folder / "labels.txt").read_bytes() == LABELS


async def test_what_no_file_of_the_version_is_is_not_kept(site: World, desk: Desk) -> None:
    put(site, desk, "1.0.0")
    files = read_bundle_object(site.origin.files[BUNDLE])
    site.origin.files[BUNDLE] = make_bundle_object(files | {Digest.of(b"stray").blob_path: b"stray"})
    async with site.run():
        await deploy(site, "1.0.0")
        assert not site.repository.has_blob(Digest.of(b"stray"))


# --- on a link that may not be used -----------------------------------------------------------------------------------
async def test_metadata_ends_with_its_window(site: World, desk: Desk) -> None:
    put(site, desk, "1.0.0")
    site.origin.block_delay_s = 1.0
    async with site.run() as agent:
        site.deploy("1.0.0", model="gauge")
        await poll(partial(has_asked, site, 1))
        began_s = time.monotonic()
        agent._parts.gate.policy, _ = read_link_policy({"windows": [{"cron": "0 0 1 1 *", "duration_s": 60}]})
        record = await site.wait_state(State.WAITING, model="gauge")
        assert record.fault is not None and record.fault.code == "window_closed"
        assert time.monotonic() - began_s < 1.0
    assert [path for path, _ in site.origin.requests] == [BUNDLE]


async def test_who_is_cut_off_asks_for_nothing_more(world: World) -> None:
    world.origin.files = {"/repo/a": bytes(30_000), "/repo/b": bytes(10)}
    world.origin.block_delay_s = 1.0

    def insist(fetch: Fetch) -> None:
        for path in "ab":
            try:
                fetch(path, 100_000)
            except LinkError:
                continue

    async with world.run() as agent:
        small = SmallFetch(agent._parts.fetcher, repo=f"{world.origin.url}/repo", sas="")
        working = asyncio.create_task(small.run(insist))
        await poll(partial(has_asked, world, 1))
        working.cancel()
        await asyncio.wait({working}, timeout=1.0)
        assert working.cancelled()
    assert [path for path, _ in world.origin.requests] == ["/repo/a"]


async def test_metadata_is_booked_as_it_comes(world: World) -> None:
    world.origin.files = {"/repo/a": bytes(300_000)}
    async with world.run() as agent:
        small = SmallFetch(agent._parts.fetcher, repo=f"{world.origin.url}/repo", sas="")
        await small.run(lambda fetch: fetch("a", 300_000))
        booked = await agent._parts.journal.get_ledger()
    assert sum(kinds["http"] for kinds in booked.values()) >= 300_000


async def has_asked(world: World, count: int) -> bool:
    return len(world.origin.requests) >= count
