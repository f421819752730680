"""The routes of DeepStack and CodeProject.AI: their forms, their answers, their errors, and the token in the form."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from edgeferry.runtime.child import Terms
from edgeferry.serve.access import make_access
from edgeferry.serve.api import ApiSettings
from edgeferry.serve.fake import FakeEngine
from edgeferry.serve.form import FIELD_MAX_BYTES
from edgeferry.serve.slots import Slots
from edgeferry.vision.answer import Answer, ClassificationAnswer, ClassScore, DetectionAnswer, FoundObject

if TYPE_CHECKING:
    from tests.serve.conftest import Answered, ApiClient, MakeVersion, OpenClient

DETECTION = "/v1/vision/detection"
LIST = "/v1/vision/custom/list"
TOKEN = "a-token-é"
GUARDED = ApiSettings(access=make_access(TOKEN))


def _find_two(_: bytes, __: Terms) -> Answer:
    near = FoundObject(class_index=0, label="dog", score=0.75, box=(0.125, 0.0625, 0.96875, 0.75))
    far = FoundObject(class_index=1, label="cat", score=0.5, box=(-0.1, 0.5, 0.5, 1.2))
    return DetectionAnswer(objects=(near, far))


def _say_low(_: bytes, __: Terms) -> Answer:
    return ClassificationAnswer(classes=(ClassScore(class_index=0, label="low", score=0.75),))


def make_form(picture: bytes | None = b"cat", **fields: str) -> aiohttp.FormData:
    """A form with the picture last, as Python's clients write it."""
    form = aiohttp.FormData(fields, default_to_multipart=True)
    if picture is not None:
        form.add_field("image", picture, filename="image", content_type="application/octet-stream")
    return form


@pytest.fixture
async def served(slots: Slots, engine: FakeEngine, make_version: MakeVersion) -> Slots:
    """A detector is active that finds two things."""
    engine.answer = _find_two
    await slots.switch(make_version())
    return slots


def _get_reason(answered: Answered) -> str:
    said = answered.json
    assert said["success"] is False
    assert said["error"]
    assert said["advice"]
    assert said["code"] == answered.status
    return str(said["reason"])


