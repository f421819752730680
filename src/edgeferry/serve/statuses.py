"""Error -> HTTP answer: status, JSON body, headers.

What this file leaves to others: where errors are caught (`edge.py`).

Rules:
- The nearest class in STATUSES decides: a leaf before its branch. Every branch has a row, every RequestError leaf too.
- The body is `{"error": {"code", "message", "advice"}}`; below a path of BODIES it is what its clients know.
- Only messages written for callers leave the device: those of RequestError, ProtocolError and NameInvalid. All others
  may name files, so their message stays in the log.
- Every 503 says when to come again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec
from starlette.responses import Response

from edgeferry import errors
from edgeferry.errors import EdgeferryError

STATUSES: Final[dict[type[EdgeferryError], int]] = {
    errors.ConfigError: 500,
    errors.NameInvalid: 400,
    errors.LinkError: 502,
    errors.AccessError: 502,
    errors.BundleError: 500,
    errors.DeltaError: 500,
    errors.StorageError: 500,
    errors.ModelError: 500,
    errors.PictureUnreadable: 400,
    errors.RequestInvalid: 400,
    errors.Unauthorised: 401,
    errors.Forbidden: 403,
    errors.FetchForbidden: 403,
    errors.NotFound: 404,
    errors.ModelNotFound: 404,
    errors.MethodRefused: 405,
    errors.BodyTimeout: 408,
    errors.ModelAmbiguous: 409,
    errors.Conflict: 409,
    errors.PictureTooLarge: 413,
    errors.BodyTooLarge: 413,
    errors.MediaTypeRefused: 415,
    errors.ModelNotReady: 503,
    errors.QueueFull: 503,
    errors.WorkerLost: 503,
    errors.RequestTimeout: 504,
    errors.ProtocolError: 400,
    errors.InternalError: 500,
    errors.WorkerStartFailed: 503,
}
RETRY_AFTER_S: Final[dict[type[EdgeferryError], float]] = {
    errors.ModelNotReady: 5,
    errors.QueueFull: 1,
    errors.WorkerLost: 2,
    errors.WorkerStartFailed: 30,
}
_FOR_CALLERS = (errors.RequestError, errors.ProtocolError, errors.NameInvalid)
_HIDDEN_MESSAGE = "this request could not be answered; the log of the device says why"


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong: a stable code, one sentence about this case, one about what to do."""

    code: str
    message: str
    advice: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is an error."""

    error: ErrorDetail


class PlainErrorBody(msgspec.Struct, frozen=True):
    """The body of an error below `/v2`: one text, as the Open Inference Protocol has it."""

    error: str


class VisionErrorBody(msgspec.Struct, frozen=True):
    """An error as clients of DeepStack and CodeProject.AI read it: `code` is the status, `reason` our stable code."""

    error: str
    reason: str
    advice: str
    code: int
    success: bool = False


def make_body(detail: ErrorDetail, _: int) -> ErrorBody:
    """`detail` as it is."""
    return ErrorBody(detail)


def make_plain_body(detail: ErrorDetail, _: int) -> PlainErrorBody:
    """All of `detail` in one text."""
    return PlainErrorBody(f"{detail.message}. {detail.advice} ({detail.code})")


def make_vision_body(detail: ErrorDetail, status: int) -> VisionErrorBody:
    """`detail` in fields of its own, beside what those clients look at."""
    return VisionErrorBody(detail.message, detail.code, detail.advice, status)


MakeBody = Callable[[ErrorDetail, int], msgspec.Struct]
BODIES: Final[dict[str, tuple[type[msgspec.Struct], MakeBody]]] = {
    "/v2": (PlainErrorBody, make_plain_body),
    "/v1/vision": (VisionErrorBody, make_vision_body),
    "": (ErrorBody, make_body),
}
"""Start of a path -> what stands in the body of an error there, and what makes it of detail and status."""


def get_body_type(path: str) -> type[msgspec.Struct]:
    """What the body of an error at `path` (or at a route's pattern) is."""
    return _find_body(path)[0]


def _find_body(path: str) -> tuple[type[msgspec.Struct], MakeBody]:
    return next(found for start, found in BODIES.items() if path == start or path.startswith(start + "/" * bool(start)))


def make_ready_response(body: bytes, media_type: str, *, ready: bool) -> Response:
    """The answer to a question whether something is ready."""
    headers = {} if ready else {"Retry-After": str(math.ceil(RETRY_AFTER_S[errors.ModelNotReady]))}
    return Response(body, 200 if ready else 503, headers, media_type)


def get_status(error: type[EdgeferryError]) -> int:
    """The HTTP status of an error class: its own row, else that of its nearest ancestor."""
    return next(STATUSES[kind] for kind in error.__mro__ if kind in STATUSES)


def make_error_response(error: EdgeferryError, headers: dict[str, str] | None = None, *, path: str = "") -> Response:
    """The whole answer to `error` of a request to `path`."""
    message = error.message if isinstance(error, _FOR_CALLERS) else _HIDDEN_MESSAGE
    status = get_status(type(error))
    body = _find_body(path)[1](ErrorDetail(error.code, message, error.advice), status)
    extra = dict(headers or {})
    if status == 503:
        extra["Retry-After"] = str(math.ceil(RETRY_AFTER_S[type(error)]))
    if status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body), status, extra, "application/json")
