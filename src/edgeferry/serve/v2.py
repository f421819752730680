"""The routes of the Open Inference Protocol v2 (KServe, Triton): health, metadata, inference, repository.

What this file leaves to others: bodies (`wire/v2_tensors.py`), inference (`v2_infer.py`), residents
(`v2_repository.py`). docs/formats/v2.md has all of it for people.

Rules:
- A route is a row in `V2.get_routes`, which `api.py` takes into its own.
- Errors are `{"error": "..."}` (`statuses.py: BODIES`).
- JSON of some size is read in a thread, one request at a time: reading takes turns with all that goes on here.
- A version in the path and `name@version` mean the same.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgeferry import __version__, errors
from edgeferry.errors import ModelNotFound, RequestInvalid, RequestTimeout
from edgeferry.serve.body import BodyLimits, open_body, require_plain_body
from edgeferry.serve.edge import run_unless_gone
from edgeferry.serve.metrics import Metrics
from edgeferry.serve.openapi import JSON, ApiAnswer, ApiParameter, ApiRoute
from edgeferry.serve.ports import StorePort
from edgeferry.serve.residents import order_version
from edgeferry.serve.slots import ServedModel, Slots
from edgeferry.serve.statuses import make_ready_response
from edgeferry.serve.v2_infer import infer_tensors, make_body
from edgeferry.serve.v2_repository import IndexEntry, IndexRequest, Repository, RepositoryRequest
from edgeferry.wire.v2_models import (
    EXTENSIONS,
    LiveAnswer,
    ModelConfig,
    ModelMetadata,
    ReadyAnswer,
    ServerMetadata,
    make_config,
    make_metadata,
)
from edgeferry.wire.v2_tensors import InferAnswer, InferRequest, TensorRequest, get_json_size, read_infer

HEADER_LENGTH = "Inference-Header-Content-Length"
_COMMAND_MAX_BYTES = 64 << 10
_READ_AT_ONCE_BYTES = 64 << 10
_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"
_BODY_ERRORS: tuple[type[errors.EdgeferryError], ...] = (
    errors.RequestInvalid, errors.BodyTimeout, errors.BodyTooLarge, errors.MediaTypeRefused, errors.ModelNotFound,
    errors.QueueFull,
)  # fmt: skip
_INFER_ERRORS = (
    *_BODY_ERRORS, errors.PictureUnreadable, errors.PictureTooLarge, errors.ModelUnsupported, errors.InvariantBroken,
    errors.ModelNotReady, errors.WorkerLost, errors.RequestTimeout,
)  # fmt: skip
_LOAD_ERRORS = (*_BODY_ERRORS, errors.NameInvalid, errors.Conflict, errors.WorkerStartFailed, errors.StorageFailed)
T = TypeVar("T", bound=msgspec.Struct)


class V2:
    """The handlers, and what they share."""

    def __init__(
        self, slots: Slots, store: StorePort | None, metrics: Metrics, *, limits: BodyLimits, timeout_s: float
    ) -> None:
        self._slots = slots
        self._repository = Repository(slots, store)
        self._metrics = metrics
        self._limits = limits
        self._command_limits = BodyLimits(_COMMAND_MAX_BYTES, limits.timeout_s)
        self._timeout_s = timeout_s
        self._reading = asyncio.Lock()

    def get_routes(self) -> tuple[ApiRoute, ...]:
        """Every route below /v2."""
        ready = (
            ApiAnswer("It answers", bodies=(ReadyAnswer,)),
            ApiAnswer("Not now", status=503, bodies=(ReadyAnswer,)),
        )
        return (
            ApiRoute("GET", "/v2", self.v2_server, "Server metadata", (_make_answer(ServerMetadata),)),
            ApiRoute("GET", "/v2/health/live", self.v2_live, "Whether the process lives", (_make_answer(LiveAnswer),)),
            ApiRoute("GET", "/v2/health/ready", self.v2_ready, "Whether every active model answers", ready),
            *self._get_model_routes(_MODEL, ready),
            *self._get_model_routes(_VERSION, ready),
            ApiRoute(
                "POST",
                "/v2/repository/index",
                self.v2_index,
                "Every version that is stored or served",
                (_make_answer(list[IndexEntry]),),
                errors=(*_BODY_ERRORS, errors.StorageFailed),
                takes=(IndexRequest,),
            ),
            ApiRoute(
                "POST",
                "/v2/repository/models/{name}/load",
                self.v2_load,
                "Makes a stored version resident; never moves the active one",
                (ApiAnswer("It answers under its full name"),),
                errors=_LOAD_ERRORS,
                takes=(RepositoryRequest,),
            ),
            ApiRoute(
                "POST",
                "/v2/repository/models/{name}/unload",
                self.v2_unload,
                "Lets go of a resident version",
                (ApiAnswer("It is gone"),),
                errors=_LOAD_ERRORS,
                takes=(RepositoryRequest,),
            ),
        )

    def _get_model_routes(self, path: str, ready: tuple[ApiAnswer, ...]) -> tuple[ApiRoute, ...]:
        missing = (errors.ModelNotFound,)
        return (
            ApiRoute("GET", path, self.v2_model, "What goes in and comes out", (_make_answer(ModelMetadata),),
                     errors=missing),
            ApiRoute("GET", path + "/config", self.v2_config, "The same in Triton's words",
                     (_make_answer(ModelConfig),), errors=missing),
            ApiRoute("GET", path + "/ready", self.v2_model_ready, "Whether it answers", ready,
                     errors=missing),
            ApiRoute(
                "POST",
                path + "/infer",
                self.v2_infer,
                "Tensors in, tensors out; or one picture as a BYTES element, its typed answer out",
                (ApiAnswer("Outputs", media_types=(JSON, "application/octet-stream"), bodies=(InferAnswer,)),),
                errors=_INFER_ERRORS,
                parameters=(ApiParameter(HEADER_LENGTH, "Bytes of JSON before raw tensors", place="header"),),
                takes=(InferRequest,),
                takes_binary=True,
            ),
        )  # fmt: skip

    async def v2_server(self, _: Request) -> Response:
        """GET /v2."""
        return _make_json(ServerMetadata("edgeferry", __version__, EXTENSIONS))

    async def v2_live(self, _: Request) -> Response:
        """GET /v2/health/live."""
        return _make_json(LiveAnswer(live=True))

    async def v2_ready(self, _: Request) -> Response:
        """GET /v2/health/ready."""
        models = self._slots.get_models().values()
        return _make_ready(bool(models) and all(model.ready for model in models))

    async def v2_model(self, request: Request) -> Response:
        """GET /v2/models/{name} and /versions/{version}."""
        served = self._require_served(request)
        return _make_json(make_metadata(served[0].version.model, _list_versions(served), served[0].tensors))

    async def v2_config(self, request: Request) -> Response:
        """GET /v2/models/{name}/config."""
        first = self._require_served(request)[0]
        return _make_json(make_config(first.version.model, first.version.spec, first.tensors))

    async def v2_model_ready(self, request: Request) -> Response:
        """GET /v2/models/{name}/ready."""
        return _make_ready(self._require_served(request)[0].ready)

    async def v2_infer(self, request: Request) -> Response:
        """POST /v2/models/{name}/infer."""
        require_plain_body(request)
        self._slots.gate.require_place()
        async with open_body(request, self._limits, may_be_empty=True) as body:
            asked = await self._read(request, body)
            del body  # JSON was read: its numbers wait, not its text
            work = infer_tensors(self._slots, asked, wanted=_get_wanted(request), timeout_s=self._timeout_s)
            inference = await run_unless_gone(request, work)
        self._metrics.count_inference(inference)
        data, json_bytes = make_body(asked, inference)
        if json_bytes is None:
            return Response(data, media_type=JSON)
        return Response(data, headers={HEADER_LENGTH: str(json_bytes)}, media_type="application/octet-stream")

    async def _read(self, request: Request, body: bytes) -> TensorRequest:
        header_length = request.headers.get(HEADER_LENGTH)
        if get_json_size(body, header_length) <= _READ_AT_ONCE_BYTES:
            return read_infer(body, header_length)
        return await run_unless_gone(request, self._read_beside(body, header_length))

    async def _read_beside(self, body: bytes, header_length: str | None) -> TensorRequest:
        try:
            async with asyncio.timeout(self._timeout_s), self._reading:
                return await asyncio.to_thread(read_infer, body, header_length)
        except TimeoutError as error:
            raise RequestTimeout(f"expected to read the tensors within {self._timeout_s:g} s, did not") from error

    async def v2_index(self, request: Request) -> Response:
        """POST /v2/repository/index."""
        return _make_json(await self._repository.list_index(await self._read_command(request, IndexRequest)))

    async def v2_load(self, request: Request) -> Response:
        """POST /v2/repository/models/{name}/load."""
        command = await self._read_command(request, RepositoryRequest)
        await run_unless_gone(request, self._repository.load(request.path_params["name"], command))
        return _make_json({})

    async def v2_unload(self, request: Request) -> Response:
        """POST /v2/repository/models/{name}/unload."""
        command = await self._read_command(request, RepositoryRequest)
        await self._repository.unload(request.path_params["name"], command)
        return _make_json({})

    async def _read_command(self, request: Request, kind: type[T]) -> T:
        require_plain_body(request)
        async with open_body(request, self._command_limits, may_be_empty=True) as body:
            try:
                return msgspec.json.decode(body or b"{}", type=kind)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise RequestInvalid(f"expected a repository request of the v2 protocol: {error!s:.300}") from error

    def _require_served(self, request: Request) -> list[ServedModel]:
        """The versions of the model that answer, the one that is meant first; raises ModelNotFound."""
        name, _, version = _get_wanted(request).partition("@")
        served = [one for one in self._slots.list_served() if one.version.model == name]
        active = self._slots.get_models().get(name)
        matching = [one for one in served if version in ("", one.version.version)]
        if not matching:
            known = ", ".join(str(one.version) for one in self._slots.list_served()) or "nothing"
            raise ModelNotFound(f"no model {name!r:.80} {version!r:.80} is served here; served: {known}"[:400])
        latest = max(matching, key=lambda one: order_version(one.version.version))
        first = active if active is not None and not version else latest
        return [first, *(one for one in matching if one.version is not first.version)]


def _get_wanted(request: Request) -> str:
    name, version = request.path_params["name"], request.path_params.get("version", "")
    return f"{name}@{version}" if version else name


def _list_versions(served: list[ServedModel]) -> tuple[str, ...]:
    return tuple(sorted((one.version.version for one in served), key=order_version))


def _make_answer(body: Any) -> ApiAnswer:
    return ApiAnswer("What was asked for", bodies=(body,))


def _make_ready(ready: bool) -> Response:
    return make_ready_response(msgspec.json.encode(ReadyAnswer(ready)), JSON, ready=ready)


def _make_json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)