async def test_objects_are_labels_and_pixels_of_the_posted_picture(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    engine.answer = _find_two
    await slots.switch(make_version())
    said = (await client.post(DETECTION, make_form())).json
    times = [said.pop(name) for name in ("inferenceMs", "processMs")]
    assert said == {
        "success": True,
        "predictions": [
            {"label": "dog", "confidence": 0.75, "x_min": 40, "y_min": 60, "x_max": 480, "y_max": 465},
            {"label": "cat", "confidence": 0.5, "x_min": 320, "y_min": 0, "x_max": 640, "y_max": 240},
        ],
        "count": 2,
        "message": "Found dog, cat",
        "moduleId": "detector@1.0.0",
        "code": 200,
    }
    assert all(isinstance(one, int) for one in times)


@pytest.mark.parametrize(
    ("confidence", "labels"),
    [("0.45", ["dog", "cat"]), ("0.5", ["dog", "cat"]), ("0.6", ["dog"]), ("1", []), ("", ["dog", "cat"])],
)
@pytest.mark.usefixtures("served")
async def test_min_confidence_leaves_out_what_is_less_sure(
    client: ApiClient, confidence: str, labels: list[str]
) -> None:
    said = (await client.post(DETECTION, make_form(min_confidence=confidence, api_key=""))).json
    assert [found["label"] for found in said["predictions"]] == labels
    assert said["count"] == len(labels)
    assert said["message"].startswith("Found" if labels else "Nothing")


async def test_custom_models_are_listed_and_asked_by_name(
    client: ApiClient, slots: Slots, engine: FakeEngine, make_version: MakeVersion
) -> None:
    engine.answer = _say_low
    assert (await client.post(LIST, None)).json["models"] == []
    await slots.switch(make_version(model="gauge"))
    await slots.switch(make_version(model="ultraface"))
    for body in (None, make_form(None, api_key="x"), {"api_key": "x"}):
        said = (await client.post(LIST, body)).json
        assert (said["success"], said["models"]) == (True, ["gauge", "ultraface"])
    said = (await client.post("/v1/vision/custom/gauge", make_form())).json
    assert said["predictions"] == [
        {"label": "low", "confidence": 0.75, "x_min": 0, "y_min": 0, "x_max": 640, "y_max": 480}
    ]
    assert (await client.post("/v1/vision/face", make_form())).json["moduleId"] == "ultraface@1.0.0"
    assert (await client.post(DETECTION, make_form())).json["moduleId"] == "gauge@1.0.0"
    for name in ("other", "gauge@2.0.0"):
        answered = await client.post(f"/v1/vision/custom/{name}", make_form())
        assert (answered.status, _get_reason(answered)) == (404, "model_not_found")


async def test_errors_are_in_the_shape_that_these_clients_read(client: ApiClient, slots: Slots) -> None:
    answered = await client.post(DETECTION, make_form())
    assert (answered.status, _get_reason(answered)) == (503, "model_not_ready")
    assert answered.headers["Retry-After"] == "5"
    for answered in (await client.get(DETECTION), await client.post("/v1/vision/face/register", make_form())):
        assert answered.status in (404, 405)
        assert _get_reason(answered) in ("not_found", "method_refused")


@pytest.mark.parametrize(
    ("form", "status", "reason"),
    [
        (b"picture", 415, "media_type_refused"),
        ({"image": "picture"}, 415, "media_type_refused"),
        (make_form(None, api_key="x", more="y"), 400, "request_invalid"),
        (make_form(b"bad"), 400, "picture_unreadable"),
        (make_form(b""), 400, "picture_unreadable"),
        (make_form(min_confidence="high"), 400, "request_invalid"),
        (make_form(min_confidence="nan"), 400, "request_invalid"),
        (make_form(min_confidence="40"), 400, "request_invalid"),
        (make_form(note="x" * (FIELD_MAX_BYTES + 1)), 400, "request_invalid"),
        (make_form(**{f"field{number}": "x" for number in range(20)}), 400, "request_invalid"),
        (make_form(bytes(100_000)), 413, "body_too_large"),
    ],
)
async def test_a_wrong_form_is_refused(
    served: Slots, open_client: OpenClient, form: Any, status: int, reason: str
) -> None:
    async with open_client(served, ApiSettings(body_max_bytes=50_000)) as client:
        answered = await client.post(DETECTION, form)
        assert (answered.status, _get_reason(answered)) == (status, reason)
        assert served.gate.taken == 0


# --- the token in the form --------------------------------------------------------------------------------------------
async def test_the_token_in_the_form_opens_and_no_other_word_does(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion, engine: FakeEngine
) -> None:
    await slots.switch(make_version())
    async with open_client(slots, GUARDED) as client:
        for path in (DETECTION, "/v1/vision/custom/detector"):
            assert (await client.post(path, make_form(api_key=TOKEN))).status == 200
            assert (await client.post(path + "?api_key=" + TOKEN, make_form())).status == 200
        for fields in ({}, {"api_key": ""}, {"api_key": TOKEN[:-1]}, {"api_key": TOKEN + "x"}, {"token": TOKEN}):
            answered = await client.post(DETECTION, make_form(**fields))
            assert (answered.status, _get_reason(answered)) == (401, "unauthorised")
            assert answered.headers["WWW-Authenticate"] == "Bearer"
        for body in (make_form(None, api_key=TOKEN), {"api_key": TOKEN}):
            assert (await client.post(LIST, body)).status == 200
        for body in (None, {"api_key": "x"}, make_form(None, api_key="x"), {"token": TOKEN}):
            assert (await client.post(LIST, body)).status == 401
        assert (await client.post(LIST, {"api_key": TOKEN}, chunked=True)).status == 200
        wrong_elsewhere = await client.post(DETECTION, make_form(api_key=TOKEN), headers={"Prediction-Key": "other"})
        assert wrong_elsewhere.status == 401


async def test_the_first_token_in_a_form_counts(slots: Slots, open_client: OpenClient) -> None:
    async with open_client(slots, GUARDED) as client:
        body = aiohttp.FormData([("api_key", "x"), ("api_key", TOKEN)])
        assert (await client.post(LIST, body)).status == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/score"),
        ("POST", "/image"),
        ("POST", "/detector/detect/iterations/x/image"),
        ("POST", "/v1/models/detector/predict"),
        ("POST", "/v1/vision"),
        ("POST", "//v1/vision/detection"),
        ("POST", "/V1/vision/detection"),
        ("GET", "/v1/vision/../../metrics"),
        ("PUT", DETECTION),
    ],
)
async def test_elsewhere_a_form_opens_nothing(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion, method: str, path: str
) -> None:
    await slots.switch(make_version())
    async with open_client(slots, GUARDED) as client:
        answered = await client.ask(method, path, data=make_form(api_key=TOKEN))
        assert answered.status == 401


