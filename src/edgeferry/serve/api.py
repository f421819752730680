"""The inference API: all its routes in one list, and the handlers behind them.

What this file leaves to others: answers' shapes (`formats/`), errors (`statuses.py`, `edge.py`), who may call
(`access.py`), bodies (`body.py`), the model that answers (`infer.py`).

Rules:
- A route is a row in `Api.get_routes`; the description at `/openapi.json` is made from the same rows.
- `/healthz` and `/readyz` are always open and say nothing but yes or no.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgeferry import errors
from edgeferry.errors import RequestInvalid
from edgeferry.serve.access import AccessGuard
from edgeferry.serve.answering import PICTURE_ERRORS, Answering
from edgeferry.serve.api_settings import ApiSettings
from edgeferry.serve.body import BodyLimits, HeldBody, require_raw_picture
from edgeferry.serve.custom_vision import CustomVision
from edgeferry.serve.deepstack import DeepStack
from edgeferry.serve.edge import DirectRoutes, EdgeEndpoint, answer_http_exception
from edgeferry.serve.form import FormReader
from edgeferry.serve.formats.classic import make_classic
from edgeferry.serve.formats.lva import LvaAnswer, make_lva
from edgeferry.serve.formats.predict import PredictAnswer, make_predict
from edgeferry.serve.formats.score import ScoreElement, make_score
from edgeferry.serve.infer import Inference
from edgeferry.serve.metrics import CONTENT_TYPE, Metrics
from edgeferry.serve.openapi import JSON, ApiAnswer, ApiParameter, ApiRoute, make_openapi
from edgeferry.serve.ports import DevicePort, Drawn, FetchPort, StorePort
from edgeferry.serve.slots import Slots
from edgeferry.serve.statuses import make_ready_response
from edgeferry.serve.v2 import V2

_WEIGHT = re.compile(r"[01](\.\d{0,3})?")
SCORE_FORMATS = ("default", "classic", "lva")
_DRAWN_TYPES: dict[str, Drawn] = {"image/png": "png", "image/jpeg": "jpeg"}


def make_app(
    slots: Slots,
    device: DevicePort | None = None,
    settings: ApiSettings | None = None,
    *,
    fetch: FetchPort | None = None,
    store: StorePort | None = None,
) -> Starlette:
    """The API over `slots` as an ASGI application.

    `device` adds the agent's view to `/metrics`; without `fetch` no picture is fetched from a URL, without `store`
    `/v2/repository` knows what is served and no more.
    """
    settings = settings or ApiSettings()
    api = Api(slots, settings, device=device, fetch=fetch, store=store)
    endpoints: dict[tuple[str, str], ASGIApp] = {
        (row.method, row.path): EdgeEndpoint(row.path, row.handler, api.metrics) for row in api.get_routes()
    }
    direct = {key: endpoint for key, endpoint in endpoints.items() if "{" not in key[1]}
    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()],
        middleware=[Middleware(AccessGuard, settings.access), Middleware(DirectRoutes, direct)],
        exception_handlers={HTTPException: answer_http_exception},
    )
    app.router.redirect_slashes = False
    app.state.access = settings.access
    return app


class Api:
    """The handlers, and what they share."""

    def __init__(
        self,
        slots: Slots,
        settings: ApiSettings,
        *,
        device: DevicePort | None,
        fetch: FetchPort | None,
        store: StorePort | None,
    ) -> None:
        self.metrics = Metrics(slots, device)
        self._slots = slots
        self._limits = BodyLimits(settings.body_max_bytes, settings.body_timeout_s, settings.bodies_max_bytes)
        self._answering = Answering(slots, self.metrics, settings.request_timeout_s)
        forms = FormReader(slots.gate, self._limits, settings.access)
        self._custom_vision = CustomVision(self._answering, forms, fetch, limits=self._limits)
        self._deepstack = DeepStack(self._answering, forms)
        self._v2 = V2(slots, store, self.metrics, limits=self._limits, timeout_s=settings.request_timeout_s)

    def get_routes(self) -> tuple[ApiRoute, ...]:
        """Every route there is."""
        return (
            ApiRoute(
                "POST",
                "/score",
                self.score,
                "What the guide's clients speak: a picture in, an array of what was found out",
                (
                    ApiAnswer("What was found, best first", bodies=(list[ScoreElement], list[str], LvaAnswer)),
                    ApiAnswer("Nothing was found (format=lva only)", status=204),
                ),
                errors=PICTURE_ERRORS,
                parameters=(ApiParameter("format", "Shape of the answer", SCORE_FORMATS),),
                takes_picture=True,
            ),
            ApiRoute(
                "POST",
                "/v1/models/{name}/predict",
                self.predict,
                "The typed answer of model `name` or `name@version`, or the picture with the answer drawn on it",
                (
                    ApiAnswer("The answer", bodies=(PredictAnswer,)),
                    ApiAnswer("The picture, drawn on", media_types=tuple(_DRAWN_TYPES)),
                ),
                errors=(*PICTURE_ERRORS, errors.ModelNotFound),
                parameters=(ApiParameter("Accept", "application/json, image/png or image/jpeg", place="header"),),
                takes_picture=True,
            ),
            *self._v2.get_routes(),
            ApiRoute("GET", "/healthz", self.healthz, "Whether the process lives", (_said("ok"),), open=True),
            ApiRoute(
                "GET",
                "/readyz",
                self.readyz,
                "Whether a model is active and every active model has a living worker",
                (_said("ready"), ApiAnswer("Not ready", status=503, media_types=("text/plain",))),
                open=True,
            ),
            ApiRoute(
                "GET", "/metrics", self.get_metrics, "Counters in the Prometheus text format", (_said("counters"),)
            ),
            ApiRoute("GET", "/openapi.json", self.get_openapi, "This description", (ApiAnswer("OpenAPI 3.1"),)),
            *self._deepstack.get_routes(),
            *self._custom_vision.get_routes(),
        )

    async def score(self, request: Request) -> Response:
        """POST /score."""
        shape = request.query_params.get("format", "default") if request.scope["query_string"] else "default"
        if shape not in SCORE_FORMATS:
            raise RequestInvalid(f"expected format to be one of {', '.join(SCORE_FORMATS)}, found {shape!r:.40}")
        return _make_score_response(await self._infer(request), shape)

    async def predict(self, request: Request) -> Response:
        """POST /v1/models/{name}/predict."""
        media_type = _pick_media_type(request.headers.get("accept", JSON))
        draw = _DRAWN_TYPES.get(media_type, "")
        inference = await self._infer(request, wanted=request.path_params["name"], draw=draw)
        if draw:
            named = {"X-Edgeferry-Model": str(inference.version)}
            return Response(inference.reply.drawn, headers=named, media_type=media_type)
        return _make_json(make_predict(inference))

    async def healthz(self, _: Request) -> Response:
        """GET /healthz."""
        return Response("ok\n", media_type="text/plain")

    async def readyz(self, _: Request) -> Response:
        """GET /readyz."""
        models = self._slots.get_models().values()
        ready = bool(models) and all(model.ready for model in models)
        return make_ready_response(b"ready\n" if ready else b"not ready\n", "text/plain", ready=ready)

    async def get_metrics(self, _: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def get_openapi(self, _: Request) -> Response:
        """GET /openapi.json."""
        return _make_json(make_openapi(self.get_routes()))

    async def _infer(self, request: Request, *, wanted: str = "", draw: Drawn = "") -> Inference:
        require_raw_picture(request)
        self._slots.gate.require_place()
        async with HeldBody(request, self._limits) as held:
            return await self._answering.answer(request, held.take(), wanted=wanted, draw=draw)


def _said(text: str) -> ApiAnswer:
    return ApiAnswer(text, media_types=("text/plain",))


def _make_score_response(inference: Inference, shape: str) -> Response:
    reply = inference.reply
    if shape == "classic":
        in_pixels = inference.version.spec.stages[-1].file.lower().endswith(".onnx")
        lines = make_classic(reply.answer, width=reply.width, height=reply.height, in_pixels=in_pixels)
        return _make_json(lines)
    if shape == "lva":
        found = make_lva(reply.answer)
        return _make_json(found) if found is not None else Response(status_code=204)
    return _make_json(make_score(reply.answer))


def _make_json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)


def _pick_media_type(accept: str) -> str:
    """What `predict` answers to an Accept header: JSON unless a picture is asked for with more weight."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        media_type, _, parameters = part.strip().lower().partition(";")
        weights[media_type.strip()] = _read_weight(parameters)
    json_weight = max(weights.get(JSON, 0.0), weights.get("application/*", 0.0), weights.get("*/*", 0.0))
    best = max(_DRAWN_TYPES, key=lambda drawn: weights.get(drawn, 0.0))
    return best if weights.get(best, 0.0) > json_weight else JSON


def _read_weight(parameters: str) -> float:
    """The `q` of one element of an Accept header (RFC 9110, 12.4.2); 1 where it is missing or broken."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.strip() == "q" and _WEIGHT.fullmatch(value.strip()):
            return float(value)
    return 1.0
