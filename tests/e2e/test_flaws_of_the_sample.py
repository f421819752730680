"""Every flaw of the guide's own sample, and the tests that show ours is right; those without a file are below.

Labels: dropping `???` lines shifts the names -> every_class_has_the_label, a_cat_is_a_cat_by_both_engines
Outputs are taken by position -> outputs_are_found_in_any_order
Resize swaps height and width -> width_and_height_are_not_swapped
No EXIF rotation -> a_picture_is_turned_as_its_exif_says
Grey, alpha, 16-bit, palette and CMYK pictures -> test_bad_pictures.py: a_cat_in_an_odd_mode_is_a_cat
Box units differ between its two paths -> a_cat_is_a_cat_by_both_engines_and_its_box_is_in_one_unit
An array of quoted pseudo-JSON strings -> the_answer_is_json_and_the_samples_shape_comes_on_request
Report and message are never sent -> the_report_and_the_message_are_sent
The operator's script reads another property -> the_report_and_the_message_are_sent_under_the_names
No twin read at start -> a_change_made_while_the_device_was_down_is_followed
Active model only in memory -> the_active_model_serves_after_a_restart
Whole body in memory -> test_flaws_on_the_way.py: a_large_download_does_not_go_through_memory
No timeout -> ../transport/test_http.py: a_server_that_makes_no_progress_is_left
No retry -> test_flaws_on_the_way.py: a_download_is_tried_again
No resume -> test_flaws_on_the_way.py: a_cut_download_goes_on_where_it_was_cut
No status check -> test_bad_bundles.py: a_bad_answer_of_the_origin_is_told
Blocking call in an async handler -> test_flaws_on_the_way.py: a_stalled_download_holds_up_neither
A partial twin patch raises -> twin_patches_of_one_field_each_are_taken
Unpacks in place -> test_flaws_on_the_way.py: other_modules_never_see_half_a_folder
A crash leaves half a model -> test_kills.py: a_device_that_is_killed_at_random_moments
No free-space check -> test_flaws_on_the_way.py: a_bundle_for_which_there_is_no_space, a_full_disk_is_told
Keeps everything for ever -> test_flaws_on_the_way.py: once_tidied_only_the_active_and_the_previous_version_are_kept
Path traversal by ZIP member -> test_bad_bundles.py: a_bad_bundle_is_refused
Path traversal by FileName -> test_bad_bundles.py: a_bad_file_name_is_refused
No bomb limit -> test_bad_bundles.py: a_bad_bundle_is_refused
Model path and label path are set in two steps -> no_request_meets_a_model_with_the_labels_of_another
No load test before the switch -> a_model_that_loads_or_runs_badly_is_refused
No rollback -> an_operator_goes_back_to_the_version_before, a_version_whose_worker_dies
A session is created for each request -> a_model_is_loaded_once_for_all_requests
MD5 only, from the same channel as the URL -> with_a_pinned_root_an_md5_is_not_enough
Open API on all interfaces -> the_api_is_on_loopback_unless_it_is_guarded
Secrets in logs -> no_secret_is_in_any_log
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from onnx import helper
from PIL import Image

from e2e.origin import SIGNATURE, answer_status
from e2e.site import Device, Twin, find_free_port
from e2e.tiny_models import (
    ORDERS,
    QUADRANTS,
    encode,
    get_md5,
    make_model,
    make_quadrant_bundle,
    make_quadrant_picture,
    make_ssd_bundle,
    make_ssd_model,
    make_zip,
)
from e2e.world import QUICK, World, find_quadrant, list_children, observes, open_asker, read_tree, take

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


async def test_the_table_above_names_tests_that_exist() -> None:
    rows = [line.partition(" -> ")[2] for line in str(__doc__).splitlines() if " -> " in line]
    assert len(rows) >= 30
    for row in rows:
        file, _, names = row.rpartition(": ")
        text = (Path(__file__).parent / (file or Path(__file__).name)).read_text()
        for name in names.split(", "):
            assert f"def test_{name}" in text, row


# --- answers ----------------------------------------------------------------------------------------------------------
async def test_every_class_has_the_label_of_its_own_line(
    world: World, shared: tuple[Device, Twin], shared_models: Path
) -> None:
    labels = (shared_models / "detection" / "labelmap.txt").read_bytes()
    lines = labels.decode().splitlines()
    classes = [number for number in range(90) if lines[number + 1] != "???"]
    model, _ = make_ssd_model(classes)
    device, twin = shared
    await take(world, twin, "labels001.zip", make_ssd_bundle(model, labels))
    answer = await device.score(encode(Image.new("RGB", (20, 20))))
    assert len(classes) == 80
    assert [found["Class"] for found in answer] == [lines[number + 1] for number in classes]


async def test_outputs_are_found_in_any_order_and_under_any_name(world: World, shared: tuple[Device, Twin]) -> None:
    labels = b"???\n" + b"\n".join(b"label%d" % number for number in range(90))
    orders = ["boxes classes scores count", "count scores boxes classes", "scores classes count boxes"]
    device, twin = shared
    for number, order in enumerate(orders):
        model, scores = make_ssd_model([16, 2, 43], order=order.split())
        await take(world, twin, f"outputs{number}.zip", make_ssd_bundle(model, labels))
        answer = await device.score(encode(Image.new("RGB", (20, 20))))
        assert [found["Class"] for found in answer] == ["label16", "label2", "label43"], order
        assert [found["Score"] for found in answer] == pytest.approx(scores)
        assert all(found["Location"] == pytest.approx([0.1, 0.2, 0.5, 0.9]) for found in answer)


async def test_width_and_height_are_not_swapped(world: World, shared: tuple[Device, Twin]) -> None:
    device, twin = shared
    await take(world, twin, "wide.zip", make_quadrant_bundle())
    for size in ((120, 80), (30, 300), (300, 30)):
        assert [await find_quadrant(device, bright, size) for bright in range(4)] == list(QUADRANTS)


async def test_a_picture_is_turned_as_its_exif_says(world: World, shared: tuple[Device, Twin]) -> None:
    """Where the bright top left of an upright picture lies in the stored one, by orientation (EXIF 2.32, 4.6.4)."""
    stored = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 2, 7: 3, 8: 1}
    device, twin = shared
    await take(world, twin, "exif.zip", make_quadrant_bundle())
    for orientation, bright in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = make_quadrant_picture(bright, (160, 80))
        for kind in ("JPEG", "PNG", "WEBP"):
            [best, *_] = await device.score(encode(picture, kind, exif=exif))
            assert best["Class"] == "top_left", (orientation, kind)
        size = await predict(device, encode(picture, "JPEG", exif=exif))
        assert (size["width"], size["height"]) == ((160, 80) if orientation < 5 else (80, 160))


async def predict(device: Device, picture: bytes) -> dict[str, Any]:
    url = f"{device.api}/v1/models/default/predict"
    async with aiohttp.ClientSession() as http, http.post(url, data=picture) as reply:
        return dict((await reply.json())["picture"])


@pytest.mark.needs_shared
async def test_a_cat_is_a_cat_by_both_engines_and_its_box_is_in_one_unit(
    world: World, shared: tuple[Device, Twin], shared_models: Path
) -> None:
    cat = (shared_models / "images" / "cat.jpg").read_bytes()
    yolo = {path.name: path.read_bytes() for path in (shared_models / "detection").glob("*yolov3*.onnx")}
    yolo["coco80.names"] = (shared_models / "detection" / "coco80.names").read_bytes()
    answers = []
    device, twin = shared
    for name, bundle in (
        ("tensorflow001.zip", (shared_models / "classic" / "tensorflow001.zip").read_bytes()),
        ("yolo001.zip", make_zip(yolo)),
    ):
        await take(world, twin, name, bundle)
        answers.append((await device.score(cat))[0])
    assert [found["Class"] for found in answers] == ["cat", "cat"]
    one, other = (found["Location"] for found in answers)
    assert all(0 <= side <= 1 for side in (*one, *other))
    assert all(abs(first - second) < 0.12 for first, second in zip(one, other, strict=True))


async def test_the_answer_is_json_and_the_samples_shape_comes_on_request(
    world: World, shared: tuple[Device, Twin]
) -> None:
    model, _ = make_ssd_model([16])
    labels = "\n".join(["???", *(["x"] * 16), "cat", *(["x"] * 73)]).encode()
    device, twin = shared
    await take(world, twin, "shape.zip", make_ssd_bundle(model, labels))
    picture = encode(Image.new("RGB", (100, 50)))
    [found] = await device.score(picture)
    assert found == {"Class": "cat", "Score": pytest.approx(0.99), "Location": pytest.approx([0.1, 0.2, 0.5, 0.9])}
    [line] = await device.score(picture, "?format=classic")
    assert line == "{'Class': 'cat','Score': '0.99','Location': '[ 5. 20. 25. 90.]'}"


# --- twin and message -------------------------------------------------------------------------------------------------
async def test_the_report_and_the_message_are_sent_under_the_names_that_operators_read(
    world: World, shared: tuple[Device, Twin]
) -> None:
    _, twin = shared
    reported = await take(world, twin, "told001.zip", make_quadrant_bundle())
    assert reported["LatestAIModelFileName"] == "told001.zip"
    assert (await twin.read())["reported"]["LatestAIModelFileName"] == "told001.zip"
    found = [one for one in await world.site.read_messages() if "told001" in json.dumps(one)]
    [message] = [one for one in found if one["output"] == "DLModelOutput"]
    assert message["body"] == {
        "local_model_path": "told001/quadrants.onnx",
        "local_labelmap_path": "told001/labels.txt",
    }


async def test_twin_patches_of_one_field_each_are_taken_without_complaint(world: World) -> None:
    bundle = make_quadrant_bundle()
    url = world.origin.put("piecewise.zip", bundle)
    async with world.open_device(settings=QUICK) as (device, twin):
        for name, value in (("ContentMD5", get_md5(bundle)), ("FileName", "piecewise.zip")):
            version = await twin.set(**{name: value})
            reported = await twin.wait(observes(version))
            assert "error" not in reported["edgeferry"]
        version = await twin.set(DownloadUrl=url)
        await twin.wait_active("piecewise.zip", version)
        version = await twin.set(ContentMD5=None)
        await twin.wait_active("piecewise.zip", version)
        version = await twin.set(DownloadUrl=None)
        await twin.wait_active("piecewise.zip", version)
        assert await find_quadrant(device, 2) == "bottom_left"


async def test_a_change_made_while_the_device_was_down_is_followed_at_its_start(world: World) -> None:
    async with world.open_device(settings=QUICK) as (device, twin):
        await take(world, twin, "before.zip", make_quadrant_bundle(ORDERS[0]))
        assert await device.process.stop() == 0
        bundle = make_quadrant_bundle(ORDERS[1])
        version = await twin.set_bundle("while-down.zip", world.origin.put("while-down.zip", bundle), get_md5(bundle))
        async with world.open_device_again(twin, device.storage):
            await twin.wait_active("while-down.zip", version)


async def test_the_active_model_serves_after_a_restart_without_hub_or_network(world: World) -> None:
    async with world.open_device(settings=QUICK) as (device, twin):
        await take(world, twin, "kept.zip", make_quadrant_bundle(ORDERS[2]))
        device.process.child.kill()
        await device.process.child.wait()
        fetched = len(world.origin.ranges)
        nowhere = ("--mqtt-port", str(find_free_port()))
        async with world.open_device_again(twin, device.storage, *nowhere) as again:
            await again.wait_ready(timeout_s=60)
            assert [await find_quadrant(again, bright) for bright in range(4)] == list(QUADRANTS)
        assert len(world.origin.ranges) == fetched


# --- the switch -------------------------------------------------------------------------------------------------------
async def test_no_request_meets_a_model_with_the_labels_of_another(world: World, shared: tuple[Device, Twin]) -> None:
    """Class numbers of each bundle stand for other quadrants: a model with the other's labels answers wrongly."""
    device, twin = shared
    await take(world, twin, "pair0.zip", make_quadrant_bundle(ORDERS[0]))
    async with open_asker(device, encode(make_quadrant_picture(1)), pause_s=0.02) as asker:
        for number in range(1, 5):
            await take(world, twin, f"pair{number}.zip", make_quadrant_bundle(ORDERS[number % 4]))
    assert not asker.failed
    assert {answer[0]["Class"] for _, answer in asker.answers} == {"top_right"}
    assert asker.asked > 100


