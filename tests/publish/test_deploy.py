"""Deploying through a real hub's service REST; signatures opened by the servers they are for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.publish.desk import LABELS, SPEC, make_desk, make_model, make_request, say_nothing
from tests.publish.town import Town, open_town

from edgeferry.app import operator
from edgeferry.errors import ConfigInvalid, Conflict, HubRefused, NameInvalid, ObjectMissing
from edgeferry.model.digest import Digest
from edgeferry.publish import hub_service
from edgeferry.publish.deploy import Order, deploy, make_deploy_patch, make_renewal_patch, parse_device
from edgeferry.publish.hub_service import HubService, is_part_of
from edgeferry.publish.publisher import publish
from edgeferry.publish.report import PublishReport
from edgeferry.storage.blob_sas import make_container_sas
from edgeferry.transport.http import HttpSettings, open_http
from edgeferry.twin.contract import read_desired
from edgeferry.wire.iothub_auth import parse_connection_string
from edgeferry.wire.service_api import Identity
from fixtures_azurite import ACCOUNT, KEY, Azurite

DIGEST = Digest.of(b"a manifest")
ORDER = Order("gauge", "1.0.0", DIGEST, "https://host/files", "sig=1")


# --- patches, pure ----------------------------------------------------------------------------------------------------
def merge(document: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for name, value in patch.items():
        if isinstance(value, Mapping):
            merged[name] = merge(merged.get(name) or {}, value)
        elif value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged


def test_a_device_reads_what_was_ordered() -> None:
    desired = read_desired(merge({"$version": 4}, make_deploy_patch(ORDER, {})))
    [model] = desired.models
    assert (model.model, model.version, model.manifest, model.try_) == ("gauge", "1.0.0", DIGEST, 1)
    assert (desired.repo, desired.sas, desired.problems) == ("https://host/files", "sig=1", ())


def test_other_models_and_priorities_stay() -> None:
    old = {"edgeferry": {"models": {"other": {"version": "3"}, "gauge": {"version": "0.9", "priority": 7, "try": 5}}}}
    models = merge(old, make_deploy_patch(ORDER, old))["edgeferry"]["models"]
    assert models["other"] == {"version": "3"}
    assert (models["gauge"]["priority"], models["gauge"]["try"]) == (7, 1)


def test_the_same_order_again_changes_nothing_but_again_gives_another_try() -> None:
    document = merge({}, make_deploy_patch(ORDER, {}))
    assert is_part_of(make_deploy_patch(ORDER, document), document)
    again = Order("gauge", "1.0.0", DIGEST, "https://host/files", "sig=1", again=True)
    assert make_deploy_patch(again, document)["edgeferry"]["models"]["gauge"]["try"] == 2


@pytest.mark.parametrize(
    "old", [{"edgeferry": "text"}, {"edgeferry": {"models": [1]}}, {"edgeferry": {"models": {"gauge": {"try": "x"}}}}]
)
def test_nonsense_in_the_twin_is_written_over(old: dict[str, Any]) -> None:
    assert make_deploy_patch(ORDER, old)["edgeferry"]["models"]["gauge"]["try"] == 1


def test_renewing_changes_the_sas_and_nothing_else() -> None:
    old = {"edgeferry": {"repo": "https://host/files", "sas": "sig=0"}, "DownloadUrl": "https://host/files/a.zip?sig=0"}
    patch = make_renewal_patch(lambda url: f"sig=new-for-{url[-1]}", old)
    assert patch == {"edgeferry": {"sas": "sig=new-for-s"}, "DownloadUrl": "https://host/files/a.zip?sig=new-for-p"}
    with pytest.raises(ConfigInvalid, match="nothing to renew"):
        make_renewal_patch(lambda url: "", old)


def test_a_twin_under_1_kb_for_one_model() -> None:
    assert (
        len(str(make_deploy_patch(Order("m" * 63, "1.10.100", DIGEST, "https://hub.example.com:8443/files"), {})))
        < 1024
    )


@pytest.mark.parametrize("text", ["", "a/b/c", "a/", "a b", "/m"])
def test_a_device_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(NameInvalid):
        parse_device(text)


# --- a real hub -------------------------------------------------------------------------------------------------------
@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with open_town(tmp_path) as found:
        yield found


async def test_a_deployment_stands_in_the_twin_and_its_sas_opens_the_repository(town: Town) -> None:
    outcome = await operator.deploy_version(town.make_terms(devices=("d/m", "d")))
    assert [(one.device, one.changed) for one in outcome.devices] == [("d/m", True), ("d", True)]
    desired = read_desired(await town.read_desired())
    assert str(desired.models[0].manifest) == town.report.manifest
    status, data = await town.fetch(f"{desired.repo}/metadata/timestamp.json?{desired.sas}")
    assert (status, data[:1]) == (200, b"{")
    assert (await town.fetch(f"{desired.repo}/metadata/timestamp.json"))[0] == 403


async def test_a_classic_deployment_sets_the_three_fields(town: Town) -> None:
    await operator.deploy_version(town.make_terms(classic=True))
    desired = await town.read_desired()
    status, data = await town.fetch(desired["DownloadUrl"])
    assert status == 200
    assert desired["FileName"] == "gauge-1.0.0.zip"
    assert desired["ContentMD5"] == base64.b64encode(hashlib.md5(data).digest()).decode() == town.report.classic.md5
    assert "edgeferry" not in desired


async def test_renewing_the_sas_changes_only_it(town: Town) -> None:
    await operator.deploy_version(town.make_terms(sas_life_s=100))
    await operator.deploy_version(town.make_terms(sas_life_s=100, classic=True))
    before = await town.read_desired()
    await operator.renew_sas(town.make_terms(sas_life_s=1000, model="", version="", repo=""))
    after = await town.read_desired()
    assert after["edgeferry"]["sas"] != before["edgeferry"]["sas"]
    assert (await town.fetch(after["DownloadUrl"]))[0] == 200
    for document in (before, after):
        document["edgeferry"].pop("sas")
        document["DownloadUrl"] = document["DownloadUrl"].partition("?")[0]
        del document["$version"], document["$metadata"]
    assert before == after


async def test_a_sas_of_the_operators_own_is_taken_as_it_is(town: Town) -> None:
    await operator.deploy_version(town.make_terms(sas="?sv=1&sig=mine", site=str(town.folder / "repo")))
    assert (await town.read_desired())["edgeferry"]["sas"] == "sv=1&sig=mine"


async def test_one_unknown_device_does_not_keep_others_from_being_told(town: Town) -> None:
    outcome = await operator.deploy_version(town.make_terms(devices=("nobody", "d/m")))
    assert isinstance(outcome.error, ConfigInvalid)
    assert [bool(one.error) for one in outcome.devices] == [True, False]
    assert "edgeferry" in await town.read_desired()


async def test_a_version_that_is_not_published_is_not_deployed(town: Town) -> None:
    with pytest.raises(ObjectMissing, match=r"1\.0\.0"):
        await operator.deploy_version(town.make_terms(version="9.9.9"))
    assert "edgeferry" not in await town.read_desired()


# --- what devices run -------------------------------------------------------------------------------------------------
async def test_the_hub_counts_what_devices_and_modules_run_over_many_pages(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_service, "PAGE_ROWS", 2)
    for number in range(5):
        await town.hub.add_module(f"d{number}", "m")
        await town.report_active(Identity(f"d{number}", "m"), {"gauge": "1.0.0" if number else "0.9", "my-model": "7"})
    await town.report_active(Identity("d"), {"gauge": "1.0.0"})
    await town.report_active(Identity("d", "m"), {"other": "3"})
    async with open_http(HttpSettings(ca_pem=town.hub.ca_pem_path.read_bytes())) as http:
        service = HubService(http, parse_connection_string(town.hub.service_connection_string), time.time)
        assert await service.count_active("gauge") == {"1.0.0": 5, "0.9": 1}
        assert await service.count_active("my-model") == {"7": 5}
        assert await service.count_active("nobody-has-it") == {}


async def publish_with_hub(town: Town, version: str, model: bytes, **changes: Any) -> tuple[PublishReport, list[str]]:
    """`publish` as the command does it."""
    folder = town.folder / version
    folder.mkdir()
    for name, data in (("gauge.onnx", model), ("labels.txt", LABELS), ("spec.toml", SPEC.encode())):
        (folder / name).write_bytes(data)
    terms: dict[str, Any] = {"hub": town.hub.service_connection_string, "ca_file": town.hub.ca_pem_path} | changes
    files = operator.PublishFiles(
        folder / "gauge.onnx",
        "gauge",
        version,
        labels=folder / "labels.txt",
        spec=folder / "spec.toml",
        **terms,
    )
    said: list[str] = []
    place = operator.Place(str(town.folder / "repo"), town.folder / "keys", {})
    return await asyncio.to_thread(operator.publish_files, files, place, say=said.append), said


async def test_patches_are_made_from_what_the_hub_says_that_devices_run(town: Town) -> None:
    first, _ = await publish_with_hub(town, "1.1.0", make_model(changed=40))
    assert [patch.base for patch in first.patches] == ["1.0.0"], "nobody reports anything: the last versions"
    await town.report_active(Identity("d", "m"), {"gauge": "1.0.0"})
    report, said = await publish_with_hub(town, "1.2.0", make_model(changed=400))
    assert [patch.base for patch in report.patches] == ["1.0.0"]
    assert not any("hub" in line for line in said)
    named, _ = await publish_with_hub(town, "1.3.0", make_model(changed=500), bases=("1.2.0",))
    assert [patch.base for patch in named.patches] == ["1.2.0"]


async def test_a_hub_that_does_not_answer_stops_no_publishing_and_is_said(town: Town) -> None:
    key = base64.b64encode(bytes(32)).decode()
    nobody = "HostName=127.0.0.1:1;SharedAccessKeyName=service;SharedAccessKey=" + key
    wrong = re.sub("SharedAccessKey=.*", f"SharedAccessKey={key}", town.hub.service_connection_string)
    for number, hub in enumerate((nobody, wrong)):
        report, said = await publish_with_hub(town, f"1.{number + 1}.0", make_model(changed=90 + number), hub=hub)
        assert report.patches
        assert any("the hub does not tell" in line for line in said)
        assert not any(key in line for line in said)


async def test_a_devices_connection_string_is_refused_before_anything_is_published(town: Town) -> None:
    connection = await town.hub.add_module("d7", "m")
    with pytest.raises(ConfigInvalid, match="service policy"):
        await publish_with_hub(town, "1.1.0", make_model(changed=9), hub=connection)


async def test_a_wrong_key_is_refused_and_not_shown(town: Town) -> None:
    text = town.hub.service_connection_string
    key = base64.b64encode(bytes(32)).decode()
    wrong = text[: text.index("SharedAccessKey=")] + f"SharedAccessKey={key}"
    outcome = await operator.deploy_version(town.make_terms(hub=wrong, site=str(town.folder / "repo")))
    assert isinstance(outcome.error, HubRefused)
    assert key not in str(outcome.error)


async def test_a_devices_connection_string_is_no_right_to_deploy(town: Town) -> None:
    with pytest.raises(ConfigInvalid, match="service policy"):
        await operator.deploy_version(town.make_terms(hub=f"HostName=h;DeviceId=d;SharedAccessKey={KEY}"))


async def test_who_is_overtaken_reads_again_and_loses_nothing(town: Town) -> None:
    async with open_http(HttpSettings(ca_pem=town.hub.ca_pem_path.read_bytes())) as http:
        service = HubService(http, parse_connection_string(town.hub.service_connection_string), time.time)
        orders = [Order(f"model-{number}", "1", DIGEST, "https://host") for number in range(4)]

        async def tell(order: Order) -> None:
            outcome = await deploy(service, ["d/m"], make_patch=lambda desired: make_deploy_patch(order, desired))
            assert outcome.error is None

        await asyncio.gather(*map(tell, orders))
    assert len((await town.read_desired())["edgeferry"]["models"]) == 4


async def test_who_is_overtaken_every_time_gives_up(town: Town) -> None:
    async with open_http(HttpSettings(ca_pem=town.hub.ca_pem_path.read_bytes())) as http:
        service = HubService(http, parse_connection_string(town.hub.service_connection_string), time.time)
        calls = 0

        def hurry(desired: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal calls
            calls += 1
            return {"mine": calls}

        async def fetch_stale(identity: Identity) -> dict[str, Any]:
            return {"etag": "stale", "properties": {"desired": {}}}

        service_with_old_eyes = _StaleService(service, fetch_stale)
        with pytest.raises(Conflict):
            await HubService.change_desired(service_with_old_eyes, Identity("d", "m"), hurry)  # type: ignore[arg-type]
    assert calls == 5


class _StaleService:
    """A service whose reads are always late."""

    def __init__(self, service: HubService, fetch: Any) -> None:
        self._service, self.fetch_twin = service, fetch

    async def _patch(self, *arguments: Any) -> bool:
        return await self._service._patch(*arguments)


# --- signatures for Azure ---------------------------------------------------------------------------------------------
def get_status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.needs_azurite
def test_a_container_sas_opens_every_blob_for_reading_until_it_expires(azurite: Azurite, tmp_path: Path) -> None:
    url = azurite.make_container()
    publish(make_request(), make_desk(tmp_path, url, azurite.environ), say=say_nothing)
    container = url.rsplit("/", 1)[1]
    now = int(time.time())
    good, expired = (
        make_container_sas(ACCOUNT, container, key_base64=KEY, expires_at=now + life) for life in (60, -60)
    )
    for path in ("metadata/timestamp.json", "classic/gauge-1.0.0.zip"):
        assert get_status(f"{url}/{path}?{good}") == 200
        assert get_status(f"{url}/{path}?{expired}") == 403
        assert get_status(f"{url}/{path}?{good.replace('sp=r', 'sp=rw')}") == 403
    other = azurite.make_container()
    assert get_status(f"{other}/metadata/timestamp.json?{good}") == 403


@pytest.mark.needs_azurite
async def test_a_repository_in_azure_is_deployed_with_its_sas(town: Town, azurite: Azurite, tmp_path: Path) -> None:
    url = azurite.make_container()
    report = await asyncio.to_thread(
        publish,
        make_request(model_data=make_model(5)),
        make_desk(tmp_path / "az", url, azurite.environ),
        say=say_nothing,
    )
    await operator.deploy_version(town.make_terms(repo=url, environ=azurite.environ))
    desired = read_desired(await town.read_desired())
    assert str(desired.models[0].manifest) == report.manifest
    assert await asyncio.to_thread(get_status, f"{url}/metadata/timestamp.json?{desired.sas}") == 200
