"""Pictures from URLs: from hosts that are named, bounded, without redirects; a URL that reads two ways is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from edgeferry.app.local_models import open_local_versions
from edgeferry.app.picture_fetch import FETCHES_MAX, PictureFetch, open_picture_fetch, read_picture_hosts
from edgeferry.app.serving import serve_models
from edgeferry.errors import ConfigInvalid, FetchForbidden, PictureUnreadable, QueueFull, RequestInvalid

MAX_BYTES = 1000


class Camera:
    """A server with a picture, and with what else a server may do; `asked` holds the paths."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = asyncio.Event()
        self.picture = b"cat"
        self.port = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if request.path == "/away":
            raise web.HTTPFound("/1.jpg")
        if request.path == "/slow":
            await self.go_on.wait()
        bodies = {
            "/1.jpg": self.picture,
            "/slow": b"cat",
            "/large": bytes(MAX_BYTES + 1),
            "/most": bytes(MAX_BYTES),
            "/none": b"",
        }
        found = bodies.get(request.path)
        return web.Response(status=404, text="a secret") if found is None else web.Response(body=found)


@pytest.fixture
async def camera() -> AsyncIterator[Camera]:
    camera = Camera()
    app = web.Application()
    app.router.add_get("/{rest:.*}", camera.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    camera.port = runner.addresses[0][1]
    yield camera
    camera.go_on.set()
    await runner.cleanup()


@asynccontextmanager
async def _open(*hosts: str) -> AsyncIterator[PictureFetch]:
    async with open_picture_fetch(hosts, max_bytes=MAX_BYTES) as fetch:
        assert fetch is not None
        yield fetch


async def test_a_picture_of_a_named_host_is_fetched(camera: Camera) -> None:
    async with _open(f"127.0.0.1:{camera.port}") as fetch:
        assert await fetch.fetch_picture(f"http://127.0.0.1:{camera.port}/1.jpg?token=x&y=%20") == b"cat"
        assert await fetch.fetch_picture(f"HTTP://127.0.0.1:{camera.port}/most") == bytes(MAX_BYTES)


async def test_without_a_named_host_there_is_no_fetch_at_all() -> None:
    for hosts in ((), ("", " ")):
        async with open_picture_fetch(hosts, max_bytes=MAX_BYTES) as fetch:
            assert fetch is None


@pytest.mark.parametrize(
    "place", ["127.0.0.1:{port}", "localhost:{port}", "169.254.169.254", "camera:8080", "[::1]:{port}"]
)
async def test_another_host_or_port_is_forbidden_and_not_asked(camera: Camera, place: str) -> None:
    async with _open("camera", "127.0.0.1", "127.0.0.1:1") as fetch:
        with pytest.raises(FetchForbidden):
            await fetch.fetch_picture(f"http://{place.format(port=camera.port)}/1.jpg")
    assert camera.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "1.jpg",
        "//camera/1.jpg",
        "file:///etc/passwd",
        "ftp://camera/1.jpg",
        "http:camera",
        "http://",
        "http://user@camera/1.jpg",
        "http://camera@127.0.0.1:{port}/1.jpg",
        "http://127.0.0.1:{port}#@camera/1.jpg",
        "http://camera\\@127.0.0.1:{port}/1.jpg",
        "http://camera:80:{port}/1.jpg",
        "http://camera\r\n/1.jpg",
        "http://camera/1.jpg\n",
        "http://camera/ 1.jpg",
        "http://cam\u00e9ra/1.jpg",
        "http://camera/\u00e9",
        "http://camera:/1.jpg",
        "http://camera:port/1.jpg",
        "http://camera/#x" + " ",
    ],
)
async def test_a_url_that_could_be_read_in_two_ways_is_refused(camera: Camera, url: str) -> None:
    async with _open("camera") as fetch:
        with pytest.raises(RequestInvalid):
            await fetch.fetch_picture(url.format(port=camera.port) if "{" in url else url)
    assert camera.asked == []


async def test_a_host_without_port_is_meant_with_the_two_plain_ports() -> None:
    async with _open("camera", "door:8080") as fetch:
        for place in ("http://camera", "https://CAMERA:443/x", "http://camera:80?x", "http://door:8080/x"):
            fetch._require_allowed(place)
        for place in ("http://camera:8080", "http://door", "https://door", "http://door:18080"):
            with pytest.raises(FetchForbidden):
                fetch._require_allowed(place)


@pytest.mark.parametrize(
    ("path", "error"),
    [("/away", RequestInvalid), ("/large", RequestInvalid), ("/missing", RequestInvalid), ("/none", PictureUnreadable)],
)
async def test_what_is_no_picture_is_told_without_what_the_server_said(
    camera: Camera, path: str, error: type[Exception]
) -> None:
    async with _open(f"127.0.0.1:{camera.port}") as fetch:
        with pytest.raises(error) as raised:
            await fetch.fetch_picture(f"http://127.0.0.1:{camera.port}{path}")
    assert camera.asked == [path]
    assert "secret" not in str(raised.value)


async def test_only_so_many_are_fetched_at_once(camera: Camera) -> None:
    url = f"http://127.0.0.1:{camera.port}/slow"
    async with _open(f"127.0.0.1:{camera.port}") as fetch, asyncio.TaskGroup() as group:
        running = [group.create_task(fetch.fetch_picture(url)) for _ in range(FETCHES_MAX)]
        while len(camera.asked) < FETCHES_MAX:
            await asyncio.sleep(0.005)
        with pytest.raises(QueueFull):
            await fetch.fetch_picture(url)
        camera.go_on.set()
        assert [await one for one in running] == [b"cat"] * FETCHES_MAX
        assert await fetch.fetch_picture(url) == b"cat"


async def test_a_silent_server_is_waited_for_a_bounded_time(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeferry.app.picture_fetch._TIMEOUT_S", 0.1)
    async with _open(f"127.0.0.1:{camera.port}") as fetch:
        with pytest.raises(RequestInvalid):
            await fetch.fetch_picture(f"http://127.0.0.1:{camera.port}/slow")


async def test_a_served_model_answers_a_picture_of_a_named_host_only(camera: Camera, demo_models: Path) -> None:
    camera.picture = min((demo_models / "scenes").glob("*.jpg")).read_bytes()
    own = f"127.0.0.1:{camera.port}"
    with open_local_versions([demo_models / "gauge" / "1.0.0" / "gauge.onnx"]) as versions:
        async with serve_models(versions, port=0, picture_hosts=[own]) as address, aiohttp.ClientSession() as session:
            statuses = []
            for url in (f"http://{own}/1.jpg", f"http://{own}/missing", f"http://localhost:{camera.port}/1.jpg"):
                async with session.post(f"{address.url}/url", json={"url": url}) as response:
                    statuses.append(response.status)
                    assert (await response.json()).get("predictions") or response.status >= 400
    assert statuses == [200, 400, 403]


@pytest.mark.parametrize("host", ["http://camera", "camera/1", "*", "user@camera", "camera:", "[::1", "a b", "-x"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ConfigInvalid, match="picture_hosts"):
        read_picture_hosts(["camera", host])


def test_hosts_are_read_without_case_and_blanks() -> None:
    assert read_picture_hosts([" Camera.Local ", "", "[::1]:80"]) == {"camera.local", "[::1]:80"}
