"""The shapes of the service REST as JSON schemas, for the hub's description of itself (openapi.py).

Bodies are built and read in wire/service_api.py, http_*.py and twin/; limits come from where they are enforced.

Rules:
- What a caller sends may hold more than is described here: the hub reads what it knows, as IoT Hub does. What the hub
  answers is described in full, so that a field that comes or goes shows in a test.
"""

from __future__ import annotations

from typing import Any

from edgeferry.hub.http_answers import PAGE_MAX_ROWS
from edgeferry.hub.http_fleet import CONTINUATION_MAX_CHARS
from edgeferry.hub.http_identities import BULK_MAX, IMPORT_MODES, REASON_MAX_CHARS
from edgeferry.names import HUB_ID_PATTERN
from edgeferry.twin.configuration import LABELS_MAX, METRICS_MAX, NAME_PATTERN, PRIORITY_MAX
from edgeferry.twin.document import STRING_MAX_BYTES
from edgeferry.twin.tokens import TEXT_MAX_CHARS
from edgeferry.wire.iothub_auth import API_VERSION
from edgeferry.wire.service_api import API_VERSION_PATTERN, METHOD_NAME_MAX_CHARS, METHOD_TIMEOUT_MAX_S

Schema = dict[str, Any]
_TIME = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{3}Z)?$"
_SIGN = "[A-Za-z0-9+/]"
_KEY = f"^(({_SIGN}{{4}}){{5,20}}({_SIGN}{{4}}|{_SIGN}{{3}}=|{_SIGN}{{2}}==)|({_SIGN}{{4}}){{21}}{_SIGN}{{2}}==)$"
_TWIN_KEY = r"[^\x00-\x1f\x7f-\x9f.$ ]+"
_ANY_OBJECT: Schema = {"type": "object"}


def refer(name: str) -> Schema:
    """A reference to a schema of SCHEMAS."""
    return {"$ref": f"#/components/schemas/{name}"}


def _record(**fields: Schema) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _sent(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    """An object of which the hub reads these fields."""
    return {"type": "object", "properties": fields, **({"required": list(required)} if required else {})}


def _sent_values(key_pattern: str) -> Schema:
    """Values of a twin under keys of this pattern."""
    values = _or_null(refer("TwinValue"))
    return {"type": "object", "propertyNames": {"pattern": key_pattern}, "additionalProperties": values}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]} if "$ref" in schema else {**schema, "type": [schema["type"], "null"]}


def _text(pattern: str | None = None, most: int | None = None, least: int = 0) -> Schema:
    given: Schema = {"pattern": pattern, "maxLength": most, "minLength": least or None}
    return {"type": "string"} | {word: value for word, value in given.items() if value is not None}


def _whole(least: int = 0, most: int | None = None) -> Schema:
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def _choice(*values: str | None) -> Schema:
    return {"enum": list(values)}


def _map(values: Schema, most: int | None = None) -> Schema:
    return {"type": "object", "additionalProperties": values} | ({} if most is None else {"maxProperties": most})


_id, _time = _text(f"^{HUB_ID_PATTERN}$", 128, 1), _text(_TIME)
_thumbprints = _record(primaryThumbprint={"type": "null"}, secondaryThumbprint={"type": "null"})
_section = {
    "type": "object",
    "properties": {"$version": _whole(1), "$metadata": _ANY_OBJECT},
    "required": ["$version", "$metadata"],
}
_sent_tags = _or_null(refer("TwinObject"))
_sent_section = _or_null(_sent_values(f"^({_TWIN_KEY}|\\$version|\\$metadata)$"))
_no_keys = _sent(primaryKey=_choice(None, ""), secondaryKey=_choice(None, ""))
_both_keys = _sent(("primaryKey", "secondaryKey"), primaryKey=_text(_KEY), secondaryKey=_text(_KEY))
_sent_authentication = _or_null(
    _sent(type=_choice("sas", None), symmetricKey={"anyOf": [{"type": "null"}, _no_keys, _both_keys]})
)
_sent_capabilities = _or_null(_sent(iotEdge={"type": "boolean"}))
_sent_status = _choice("enabled", "disabled", None)
_sent_text = _or_null(_text(r"^[^\x00-\x1f\x7f-\x9f]*$", REASON_MAX_CHARS))
_paths = _sent_values(r"^properties\.desired(\.[^.\s$\x00-\x1f\x7f-\x9f]+)*$") | {
    "properties": {"properties.desired": _sent_values(f"^({_TWIN_KEY}|\\$version|\\$metadata)$")}
}
_modules_paths = _map(_paths) | {"propertyNames": {"pattern": f"^{HUB_ID_PATTERN}$"}}
_seconds = {"type": ["number", "null"], "minimum": 0, "maximum": METHOD_TIMEOUT_MAX_S}
_NO_CONTENT: dict[str, Schema] = {
    name: {"type": ["object", "null"], "maxProperties": 0}
    for name in ("deviceContent", "moduleContent", "modulesContent")
}


