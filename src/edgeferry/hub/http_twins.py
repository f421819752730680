"""Twins and direct methods over the service REST."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.http_answers import answer_twin, get_identity, get_if_match, make_answer, read_body
from edgeferry.twin.document import parse_object
from edgeferry.wire import service_api as api

TWIN_MAX_BYTES = 2 * 1024 * 1024  # SDKs send back what they read: both sections at their limits, with metadata
ENVELOPE_BYTES = 4 * 1024  # what stands around a method's payload


async def show_twin(rooms: HubRooms, request: Request) -> Response:
    """GET /twins/{d}[/modules/{m}]"""
    return answer_twin(await rooms.twins.read(get_identity(request)))


async def patch_twin(rooms: HubRooms, request: Request) -> Response:
    """PATCH /twins/{d}[/modules/{m}]: merges."""
    return await _write_twin(rooms, request, replace_all=False)


async def put_twin(rooms: HubRooms, request: Request) -> Response:
    """PUT /twins/{d}[/modules/{m}]: replaces."""
    return await _write_twin(rooms, request, replace_all=True)


async def _write_twin(rooms: HubRooms, request: Request, *, replace_all: bool) -> Response:
    identity = get_identity(request)
    body = parse_object(await read_body(request, TWIN_MAX_BYTES), limit_bytes=TWIN_MAX_BYTES)
    return answer_twin(await rooms.twins.write(identity, body, if_match=get_if_match(request), replace_all=replace_all))


async def call_method(rooms: HubRooms, request: Request) -> Response:
    """POST /twins/{d}[/modules/{m}]/methods"""
    identity, limit = get_identity(request), api.METHOD_PAYLOAD_MAX_BYTES + ENVELOPE_BYTES
    body = parse_object(await read_body(request, limit), limit_bytes=limit)
    await rooms.registry.read(identity)
    return make_answer(await rooms.methods.call(identity, api.parse_method_request(body)))
