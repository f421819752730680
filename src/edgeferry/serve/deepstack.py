"""The routes of DeepStack and CodeProject.AI, as Frigate, Home Assistant, Blue Iris and their libraries call them.

What this file leaves to others: reading forms and the token in them (`form.py`), which model is meant (`kinds.py`), the
answer's shape (`formats/deepstack.py`), errors in that shape (`statuses.py`).

Rules:
- `min_confidence` can only raise a version's own threshold: what lies below that never leaves the worker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgeferry.errors import (
    BodyTimeout,
    BodyTooLarge,
    MediaTypeRefused,
    ModelNotFound,
    PictureUnreadable,
    QueueFull,
    RequestInvalid,
)
from edgeferry.serve.answering import PICTURE_ERRORS, Answering
from edgeferry.serve.edge import Handler
from edgeferry.serve.form import FormReader
from edgeferry.serve.formats.deepstack import VisionAnswer, VisionModels, make_vision_answer
from edgeferry.serve.kinds import ANYTHING, FACES, OBJECTS, Kind, list_fitting, pick_fitting, pick_named
from edgeferry.serve.openapi import JSON, ApiAnswer, ApiRoute

FIELD = "image"
_LIST_ERRORS = (RequestInvalid, BodyTimeout, BodyTooLarge, MediaTypeRefused, PictureUnreadable, QueueFull)
_TOKEN_FIELD: Final = {"api_key": "The device's token, for clients that send it nowhere else"}
_FIELDS: Final = {**_TOKEN_FIELD, "min_confidence": "0..1; what was found with less is left out"}


class DeepStack:
    """The handlers."""

    def __init__(self, answering: Answering, forms: FormReader) -> None:
        self._answering = answering
        self._forms = forms

    def get_routes(self) -> tuple[ApiRoute, ...]:
        """The list of models goes before the pattern that it would match."""
        listed = ApiRoute(
            "POST",
            "/v1/vision/custom/list",
            self.list_models,
            "DeepStack, CodeProject.AI: the models that can be named",
            (ApiAnswer("Their names", bodies=(VisionModels,)),),
            errors=_LIST_ERRORS,
            fields=_TOKEN_FIELD,
        )
        return (
            _make_route("/v1/vision/detection", self.detect, "objects in a picture"),
            _make_route("/v1/vision/face", self.find_faces, "faces in a picture"),
            listed,
            _make_route("/v1/vision/custom/{model}", self.ask_model, "what `model` finds in a picture"),
        )

    async def detect(self, request: Request) -> Response:
        """POST /v1/vision/detection."""
        return await self._answer(request, OBJECTS)

    async def find_faces(self, request: Request) -> Response:
        """POST /v1/vision/face."""
        return await self._answer(request, FACES)

    async def ask_model(self, request: Request) -> Response:
        """POST /v1/vision/custom/{model}."""
        return await self._answer(request, ANYTHING, named=request.path_params["model"])

    async def list_models(self, request: Request) -> Response:
        """POST /v1/vision/custom/list."""
        await self._forms.read_fields(request)
        return _make_json(VisionModels(list_fitting(self._answering.slots, ANYTHING)))

    async def _answer(self, request: Request, kind: Kind, *, named: str = "") -> Response:
        async with self._forms.open_picture(request, FIELD) as form:
            min_confidence = _read_confidence(form.fields)
            slots = self._answering.slots
            wanted = pick_named(slots, named) if named else pick_fitting(slots, kind)
            inference = await self._answering.answer(request, form.picture, wanted=wanted)
        return _make_json(make_vision_answer(inference, min_confidence=min_confidence))


def _make_route(path: str, handler: Handler, text: str) -> ApiRoute:
    return ApiRoute(
        "POST",
        path,
        handler,
        f"DeepStack, CodeProject.AI: {text}",
        (ApiAnswer("What was found, best first", bodies=(VisionAnswer,)),),
        errors=(*PICTURE_ERRORS, ModelNotFound),
        picture_field=FIELD,
        fields=_FIELDS,
    )


def _read_confidence(fields: Mapping[str, str]) -> float:
    text = fields.get("min_confidence", "").strip() or "0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise RequestInvalid(f"expected min_confidence in 0..1, found {text!r:.40}")
    return value


def _make_json(value: VisionAnswer | VisionModels) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)