def _sent_content(name: str, schema: Schema, **more: Schema) -> Schema:
    """A content with something in this part; no other part but `more`."""
    parts = {**_NO_CONTENT, **more, name: schema | {"minProperties": 1}}
    return _sent((name,), **parts) | {"additionalProperties": False}


_registered: dict[str, Schema] = {
    "generationId": _text(),
    "etag": _text(),
    "connectionState": _choice("Connected", "Disconnected"),
    "connectionStateUpdatedTime": _time,
    "lastActivityTime": _time,
    "cloudToDeviceMessageCount": _whole(),
    "authentication": _record(
        symmetricKey=_record(primaryKey=_text(_KEY), secondaryKey=_text(_KEY)),
        x509Thumbprint=_thumbprints,
        type=_choice("sas"),
    ),
}
_twin: dict[str, Schema] = {
    "etag": _text(),
    "deviceEtag": _text(),
    "status": _choice("enabled", "disabled"),
    "statusUpdateTime": _time,
    "connectionState": _choice("Connected", "Disconnected"),
    "lastActivityTime": _time,
    "cloudToDeviceMessageCount": _whole(),
    "authenticationType": _choice("sas"),
    "x509Thumbprint": _thumbprints,
    "modelId": _text(),
    "version": _whole(1),
    "tags": _ANY_OBJECT,
    "properties": _record(desired=_section, reported=_section),
}

_identity: dict[str, Schema] = {
    "authentication": _sent_authentication,
    "status": _sent_status,
    "statusReason": _sent_text,
    "capabilities": _sent_capabilities,
    "managedBy": _sent_text,
}
SCHEMAS: dict[str, Schema] = {
    "Error": _record(Message=_text(r"^ErrorCode:[A-Za-z]+;"), ExceptionMessage=_text()),
    "Device": _record(
        deviceId=_id,
        status=_choice("enabled", "disabled"),
        statusReason=_or_null(_text()),
        statusUpdatedTime=_time,
        capabilities=_record(iotEdge={"type": "boolean"}),
        **_registered,
    ),
    "Module": _record(deviceId=_id, moduleId=_id, managedBy=_or_null(_text()), **_registered),
    "Devices": {"type": "array", "items": refer("Device"), "maxItems": PAGE_MAX_ROWS},
    "Modules": {"type": "array", "items": refer("Module")},
    "IdentityWrite": _sent((), **_identity),
    "Bulk": {"type": "array", "items": refer("BulkEntry"), "maxItems": BULK_MAX},
    "BulkEntry": _sent(
        ("id",),
        id=_id,
        moduleId=_or_null(_id),
        importMode=_choice(*IMPORT_MODES, None),
        eTag=_or_null(_text()),
        **_identity,
    ),
    "BulkResult": _record(
        isSuccessful={"type": "boolean"},
        errors={"type": "array", "items": _record(deviceId=_text(), errorCode=_text(), errorStatus=_text())},
        warnings={"type": "array", "maxItems": 0},
    ),
    "DeviceTwin": _record(
        deviceId=_id, capabilities=_record(iotEdge={"type": "boolean"}), statusReason=_or_null(_text()), **_twin
    ),
    "ModuleTwin": _record(deviceId=_id, moduleId=_id, **_twin),
    "TwinValue": {
        "anyOf": [
            {"type": ["boolean", "number"]},
            _text(most=STRING_MAX_BYTES),
            {"type": "array", "items": _or_null(refer("TwinValue"))},
            refer("TwinObject"),
        ]
    },
    "TwinObject": _sent_values(f"^{_TWIN_KEY}$"),
    "TwinWrite": _sent(tags=_sent_tags, properties=_or_null(_sent(desired=_sent_section))),
    "MethodCall": _sent(
        ("methodName",),
        methodName=_text(most=METHOD_NAME_MAX_CHARS, least=1),
        payload={},
        responseTimeoutInSeconds=_seconds,
        connectTimeoutInSeconds=_seconds,
    ),
    "MethodResult": _record(status={"type": "integer"}, payload={}),
    "Query": _sent(("query",), query=_text(most=TEXT_MAX_CHARS, least=1)),
    "QueryPage": {"type": "array", "items": _ANY_OBJECT, "maxItems": PAGE_MAX_ROWS},
    "RegistryStatistics": _record(totalDeviceCount=_whole(), enabledDeviceCount=_whole(), disabledDeviceCount=_whole()),
    "ServiceStatistics": _record(connectedDeviceCount=_whole()),
    "DeviceContent": {
        "anyOf": [
            _sent_content("deviceContent", _paths, modulesContent=_or_null(_modules_paths)),
            _sent_content("modulesContent", _modules_paths, deviceContent=_or_null(_paths)),
        ]
    },
    "Content": {"anyOf": [refer("DeviceContent"), _sent_content("moduleContent", _paths)]},
    "ConfigurationWrite": _sent(
        ("content",),
        id=_text(f"^{NAME_PATTERN}$"),
        content=refer("Content"),
        targetCondition=_or_null(_text(most=TEXT_MAX_CHARS)),
        priority=_whole(0, PRIORITY_MAX),
        metrics=_or_null(_sent(queries=_or_null(_map(_text(most=4096), METRICS_MAX)))),
        labels=_or_null(_map(_text(most=4096), LABELS_MAX)),
    ),
    "Configuration": _record(
        id=_text(f"^{NAME_PATTERN}$"),
        schemaVersion=_choice("1.0"),
        labels=_map(_text()),
        content=_ANY_OBJECT,
        contentType=_choice("assignment"),
        targetCondition=_text(),
        createdTimeUtc=_time,
        lastUpdatedTimeUtc=_time,
        priority=_whole(0, PRIORITY_MAX),
        systemMetrics=_record(
            results=_record(targetedCount=_whole(), appliedCount=_whole()), queries=_map({"type": "null"})
        ),
        metrics=_record(results=_map(_whole()), queries=_map(_text())),
        etag=_text(),
    ),
    "Configurations": {"type": "array", "items": refer("Configuration")},
    "TestQueries": _sent(targetCondition=_or_null(_text()), customMetricQueries=_or_null(_map(_text()))),
    "TestQueriesResult": _record(targetConditionError=_or_null(_text()), customMetricQueryErrors=_map(_text())),
}

