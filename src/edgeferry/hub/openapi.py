"""The service REST's description of itself: OpenAPI 3.1, made from the table of routes and one row for each of them.

Routes stand in http_front.py, schemas in openapi_schemas.py, the status of a code in wire/service_api.py.

Rules:
- Every route has its row here and every row its route, or nothing is made (and the hub does not start).
- A row names the codes that its route refuses with; statuses and headers follow from them. What every route of a kind
  refuses with (no token, no api-version, a body that is too long, a store that does not answer) is not repeated.
- ServerError (500) is a defect of the hub and stands nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeferry import __version__
from edgeferry.errors import InvariantBroken
from edgeferry.hub.openapi_schemas import BODY_EXAMPLES, PARAMETERS, SCHEMAS, Schema, refer
from edgeferry.wire.iothub_auth import API_VERSION
from edgeferry.wire.service_api import ERROR_HEADER, STATUS_OF_CODE

JSON = "application/json"
_MATCH = ("If-Match",)
_PAGE = ("x-ms-max-item-count", "x-ms-continuation")
_D, _M, _DT, _MT = (
    "/devices/{device}",
    "/devices/{device}/modules/{module}",
    "/twins/{device}",
    "/twins/{device}/modules/{module}",
)
_C = "/configurations/{name}"
_NO_DEVICE, _NO_MODULE, _NO_CONFIGURATION = "DeviceNotFound", "ModuleNotFound", "ConfigurationNotFound"
_STALE = "PreconditionFailed"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route as it is described.

    Attributes:
        text: a few words.
        answer: the schema of its 200; None where it answers 204.
        codes: what it refuses with beside what all do.
        body: the schema of what it takes.
        parameters: query and headers beside api-version.
        headers: of its good answer.
        reads_store: False when it answers without the database.
    """

    text: str
    answer: str | None
    codes: tuple[str, ...] = ()
    body: str | None = None
    parameters: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    reads_store: bool = True


CONFIGURATION_FLAWS = (
    "InvalidConfigurationContent",
    "InvalidConfigurationTargetCondition",
    "InvalidConfigurationCustomMetricsQuery",
    "CannotModifyImmutableConfigurationContent",
)

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/devices"): Operation("Devices, by id", "Devices", parameters=("top",)),
    ("POST", "/devices"): Operation(
        "Create, change or delete many devices", "BulkResult", ("BulkRegistryOperationFailure",), "Bulk"
    ),
    ("POST", "/devices/query"): Operation(
        "A page of a query", "QueryPage", (), "Query", _PAGE, ("x-ms-item-type", "x-ms-continuation")
    ),
    ("GET", _D): Operation("A device with its keys", "Device", (_NO_DEVICE,), headers=("ETag",)),
    ("PUT", _D): Operation(
        "Create a device; with If-Match, change it",
        "Device",
        (_NO_DEVICE, "DeviceAlreadyExists", _STALE),
        "IdentityWrite",
        _MATCH,
        ("ETag",),
    ),
    ("DELETE", _D): Operation("Delete a device and its modules", None, (_NO_DEVICE, _STALE), parameters=_MATCH),
    ("POST", _D + "/applyConfigurationContent"): Operation(
        "Write a configuration's content to one device, once", None, (_NO_DEVICE,), "DeviceContent"
    ),
    ("GET", _D + "/modules"): Operation("The modules of a device", "Modules", (_NO_DEVICE,)),
    ("GET", _M): Operation("A module with its keys", "Module", (_NO_MODULE,), headers=("ETag",)),
    ("PUT", _M): Operation(
        "Create a module; with If-Match, change it",
        "Module",
        (_NO_DEVICE, _NO_MODULE, "ModuleAlreadyExistsOnDevice", _STALE),
        "IdentityWrite",
        _MATCH,
        ("ETag",),
    ),
    ("DELETE", _M): Operation("Delete a module", None, (_NO_MODULE, _STALE), parameters=_MATCH),
    **{
        ("GET", path): Operation("A twin", answer, (missing,), headers=("ETag",))
        for path, answer, missing in ((_DT, "DeviceTwin", _NO_DEVICE), (_MT, "ModuleTwin", _NO_MODULE))
    },
    **{
        (method, path): Operation(text, answer, (missing, _STALE), "TwinWrite", _MATCH, ("ETag",))
        for path, answer, missing in ((_DT, "DeviceTwin", _NO_DEVICE), (_MT, "ModuleTwin", _NO_MODULE))
        for method, text in (("PATCH", "Merge into a twin; null deletes"), ("PUT", "Replace sections of a twin"))
    },
    **{
        ("POST", path + "/methods"): Operation(
            "Call a direct method", "MethodResult", (missing, "DeviceNotOnline", "GatewayTimeout"), "MethodCall"
        )
        for path, missing in ((_DT, _NO_DEVICE), (_MT, _NO_MODULE))
    },
    ("GET", "/statistics/devices"): Operation("How many devices there are", "RegistryStatistics"),
    ("GET", "/statistics/service"): Operation("How many devices are connected", "ServiceStatistics"),
    ("GET", "/configurations"): Operation("Configurations, by id", "Configurations", parameters=("top",)),
    ("POST", "/configurations/testQueries"): Operation(
        "What is wrong with a target condition and metrics", "TestQueriesResult", (), "TestQueries", reads_store=False
    ),
    ("GET", _C): Operation(
        "A configuration with its counts of now", "Configuration", (_NO_CONFIGURATION,), headers=("ETag",)
    ),
    ("PUT", _C): Operation(
        "Create a configuration; with If-Match, change it",
        "Configuration",
        (_NO_CONFIGURATION, "ConfigurationAlreadyExists", _STALE, *CONFIGURATION_FLAWS),
        "ConfigurationWrite",
        _MATCH,
        ("ETag",),
    ),
    ("DELETE", _C): Operation("Delete a configuration", None, (_NO_CONFIGURATION, _STALE), parameters=_MATCH),
}