BROKEN = {
    "loads": helper.make_node("NoSuchOperator", ["grey"], ["probabilities"], domain="nobody.knows"),
    "runs": helper.make_node("Reshape", ["grey", "wrong"], ["probabilities"]),
}


@pytest.mark.parametrize("what", list(BROKEN))
async def test_a_model_that_loads_or_runs_badly_is_refused_before_the_switch(
    world: World, shared: tuple[Device, Twin], what: str
) -> None:
    bundle = make_zip({"model.onnx": make_model([BROKEN[what]]), "labels.txt": b"a\nb\nc\nd\n", "spec.toml": SPEC})
    device, twin = shared
    await take(world, twin, "sound.zip", make_quadrant_bundle())
    tree, children = read_tree(device.storage), list_children(device.process.pid)
    version = await twin.set_bundle(f"{what}.zip", world.origin.put(f"{what}.zip", bundle), get_md5(bundle))
    error = await twin.wait_error(version)
    assert error["code"] in ("model_unreadable", "model_unsupported")
    assert error["advice"]
    assert await find_quadrant(device, 1) == "top_right"
    assert read_tree(device.storage) == tree
    assert list_children(device.process.pid) == children


SPEC = b'[input]\nmean = [0.0]\nstd = [255.0]\nfit = "stretch"\n'


