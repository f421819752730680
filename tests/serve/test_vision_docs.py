"""docs/formats/vision-apis.md tells the truth: its examples, its routes and its limits are the code's."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.routing import Route

from edgeferry.app import picture_fetch
from edgeferry.errors import ModelNotReady
from edgeferry.model.spec import ModelSpec
from edgeferry.model.stored import StoredVersion
from edgeferry.runtime.child import InferReply
from edgeferry.serve import form
from edgeferry.serve.api import make_app
from edgeferry.serve.formats.custom_vision import NAMESPACE, make_image_prediction
from edgeferry.serve.formats.deepstack import VisionModels, make_vision_answer
from edgeferry.serve.infer import Inference
from edgeferry.serve.slot import NOT_READY_MESSAGE
from edgeferry.serve.slots import Slots
from edgeferry.serve.statuses import make_error_response
from edgeferry.vision.answer import DetectionAnswer, FoundObject
from edgeferry.wire import multipart

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "formats" / "vision-apis.md").read_text()
CAT = DetectionAnswer(
    objects=(FoundObject(class_index=16, label="cat", score=0.71875, box=(0.125, 0.0625, 0.96875, 0.75)),)
)
VERSION = StoredVersion("detector", "1.1.0", "i", Path("/nowhere"), ModelSpec(stages=()))


def _predict() -> Any:
    id_, created = uuid.UUID("6ba7b810-9dad-41d1-80b4-00c04fd430c8"), datetime(2026, 11, 26, 4, tzinfo=UTC)
    return make_image_prediction(CAT, VERSION, id_=id_, created=created)


def _make(name: str) -> Any:
    if name == "vision error":
        error = ModelNotReady(NOT_READY_MESSAGE)
        return json.loads(bytes(make_error_response(error, path="/v1/vision/detection").body))
    inference = Inference(VERSION, InferReply(CAT, 640, 480, {"infer": 9.8}), queue_ms=0.1, total_ms=12.3)
    made = {
        "custom vision": _predict,
        "vision": lambda: make_vision_answer(inference, min_confidence=0.4),
        "vision list": lambda: VisionModels(["detector", "gauge"]),
    }
    return json.loads(msgspec.json.encode(made[name]()))


@pytest.mark.parametrize("name", ["custom vision", "vision", "vision list", "vision error"])
def test_each_example_is_what_the_code_makes(name: str) -> None:
    (example,) = re.findall(rf"^```json {name}$\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert json.loads(example) == _make(name)


def test_every_route_is_told(slots: Slots) -> None:
    paths = {route.path for route in make_app(slots).routes if isinstance(route, Route)}
    told = {"", *re.findall(r"`(?:POST )?(/[^\s`]*)`", TEXT)}
    prefix = "/customvision/{api}/{prediction}"
    places = {path.removesuffix("/image") for path in paths if path.endswith("/image")}
    assert len(places) == 6
    assert {place.removeprefix(prefix) for place in places} <= told
    for place in places:
        assert {f"{place}/{route}{tail}" for route in ("image", "url") for tail in ("", "/nostore")} <= paths
    assert {path for path in paths if path.startswith("/v1/vision/")} < told


def test_the_limits_are_the_codes() -> None:
    words = " ".join(TEXT.split())
    assert str(NAMESPACE) in words
    assert f"At most {multipart.PARTS_MAX} parts, {multipart.HEAD_MAX_BYTES >> 10} KiB of header" in words
    assert f"{form.FIELD_MAX_BYTES >> 10} KiB of text each" in words
    assert f"each within {picture_fetch._TIMEOUT_S:g} s" in words
    assert (picture_fetch.FETCHES_MAX, "at most four pictures" in words) == (4, True)
    assert (form._UNPROVEN_SHARE, "an eighth of what bodies may hold" in words) == (8, True)