def make_openapi(routes: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The document for these routes, each a method and a path.

    Raises:
        InvariantBroken: a route has no row, or a row no route.
    """
    named = dict.fromkeys(routes)
    if named.keys() != OPERATIONS.keys():
        odd = ", ".join(" ".join(route) for route in sorted(named.keys() ^ OPERATIONS.keys()))
        raise InvariantBroken(f"expected one description for each route, found otherwise: {odd}")
    paths: dict[str, dict[str, Any]] = {}
    for method, path in named:
        paths.setdefault(path, {})[method.lower()] = _make_operation(method, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgeferry hub", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": _SECURITY},
        "security": [{"sharedAccessSignature": []}],
    }


def get_codes(method: str, path: str) -> list[str]:
    """Every code that a route may refuse with."""
    operation = OPERATIONS[method, path]
    takes_something = operation.body or operation.parameters or "{" in path
    return [
        *(["ArgumentInvalid"] if takes_something else []),
        "InvalidProtocolVersion",
        "IotHubUnauthorizedAccess",
        *operation.codes,
        *(["MessageTooLarge"] if operation.body else []),
        *(["ServiceUnavailable"] if operation.reads_store else []),
    ]


_ABOUT = (
    f"The part of IoT Hub's service REST (api-version {API_VERSION}) that this hub answers. Any api-version of the form"
    " of a date is taken. A slash at the end of a path means nothing. An unknown path is answered 404, a method that a"
    " path does not know 405 with Allow; both in the shape of every refusal."
)
_SECURITY = {
    "sharedAccessSignature": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "SharedAccessSignature sr=<host or path below it>&sig=<HMAC-SHA256>&se=<Unix s>&skn=<policy>",
    }
}
_HEADER_SCHEMAS: dict[str, Schema] = {
    "ETag": {"type": "string", "pattern": '^"[^"]*"$'},
    "x-ms-item-type": {"enum": ["Twin", "Raw"]},
    "x-ms-continuation": {"type": "string"},
}
_MAY_LACK = {"x-ms-continuation"}  # on the last page


def _make_operation(method: str, path: str) -> dict[str, Any]:
    operation = OPERATIONS[method, path]
    names = [*re.findall(r"{(\w+)}", path), "api-version", *operation.parameters]
    described: dict[str, Any] = {
        "summary": operation.text,
        "operationId": _make_id(method, path),
        "parameters": [{"name": name, **PARAMETERS[name]} for name in names],
        "responses": {**_make_good_response(method, path), **_make_refusals(method, path)},
    }
    if operation.body:
        content = {JSON: {"schema": refer(operation.body), "example": BODY_EXAMPLES[operation.body]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _make_id(method: str, path: str) -> str:
    """`PUT /devices/{device}` -> `putDevicesDevice`."""
    return method.lower() + "".join(word[0].upper() + word[1:] for word in re.findall(r"\w+", path))


def _make_good_response(method: str, path: str) -> dict[str, Any]:
    operation = OPERATIONS[method, path]
    if operation.answer is None:
        return {"204": {"description": "done"}}
    response: dict[str, Any] = {"description": "done", "content": {JSON: {"schema": refer(operation.answer)}}}
    if operation.headers:
        response["headers"] = {
            name: {"required": name not in _MAY_LACK, "schema": _HEADER_SCHEMAS[name]} for name in operation.headers
        }
    if method == "PUT":
        response["links"] = _make_links(path)
    return {"200": response}


def _make_links(path: str) -> dict[str, Any]:
    """What can be done with that which a PUT to `path` made."""
    names = re.findall(r"{(\w+)}", path)
    given = {name: f"$request.path.{name}" for name in names}
    return {
        _make_id(method, other): {"operationId": _make_id(method, other), "parameters": given}
        for method, other in OPERATIONS
        if re.findall(r"{(\w+)}", other) == names and (method, other) != ("PUT", path)
    }


def _make_refusals(method: str, path: str) -> dict[str, Any]:
    codes: dict[int, list[str]] = {}
    for code in get_codes(method, path):
        codes.setdefault(STATUS_OF_CODE[code], []).append(code)
    return {str(status): _make_refusal(found) for status, found in sorted(codes.items())}


def _make_refusal(codes: list[str]) -> dict[str, Any]:
    told = (
        {"anyOf": [refer("Error"), refer("BulkResult")]} if "BulkRegistryOperationFailure" in codes else refer("Error")
    )
    header = {"required": True, "schema": {"enum": codes}}
    return {"description": ", ".join(codes), "headers": {ERROR_HEADER: header}, "content": {JSON: {"schema": told}}}
