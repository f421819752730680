"""Pictures of every odd mode are answered rightly; what is no picture gets a 4xx with code and advice.

One device serves the guide's bundle; while everything is thrown at it another client keeps asking for the cat, and its
answers may not change. The worker that serves at the end is the one that served at the start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from PIL import Image

from e2e.odd_pictures import DAMAGED, HUGE, MEAGRE, ODD, OTHER_KINDS, make_text_bomb, read_cat
from e2e.site import Device
from e2e.tiny_models import get_md5
from e2e.world import Asker, World, list_children, open_asker

pytestmark = [
    pytest.mark.needs_shared,
    pytest.mark.asyncio(loop_scope="module"),
]
CAT_BOX = (0.13, 0.09, 0.98, 0.71)
ANSWER_MAX_S = 15.0


@dataclass
class Served:
    """A device that serves the guide's bundle, and a client that asks it for the cat all the time."""

    device: Device
    asker: Asker
    cat: Image.Image
    children: list[int]

    async def post(self, body: Any, *, route: str = "/score", **headers: str) -> tuple[int, Any]:
        """Status and JSON of an answer; every answer comes soon."""
        began = time.monotonic()
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{self.device.api}{route}", data=body, headers=headers) as reply,
        ):
            answer = await reply.json()
        assert time.monotonic() - began < ANSWER_MAX_S
        return reply.status, answer

    async def refuse(self, status: int, code: str, body: Any, **options: str) -> None:
        found, answer = await self.post(body, **options)
        assert (found, answer["error"]["code"]) == (status, code), answer
        assert answer["error"]["advice"]
        assert answer["error"]["message"]

    async def require_unharmed(self) -> None:
        asked = self.asker.asked
        while self.asker.asked < asked + 1:
            await asyncio.sleep(0.02)
        [(status, answer)] = self.asker.answers
        assert (status, answer[0]["Class"]) == (200, "cat")
        assert list_children(self.device.process.pid) == self.children


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(world: World, shared_models: Path) -> AsyncIterator[Served]:
    bundle = (shared_models / "classic" / "tensorflow001.zip").read_bytes()
    cat = (shared_models / "images" / "cat.jpg").read_bytes()
    async with world.open_device() as (device, twin):
        version = await twin.set_bundle(
            "tensorflow001.zip", world.origin.put("tensorflow001.zip", bundle), get_md5(bundle)
        )
        await device.wait_ready()
        async with open_asker(device, cat, pause_s=0.05) as asker:
            await twin.wait_active("tensorflow001.zip", version)
            yield Served(device, asker, read_cat(cat), list_children(device.process.pid))


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def good_requests_are_unharmed(served: Served) -> AsyncIterator[None]:
    yield
    await served.require_unharmed()


@pytest.mark.parametrize("name", list(ODD))
async def test_a_cat_in_an_odd_mode_is_a_cat(served: Served, name: str) -> None:
    status, answer = await served.post(ODD[name](served.cat))
    assert status == 200
    assert answer[0]["Class"] == "cat"
    assert answer[0]["Score"] >= 0.5
    assert all(abs(found - known) < 0.1 for found, known in zip(answer[0]["Location"], CAT_BOX, strict=True))


@pytest.mark.parametrize("name", list(MEAGRE))
async def test_a_picture_with_little_in_it_is_answered(served: Served, name: str) -> None:
    status, answer = await served.post(MEAGRE[name](served.cat))
    assert status == 200
    assert isinstance(answer, list)


@pytest.mark.parametrize("name", list(HUGE))
async def test_a_picture_of_too_many_pixels_is_refused_undecoded(served: Served, name: str) -> None:
    await served.refuse(413, "picture_too_large", HUGE[name](served.cat))


@pytest.mark.parametrize("name", list(DAMAGED))
async def test_a_damaged_picture_is_refused(served: Served, name: str) -> None:
    await served.refuse(400, "picture_unreadable", DAMAGED[name](served.cat))


@pytest.mark.parametrize("name", list(OTHER_KINDS))
async def test_another_kind_of_file_is_refused_by_name(served: Served, name: str) -> None:
    await served.refuse(415, "media_type_refused", OTHER_KINDS[name](served.cat))


@pytest.mark.parametrize("media_type", ["multipart/form-data; boundary=x", "application/json", "text/plain"])
async def test_another_content_type_is_refused_by_name(served: Served, media_type: str) -> None:
    body = ODD["BMP"](served.cat)
    await served.refuse(415, "media_type_refused", body, **{"Content-Type": media_type})


async def test_a_compressed_body_is_refused_and_not_unpacked(served: Served) -> None:
    await served.refuse(415, "media_type_refused", bytes(100), **{"Content-Encoding": "gzip"})


async def test_a_body_that_announces_too_much_is_refused(served: Served) -> None:
    await served.refuse(413, "body_too_large", bytes(33 << 20))


async def test_a_body_without_a_length_is_refused_once_it_is_too_large(served: Served) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 20)

    await served.refuse(413, "body_too_large", endless())


async def test_the_text_bomb_in_a_png_is_never_unpacked(served: Served) -> None:
    [worker] = served.children
    status, answer = await served.post(make_text_bomb(served.cat))
    assert status in (200, 400)
    assert status == 200 or answer["error"]["code"] == "picture_unreadable"
    assert read_peak_mb(worker) < 500


@pytest.mark.parametrize("route", ["/score?format=classic", "/score?format=lva", "/v1/models/default/predict"])
async def test_every_route_refuses_in_the_same_words(served: Served, route: str) -> None:
    await served.refuse(400, "picture_unreadable", b"", route=route)
    await served.refuse(413, "picture_too_large", HUGE["a JPEG of 200 megapixels"](served.cat), route=route)
    await served.refuse(415, "media_type_refused", OTHER_KINDS["a PDF"](served.cat), route=route)


async def test_many_bad_pictures_at_once_leave_the_good_ones_their_answers(served: Served) -> None:
    bodies = [make(served.cat) for rows in (DAMAGED, HUGE) for make in rows.values()]
    answers = await asyncio.gather(*(served.post(body) for body in bodies))
    assert {status for status, _ in answers} <= {400, 413, 503}


def read_peak_mb(pid: int) -> int:
    """The most memory that the process ever had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))
