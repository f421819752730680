"""The service REST, as service SDKs call it: all routes in one list, a thin function for each.

What they do stands in registry.py, twins.py and methods.py; shapes and codes in wire/service_api.py; sockets in
transport/http_server.py.

Rules:
- Every call carries a token of a policy; `sr` must be the host that the caller speaks to, or a path above the one it
  calls.
- A body is bounded before it is read. Every refusal has IoT Hub's code in `iothub-errorcode` and in its body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.registry import make_record
from edgeferry.hub.upkeep import drop_changed
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.document import Json, TwinDocument, parse_object
from edgeferry.wire import service_api as api
from edgeferry.wire.file_signatures import SERVICE_POLICY
from edgeferry.wire.iothub_auth import parse_sas_token, verify_sas_token
from edgeferry.wire.service_api import Identity, IdentityRecord

BODY_MAX_BYTES = 256 * 1024
_log = structlog.get_logger(__name__)
Handler = Callable[[HubRooms, Request], Awaitable[Response]]

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


@dataclass(frozen=True, slots=True)
class ServiceRest:
    """The service's door. `service_key` is the key of the policy `service`."""

    rooms: HubRooms
    service_key: str

    def make_routes(self) -> list[Route]:
        """Every route, in the order of docs/formats/iothub.md section 5."""
        return [
            self._make_route("/devices", list_devices, "GET"),
            self._make_route("/devices/", list_devices, "GET"),
            self._make_route("/devices/query", query, "POST"),
            self._make_route("/devices/{device}", get_identity, "GET"),
            self._make_route("/devices/{device}", put_identity, "PUT"),
            self._make_route("/devices/{device}", delete_identity, "DELETE"),
            self._make_route("/devices/{device}/modules", list_modules, "GET"),
            self._make_route("/devices/{device}/modules/{module}", get_identity, "GET"),
            self._make_route("/devices/{device}/modules/{module}", put_identity, "PUT"),
            self._make_route("/devices/{device}/modules/{module}", delete_identity, "DELETE"),
            self._make_route("/twins/{device}", get_twin, "GET"),
            self._make_route("/twins/{device}", patch_twin, "PATCH"),
            self._make_route("/twins/{device}", put_twin, "PUT"),
            self._make_route("/twins/{device}/methods", call_method, "POST"),
            self._make_route("/twins/{device}/modules/{module}", get_twin, "GET"),
            self._make_route("/twins/{device}/modules/{module}", patch_twin, "PATCH"),
            self._make_route("/twins/{device}/modules/{module}", put_twin, "PUT"),
            self._make_route("/twins/{device}/modules/{module}/methods", call_method, "POST"),
            self._make_route("/statistics/devices", get_registry_statistics, "GET"),
            self._make_route("/statistics/service", get_service_statistics, "GET"),
        ]

    def _make_route(self, path: str, handler: Handler, method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                self._require_policy(request)
                return await handler(self.rooms, request)
            except EdgeferryError as error:
                return make_refusal(error)
            except Exception:  # noqa: BLE001 - the edge of a request
                _log.exception("service request failed", path=path)
                return _make_error("ServerError", "a defect of the hub; look at its log")

        return Route(path, endpoint, methods=[method], name=handler.__name__)

    def _require_policy(self, request: Request) -> None:
        """Raises HubRefused unless the request carries a good token of the service policy."""
        token = parse_sas_token(request.headers.get("authorization", ""))
        if token.policy != SERVICE_POLICY:
            raise HubRefused("no such policy")
        host, slash, path = unquote(token.resource).partition("/")
        spoken_to = request.headers.get("host", "").lower()
        is_above = not slash or f"{request.scope['path']}/".startswith(f"/{path.rstrip('/')}/")
        if host.lower() not in (spoken_to, spoken_to.rpartition(":")[0]) or not host or not is_above:
            raise HubRefused("the token is for another resource")
        verify_sas_token(token, resource=unquote(token.resource), keys=(self.service_key,), now=self.rooms.clock())


# --- identities -------------------------------------------------------------------------------------------------------
async def list_devices(rooms: HubRooms, request: Request) -> Response:
    """GET /devices"""
    limit = _get_limit(request.query_params.get("top"))
    records = await rooms.db.read(lambda tables: tables.list_devices(limit))
    return _json([_show_identity(rooms, record) for record in records])


async def list_modules(rooms: HubRooms, request: Request) -> Response:
    """GET /devices/{d}/modules"""
    device_id = _get_identity(request).device_id
    records = await rooms.db.read(lambda tables: tables.list_modules(device_id))
    return _json([_show_identity(rooms, record) for record in records])


async def get_identity(rooms: HubRooms, request: Request) -> Response:
    """GET /devices/{d}[/modules/{m}]"""
    return _answer_identity(rooms, await rooms.registry.read(_get_identity(request)))


async def put_identity(rooms: HubRooms, request: Request) -> Response:
    """PUT /devices/{d}[/modules/{m}]: creates; with If-Match it updates."""
    identity, body = _get_identity(request), parse_object(await read_body(request))
    keys = _parse_keys(body)
    if "if-match" not in request.headers:
        record = make_record(identity, rooms.clock(), keys=keys, managed_by=_parse_managed_by(body))
        record = replace(record, is_enabled=body.get("status") != "disabled")
        return _answer_identity(rooms, await rooms.registry.add(record))
    if_match = api.parse_if_match(request.headers["if-match"])
    record = await rooms.registry.change(identity, if_match, lambda old: _change_record(old, body, keys))
    await drop_changed(rooms)
    return _answer_identity(rooms, record)


async def delete_identity(rooms: HubRooms, request: Request) -> Response:
    """DELETE /devices/{d}[/modules/{m}]"""
    identity = _get_identity(request)
    await rooms.registry.delete(identity, api.parse_if_match(request.headers.get("if-match")))
    rooms.presence.forget(identity)
    await drop_changed(rooms)
    return Response(status_code=204)


# --- twins and methods ------------------------------------------------------------------------------------------------
async def get_twin(rooms: HubRooms, request: Request) -> Response:
    """GET /twins/{d}[/modules/{m}]"""
    record, twin = await rooms.twins.read(_get_identity(request))
    return _answer_twin(rooms, record, twin)


async def patch_twin(rooms: HubRooms, request: Request) -> Response:
    """PATCH /twins/{d}[/modules/{m}]: merges."""
    return await _write_twin(rooms, request, replace_all=False)


async def put_twin(rooms: HubRooms, request: Request) -> Response:
    """PUT /twins/{d}[/modules/{m}]: replaces."""
    return await _write_twin(rooms, request, replace_all=True)


async def _write_twin(rooms: HubRooms, request: Request, *, replace_all: bool) -> Response:
    identity, body = _get_identity(request), parse_object(await read_body(request))
    if_match = api.parse_if_match(request.headers.get("if-match"))
    twin = await rooms.twins.write(identity, body, if_match=if_match, replace_all=replace_all)
    return _answer_twin(rooms, await rooms.registry.read(identity), twin)


async def call_method(rooms: HubRooms, request: Request) -> Response:
    """POST /twins/{d}[/modules/{m}]/methods"""
    identity, body = _get_identity(request), parse_object(await read_body(request))
    await rooms.registry.read(identity)
    return _json(await rooms.methods.call(identity, api.parse_method_request(body)))


# --- queries and statistics -------------------------------------------------------------------------------------------
async def query(rooms: HubRooms, request: Request) -> Response:
    """POST /devices/query: `SELECT * FROM devices` or `devices.modules`; conditions are refused by name."""
    text = parse_object(await read_body(request)).get("query")
    words = " ".join(text.lower().split()) if isinstance(text, str) else ""
    if words not in ("select * from devices", "select * from devices.modules"):
        raise RequestInvalid("this release answers 'SELECT * FROM devices' and 'SELECT * FROM devices.modules' only")
    limit = _get_limit(request.headers.get("x-ms-max-item-count"))

    def work(tables: HubTables) -> list[tuple[IdentityRecord, TwinDocument]]:
        records = tables.list_modules(limit=limit) if words.endswith("modules") else tables.list_devices(limit)
        return [(record, tables.read_twin(record.identity)) for record in records]

    found = await rooms.db.read(work)
    rows = [api.make_twin_body(record, twin, rooms.presence.get_facts(record.identity)) for record, twin in found]
    return _json(rows, headers={"x-ms-item-type": "Twin", "x-ms-continuation": ""})


async def get_registry_statistics(rooms: HubRooms, _: Request) -> Response:
    """GET /statistics/devices"""
    devices = await rooms.db.read(lambda tables: tables.list_devices())
    enabled = sum(device.is_enabled for device in devices)
    counts = {"totalDeviceCount": len(devices), "enabledDeviceCount": enabled}
    return _json(counts | {"disabledDeviceCount": len(devices) - enabled})


async def get_service_statistics(rooms: HubRooms, _: Request) -> Response:
    """GET /statistics/service"""
    connected = {link.record.identity.device_id for link in rooms.presence.get_links()}
    return _json({"connectedDeviceCount": len(connected)})


# --- what the handlers share ------------------------------------------------------------------------------------------
async def read_body(request: Request, limit_bytes: int = BODY_MAX_BYTES) -> bytes:
    """The body, read no further than `limit_bytes`; raises LimitExceeded."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit_bytes:
            raise LimitExceeded(f"expected a body of at most {limit_bytes} bytes")
    return bytes(body)


def make_refusal(error: EdgeferryError) -> Response:
    """The answer that stands for an error."""
    code = error.values.get("service_code") or _CODE_OF_ERROR.get(type(error))
    if code is None:
        code = "ServiceUnavailable" if isinstance(error, StorageError) else "ServerError"
        _log.error("service request failed", code=error.code, reason=error.message)
    return _make_error(str(code), error.message)


def _make_error(code: str, message: str) -> Response:
    status = api.STATUS_OF_CODE[code]
    return Response(api.make_error_body(code, message), status, {api.ERROR_HEADER: code}, media_type="application/json")


def _json(value: Any, *, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), 200, headers, media_type="application/json; charset=utf-8")


def _get_identity(request: Request) -> Identity:
    return api.require_identity(request.path_params["device"], request.path_params.get("module"))


def _get_limit(text: str | None) -> int:
    limit = int(text) if text and text.isascii() and text.isdigit() and len(text) < 6 else 1000
    return max(1, min(limit, 10_000))


def _show_identity(rooms: HubRooms, record: IdentityRecord) -> Json:
    return api.make_identity_body(record, rooms.presence.get_facts(record.identity))


def _answer_identity(rooms: HubRooms, record: IdentityRecord) -> Response:
    return _json(_show_identity(rooms, record), headers={"ETag": api.format_etag(record.etag)})


def _answer_twin(rooms: HubRooms, record: IdentityRecord, twin: TwinDocument) -> Response:
    body = api.make_twin_body(record, twin, rooms.presence.get_facts(record.identity))
    return _json(body, headers={"ETag": api.format_etag(twin.etag)})


def _parse_keys(body: Json) -> tuple[str, str] | None:
    """The key pair that a caller wants, None to have one made; raises RequestInvalid."""
    authentication = body.get("authentication") or {}
    pair = (authentication.get("symmetricKey") or {}) if isinstance(authentication, dict) else None
    if not isinstance(pair, dict):
        raise RequestInvalid("expected 'authentication.symmetricKey' to be an object")
    primary, secondary = pair.get("primaryKey"), pair.get("secondaryKey")
    if primary is None and secondary is None:
        return None
    return api.require_key(primary), api.require_key(secondary)


def _parse_managed_by(body: Json) -> str | None:
    managed_by = body.get("managedBy")
    if managed_by is not None and not (isinstance(managed_by, str) and len(managed_by) <= 128):
        raise RequestInvalid("expected 'managedBy' to be a text of at most 128 characters")
    return managed_by


def _change_record(old: IdentityRecord, body: Json, keys: tuple[str, str] | None) -> IdentityRecord:
    primary, secondary = keys or old.keys
    is_enabled = body.get("status", "enabled") != "disabled"
    return replace(old, primary_key=primary, secondary_key=secondary, is_enabled=is_enabled)
