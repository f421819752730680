"""Azure Custom Vision: the routes of its exported containers, and those of its prediction service.

What this file leaves to others: reading forms (`form.py`), which model is meant (`kinds.py`), the answer's shape
(`formats/custom_vision.py`), fetching pictures (a FetchPort).

Rules:
- What a client calls project or published name may be a model's name, or any other word: a container answers whatever
  its clients were set up with, and so does this.
- `/nostore` changes nothing: no picture is ever stored.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgeferry.errors import FetchForbidden, ModelNotFound
from edgeferry.serve.answering import PICTURE_ERRORS, Answering
from edgeferry.serve.body import BodyLimits
from edgeferry.serve.edge import run_unless_gone
from edgeferry.serve.form import FormReader
from edgeferry.serve.formats.custom_vision import ImagePrediction, make_image_prediction
from edgeferry.serve.kinds import ANYTHING, CLASSES, OBJECTS, pick_fitting
from edgeferry.serve.openapi import JSON, ApiAnswer, ApiRoute
from edgeferry.serve.ports import FetchPort

FIELD = "imageData"
_SERVICE = "/customvision/{api}/{prediction}"
"""What the service's SDKs put before: `v3.0/Prediction`, `v3.1/prediction`."""
_PLACES = (
    "",
    "/{project}",
    *(
        f"{prefix}/{{project}}/{task}/iterations/{{name}}"
        for prefix, task in product(("", _SERVICE), ("classify", "detect"))
    ),
)
_KINDS = {"classify": CLASSES, "detect": OBJECTS}


class ImageUrl(msgspec.Struct, frozen=True):
    """Where a picture is to be fetched from."""

    url: str


class CustomVision:
    """The handlers. `fetch` is None where pictures are not fetched from URLs; those that are count in `limits`."""

    def __init__(self, answering: Answering, forms: FormReader, fetch: FetchPort | None, *, limits: BodyLimits) -> None:
        self._answering = answering
        self._forms = forms
        self._fetch = fetch
        self._limits = limits

    def get_routes(self) -> tuple[ApiRoute, ...]:
        """`image` and `url`, at every place and with every tail that clients know."""
        return tuple(self._make_routes())

    def _make_routes(self) -> Iterator[ApiRoute]:
        image = ApiRoute(
            "POST",
            "/image",
            self.image,
            "Azure Custom Vision: what is in a picture",
            (ApiAnswer("The prediction", bodies=(ImagePrediction,)),),
            errors=(*PICTURE_ERRORS, ModelNotFound),
            takes_picture=True,
            picture_field=FIELD,
        )
        url = replace(
            image,
            path="/url",
            handler=self.url,
            text="Azure Custom Vision: what is in a picture that the device fetches, where its settings allow that",
            errors=(*image.errors, FetchForbidden),
            takes_picture=False,
            picture_field="",
            takes=(ImageUrl,),
        )
        for place, row, tail in product(_PLACES, (image, url), ("", "/nostore")):
            yield replace(row, path=f"{place}{row.path}{tail}")

    async def image(self, request: Request) -> Response:
        """POST .../image."""
        async with self._forms.open_picture(request, FIELD, raw=True) as form:
            return await self._answer(request, form.picture)

    async def url(self, request: Request) -> Response:
        """POST .../url."""
        if self._fetch is None:
            raise FetchForbidden("pictures are not fetched from URLs here")
        wanted = await self._forms.read_json(request, ImageUrl)
        picture = await run_unless_gone(request, self._fetch.fetch_picture(wanted.url))
        with self._limits.hold(len(picture)):
            return await self._answer(request, picture)

    async def _answer(self, request: Request, picture: bytes) -> Response:
        inference = await self._answering.answer(request, picture, wanted=self._pick(request))
        created = datetime.now(UTC)
        said = make_image_prediction(inference.reply.answer, inference.version, id_=uuid.uuid4(), created=created)
        named = {"X-Edgeferry-Model": str(inference.version)}
        return Response(msgspec.json.encode(said), headers=named, media_type=JSON)

    def _pick(self, request: Request) -> str:
        names = [request.path_params.get(key, "") for key in ("name", "project")]
        task = next((task for task in _KINDS if f"/{task}/iterations/" in request.scope["path"]), "")
        return pick_fitting(self._answering.slots, _KINDS.get(task, ANYTHING), names)
