"""What an HTTP answer means to us: status to error, and whether a range is the range we asked for.

Moving bytes is `http.py`'s. Sources: RFC 9110 (ranges 14, conditions 13, Retry-After 10.2.3), RFC 6585 (429, 511),
docs/formats/iothub.md section 6 (what Azure and Azurite do).

Rules:
- Decided by status, never by an error code in a body.
- A URL in an error has lost its query, its user and its fragment: a SAS is a secret.
- An answer of the network in place of the server (a captive portal) is never a verdict about the object.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from edgeferry.errors import (
    AccessDenied,
    CaptivePortal,
    EdgeferryError,
    LinkBroken,
    LinkTimeout,
    ObjectChanged,
    ObjectMissing,
    ServerBusy,
    ServerFailed,
)

RETRY_AFTER_MAX_S = 86_400.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", re.ASCII)
_BY_STATUS: Mapping[int, type[EdgeferryError]] = {
    401: AccessDenied,
    403: AccessDenied,
    407: AccessDenied,
    404: ObjectMissing,
    408: LinkTimeout,
    410: ObjectMissing,
    412: ObjectChanged,
    416: ObjectChanged,
    429: ServerBusy,
    503: ServerBusy,
    511: CaptivePortal,
}

Headers = Mapping[str, str]
"""Header names in lower case."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole answer; `url` is redacted."""

    status: int
    headers: Headers
    body: bytes
    url: str


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """What was asked for: bytes from `start` on, of the object with this `etag` and size where they are known.

    `stop`: the first byte that is not wanted; None: all to the end.
    """

    url: str
    start: int = 0
    etag: str | None = None
    total_bytes: int | None = None
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class RangeFacts:
    """What comes: bytes from `start` on (0: the server starts over), the object's size and etag where it says them."""

    status: int
    start: int
    total_bytes: int | None
    etag: str | None
    is_empty: bool = False


def redact_url(url: str) -> str:
    """`scheme://host[:port]/path`: no query, user, password or fragment."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(not a URL)"
    return f"{parts.scheme}://{host}{parts.path}"[:300]


def require_ok(answer: HttpAnswer) -> HttpAnswer:
    """Returns an answer with a status below 300; raises the leaf that its status stands for."""
    if answer.status >= 300:
        raise make_status_error(answer.status, answer.headers, answer.url)
    return answer


def make_status_error(status: int, headers: Headers, url: str) -> EdgeferryError:
    """The error for a status that is no success; a ServerBusy carries `retry_after_s` when the server said it."""
    kind = _BY_STATUS.get(status, ServerFailed if status >= 400 else LinkBroken)
    error = kind(f"{redact_url(url)} answered with status {status}", status=status)
    if isinstance(error, ServerBusy | ServerFailed):
        error.retry_after_s = find_retry_after_s(headers)
    return error


def find_retry_after_s(headers: Headers) -> float | None:
    """Seconds to wait, at most a day. A date is taken against the server's own `Date`: our clock may be wrong."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), RETRY_AFTER_MAX_S)
    then = _find_date(text)
    if then is None:
        return None
    now = _find_date(headers.get("date", "")) or time.time()
    return min(max(0.0, then - now), RETRY_AFTER_MAX_S)


def judge_range(request: RangeRequest, status: int, headers: Headers) -> RangeFacts:
    """Decides whether an answer's bytes may be appended, and where they belong.

    Raises:
        ObjectChanged: the object is not the one we have the start of; begin anew.
        LinkBroken: the answer does not fit the request or itself.
        CaptivePortal, AccessDenied, ObjectMissing, ServerBusy, ServerFailed, LinkTimeout: see the leaves.
    """
    if status == 416 and _get_content_range(headers)[2] == request.start > 0:
        return RangeFacts(status, request.start, request.start, _get_etag(headers), is_empty=True)
    if status not in (200, 206):
        raise make_status_error(status, headers, request.url)
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise LinkBroken(f"{redact_url(request.url)} sent its bytes in another encoding although none was accepted")
    facts = _judge_partial(request, headers) if status == 206 else _judge_whole(headers)
    _check_portal(request, facts, headers)
    _check_total(request, facts)
    if facts.start and request.etag and facts.etag and _strong(facts.etag) != _strong(request.etag):
        raise ObjectChanged(f"{redact_url(request.url)} is another object now: its etag has changed")
    return facts


def is_strong_etag(etag: str | None) -> bool:
    """Whether If-Match may carry it: a weak tag never matches there (RFC 9110, 13.1.1)."""
    return bool(etag) and not str(etag).startswith("W/")


def _judge_whole(headers: Headers) -> RangeFacts:
    length = headers.get("content-length", "")
    return RangeFacts(200, 0, int(length) if length.isdecimal() else None, _get_etag(headers))


def _judge_partial(request: RangeRequest, headers: Headers) -> RangeFacts:
    first, last, total = _get_content_range(headers)
    length = headers.get("content-length", "")
    fits = first is not None and last is not None and first <= last and (total is None or last < total)
    if request.stop is not None:
        fits = fits and last == (request.stop if total is None else min(request.stop, total)) - 1
    if not fits or first != request.start:
        raise LinkBroken(f"expected bytes from {request.start} on, {redact_url(request.url)} sent another range")
    if first is not None and last is not None and length.isdecimal() and int(length) != last - first + 1:
        raise LinkBroken(f"{redact_url(request.url)} announced a range and a length that do not fit each other")
    return RangeFacts(206, request.start, total, _get_etag(headers))


def _get_content_range(headers: Headers) -> tuple[int | None, int | None, int | None]:
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if match is None:
        return None, None, None
    first, last, total = match.groups()
    return _number(first), _number(last), _number(total)


def _check_portal(request: RangeRequest, facts: RangeFacts, headers: Headers) -> None:
    is_page = headers.get("content-type", "").split(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")
    if is_page and (request.total_bytes is None or facts.total_bytes != request.total_bytes):
        raise CaptivePortal(f"expected a file from {redact_url(request.url)}, found a web page")


def _check_total(request: RangeRequest, facts: RangeFacts) -> None:
    if None in (request.total_bytes, facts.total_bytes) or facts.total_bytes == request.total_bytes:
        return
    kind = ObjectChanged if request.start else LinkBroken
    raise kind(f"expected {request.total_bytes} bytes at {redact_url(request.url)}, found {facts.total_bytes}")


def _get_etag(headers: Headers) -> str | None:
    return headers.get("etag", "")[:300] or None


def _strong(etag: str) -> str:
    return etag.removeprefix("W/")


def _number(text: str | None) -> int | None:
    return int(text) if text and text != "*" else None


def _find_date(text: str) -> float | None:
    try:
        then = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    aware = then if then.tzinfo else then.replace(tzinfo=UTC)
    try:
        return (aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    except OverflowError:
        return None
