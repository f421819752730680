"""Whole updates from bell to report: the good way, newer versions, roll back, cancel, classic fields, roles."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from dataclasses import replace

import pytest

from agent.agent_world import World, make_zip
from edgeferry.agent.machine import State
from edgeferry.errors import GoldenMismatch, ModelCrashed, ModelUnreadable
from edgeferry.model.digest import Digest
from polling import poll


async def test_a_signed_version_is_fetched_proven_switched_announced_and_reported(world: World) -> None:
    manifest = world.publish("1.0.0", codec="zstd")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        stored = world.activator.serving["detector"]
        assert stored.identity == str(Digest.of(world.manifests.known["detector", "1.0.0"]))
        assert [Digest.of((stored.folder / one.path).read_bytes()) for one in manifest.files] == [
            Digest.from_str(one.sha256) for one in manifest.files
        ]
        assert stored.golden[0].path.read_bytes() == b"a golden picture"
        report = await poll(lambda: find_report(world, "ACTIVE"))
        assert report["active"] == report["target"] == "1.0.0"
        assert world.hub.reported["edgeferry"]["observed"] == world.hub.desired["$version"]
        [(output, body, _)] = world.hub.outputs
        assert output == "DLModelOutput"
        paths = json.loads(body)
        assert (world.root / paths["local_model_path"]).is_file()
        assert (world.root / paths["local_labelmap_path"]).is_file()
        assert world.list_leftovers() == []


async def find_report(world: World, state: str, model: str = "detector") -> dict[str, object] | None:
    found = world.hub.reported.get("edgeferry", {}).get("models", {}).get(model)
    return found if found and found["state"] == state else None


async def test_a_renewed_sas_wakes_a_download_that_was_refused_and_fetches_nothing_twice(world: World) -> None:
    world.publish("1.0.0", size=200_000)
    world.origin.sas = "sv=new"
    async with world.run():
        world.deploy("1.0.0", sas="sv=old")
        record = await world.wait_state(State.WAITING)
        assert record.fault is not None
        assert record.fault.code == "access_denied"
        world.hub.desire(edgeferry={"sas": "sv=new"})
        await world.wait_state(State.ACTIVE)
        assert world.activator.switched == ["1.0.0"]
        assert len(world.manifests.calls) == 1


async def test_a_sas_that_is_renewed_while_the_download_runs_is_used_when_the_old_one_ends(world: World) -> None:
    world.publish("1.0.0", size=200_000)
    world.origin.block_delay_s = 0.01
    world.origin.cut_after.append(100_000)
    world.origin.sas = "sv=old"
    async with world.run():
        world.deploy("1.0.0", sas="sv=old")
        await world.wait_state(State.DOWNLOADING)
        await poll(lambda: has_sent(world, 20_000))
        world.origin.sas = "sv=new"
        world.hub.desire(edgeferry={"sas": "sv=new"})
        await world.wait_state(State.ACTIVE)
        assert world.origin.sent_bytes < 230_000


async def has_sent(world: World, size: int) -> bool:
    return world.origin.sent_bytes >= size


async def test_a_right_that_was_refused_is_not_asked_for_again_and_again(world: World) -> None:
    world.publish("1.0.0")
    world.origin.sas = "sv=other"
    async with world.run():
        world.deploy("1.0.0", sas="sv=old")
        await world.wait_state(State.WAITING)
        await asyncio.sleep(0.3)
        assert len(world.origin.requests) == 1


async def test_only_the_golden_picture_that_is_new_is_fetched(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE, version="1.0.0")
        world.origin.requests.clear()
        world.deploy("1.1.0")
        await world.wait_state(State.ACTIVE, version="1.1.0")
        assert len(world.origin.requests) == 1, "labels and picture are here already"
        assert world.repository.read_ref("detector", "previous").version == "1.0.0"  # type: ignore[union-attr]


async def test_a_newer_version_supersedes_a_download_and_leaves_nothing(world: World) -> None:
    world.publish("1.0.0", size=400_000)
    world.publish("1.1.0")
    world.origin.block_delay_s = 0.02
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.DOWNLOADING)
        await asyncio.sleep(0.1)
        world.deploy("1.1.0")
        await world.wait_state(State.ACTIVE, version="1.1.0")
        assert world.activator.proven == ["1.1.0"]
        assert world.list_leftovers() == []


async def test_a_version_that_was_withdrawn_is_not_fetched_any_further_and_the_active_one_stays(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0", size=400_000)
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE, version="1.0.0")
        world.origin.block_delay_s = 0.02
        world.deploy("1.1.0")
        await world.wait_state(State.DOWNLOADING, version="1.1.0")
        world.hub.desire(edgeferry=None)
        await world.wait_state(State.ACTIVE, version="1.0.0")
        assert world.activator.switched == ["1.0.0"]
        assert world.list_leftovers() == []


async def test_a_newer_version_waits_until_probation_has_ended(world: World) -> None:
    world.settings = replace(world.settings, probation_s=1.0, probation_requests=5)
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.PROBATION)
        world.deploy("1.1.0")
        await asyncio.sleep(0.2)
        assert world.activator.proven == ["1.0.0"]
        world.activator.answered = 5
        await world.wait_state(State.PROBATION, version="1.1.0")


@pytest.mark.parametrize("error", [GoldenMismatch("found 1 of 4"), ModelUnreadable("no"), ModelCrashed("died")])
async def test_a_model_that_is_not_proven_is_rejected_and_the_old_one_serves_on(world: World, error: Exception) -> None:
    world.publish("1.0.0")
    world.publish("1.3.0-bad")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.activator.failures["prove"].append(error)
        world.deploy("1.3.0-bad")
        record = await world.wait_state(State.REJECTED, version="1.3.0-bad")
        assert record.fault is not None
        assert record.fault.code == error.code  # type: ignore[attr-defined]
        assert world.activator.serving["detector"].version == "1.0.0"
        report = await poll(lambda: find_report(world, "REJECTED"))
        assert report["active"] == "1.0.0"
        assert report["error"]["code"] == error.code  # type: ignore[attr-defined]
        await poll(lambda: is_gone(world, "1.3.0-bad"))
        assert world.list_leftovers() == []


async def is_gone(world: World, version: str) -> bool:
    return world.repository.find_version("detector", version) is None


async def test_a_rejected_version_is_tried_again_only_when_try_rises(world: World) -> None:
    world.publish("1.0.0")
    world.activator.failures["prove"].append(GoldenMismatch("no"))
    async with world.run(fresh_activator=False):
        world.deploy("1.0.0")
        await world.wait_state(State.REJECTED)
        world.deploy("1.0.0", priority=3)
        await asyncio.sleep(0.2)
        assert world.get_record().state is State.REJECTED  # type: ignore[union-attr]
        world.deploy("1.0.0", **{"try": 2})
        await world.wait_state(State.ACTIVE)


async def test_deaths_on_probation_roll_back_without_a_byte(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.settings = replace(world.settings, probation_s=30.0)
    async with world.run():
        world.deploy("1.1.0")
        await world.wait_state(State.PROBATION, version="1.1.0")
        sent = world.origin.sent_bytes
        world.activator.deaths = 2
        record = await world.wait_state(State.ROLLED_BACK, version="1.1.0")
        assert record.fault is not None
        assert record.fault.code == "model_crashed"
        assert world.activator.serving["detector"].version == "1.0.0"
        assert world.repository.read_ref("detector", "active").version == "1.0.0"  # type: ignore[union-attr]
        assert world.origin.sent_bytes == sent


async def test_an_operator_rolls_back_and_the_digest_stays_away_until_try_rises(world: World) -> None:
    world.publish("1.0.0")
    world.publish("1.1.0")
    async with world.run() as agent:
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        assert (await agent.run_command("rollback", None))[0] == 409
        world.deploy("1.1.0")
        await world.wait_state(State.ACTIVE, version="1.1.0")
        world.hub.call("rollback", {"model": "detector"}, rid="7")
        await world.wait_state(State.ROLLED_BACK, version="1.1.0")
        assert world.activator.serving["detector"].version == "1.0.0"
        assert world.hub.answers == [("7", 202, {"ok": True, "model": "detector"})]
        world.deploy("1.1.0", priority=1)
        await asyncio.sleep(0.1)
        assert world.activator.serving["detector"].version == "1.0.0"
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE, version="1.0.0")
        assert world.activator.switched == ["1.0.0", "1.1.0", "1.0.0"]
        world.deploy("1.1.0", **{"try": 2})
        await world.wait_state(State.ACTIVE, version="1.1.0")


async def test_an_older_version_that_was_superseded_can_be_asked_for_again(world: World) -> None:
    for version in ("1.0.0", "1.1.0"):
        world.publish(version)
    async with world.run():
        for version in ("1.0.0", "1.1.0", "1.0.0"):
            world.deploy(version)
            await world.wait_state(State.ACTIVE, version=version)
        assert world.activator.switched == ["1.0.0", "1.1.0", "1.0.0"]
        assert len({mid for _, _, mid in world.hub.outputs}) == 3


def get_reported_state(world: World) -> str:
    """What the twin says of the detector; "" while nothing was reported yet."""
    models = world.hub.reported.get("edgeferry", {}).get("models", {})
    return str(models.get("detector", {}).get("state", ""))


async def test_the_twin_says_what_is_active_after_a_turn_back_even_if_tidying_up_took_its_time(world: World) -> None:
    for version in ("1.0.0", "1.1.0"):
        world.publish(version, size=400_000)

    async def discard_slowly(model: str) -> None:
        await asyncio.sleep(0.4)  # longer than reports are held back: SUPERSEDED alone is reported first

    async with world.run():
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        world.activator.discard = discard_slowly  # type: ignore[method-assign]
        world.origin.block_delay_s = 0.02
        world.deploy("1.1.0")
        await world.wait_state(State.DOWNLOADING, version="1.1.0")
        world.deploy("1.0.0")
        for state in ("SUPERSEDED", "ACTIVE"):
            async with asyncio.timeout(10):
                while get_reported_state(world) != state:
                    await asyncio.sleep(0.01)
        assert world.hub.reported["edgeferry"]["models"]["detector"]["target"] == "1.0.0"


async def test_a_cancelled_update_stays_away_and_a_switch_cannot_be_cancelled(world: World) -> None:
    world.publish("1.0.0", size=400_000)
    world.origin.block_delay_s = 0.02
    async with world.run() as agent:
        world.deploy("1.0.0")
        await world.wait_state(State.DOWNLOADING)
        assert (await agent.run_command("cancel", {"model": "detector"}))[0] == 202
        record = await world.wait_state(State.SUPERSEDED)
        assert record.fault is not None
        assert record.fault.code == "cancelled"
        await agent.run_command("reload", None)
        await asyncio.sleep(0.1)
        assert world.get_record().state is State.SUPERSEDED  # type: ignore[union-attr]
        assert world.list_leftovers() == []
        world.origin.block_delay_s = 0
        world.deploy("1.0.0", **{"try": 2})
        await world.wait_state(State.ACTIVE)
        assert (await agent.run_command("cancel", None))[0] == 409
        assert (await agent.run_command("cancel", {"model": "nobody"}))[0] == 404
        assert (await agent.run_command("shout", None))[0] == 404


async def test_two_models_at_once_each_end_active(world: World) -> None:
    world.publish("1.0.0", model="detector")
    world.publish("2.0.0", model="gauge")
    async with world.run():
        world.deploy("1.0.0", model="detector")
        world.deploy("2.0.0", model="gauge")
        await world.wait_state(State.ACTIVE, model="detector")
        await world.wait_state(State.ACTIVE, model="gauge")
        assert set(world.activator.serving) == {"detector", "gauge"}


# --- classic ----------------------------------------------------------------------------------------------------------
async def test_a_classic_bundle_is_unpacked_served_and_announced(world: World, classic_zip: bytes) -> None:
    async with world.run():
        world.deploy_classic("gauge 1.0.zip", classic_zip)
        await world.wait_state(State.ACTIVE, model="default")
        [(_, body, _)] = world.hub.outputs
        assert json.loads(body) == {
            "local_model_path": "gauge 1.0/gauge.onnx",
            "local_labelmap_path": "gauge 1.0/labels.txt",
        }
        assert sorted(path.name for path in (world.root / "gauge 1.0").iterdir()) == ["gauge.onnx", "labels.txt"]
        assert world.list_leftovers() == ["gauge 1.0"]
        await poll(lambda: has_latest(world, "gauge 1.0.zip"))


async def has_latest(world: World, name: str) -> bool:
    return world.hub.reported.get("LatestAIModelFileName") == name


async def test_the_same_file_name_with_other_content_is_another_update(world: World, classic_zip: bytes) -> None:
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip)
        first = await world.wait_state(State.ACTIVE, model="default")
        other = make_zip({**unzip(classic_zip), "LICENSE.txt": b"free"})
        world.deploy_classic("gauge.zip", other)
        await poll(lambda: is_served(world, f"not {first.version}"))
        await world.wait_state(State.ACTIVE, model="default")
        assert (world.root / "gauge" / "LICENSE.txt").read_bytes() == b"free"


async def is_served(world: World, wanted: str) -> bool:
    return world.activator.serving["default"].version != wanted.removeprefix("not ")


def unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


async def test_a_renewed_signature_in_the_url_is_the_same_classic_update(world: World, classic_zip: bytes) -> None:
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip)
        await world.wait_state(State.ACTIVE, model="default")
        world.origin.requests.clear()
        world.hub.desire(DownloadUrl=f"{world.origin.url}/gauge.zip?sig=renewed")
        await asyncio.sleep(0.2)
        assert world.origin.requests == []
        assert world.get_record("default").state is State.ACTIVE  # type: ignore[union-attr]


async def test_a_wrong_md5_is_fetched_once_more_then_rejected_and_leaves_nothing(
    world: World, classic_zip: bytes
) -> None:
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip, md5="AAAAAAAAAAAAAAAAAAAAAA==")
        record = await world.wait_state(State.REJECTED, model="default")
        assert record.fault is not None
        assert record.fault.code == "digest_mismatch"
        assert len(world.origin.requests) == 2
        assert world.activator.proven == []
        await poll(lambda: is_clean(world))


async def is_clean(world: World) -> bool:
    return world.list_leftovers() == []


@pytest.mark.parametrize("broken", ["../evil.onnx", "/abs.onnx", "folder/model.onnx"])
async def test_a_bundle_that_reaches_out_is_rejected_and_leaves_nothing(world: World, broken: str) -> None:
    async with world.run():
        world.deploy_classic("bad.zip", make_zip({broken: b"x"}))
        record = await world.wait_state(State.REJECTED, model="default")
        assert record.fault is not None
        assert record.fault.code == "bundle_unsafe"
        await poll(lambda: is_clean(world))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"PK\x03\x04 not really", "bundle_unreadable"),
        (b"", "bundle_unreadable"),
        (make_zip({"readme.txt": b"no model"}), "bundle_incomplete"),
        (make_zip({"model.onnx": b"not a model at all"}), "model_unreadable"),
    ],
)
async def test_what_is_no_bundle_is_rejected_by_name_and_leaves_nothing(world: World, data: bytes, code: str) -> None:
    async with world.run():
        world.deploy_classic("bad.zip", data)
        record = await world.wait_state(State.REJECTED, model="default")
        assert record.fault is not None
        assert record.fault.code == code
        await poll(lambda: is_clean(world))
        assert "bad" not in [path.name for path in world.root.iterdir()]


async def test_a_portals_page_is_no_verdict(world: World, classic_zip: bytes) -> None:
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip)
        world.origin.files["/gauge.zip"] = b"<!DOCTYPE html><html>please log in</html>"
        record = await world.wait_state(State.WAITING, model="default")
        assert record.fault is not None
        assert record.fault.code == "captive_portal"
        world.origin.files["/gauge.zip"] = classic_zip
        await world.wait_state(State.ACTIVE, model="default")


@pytest.mark.parametrize("theirs", ["shared/data.bin", "shared.zip"])
async def test_what_others_keep_in_the_storage_is_never_replaced(world: World, classic_zip: bytes, theirs: str) -> None:
    (world.root / theirs).parent.mkdir(parents=True)
    (world.root / theirs).write_bytes(b"theirs")
    async with world.run():
        world.deploy_classic("shared.zip", classic_zip)
        record = await world.wait_state(State.REJECTED, model="default")
        assert record.fault is not None
        assert record.fault.code == "name_invalid"
        assert world.origin.requests == []
        await asyncio.sleep(0.05)
        assert (world.root / theirs).read_bytes() == b"theirs"


async def test_a_name_that_we_took_is_given_back_when_its_version_goes(world: World, classic_zip: bytes) -> None:
    async with world.run():
        for name in ("a.zip", "b.zip", "c.zip"):
            world.deploy_classic(name, make_zip({**unzip(classic_zip), "notes.md": name.encode()}))
            await poll(lambda name=name: has_latest(world, name))  # type: ignore[misc]
            await world.wait_state(State.ACTIVE, model="default")
        await poll(lambda: has_folders(world, ["b", "c"]))
        (world.root / "a").mkdir()
        world.deploy_classic("a.zip", classic_zip)
        record = await world.wait_state(State.REJECTED, model="default")
        assert record.fault is not None
        assert record.fault.code == "name_invalid"


async def has_folders(world: World, names: list[str]) -> bool:
    return sorted(path.name for path in world.root.iterdir()) == [*names, "edgeferry"]


async def test_a_bundle_that_is_too_large_is_refused_before_it_is_fetched(world: World, classic_zip: bytes) -> None:
    world.settings = replace(world.settings, bundle_max_bytes=1000)
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip)
        record = await world.wait_state(State.REJECTED, model="default")
        assert record.fault is not None
        assert record.fault.code == "bundle_too_large"
        await poll(lambda: is_clean(world))


async def test_our_section_wins_over_the_classic_fields_and_that_is_said(world: World, classic_zip: bytes) -> None:
    world.publish("1.0.0")
    async with world.run():
        world.deploy("1.0.0")
        world.deploy_classic("gauge.zip", classic_zip)
        await world.wait_state(State.ACTIVE)
        report = await poll(lambda: find_problem(world))
        assert report["code"] == "classic_refused"
        assert world.get_record("default") is None


async def find_problem(world: World) -> dict[str, str] | None:
    found: dict[str, str] | None = world.hub.reported.get("edgeferry", {}).get("error")
    return found


async def test_a_device_with_a_pinned_root_takes_no_classic_bundle(world: World, classic_zip: bytes) -> None:
    world.settings = replace(world.settings, accept_classic=False)
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip)
        assert (await poll(lambda: find_problem(world)))["code"] == "classic_refused"
        assert world.origin.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"FileName": "../up.zip", "DownloadUrl": "http://127.0.0.1/x"},
        {"FileName": "a/b.zip", "DownloadUrl": "http://127.0.0.1/x"},
        {"FileName": "edgeferry.zip", "DownloadUrl": "http://127.0.0.1/x"},
        {"FileName": "x.zip", "DownloadUrl": "file:///etc/passwd"},
        {"FileName": "x.zip", "DownloadUrl": 7},
        {"FileName": ["x"], "DownloadUrl": "http://127.0.0.1/x"},
        {"FileName": "x.zip", "DownloadUrl": "http://127.0.0.1/x", "ContentMD5": "short"},
        {"edgeferry": "yes"},
        {"edgeferry": {"link": {"rate_bps": "fast"}}},
        {"edgeferry": {"link": {"rate_bps": -1}}},
        {"edgeferry": {"policy": {"default_model": 7}}},
        {"edgeferry": {"models": {"detector": {"version": "../1", "manifest": "sha256:x"}}}},
        {"edgeferry": {"repo": "http://127.0.0.1/", "models": {"../x": {}}}},
    ],
)
async def test_a_twin_that_is_wrong_is_reported_and_nothing_is_touched(world: World, fields: dict[str, object]) -> None:
    world.publish("1.0.0")
    async with world.run():
        world.hub.desire(**fields)
        problem = await poll(lambda: find_problem(world))
        assert problem["code"] in ("twin_invalid", "name_invalid")
        assert world.origin.requests == []
        world.hub.desire(**dict.fromkeys(fields))
        world.deploy("1.0.0")
        await world.wait_state(State.ACTIVE)
        await poll(lambda: has_no_problem(world))


async def has_no_problem(world: World) -> bool:
    return await find_problem(world) is None


async def test_partial_classic_fields_are_no_error(world: World, classic_zip: bytes) -> None:
    async with world.run():
        world.hub.desire(FileName="gauge.zip")
        world.hub.desire(ContentMD5=None)
        world.deploy_classic("gauge.zip", classic_zip, md5="")
        await world.wait_state(State.ACTIVE, model="default")
        world.hub.desire(FileName=None)
        await asyncio.sleep(0.1)
        assert world.activator.serving["default"].version.startswith("gauge-")


# --- roles ------------------------------------------------------------------------------------------------------------
async def test_a_loader_stores_and_announces_and_an_inferencer_takes_it(world: World, classic_zip: bytes) -> None:
    world.settings = replace(world.settings, role="loader")
    async with world.run():
        world.deploy_classic("gauge.zip", classic_zip)
        await world.wait_state(State.ACTIVE, model="default")
        assert world.activator.proven == []
        [(_, body, _)] = await poll(lambda: list_outputs(world))
        await poll(lambda: has_latest(world, "gauge.zip"))
    other = World(
        world.root / "edgeferry-inferencer",
        replace(world.settings, role="inferencer", shared_root=world.root),
        world.origin,
    )
    async with other.run():
        other.hub.send("AIMessageInput", body)
        await other.wait_state(State.ACTIVE, model="default")
        assert other.activator.serving["default"].spec.stages[0].file == "gauge.onnx"
        assert other.hub.outputs == []
        other.hub.send("AIMessageInput", body)
        await asyncio.sleep(0.1)
        assert len(other.activator.switched) == 1, "the same message twice is one update"
    async with other.run():
        assert other.activator.switched[0].startswith("gauge-")


async def list_outputs(world: World) -> list[tuple[str, bytes, str]]:
    return world.hub.outputs


@pytest.mark.parametrize(
    "message",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"local_model_path": 7}',
        b'{"local_model_path": "/etc/passwd"}',
        b'{"local_model_path": "../../etc/passwd"}',
        b'{"local_model_path": "edgeferry/../../x"}',
        b'{"local_model_path": "link/passwd"}',
        b'{"local_model_path": "nothing/here.tflite"}',
    ],
)
async def test_a_message_whose_paths_lead_elsewhere_is_reported_and_touches_nothing(
    world: World, message: bytes
) -> None:
    world.root.mkdir(parents=True)
    (world.root / "link").symlink_to("/etc")
    world.settings = replace(world.settings, role="inferencer", shared_root=world.root)
    async with world.run():
        world.hub.send("AIMessageInput", message)
        assert (await poll(lambda: find_problem(world)))["code"] == "request_invalid"
        assert world.get_record("default") is None