async def test_an_operator_goes_back_to_the_version_before_without_a_byte(
    world: World, shared: tuple[Device, Twin]
) -> None:
    device, twin = shared
    await take(world, twin, "first.zip", make_quadrant_bundle(ORDERS[0]))
    await take(world, twin, "second.zip", make_quadrant_bundle(ORDERS[1]))
    fetched = len(world.origin.ranges)
    assert (await twin.call("rollback"))["status"] == 202
    reported = await twin.wait(lambda reported: reported["LatestAIModelFileName"] == "first.zip")
    assert reported["edgeferry"]["models"]["default"]["state"] == "ROLLED_BACK"
    assert await find_quadrant(device, 2) == "bottom_left"
    assert len(world.origin.ranges) == fetched


async def test_a_version_whose_worker_dies_again_and_again_is_rolled_back(world: World) -> None:
    async with world.open_device(settings="probation_s = 60.0\nprobation_requests = 100000\n") as (device, twin):
        bundle = make_quadrant_bundle(ORDERS[0])
        await twin.set_bundle("steady.zip", world.origin.put("steady.zip", bundle), get_md5(bundle))
        await twin.wait(is_in("PROBATION"))
        assert await device.process.stop() == 0
    async with world.open_device_again(twin, device.storage) as device:
        await twin.wait(is_in("ACTIVE"))
        assert await device.process.stop() == 0
    settings = "probation_s = 60.0\nprobation_requests = 100000\n"
    async with world.open_device_again(twin, device.storage, settings=settings) as device:
        await device.wait_ready()
        bundle = make_quadrant_bundle(ORDERS[1])
        await twin.set_bundle("dying.zip", world.origin.put("dying.zip", bundle), get_md5(bundle))
        await twin.wait(is_in("PROBATION"))
        for _ in range(2):
            await kill_worker(device)
        reported = await twin.wait(is_in("ROLLED_BACK"))
        assert reported["LatestAIModelFileName"] == "steady.zip"
        assert reported["edgeferry"]["models"]["default"]["error"]["code"] == "model_crashed"
        await device.wait_ready()
        assert await find_quadrant(device, 1) == "top_right"