# to be tried out: the identities that the paths' examples name, and bodies that do something
BODY_EXAMPLES: dict[str, Any] = {
    "IdentityWrite": {"status": "enabled"},
    "Bulk": [{"id": "line-2", "importMode": "createOrUpdate"}],
    "TwinWrite": {"tags": {"site": "north"}, "properties": {"desired": {"limit": 0.5, "old": None}}},
    "MethodCall": {"methodName": "restart", "payload": {"soon": True}, "responseTimeoutInSeconds": 5},
    "Query": {"query": "SELECT * FROM devices.modules WHERE tags.site = 'north'"},
    "DeviceContent": {"modulesContent": {"detector": {"properties.desired.limit": 0.5}}},
    "ConfigurationWrite": {
        "content": {"deviceContent": {"properties.desired.rate": 4}},
        "targetCondition": "tags.site = 'north'",
        "priority": 10,
        "metrics": {"queries": {"all": "SELECT COUNT() AS n FROM devices"}},
    },
    "TestQueries": {"targetCondition": "tags.site = 'north'", "customMetricQueries": {"all": "SELECT * FROM devices"}},
}
PARAMETERS: dict[str, Schema] = {
    "api-version": {
        "in": "query",
        "required": True,
        "schema": _text(f"^{API_VERSION_PATTERN}$"),
        "example": API_VERSION,
    },
    "device": {"in": "path", "required": True, "schema": _id, "example": "line-1"},
    "module": {"in": "path", "required": True, "schema": _id, "example": "detector"},
    "name": {"in": "path", "required": True, "schema": _text(f"^{NAME_PATTERN}$", 128, 1), "example": "all-lines"},
    "top": {"in": "query", "schema": _whole(1)},
    "If-Match": {"in": "header", "schema": _text()},
    "x-ms-max-item-count": {"in": "header", "schema": _whole(1)},
    "x-ms-continuation": {"in": "header", "schema": _text(most=CONTINUATION_MAX_CHARS)},
}
