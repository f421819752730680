"""Devices and modules over the service REST: made, changed, shown, deleted.

Rules:
- PUT without If-Match creates, with it changes. The bulk call tells of each entry that failed; the others are done.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgeferry.errors import EdgeferryError, RequestInvalid, StorageError
from edgeferry.hub.device_link import HubRooms
from edgeferry.hub.http_answers import (
    answer_identity,
    get_code,
    get_identity,
    get_if_match,
    get_limit,
    make_answer,
    read_body,
)
from edgeferry.hub.identity_records import make_record
from edgeferry.storage.hub_tables import HubTables, IdentityView
from edgeferry.twin.document import Json, parse_object
from edgeferry.wire import service_api as api
from edgeferry.wire.service_api import Identity, IdentityRecord

BULK_MAX = 100  # devices in one call, as IoT Hub's
REASON_MAX_CHARS = 128  # of statusReason and managedBy, as IoT Hub's
_MODES = (
    "create",
    "update",
    "updateIfMatchETag",
    "createOrUpdate",
    "createOrUpdateIfMatchETag",
    "delete",
    "deleteIfMatchETag",
)
IMPORT_MODES = (*_MODES, *(mode[0].upper() + mode[1:] for mode in _MODES))  # Node's SDK writes some of them so

_TEXT = re.compile(rf"[^\x00-\x1f\x7f-\x9f]{{0,{REASON_MAX_CHARS}}}")


async def list_devices(rooms: HubRooms, request: Request) -> Response:
    """GET /devices"""
    limit = get_limit(request.query_params.get("top"))
    views = await rooms.db.read(lambda tables: tables.read_views(modules=False, after=None, limit=limit))
    return _answer_list(views)


async def list_modules(rooms: HubRooms, request: Request) -> Response:
    """GET /devices/{d}/modules"""
    device_id = get_identity(request).device_id

    def work(tables: HubTables) -> list[IdentityView]:
        tables.require_identity(Identity(device_id))
        return tables.read_modules(device_id)

    return _answer_list(await rooms.db.read(work))


async def show_identity(rooms: HubRooms, request: Request) -> Response:
    """GET /devices/{d}[/modules/{m}]"""
    return answer_identity(await rooms.twins.read(get_identity(request)))


async def put_identity(rooms: HubRooms, request: Request) -> Response:
    """PUT /devices/{d}[/modules/{m}]: creates; with If-Match it changes."""
    identity, body = get_identity(request), parse_object(await read_body(request))
    if "if-match" in request.headers:
        await _change(rooms, identity, body, get_if_match(request))
    else:
        await _add(rooms, identity, body)
    return answer_identity(await rooms.twins.read(identity))


async def delete_identity(rooms: HubRooms, request: Request) -> Response:
    """DELETE /devices/{d}[/modules/{m}]"""
    await rooms.registry.delete(get_identity(request), get_if_match(request))
    return Response(status_code=204)


async def write_many(rooms: HubRooms, request: Request) -> Response:
    """POST /devices: many devices in one call, each entry with an `importMode`."""
    errors: list[Json] = []
    for entry in _parse_entries(await read_body(request)):
        try:
            await _write_entry(rooms, entry)
        except StorageError:
            raise
        except EdgeferryError as error:
            told = {"errorCode": get_code(error), "errorStatus": error.message}
            errors.append({"deviceId": f"{entry.get('id')!s:.128}", **told})
    result = {"isSuccessful": not errors, "errors": errors, "warnings": []}
    if not errors:
        return make_answer(result)
    headers = {api.ERROR_HEADER: "BulkRegistryOperationFailure"}
    return Response(msgspec.json.encode(result), 400, headers, media_type="application/json; charset=utf-8")


async def _write_entry(rooms: HubRooms, entry: Json) -> None:
    identity = api.require_identity(entry.get("id"), entry.get("moduleId"))
    mode = "createOrUpdate" if entry.get("importMode") is None else entry["importMode"]
    if mode not in IMPORT_MODES:
        raise RequestInvalid(f"expected 'importMode' create, update, createOrUpdate or delete, found {mode!r:.80}")
    mode = mode.lower()
    is_bound = mode.endswith("ifmatchetag")
    etag = str(entry.get("eTag") or entry.get("etag") or "").strip('"') if is_bound else None
    mode = mode.removesuffix("ifmatchetag")
    if mode == "createorupdate":
        known = await rooms.db.read(lambda tables: tables.find_identity(identity))
        mode = "create" if known is None else "update"
    if mode == "create":
        await _add(rooms, identity, entry)
    elif mode == "update":
        await _change(rooms, identity, entry, etag)
    else:
        await rooms.registry.delete(identity, etag)


async def _add(rooms: HubRooms, identity: Identity, body: Json) -> None:
    record = make_record(identity, rooms.clock(), keys=_parse_keys(body))
    await rooms.registry.add(replace(record, **_parse_fields(identity, body)))


async def _change(rooms: HubRooms, identity: Identity, body: Json, if_match: str | None) -> None:
    keys, fields = _parse_keys(body), _parse_fields(identity, body)

    def change(old: IdentityRecord) -> IdentityRecord:
        primary, secondary = keys or old.keys
        return replace(old, primary_key=primary, secondary_key=secondary, **fields)

    await rooms.registry.change(identity, if_match, change)


def _answer_list(views: list[IdentityView]) -> Response:
    return make_answer([api.make_identity_body(view.record, view.facts) for view in views])


def _parse_entries(body: bytes) -> list[Json]:
    try:
        entries = msgspec.json.decode(body, type=list[dict[str, Any]])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RequestInvalid("expected a JSON list of devices") from error
    if len(entries) > BULK_MAX:
        raise RequestInvalid(f"expected at most {BULK_MAX} devices in one call, found {len(entries)}")
    return entries


def _parse_fields(identity: Identity, body: Json) -> dict[str, Any]:
    """What a body says of a device (status, reason, capabilities) or of a module (status, who manages it)."""
    managed_by, reason = _parse_text(body, "managedBy"), _parse_text(body, "statusReason")
    is_enabled, is_edge = _parse_status(body), _get_object(body, "capabilities").get("iotEdge", False)
    if not isinstance(is_edge, bool):
        raise RequestInvalid("expected 'capabilities.iotEdge' to be true or false")
    if identity.module_id is not None:
        return {"is_enabled": is_enabled, "managed_by": managed_by}
    return {"is_enabled": is_enabled, "status_reason": reason, "is_edge": is_edge}


def _parse_keys(body: Json) -> tuple[str, str] | None:
    """The key pair that a caller wants, None to have one made; raises RequestInvalid."""
    authentication = _get_object(body, "authentication")
    if authentication.get("type") not in (None, "sas"):
        raise RequestInvalid("this hub knows identities by symmetric keys only: expected 'authentication.type' sas")
    pair = _get_object(authentication, "symmetricKey")
    primary, secondary = pair.get("primaryKey"), pair.get("secondaryKey")
    if primary in (None, "") and secondary in (None, ""):  # Node's SDK says nothing with an empty text
        return None
    return api.require_key(primary), api.require_key(secondary)


def _parse_text(body: Json, name: str) -> str | None:
    text = body.get(name)
    if text is not None and not (isinstance(text, str) and _TEXT.fullmatch(text)):
        raise RequestInvalid(
            f"expected '{name}' to be a text of at most {REASON_MAX_CHARS} characters, none of control"
        )
    return text


def _get_object(fields: Json, name: str) -> Json:
    value = {} if fields.get(name) is None else fields[name]
    if not isinstance(value, dict):
        raise RequestInvalid(f"expected '{name}' to be an object, found {type(value).__name__}")
    return value


def _parse_status(body: Json) -> bool:
    status = "enabled" if body.get("status") is None else body["status"]
    if status not in ("enabled", "disabled"):
        raise RequestInvalid(f"expected 'status' enabled or disabled, found {status!r:.40}")
    return bool(status == "enabled")