def is_in(state: str) -> Callable[[dict[str, Any]], bool]:
    return lambda reported: reported.get("edgeferry", {}).get("models", {}).get("default", {}).get("state") == state


async def kill_worker(device: Device) -> None:
    """Kills the process that serves, once there is one that answers."""
    await device.wait_ready()
    for pid in list_children(device.process.pid):
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.5)


async def test_a_model_is_loaded_once_for_all_requests(world: World) -> None:
    """The model's files are taken away: whoever opens them for a request cannot answer it."""
    async with world.open_device(settings=QUICK) as (device, twin):
        await take(world, twin, "once.zip", make_quadrant_bundle())
        workers = list_children(device.process.pid)
        for path in device.storage.rglob("quadrants.onnx"):
            path.unlink()
        for path in (device.storage / "edgeferry" / "blobs").rglob("*"):
            if path.is_file():
                path.unlink()
        for _ in range(5):
            assert [await find_quadrant(device, bright) for bright in range(4)] == list(QUADRANTS)
        assert list_children(device.process.pid) == workers


# --- trust ------------------------------------------------------------------------------------------------------------
async def test_with_a_pinned_root_an_md5_is_not_enough(world: World) -> None:
    bundle = make_quadrant_bundle()
    async with world.open_device("--root", f"sha256:{'0' * 64}") as (device, twin):
        version = await twin.set_bundle("unsigned.zip", world.origin.put("unsigned.zip", bundle), get_md5(bundle))
        error = await twin.wait_error(version)
        assert error["code"] == "classic_refused"
        assert error["advice"]
        assert sorted(path.name for path in device.storage.iterdir()) == ["edgeferry"]
    assert not world.origin.list_ranges("unsigned.zip")


