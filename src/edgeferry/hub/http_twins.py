"""Twins and direct methods over the service REST."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.http_answers import answer_twin, get_identity, get_if_match, make_answer, read_body
from edgeferry.twin.document import parse_object
from edgeferry.wire import service_api as api


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
    identity, body = get_identity(request), parse_object(await read_body(request))
    return answer_twin(await rooms.twins.write(identity, body, if_match=get_if_match(request), replace_all=replace_all))


async def call_method(rooms: HubRooms, request: Request) -> Response:
    """POST /twins/{d}[/modules/{m}]/methods"""
    identity, body = get_identity(request), parse_object(await read_body(request))
    await rooms.registry.read(identity)
    return make_answer(await rooms.methods.call(identity, api.parse_method_request(body)))
