"""A repository in S3: published, refreshed and deployed from there, fetched by devices from a public bucket.

A device knows a URL and a query that opens it. S3 has no query that opens a whole bucket (a presigned URL opens one
object), so devices read public buckets, or a server of the operator's in front of a private one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.publish.desk import make_desk, make_model, make_request, say_nothing

from edgeferry.agent.fetch import Fetcher
from edgeferry.agent.gate import HTTP, Gate
from edgeferry.agent.ledger import Ledger
from edgeferry.app import operator
from edgeferry.app.hub import HubSettings, RunningHub, open_hub
from edgeferry.app.manifests import TrustedManifests
from edgeferry.app.operator import DeployTerms
from edgeferry.delta.apply import decode_full
from edgeferry.errors import AccessDenied, Conflict
from edgeferry.link.policy import LinkPolicy
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest, read_manifest_bytes
from edgeferry.publish.publisher import publish
from edgeferry.storage.journal import open_journal
from edgeferry.transport.http import open_http
from edgeferry.trust.draft import open_draft
from edgeferry.trust.signer import Desk, NewVersion, add_manifest, commit, refresh
from edgeferry.twin.contract import Desired, read_desired
from edgeferry.wire.service_api import Identity
from fixtures_s3 import S3

pytestmark = pytest.mark.needs_s3


@dataclass
class Bucket:
    """A bucket that holds one repository, and the desk from which it is signed."""

    s3: S3
    name: str
    desk: Desk
    folder: Path

    @property
    def url(self) -> str:
        """The repository as devices reach it."""
        return f"{self.s3.url}/{self.name}/site"

    async def publish(self, version: str = "1.0.0", seed: int = 1) -> str:
        """Publishes a version; returns its manifest's digest."""
        request = make_request(version, model_data=make_model(seed))
        return (await asyncio.to_thread(publish, request, self.desk, say=say_nothing)).manifest

    async def fetch(self, version: str, manifest: str, *, sas: str = "") -> Manifest:
        """What a device does: the manifest, verified."""
        async with open_http() as http, open_journal(self.folder / "journal.db") as journal:
            root, trust = self.desk.keys.read_root(), self.folder / "trust"
            gate = Gate(Ledger(journal, {HTTP: lambda: 0}), policy=LinkPolicy(), now=time.time, find_interface=str)
            source = TrustedManifests(Fetcher(http, gate), trust, root, now=self.desk.now.timestamp)
            digest = Digest.from_str(manifest)
            found = await source.fetch_manifests("gauge", version, digest, repo=self.url, sas=sas)
            return read_manifest_bytes(found.manifest)

    async def fetch_file(self, manifest: Manifest, path: str) -> bytes:
        """A file of the version, decoded."""
        entry = next(entry for entry in manifest.files if entry.path == path)
        source = next(source for source in entry.sources if source.kind == "full")
        async with open_http() as http:
            answer = await http.fetch(f"{self.url}/{Digest.from_str(source.blob).blob_path}", max_bytes=10 << 20)
        decoded = bytearray(entry.size)
        decode_full(answer.body, source.codec, memoryview(decoded))
        return bytes(decoded)


def make_bucket(s3: S3, folder: Path, *, public: bool) -> Bucket:
    name = s3.make_bucket(public=public)
    return Bucket(s3, name, make_desk(folder, f"s3://{name}/site", s3.environ), folder)


@pytest.fixture
def bucket(s3: S3, tmp_path: Path) -> Bucket:
    return make_bucket(s3, tmp_path, public=True)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[RunningHub]:
    async with open_hub(HubSettings(tmp_path / "hub", mqtt_port=0, https_port=0)) as running:
        await running.add_module("d", "m")
        yield running


async def deploy(hub: RunningHub, bucket: Bucket, version: str) -> Desired:
    """Deploys through the hub, reading the repository as devices do; returns what the device is then asked for."""
    terms = DeployTerms(
        devices=("d/m",),
        hub=hub.service_connection_string,
        environ={},
        model="gauge",
        version=version,
        repo=bucket.url,
        ca_file=hub.ca_pem_path,
    )
    outcome = await operator.deploy_version(terms)
    assert outcome.error is None
    twin = (await hub.rooms.twins.read(Identity("d", "m"))).twin
    return read_desired({**twin.desired.body, "$version": twin.desired.version})


async def test_versions_published_before_and_after_a_refresh_reach_a_device(bucket: Bucket) -> None:
    first = await bucket.publish()
    manifest = await bucket.fetch("1.0.0", first)
    assert await bucket.fetch_file(manifest, "gauge.onnx") == make_model()
    later = replace(bucket.desk, now=bucket.desk.now + timedelta(days=40))
    before = open_draft(later.store, later.keys).timestamp.signed
    refreshed = (await asyncio.to_thread(refresh, later)).timestamp.signed
    assert refreshed.version == before.version + 1
    assert refreshed.expires - before.expires == timedelta(days=40)
    bucket.desk = later
    second = await bucket.publish("1.1.0", seed=2)
    manifest = await bucket.fetch("1.1.0", second)
    assert await bucket.fetch_file(manifest, "gauge.onnx") == make_model(2)
    assert (await bucket.fetch("1.0.0", first)).version == "1.0.0"


async def test_of_two_publishers_at_once_one_is_a_conflict_and_its_second_try_holds(bucket: Bucket) -> None:
    first = await bucket.publish()
    desk, data = bucket.desk, bucket.desk.store.find(f"targets/gauge/1.0.0/{first[7:]}.manifest.json", 1 << 20)
    assert data is not None
    slow = open_draft(desk.store, desk.keys)
    await bucket.publish("1.1.0", seed=2)
    add_manifest(slow, NewVersion("gauge", "1.2.0", data[0].replace(b'"1.0.0"', b'"1.2.0"')), desk=desk)
    with pytest.raises(Conflict):
        await asyncio.to_thread(commit, slow, desk)
    await bucket.fetch("1.0.0", first)
    third = await bucket.publish("1.2.0", seed=3)
    assert (await bucket.fetch("1.2.0", third)).version == "1.2.0"
    versions = [one.version for one in open_draft(desk.store, desk.keys).list_versions("gauge")]
    assert versions == ["1.0.0", "1.1.0", "1.2.0"]


async def test_a_device_is_told_and_fetches_from_a_public_bucket_over_plain_http(
    bucket: Bucket, hub: RunningHub
) -> None:
    published = await bucket.publish()
    desired = await deploy(hub, bucket, "1.0.0")
    assert (desired.repo, desired.sas, desired.problems) == (bucket.url, "", ())
    [model] = desired.models
    assert str(model.manifest) == published
    manifest = await bucket.fetch(model.version, str(model.manifest), sas=desired.sas)
    assert await bucket.fetch_file(manifest, "labels.txt") == b"high\nlow\nnormal\n"


async def test_a_bucket_that_denies_what_it_does_not_have_is_read_all_the_same(bucket: Bucket, hub: RunningHub) -> None:
    published = await bucket.publish()
    missing = ("Deny", "site/metadata/2.root.json"), ("Deny", "site/metadata/gauge.bundle.zst")
    bucket.s3.set_policy(bucket.name, ("Allow", "*"), *missing)
    assert (await deploy(hub, bucket, "1.0.0")).repo == bucket.url
    assert (await bucket.fetch("1.0.0", published)).version == "1.0.0"


async def test_a_private_bucket_opens_to_the_operator_and_not_to_devices(s3: S3, tmp_path: Path) -> None:
    private = make_bucket(s3, tmp_path, public=False)
    published = await private.publish()
    with pytest.raises(AccessDenied):
        await private.fetch("1.0.0", published)