async def test_the_api_is_on_loopback_unless_it_is_guarded(world: World) -> None:
    async with world.open_device(settings=QUICK) as (device, _):
        await wait_listening(device)
        with pytest.raises(OSError, match=r"refused|unreachable|denied"):
            socket.create_connection((find_own_address(), int(device.api.rpartition(":")[2])), timeout=2)
    async with world.open_device("--host", "0.0.0.0") as (device, _):
        assert await asyncio.wait_for(device.process.child.wait(), 20) == 2
        assert "EDGEFERRY_TOKEN" in device.process.read_log_tail()
    async with world.open_device("--host", "0.0.0.0", EDGEFERRY_TOKEN=TOKEN) as (device, _):
        await wait_listening(device)
        async with aiohttp.ClientSession() as http:
            for headers, status in (({}, 401), ({"Authorization": f"Bearer {TOKEN}"}, 503)):
                async with http.post(f"{device.api}/score", data=b"x", headers=headers) as reply:
                    assert reply.status == status
                    assert (await reply.json())["error"]["advice"]
            async with http.get(f"{device.api}/healthz") as reply:
                assert await reply.text() == "ok\n"


TOKEN = "token-of-the-api-that-no-log-may-hold"


def find_own_address() -> str:
    """An address of this machine that is not loopback's 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which address would be used
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.2"


async def wait_listening(device: Device) -> None:
    async with asyncio.timeout(20), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(f"{device.api}/healthz") as reply:
                    assert reply.status == 200
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)


async def test_no_secret_is_in_any_log(world: World) -> None:
    """A device meets what is logged: refused rights, broken transfers, a bad bundle, callers without a token."""
    async with world.open_device("--log-level", "debug", EDGEFERRY_TOKEN=TOKEN) as (device, twin):
        for number, behaviour in enumerate((answer_status(403), answer_status(500), answer_status(404))):
            url = world.origin.behave(f"secret{number}.zip", behaviour)
            await twin.wait_error(await twin.set_bundle("secret.zip", url))
        version = await twin.set_bundle("secret.zip", f"http://user:{PASSWORD}@127.0.0.1:{find_free_port()}/s.zip")
        await twin.wait_error(version, "link_down")
        version = await twin.set_bundle("secret.zip", f"ftp://x/secret.zip?sig={SIGNATURE}")
        await twin.wait_error(version, "twin_invalid")
        await twin.set_bundle("secret.zip", world.origin.put("secret.zip", random.Random(1).randbytes(100)))
        await twin.wait(is_in("REJECTED"))
        async with aiohttp.ClientSession() as http, http.post(f"{device.api}/score?token={TOKEN}", data=b"x"):
            pass
        connection = await world.site.get_connection(twin.module)
        reported = json.dumps((await twin.read())["reported"])
    keys = [text.partition("SharedAccessKey=")[2].partition(";")[0] for text in (connection, world.site.service)]
    logs = {path.name: path.read_text() for path in (world.folder / "logs").iterdir()}
    assert len(logs) >= 2
    assert all(len(key) > 20 for key in keys)
    for secret in (SIGNATURE, SIGNATURE.replace("%3D", "="), TOKEN, PASSWORD, *keys, "SharedAccessSignature sr"):
        assert [name for name, text in logs.items() if secret in text] == [], secret
        assert secret not in reported


PASSWORD = "password-that-stands-in-a-url"
