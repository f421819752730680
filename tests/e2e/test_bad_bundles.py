"""Bundles, addresses and twins that are bad: refused with code and advice in the twin, the live model untouched.

One device serves the guide's bundle through all of it. After every case the same four things are looked at: what the
twin reports, that the cat was answered the whole time, that the folder in which the device's storage lies is as it was
before to the byte, and that no process was left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from e2e.bad_zips import BY_CODE, LIMIT_BYTES, MakeZip
from e2e.origin import SIGNATURE, Origin, answer_status
from e2e.site import Device, Twin, find_free_port
from e2e.tiny_models import encode, get_md5, make_quadrant_bundle, make_quadrant_picture, make_zip
from e2e.world import Asker, World, list_children, open_asker, read_tree

pytestmark = [
    pytest.mark.needs_shared,
    pytest.mark.asyncio(loop_scope="module"),
]
GOOD_NAME = "tensorflow001.zip"


@dataclass
class Served:
    """A device that serves the guide's bundle, and what was true before anything bad came."""

    device: Device
    twin: Twin
    origin: Origin
    asker: Asker
    good: tuple[str, str, str]
    tree: dict[str, Any]
    children: int

    @property
    def around(self) -> Path:
        return self.device.storage.parent

    async def refuse(self, code: str, *fields: Any) -> dict[str, Any]:
        """Sets bad fields, sees them refused with `code`, and goes back to the good ones; returns the error."""
        await self.require_good()
        version = await self.twin.set_bundle(*fields)
        error = await self.twin.wait_error(version, code)
        assert error["advice"]
        assert error["message"]
        reported = (await self.twin.read())["reported"]
        assert reported["LatestAIModelFileName"] == GOOD_NAME
        assert SIGNATURE not in str(reported)
        await self.restore()
        return error

    async def require_good(self) -> None:
        """Fails at once where an earlier case has left something, instead of telling it as this one's fault."""
        properties = await self.twin.read()
        assert properties["desired"]["FileName"] == properties["reported"]["LatestAIModelFileName"] == GOOD_NAME
        assert read_tree(self.around) == self.tree

    async def restore(self) -> None:
        """Sets the good fields again: nothing is fetched, and nothing bad is left."""
        fetched = len(self.origin.list_ranges(GOOD_NAME))
        version = await self.twin.set_bundle(*self.good)
        await self.twin.wait_active(GOOD_NAME, version)
        assert len(self.origin.list_ranges(GOOD_NAME)) == fetched
        await self.require_untouched()

    async def require_untouched(self) -> None:
        """The cat is answered, and everything on disk is what it was."""
        asked = self.asker.asked
        while self.asker.asked < asked + 2:
            await asyncio.sleep(0.05)
        [(status, answer)] = self.asker.answers
        assert status == 200
        assert answer[0]["Class"] == "cat"
        assert read_tree(self.around) == self.tree
        assert len(list_children(self.device.process.pid)) == self.children

    def put(self, name: str, data: bytes) -> str:
        return self.origin.put(name, data)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(world: World, shared_models: Path) -> AsyncIterator[Served]:
    bundle = (shared_models / "classic" / GOOD_NAME).read_bytes()
    cat = (shared_models / "images" / "cat.jpg").read_bytes()
    settings = f"bundle_max_bytes = {LIMIT_BYTES}\nprobation_requests = 3\n"
    async with world.open_device(settings=settings) as (device, twin):
        others = device.storage / "others"
        others.mkdir()
        (others / "data.bin").write_bytes(b"of another module")
        (device.storage / "taken.zip").write_bytes(b"of another module too")
        good = (GOOD_NAME, world.origin.put(GOOD_NAME, bundle), get_md5(bundle))
        version = await twin.set_bundle(*good)
        await device.wait_ready()
        async with open_asker(device, cat, pause_s=0.05) as asker:
            await twin.wait_active(GOOD_NAME, version)
            yield Served(
                device=device,
                twin=twin,
                origin=world.origin,
                asker=asker,
                good=good,
                tree=read_tree(device.storage.parent),
                children=len(list_children(device.process.pid)),
            )


