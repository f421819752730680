"""Error -> HTTP answer: status, JSON body, headers.

What this file leaves to others: where errors are caught (`edge.py`).

Rules:
- The nearest class in STATUSES decides: a leaf before its branch. Every branch has a row, every RequestError leaf too.
- The body is `{"error": {"code", "message", "advice"}}`, or what clients of another API expect under its paths. Only
  messages written for callers leave the device: those of RequestError, ProtocolError and NameInvalid. All others may
  name files, so their message stays in the log.
- Every 503 says when to come again.
"""

from __future__ import annotations

import math
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

    @classmethod
    def make(cls, _: int, detail: ErrorDetail) -> ErrorBody:
        """The body for `detail`."""
        return cls(detail)


class VisionErrorBody(msgspec.Struct, frozen=True):
    """An error as clients of DeepStack and CodeProject.AI read it: `code` is the status, `reason` our stable code."""

    error: str
    reason: str
    advice: str
    code: int
    success: bool = False

    @classmethod
    def make(cls, status: int, detail: ErrorDetail) -> VisionErrorBody:
        """The body for `detail`."""
        return cls(detail.message, detail.code, detail.advice, status)


_OTHER_BODIES: Final = {"/v1/vision/": VisionErrorBody}
"""Prefix of paths -> the body of errors there."""


def get_error_body(path: str) -> type[ErrorBody] | type[VisionErrorBody]:
    """The type of error bodies at `path`, which may be a route's pattern."""
    return next((body for prefix, body in _OTHER_BODIES.items() if path.startswith(prefix)), ErrorBody)


def get_status(error: type[EdgeferryError]) -> int:
    """The HTTP status of an error class: its own row, else that of its nearest ancestor."""
    return next(STATUSES[kind] for kind in error.__mro__ if kind in STATUSES)


def make_error_response(error: EdgeferryError, headers: dict[str, str] | None = None, *, path: str = "") -> Response:
    """The whole answer to `error` at `path`."""
    message = error.message if isinstance(error, _FOR_CALLERS) else _HIDDEN_MESSAGE
    status = get_status(type(error))
    body = get_error_body(path).make(status, ErrorDetail(error.code, message, error.advice))
    extra = dict(headers or {})
    if status == 503:
        extra["Retry-After"] = str(math.ceil(RETRY_AFTER_S[type(error)]))
    if status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body), status, extra, "application/json")
