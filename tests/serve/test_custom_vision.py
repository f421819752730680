"""The routes of Azure Custom Vision: every path and body that its clients use, and its answer."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from edgeferry.errors import QueueFull, RequestInvalid
from edgeferry.runtime.child import Terms
from edgeferry.serve.api import ApiSettings
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.formats.custom_vision import NAMESPACE
from edgeferry.serve.slots import Slots
from edgeferry.vision.answer import Answer, ClassificationAnswer, ClassScore, DetectionAnswer, FoundObject

if TYPE_CHECKING:
    from tests.serve.conftest import ApiClient, MakeVersion, OpenClient, Until

PROJECT = "8a5b2c4d-0000-4000-8000-123456789abc"
PLACES = ["", f"/{PROJECT}", f"/{PROJECT}/detect/iterations/Iteration3", f"/{PROJECT}/classify/iterations/detector"]
PLACES += [f"/customvision/v3.0/Prediction{PLACES[2]}", f"/customvision/v3.1/prediction{PLACES[3]}"]


def _find_dog(_: bytes, __: Terms) -> Answer:
    box = (0.125, 0.0625, 0.96875, 0.75)
    return DetectionAnswer(objects=(FoundObject(class_index=3, label="dog", score=0.71875, box=box),))


def _say_low(_: bytes, __: Terms) -> Answer:
    classes = (ClassScore(class_index=0, label="low", score=0.75), ClassScore(class_index=1, label="high", score=0.25))
    return ClassificationAnswer(classes=classes)


def _make_form(picture: bytes = b"cat", field: str = "imageData") -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field(field, picture, filename="picture.jpg", content_type="image/jpeg")
    return form


@pytest.fixture
async def served(slots: Slots, make_version: MakeVersion) -> Slots:
    """One detector is active."""
    await slots.switch(make_version())
    return slots


@pytest.mark.parametrize("tail", ["", "/nostore"])
@pytest.mark.parametrize("place", PLACES)
async def test_every_place_answers_bytes_and_forms(
    client: ApiClient, slots: Slots, make_version: MakeVersion, place: str, tail: str
) -> None:
    await slots.switch(make_version(label="cat"))
    for body in (b"cat", _make_form()):
        answered = await client.post(f"{place}/image{tail}?application=x", body)
        assert answered.status == 200, answered.body
        assert answered.headers["X-Edgeferry-Model"] == "detector@1.0.0"
        assert [found["tagName"] for found in answered.json["predictions"]] == ["cat"]


async def test_objects_have_boxes_of_left_top_width_height(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    engine.answer = _find_dog
    await slots.switch(make_version())
    said = (await client.post("/image", headers={"Content-Type": "application/octet-stream"})).json
    assert said["predictions"] == [
        {
            "probability": 0.71875,
            "tagId": str(uuid.uuid5(NAMESPACE, "detector/dog")),
            "tagName": "dog",
            "boundingBox": {"left": 0.0625, "top": 0.125, "width": 0.6875, "height": 0.84375},
        }
    ]
    assert said["project"] == str(uuid.uuid5(NAMESPACE, "detector"))
    assert said["iteration"] == str(uuid.uuid5(NAMESPACE, "detector@1.0.0"))
    assert uuid.UUID(said["id"]).version == 4
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(said["created"]) < timedelta(minutes=1)


async def test_each_answer_has_an_id_of_its_own_and_a_new_version_an_iteration(
    client: ApiClient, slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    first, second = [(await client.post("/image")).json for _ in range(2)]
    await slots.switch(make_version("2.0.0"))
    third = (await client.post("/image")).json
    assert len({said["id"] for said in (first, second, third)}) == 3
    assert first["iteration"] == second["iteration"] != third["iteration"]
    assert first["project"] == third["project"]


async def test_classes_have_no_box(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    engine.answer = _say_low
    await slots.switch(make_version())
    found = (await client.post("/image")).json["predictions"]
    assert [(each["tagName"], each["probability"], each["boundingBox"]) for each in found] == [
        ("low", 0.75, None),
        ("high", 0.25, None),
    ]


async def test_a_project_or_published_name_may_name_the_model(
    client: ApiClient, slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version(label="cat", model="cats"))
    await slots.switch(make_version(label="dog", model="dogs"))
    assert (await client.post("/image")).code == "model_ambiguous"
    named = [
        "/dogs/image",
        "/dogs@1.0.0/image",
        "/p/detect/iterations/dogs/image",
        "/cats/detect/iterations/dogs/image",
    ]
    for path in named:
        assert (await client.post(path)).json["predictions"][0]["tagName"] == "dog"
    assert (await client.post("/dogs/detect/iterations/Iteration1/image")).json["predictions"][0]["tagName"] == "dog"
    assert (await client.post("/dogs@2.0.0/image")).code == "model_not_found"
    assert (await client.post("/p/classify/iterations/x/image")).code == "model_not_found"


@pytest.mark.parametrize(
    ("body", "headers", "refused"),
    [
        (b"", {}, (400, "picture_unreadable")),
        (b"bad", {}, (400, "picture_unreadable")),
        (b"x", {"Content-Type": "text/plain"}, (415, "media_type_refused")),
        (b"x", {"Content-Encoding": "gzip"}, (415, "media_type_refused")),
        (b"x", {"Content-Type": "multipart/form-data"}, (400, "request_invalid")),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}, (400, "request_invalid")),
        (b"--b--", {"Content-Type": "multipart/form-data", "Content-Encoding": "br"}, (415, "media_type_refused")),
        (bytes(1001), {}, (413, "body_too_large")),
    ],
)
async def test_what_is_no_picture_is_refused(
    served: Slots, open_client: OpenClient, body: bytes, headers: dict[str, str], refused: tuple[int, str]
) -> None:
    async with open_client(served, ApiSettings(body_max_bytes=1000)) as client:
        answered = await client.post("/image", body, headers=headers)
        assert (answered.status, answered.code) == refused
        assert (await client.post("/image")).status == 200


async def test_a_form_needs_one_picture_under_its_name(
    client: ApiClient, slots: Slots, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    two = _make_form()
    two.add_field("imageData", b"dog", filename="b.jpg")
    for form in (_make_form(field="image"), two):
        answered = await client.post("/image", form)
        assert (answered.status, answered.code) == (400, "request_invalid")
        assert "imageData" in answered.json["error"]["message"]
    assert (await client.post("/image", _make_form(b""))).code == "picture_unreadable"


class _Fetch:
    """A port that has one picture, and is asked for others."""

    async def fetch_picture(self, url: str) -> bytes:
        if url == "busy":
            raise QueueFull("too many")
        if url != "http://camera/1.jpg":
            raise RequestInvalid("no such picture")
        return b"cat"


async def test_a_url_is_fetched_only_where_that_is_allowed(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion
) -> None:
    await slots.switch(make_version(label="cat"))
    async with open_client(slots) as client:
        answered = await client.post("/url", json={"url": "http://camera/1.jpg"}, data=None)
        assert (answered.status, answered.code) == (403, "fetch_forbidden")
        assert "picture_hosts" in answered.json["error"]["advice"]
    async with open_client(slots, fetch=_Fetch()) as client:
        for place in PLACES:
            for tail in ("", "/nostore"):
                answered = await client.post(f"{place}/url{tail}", json={"url": "http://camera/1.jpg"}, data=None)
                assert answered.json["predictions"][0]["tagName"] == "cat", place


async def test_a_fetched_picture_counts_as_held_until_it_is_answered(
    slots: Slots, engine: FakeEngine, open_client: OpenClient, make_version: MakeVersion, until: Until
) -> None:
    await slots.switch(make_version())
    url = {"url": "http://camera/1.jpg"}
    async with open_client(slots, ApiSettings(bodies_max_bytes=5), fetch=_Fetch()) as client:
        engine.infer_s = 30.0
        first = asyncio.create_task(client.post("/url", json=url, data=None))
        await until(lambda: engine.started[0].running == 1)
        assert (await client.post("/url", json=url, data=None)).code == "queue_full"
        assert (await client.post("/score", b"cat")).code == "queue_full"
        first.cancel()
        await until(lambda: slots.gate.taken == 0)
        engine.infer_s = 0.0
        assert (await client.post("/url", json=url, data=None)).status == 200


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"json": {"url": "http://camera/2.jpg"}}, "request_invalid"),
        ({"json": {"url": "busy"}}, "queue_full"),
        ({"json": {"url": 7}}, "request_invalid"),
        ({"json": ["http://camera/1.jpg"]}, "request_invalid"),
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, "request_invalid"),
        ({"data": b'{"x":' + b"[" * 8000, "headers": {"Content-Type": "application/json"}}, "request_invalid"),
        ({"data": b'{"url": "\xff"}', "headers": {"Content-Type": "application/json"}}, "request_invalid"),
        ({"data": b'{"url": "http://camera/1.jpg"}'}, "media_type_refused"),
        ({"json": {"url": "http://camera/" + "x" * 9000}}, "body_too_large"),
        ({"json": {"url": "http://camera/1.jpg"}, "headers": {"Content-Encoding": "gzip"}}, "media_type_refused"),
    ],
)
async def test_a_wrong_url_or_body_is_refused(
    served: Slots, open_client: OpenClient, options: dict[str, Any], code: str
) -> None:
    async with open_client(served, fetch=_Fetch()) as client:
        assert (await client.post("/url", **{"data": None, **options})).code == code
        assert served.gate.taken == 0