async def test_a_host_header_that_looks_like_such_a_path_opens_nothing(served: Slots, open_client: OpenClient) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="api_key"\r\n\r\n' + TOKEN.encode() + b"\r\n--b--\r\n"
    async with open_client(served, GUARDED) as client:
        for host in (b"x/v1/vision/detection?", b"x/v1/vision/detection#", b"/v1/vision/detection"):
            head = b"POST /score HTTP/1.1\r\nHost: " + host + b"\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            head += b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(form)
            assert (await client.send_raw(head + form)).startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 "))


async def test_nothing_is_asked_of_a_model_before_the_token_was_shown(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion, engine: FakeEngine
) -> None:
    asked: list[bytes] = []

    def note(picture: bytes, terms: Terms) -> Answer:
        asked.append(picture)
        return _find_two(picture, terms)

    engine.answer = note
    await slots.switch(make_version())
    async with open_client(slots, GUARDED) as client:
        await client.post(DETECTION, make_form())
        await client.post("/v1/vision/custom/other", make_form())
        assert asked == []
        await client.post(DETECTION, make_form(api_key=TOKEN))
    assert asked == [b"cat"]


async def test_a_handler_that_forgets_the_token_answers_nothing(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeferry.serve.form.settle_token", lambda *_: None)
    await slots.switch(make_version(label="secret"))
    async with open_client(slots, GUARDED) as client:
        answered = await client.post(DETECTION, make_form(api_key=TOKEN))
        assert answered.status == 500
        assert b"secret" not in answered.body


async def test_strangers_cannot_fill_the_memory_of_those_with_a_token(
    slots: Slots, open_client: OpenClient, make_version: MakeVersion
) -> None:
    await slots.switch(make_version())
    limits = ApiSettings(access=make_access("t"), body_max_bytes=40_000, bodies_max_bytes=100_000, body_timeout_s=20)
    async with open_client(slots, limits) as client:
        head = f"POST {DETECTION} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        held = f"{head}Content-Length: 39000\r\n\r\n".encode() + bytes(38_000)
        writers = [(await asyncio.open_connection("127.0.0.1", client.port))[1] for _ in range(3)]
        for writer in writers:
            writer.write(held)
            await writer.drain()
        await asyncio.sleep(0.2)
        stranger = await client.post(DETECTION, make_form(bytes(30_000)))
        assert (stranger.status, _get_reason(stranger)) == (503, "queue_full")
        assert (await client.post(DETECTION + "?api_key=t", make_form(bytes(30_000)))).status == 200
        assert (await client.post("/score?api_key=t", bytes(30_000))).status == 200
        for writer in writers:
            writer.close()
