"""The fleet over the service REST: queries, statistics, configurations.

Rules:
- A query is answered page by page; a continuation token says after which identity the next page begins. One page looks
  at a bounded number of twins: it may hold fewer than asked for, also none, and still have a next.
"""

from __future__ import annotations

import base64
import binascii
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgeferry.errors import NameInvalid, RequestInvalid
from edgeferry.hub.configurations import show_view
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.http_answers import get_identity, get_if_match, get_limit, make_answer, read_body
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.configuration import require_configuration_name
from edgeferry.twin.document import Json, parse_object
from edgeferry.twin.query import Query, parse_query, parse_target_condition
from edgeferry.wire.service_api import Identity, require_identity

LOOKED_AT_ROWS = 100  # in one read, so that other work goes on in between
LOOKED_AT_MAX_ROWS = 20_000  # in one call
CONTINUATION_MAX_CHARS = 1024


async def query(rooms: HubRooms, request: Request) -> Response:
    """POST /devices/query"""
    text = parse_object(await read_body(request)).get("query")
    if not isinstance(text, str):
        raise RequestInvalid("expected 'query' to be a text")
    asked = parse_query(text)
    if asked.is_count:
        [number] = await rooms.configurations.count([asked])
        return _answer_page([asked.make_count(number)], None, is_twin=False)
    limit = get_limit(request.headers.get("x-ms-max-item-count"))
    after = decode_continuation(request.headers.get("x-ms-continuation") or "")
    rows, last = await _read_page(rooms, asked, after, limit)
    return _answer_page(rows, last, is_twin=not asked.columns)


async def _read_page(
    rooms: HubRooms, asked: Query, after: Identity | None, limit: int
) -> tuple[list[Json], Identity | None]:
    """The rows of a page, and the identity after which the next one begins (None: there is no next)."""
    rows: list[tuple[Identity, Json]] = []
    for _ in range(0, LOOKED_AT_MAX_ROWS, LOOKED_AT_ROWS):
        last = after
        more, after = await rooms.db.read(partial(_look, asked=asked, after=last))
        rows += more
        if len(rows) > limit:
            return [row for _, row in rows[:limit]], rows[limit - 1][0]
        if after is None:
            break
    return [row for _, row in rows], after


def _look(
    tables: HubTables, asked: Query, after: Identity | None
) -> tuple[list[tuple[Identity, Json]], Identity | None]:
    """The rows among the twins that come next, and the last of those (None: there are no more)."""
    page = tables.read_views(modules=asked.source == "devices.modules", after=after, limit=LOOKED_AT_ROWS)
    bodies = [(view.record.identity, show_view(view)) for view in page]
    found = [(identity, asked.project(body)) for identity, body in bodies if asked.selects(body)]
    return found, page[-1].record.identity if len(page) == LOOKED_AT_ROWS else None


def encode_continuation(last: Identity) -> str:
    """The token for a page behind `last`."""
    return base64.urlsafe_b64encode(msgspec.json.encode(last)).decode("ascii")


def decode_continuation(token: str) -> Identity | None:
    """Reads `encode_continuation` back; raises RequestInvalid."""
    if not token:
        return None
    try:
        if len(token) > CONTINUATION_MAX_CHARS:
            raise ValueError(token)
        named = msgspec.json.decode(base64.urlsafe_b64decode(token), type=Identity)
        return require_identity(named.device_id, named.module_id)
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError, NameInvalid) as error:
        raise RequestInvalid("expected the continuation token of an earlier page") from error


def _answer_page(rows: list[Json], last: Identity | None, *, is_twin: bool) -> Response:
    headers = {"x-ms-item-type": "Twin" if is_twin else "Raw"}
    if last is not None:  # Node's SDK asks on for as long as the header is there
        headers["x-ms-continuation"] = encode_continuation(last)
    return make_answer(rows, headers=headers)


async def show_registry_statistics(rooms: HubRooms, _: Request) -> Response:
    """GET /statistics/devices"""
    total, enabled = await rooms.db.read(lambda tables: tables.count_devices())
    counts = {"totalDeviceCount": total, "enabledDeviceCount": enabled, "disabledDeviceCount": total - enabled}
    return make_answer(counts)


async def show_service_statistics(rooms: HubRooms, _: Request) -> Response:
    """GET /statistics/service"""
    connected = await rooms.db.read(lambda tables: tables.sessions.count_connected_devices())
    return make_answer({"connectedDeviceCount": connected})


# --- configurations ---------------------------------------------------------------------------------------------------
async def list_configurations(rooms: HubRooms, request: Request) -> Response:
    """GET /configurations"""
    return make_answer(await rooms.configurations.show_all(get_limit(request.query_params.get("top"))))


async def show_configuration(rooms: HubRooms, request: Request) -> Response:
    """GET /configurations/{id}"""
    return _answer_configuration(await rooms.configurations.show(_get_name(request)))


async def put_configuration(rooms: HubRooms, request: Request) -> Response:
    """PUT /configurations/{id}: creates; with If-Match it changes."""
    name, body = _get_name(request), parse_object(await read_body(request))
    must_exist = "if-match" in request.headers
    return _answer_configuration(
        await rooms.configurations.write(name, body, get_if_match(request), must_exist=must_exist)
    )


async def delete_configuration(rooms: HubRooms, request: Request) -> Response:
    """DELETE /configurations/{id}"""
    await rooms.configurations.delete(_get_name(request), get_if_match(request))
    return Response(status_code=204)


async def check_queries(_: HubRooms, request: Request) -> Response:
    """POST /configurations/testQueries: what is wrong with a target condition and with metrics."""
    body = parse_object(await read_body(request))
    condition, metrics = body.get("targetCondition"), body.get("customMetricQueries")
    metrics = {} if metrics is None else metrics
    if not isinstance(metrics, dict) or not all(isinstance(text, str) for text in metrics.values()):
        raise RequestInvalid("expected 'customMetricQueries' to be an object of texts")
    if condition is not None and not isinstance(condition, str):
        raise RequestInvalid("expected 'targetCondition' to be a text")
    errors = {name: _find_flaw(text, is_condition=False) for name, text in metrics.items()}
    answer = {
        "targetConditionError": _find_flaw(condition, is_condition=True) if condition else None,
        "customMetricQueryErrors": {name: flaw for name, flaw in errors.items() if flaw},
    }
    return make_answer(answer)


async def apply_content(rooms: HubRooms, request: Request) -> Response:
    """POST /devices/{d}/applyConfigurationContent"""
    content = parse_object(await read_body(request))
    await rooms.configurations.apply_content(get_identity(request).device_id, content)
    return Response(status_code=204)


def _get_name(request: Request) -> str:
    return require_configuration_name(request.path_params["name"])


def _find_flaw(text: str, *, is_condition: bool) -> str | None:
    try:
        parse_target_condition(text) if is_condition else parse_query(text)
    except RequestInvalid as error:
        return error.message
    return None


def _answer_configuration(body: Json) -> Response:
    return make_answer(body, etag=str(body["etag"]))
