"""What every handler of the service REST shares: bodies within bounds, answers and refusals as IoT Hub writes them.

Rules:
- A body is bounded before it is read.
- Every refusal has IoT Hub's code in `iothub-errorcode` and in its body.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from edgeferry.errors import (
    Conflict,
    EdgeferryError,
    Forbidden,
    HubRefused,
    LimitExceeded,
    NameInvalid,
    NotFound,
    RequestInvalid,
    RequestTimeout,
    StorageError,
)
from edgeferry.storage.hub_tables import IdentityView
from edgeferry.wire import service_api as api
from edgeferry.wire.service_api import Identity

BODY_MAX_BYTES = 256 * 1024
PAGE_MAX_ROWS = 1000
_log = structlog.get_logger(__name__)
_CODE_OF_ERROR: dict[type[EdgeferryError], str] = {
    RequestInvalid: "ArgumentInvalid",
    NameInvalid: "ArgumentInvalid",
    LimitExceeded: "MessageTooLarge",
    NotFound: "NotFound",
    Conflict: "PreconditionFailed",
    RequestTimeout: "GatewayTimeout",
    HubRefused: "IotHubUnauthorizedAccess",
    Forbidden: "IotHubUnauthorizedAccess",
}


async def read_body(request: Request, limit_bytes: int = BODY_MAX_BYTES) -> bytes:
    """The body, read no further than `limit_bytes`; raises LimitExceeded."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > limit_bytes:
                raise LimitExceeded(f"expected a body of at most {limit_bytes} bytes")
    except ClientDisconnect as error:
        raise RequestInvalid("the caller left before the body was whole") from error
    return bytes(body)


def make_refusal(error: EdgeferryError) -> Response:
    """The answer that stands for an error."""
    return make_error(get_code(error), error.message)


def get_code(error: EdgeferryError) -> str:
    """IoT Hub's code of an error; what is no caller's fault goes to the log."""
    code = error.values.get("service_code") or _CODE_OF_ERROR.get(type(error))
    if code is None:
        code = "ServiceUnavailable" if isinstance(error, StorageError) else "ServerError"
        _log.error("service request failed", code=error.code, reason=error.message)
    return str(code)


def make_error(code: str, message: str) -> Response:
    """A refusal by its code."""
    status = api.STATUS_OF_CODE[code]
    return Response(api.make_error_body(code, message), status, {api.ERROR_HEADER: code}, media_type="application/json")


def make_answer(value: Any, *, headers: dict[str, str] | None = None, etag: str | None = None) -> Response:
    """200 with JSON."""
    headers = {**(headers or {}), **({"ETag": api.format_etag(etag)} if etag is not None else {})}
    return Response(msgspec.json.encode(value), 200, headers, media_type="application/json; charset=utf-8")


def answer_identity(view: IdentityView) -> Response:
    """A device or module with its keys."""
    return make_answer(api.make_identity_body(view.record, view.facts), etag=view.record.etag)


def answer_twin(view: IdentityView) -> Response:
    """A twin under its etag."""
    return make_answer(api.make_twin_body(view.record, view.twin, view.facts), etag=view.twin.etag)


def get_identity(request: Request) -> Identity:
    """Whom the path names; raises NameInvalid."""
    return api.require_identity(request.path_params["device"], request.path_params.get("module"))


def get_if_match(request: Request) -> str | None:
    """The etag that the caller insists on, None for whatever is there."""
    return api.parse_if_match(request.headers.get("if-match"))


def get_limit(text: str | None) -> int:
    """How many rows a caller wants, within what one page may hold; raises RequestInvalid."""
    if text is None:
        return PAGE_MAX_ROWS
    digits = text.lstrip("0")
    if not (digits.isascii() and digits.isdigit()):
        raise RequestInvalid(f"expected a whole number of rows from 1, found {text!r:.40}")
    return int(digits) if len(digits) < 5 and int(digits) < PAGE_MAX_ROWS else PAGE_MAX_ROWS