ZIP_ROWS = [pytest.param(code, make, id=name) for code, rows in BY_CODE.items() for name, make in rows.items()]


@pytest.mark.parametrize(("code", "make"), ZIP_ROWS)
async def test_a_bad_bundle_is_refused_and_the_cat_is_answered_on(served: Served, code: str, make: MakeZip) -> None:
    bundle = make(served.around)
    await served.refuse(code, "bad.zip", served.put("bad.zip", bundle), get_md5(bundle))


async def test_an_unsafe_bundle_without_an_md5_is_refused_too(served: Served) -> None:
    bundle = BY_CODE["bundle_unsafe"]["an absolute member"](served.around)
    await served.refuse("bundle_unsafe", "bad.zip", served.put("bad2.zip", bundle))


async def test_a_wrong_md5_is_refused_after_two_tries_and_the_right_one_is_taken_after_it(served: Served) -> None:
    bundle = make_quadrant_bundle()
    url = served.put("md5.zip", bundle)
    await served.refuse("digest_mismatch", "md5.zip", url, get_md5(b"something else"))
    assert len(served.origin.list_ranges("md5.zip")) == 2
    await take_and_go_back(served, "md5.zip", url, get_md5(bundle))


async def test_a_new_good_bundle_under_a_name_that_was_refused_is_taken(served: Served) -> None:
    await served.refuse("bundle_unreadable", "again.zip", served.put("again.zip", b"no ZIP"))
    bundle = make_quadrant_bundle((1, 0, 2, 3))
    await take_and_go_back(served, "again.zip", served.put("again.zip", bundle), get_md5(bundle))


async def take_and_go_back(served: Served, *fields: Any) -> None:
    """A good update is taken and serves; then the guide's bundle serves again."""
    version = await served.twin.set_bundle(*fields)
    await served.twin.wait_active(str(fields[0]), version)
    assert (await served.device.score(encode(make_quadrant_picture(2))))[0]["Class"] == "bottom_left"
    version = await served.twin.set_bundle(*served.good)
    await served.twin.wait_active(GOOD_NAME, version)
    served.asker.answers[1:] = []
    served.tree = read_tree(served.around)  # the other one is kept as the version before


# --- names ------------------------------------------------------------------------------------------------------------
BAD_NAMES = {
    "one that climbs out": "../bad.zip",
    "one that climbs out deep": "x/../../../bad.zip",
    "an absolute one": "/tmp/bad.zip",
    "one with a folder": "folder/bad.zip",
    "one with a backslash": "folder\\bad.zip",
    "one with a drive": "C:bad.zip",
    "the folder above": "..",
    "this folder": ".",
    "an empty one": "",
    "one with a line break": "bad\n.zip",
    "one that is far too long": "a" * 300 + ".zip",
    "one without an extension": "bad",
    "the device's own folder": "edgeferry.zip",
    "the device's own folder in capitals": "EdgeFerry.zip",
    "something in the making": ".edgeferry-1.zip",
}


@pytest.mark.parametrize("name", list(BAD_NAMES.values()), ids=list(BAD_NAMES))
async def test_a_bad_file_name_is_refused_before_anything_is_fetched(served: Served, name: str) -> None:
    url = served.put("named.zip", make_quadrant_bundle())
    error = await served.refuse("name_invalid" if name in OURS_TO_REFUSE else "twin_invalid", name, url)
    assert "FileName" in error["message"]
    assert not served.origin.list_ranges("named.zip")


OURS_TO_REFUSE = ("bad", "edgeferry.zip", "EdgeFerry.zip", ".edgeferry-1.zip")
"""Plain names, but not for a bundle."""


