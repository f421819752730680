"""Forms with a picture and fields beside it, the token that some clients send only there, and small bodies without one.

What this file leaves to others: the form's bytes (`wire/multipart.py`), limits of bodies (`body.py`), tokens
(`access.py`).

Rules:
- A body whose sender has not shown the token yet counts in a pool of its own: strangers cannot fill the memory that
  callers with a token need. Nothing is answered, and no model sees a picture, before the token was shown.
- A field beside the picture is short text; which fields there are is the API's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request

from edgeferry.errors import MediaTypeRefused, PictureUnreadable, RequestInvalid
from edgeferry.serve.access import Access, is_token_due, settle_token
from edgeferry.serve.body import (
    BodyLimits,
    get_media_type,
    is_body_left,
    open_body,
    require_plain_body,
    require_raw_picture,
)
from edgeferry.serve.gate import Gate
from edgeferry.wire.multipart import PARTS_MAX, read_parts

T = TypeVar("T")
JSON = "application/json"
MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
FIELD_MAX_BYTES = 1 << 10
_SMALL_MAX_BYTES = 8 << 10
"""Of a whole body without a picture."""
_UNPROVEN_SHARE = 8


@dataclass(frozen=True, slots=True)
class Form:
    """A picture, and the text fields beside it."""

    picture: bytes
    fields: Mapping[str, str]


class FormReader:
    """Reads forms within `limits`, asked only while `gate` has a place; `access` judges the tokens in them."""

    def __init__(self, gate: Gate, limits: BodyLimits, access: Access) -> None:
        self._gate = gate
        self._limits = limits
        held_max_bytes = max(limits.held_max_bytes // _UNPROVEN_SHARE, limits.max_bytes)
        self._unproven = BodyLimits(limits.max_bytes, limits.timeout_s, held_max_bytes)
        self._small = BodyLimits(_SMALL_MAX_BYTES, limits.timeout_s, held_max_bytes)
        self._access = access

    @asynccontextmanager
    async def open_picture(self, request: Request, field: str, *, raw: bool = False) -> AsyncIterator[Form]:
        """The form whose part `field` is a picture; with `raw` also a body that is nothing but the picture.

        Raises:
            MediaTypeRefused: neither of them.
            RequestInvalid: a broken form, or no part `field`.
            Unauthorised: the token was due in the form, and it is not there.
            As `open_body` and Gate.require_place.
        """
        is_form = get_media_type(request) == MULTIPART
        if not is_form and not raw:
            raise MediaTypeRefused(f"expected a form ({MULTIPART}) with the picture as {field}")
        if is_form:
            require_plain_body(request)
        else:
            require_raw_picture(request)
        self._gate.require_place()
        async with open_body(request, self._unproven if is_token_due(request) else self._limits) as body:
            form = _read_picture_form(body, request.headers["content-type"], field) if is_form else Form(body, {})
            del body  # the picture in the form is a copy: hold one of them, not both
            settle_token(request, self._access, form.fields)
            yield form

    async def read_fields(self, request: Request) -> Mapping[str, str]:
        """The fields of a form without a picture; none where there is no body. Raises as `open_picture`."""
        media_type = get_media_type(request)
        fields: Mapping[str, str] = {}
        if is_body_left(request) and media_type in (MULTIPART, URLENCODED):
            async with open_body(request, self._small) as body:
                is_multipart = media_type == MULTIPART
                fields = _read_texts(body, request.headers["content-type"]) if is_multipart else _read_urlencoded(body)
        settle_token(request, self._access, fields)
        return fields

    async def read_json(self, request: Request, kind: type[T]) -> T:
        """A small JSON body as a `kind`; raises RequestInvalid, and as `open_picture`."""
        if get_media_type(request) != JSON:
            raise MediaTypeRefused(f"expected {JSON}, found {get_media_type(request):.60}")
        require_plain_body(request)
        self._gate.require_place()
        async with open_body(request, self._small) as body:
            try:
                return msgspec.json.decode(body, type=kind)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise RequestInvalid(f"expected other JSON: {error}") from error


def _read_picture_form(body: bytes, content_type: str, field: str) -> Form:
    parts = read_parts(body, content_type)
    pictures = [part.content for part in parts if part.name == field]
    if len(pictures) != 1:
        found = ", ".join(sorted({part.name for part in parts})) or "nothing"
        raise RequestInvalid(f"expected one picture as {field} in the form, found {len(pictures)} among {found:.80}")
    if not pictures[0]:
        raise PictureUnreadable(f"expected a picture as {field}, found 0 bytes")
    return Form(bytes(pictures[0]), _make_fields((part.name, part.content) for part in parts if part.name != field))


def _read_texts(body: bytes, content_type: str) -> dict[str, str]:
    return _make_fields((part.name, part.content) for part in read_parts(body, content_type))


def _make_fields(parts: Iterable[tuple[str, memoryview]]) -> dict[str, str]:
    """The first of each name."""
    fields: dict[str, str] = {}
    for name, content in parts:
        if len(content) > FIELD_MAX_BYTES:
            raise RequestInvalid(f"expected at most {FIELD_MAX_BYTES} bytes in {name!r:.40}, found {len(content)}")
        fields.setdefault(name, bytes(content).decode("utf-8", "replace"))
    return fields


def _read_urlencoded(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=PARTS_MAX)
    except ValueError as error:
        raise RequestInvalid(f"expected a form of at most {PARTS_MAX} fields, found more") from error
    return _make_fields((name, memoryview(value.encode())) for name, value in pairs)