@pytest.mark.parametrize("name", ["others.zip", "taken.zip"])
async def test_what_other_modules_keep_in_the_storage_is_never_replaced(served: Served, name: str) -> None:
    bundle = make_quadrant_bundle()
    await served.refuse("name_invalid", name, served.put(f"for-{name}", bundle), get_md5(bundle))
    assert not served.origin.list_ranges(f"for-{name}")


# --- addresses --------------------------------------------------------------------------------------------------------
async def send_portal(_: web.Request) -> web.StreamResponse:
    return web.Response(text="<html><body>Please log in to the ship's network</body></html>", content_type="text/html")


async def send_nameless_portal(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b"<!DOCTYPE html><html>log in</html>", content_type="application/octet-stream")


async def announce_a_terabyte(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(1 << 40)})
    await response.prepare(request)
    for _ in range(10_000):
        await response.write(bytes(65536))
        await asyncio.sleep(0.01)
    return response


async def send_for_ever(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    for _ in range(2 * LIMIT_BYTES >> 16):
        await response.write(bytes(65536))
    return response


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100000"})
    await response.prepare(request)
    await response.write(bytes(1000))
    assert request.transport is not None
    request.transport.close()
    return response


async def redirect_for_ever(request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": str(request.rel_url)})


BAD_ANSWERS = {
    "404": (answer_status(404), "object_missing"),
    "404 with a page": (answer_status(404, "<html>gone</html>", "text/html"), "object_missing"),
    "401": (answer_status(401), "access_denied"),
    "403": (answer_status(403), "access_denied"),
    "500": (answer_status(500), "server_failed"),
    "503": (answer_status(503, **{"Retry-After": "600"}), "server_busy"),
    "429": (answer_status(429), "server_busy"),
    "a captive portal": (send_portal, "captive_portal"),
    "a captive portal that hides": (send_nameless_portal, "captive_portal"),
    "a terabyte announced": (announce_a_terabyte, "bundle_too_large"),
    "bytes without end": (send_for_ever, "bundle_too_large"),
    "a connection that breaks": (cut, "link_broken"),
    "redirects without end": (redirect_for_ever, "link_broken"),
}


@pytest.mark.parametrize("name", list(BAD_ANSWERS))
async def test_a_bad_answer_of_the_origin_is_told_and_nothing_changes(served: Served, name: str) -> None:
    behaviour, code = BAD_ANSWERS[name]
    url = served.origin.behave(f"{name.replace(' ', '-')}/behaved.zip", behaviour)
    await served.refuse(code, "bad.zip", url, get_md5(b"good"))


async def test_an_origin_that_is_not_there_is_told_and_nothing_changes(served: Served) -> None:
    await served.refuse("link_down", "bad.zip", f"http://127.0.0.1:{find_free_port()}/bad.zip")


async def test_a_page_in_place_of_a_bundle_without_md5_is_no_verdict(served: Served) -> None:
    await served.refuse("captive_portal", "bad.zip", served.origin.behave("portal.zip", send_nameless_portal))


BAD_URLS = [
    "ftp://127.0.0.1/b.zip",
    "file:///etc/passwd",
    "b.zip",
    "http://",
    "http://a b/c",
    "http://h:99999/b.zip",
    "",
]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_an_address_that_is_no_http_url_is_refused(served: Served, url: str) -> None:
    error = await served.refuse("twin_invalid", "bad.zip", url)
    assert "DownloadUrl" in error["message"]


# --- twins ------------------------------------------------------------------------------------------------------------
WRONG = (7, 1.5, True, "no", ["x"], {"x": {"y": 1}})
MANIFEST = "sha256:" + "0" * 64


def list_wrong_twins() -> list[tuple[str, dict[str, Any]]]:
    """(place, desired) with a wrong type in each field in turn; the other fields are right."""
    good = {"FileName": "bad.zip", "DownloadUrl": "http://127.0.0.1:9/bad.zip", "ContentMD5": get_md5(b"x")}
    rows = [(name, {**good, name: wrong}) for name in good for wrong in WRONG if not isinstance(wrong, str)]
    rows += [("ContentMD5", {**good, "ContentMD5": text}) for text in ("no base64 at all", "YWJj")]
    section: dict[str, Any] = {"repo": "http://127.0.0.1:9/r", "models": {}}
    rows += [("edgeferry", {"edgeferry": wrong}) for wrong in WRONG if not isinstance(wrong, dict)]
    for name in ("models", "link", "policy"):
        rows += [(name, {"edgeferry": {**section, name: wrong}}) for wrong in WRONG if not isinstance(wrong, dict)]
    for name in ("repo", "sas"):
        rows += [(name, {"edgeferry": {**section, name: wrong}}) for wrong in WRONG if not isinstance(wrong, str)]
    rows += [("rate_bps", {"edgeferry": {**section, "link": {"rate_bps": wrong}}}) for wrong in (*WRONG[1:], -1)]
    rows += [("default_model", {"edgeferry": {**section, "policy": {"default_model": 7}}})]
    model = {"version": "1.0.0", "manifest": MANIFEST}
    wrong_models: list[Any] = [wrong for wrong in WRONG if not isinstance(wrong, dict)]
    wrong_models += [{**model, "version": wrong} for wrong in (7, None, "../1", "", ["1"])]
    wrong_models += [{**model, "manifest": wrong} for wrong in (7, "no", "sha256:xyz", None, {"x": 1})]
    wrong_models += [{**model, "try": wrong} for wrong in (0, "1", True, 1.5)]
    wrong_models += [{**model, "priority": wrong} for wrong in ("1", 1.5, [1])]
    rows += [("detector", {"edgeferry": {**section, "models": {"detector": wrong}}}) for wrong in wrong_models]
    rows += [("models", {"edgeferry": {**section, "models": {"Bad/Name": model}}})]
    rows += [("repo", {"edgeferry": {"models": {"detector": model}}})]
    return rows


async def test_a_twin_with_a_wrong_type_in_any_field_is_told_and_nothing_changes(served: Served) -> None:
    silent = []
    for place, desired in list_wrong_twins():
        await served.twin.set(FileName=None, DownloadUrl=None, ContentMD5=None, edgeferry=None)
        version = await served.twin.set(**desired)
        reported = await served.twin.wait(observes(version))
        error = reported["edgeferry"].get("error", {})
        if error.get("code") != "twin_invalid" or not error["advice"] or place not in error["message"]:
            silent.append((place, desired, error))
    assert not silent
    await served.twin.set(edgeferry=None)
    await served.restore()


def observes(version: int) -> Callable[[dict[str, Any]], bool]:
    return lambda reported: reported["edgeferry"]["observed"] >= version


async def test_a_wrong_type_in_one_section_leaves_the_other_in_force(served: Served) -> None:
    bundle = make_quadrant_bundle((3, 1, 2, 0))
    fields = ("beside.zip", served.put("beside.zip", bundle), get_md5(bundle))
    await served.twin.set(edgeferry=["wrong"])
    version = await served.twin.set_bundle(*fields)

    def is_taken(reported: dict[str, Any]) -> bool:
        return reported["LatestAIModelFileName"] == "beside.zip" and reported["edgeferry"]["observed"] >= version

    reported = await served.twin.wait(is_taken)
    assert reported["edgeferry"]["error"]["code"] == "twin_invalid"
    await served.twin.set(edgeferry=None)
    await take_and_go_back(served, *fields)


async def test_after_all_that_a_good_update_works(served: Served) -> None:
    """Last, so that everything above has happened to this device."""
    bundle = make_zip({"quadrants.onnx": b""})
    await served.refuse("model_unreadable", "last.zip", served.put("last.zip", bundle))
    bundle = make_quadrant_bundle((1, 3, 2, 0))
    await take_and_go_back(served, "good.zip", served.put("good.zip", bundle), get_md5(bundle))
    await served.require_untouched()
    assert served.device.process.running
