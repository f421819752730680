"""The service REST of IoT Hub as values: paths, bodies, etags, error codes; for the hub's front and for its callers.

Requests are sent by transport/http.py and answered by hub/http_front.py. Tokens stand in iothub_auth.py.

Rules:
- `If-Match` is `"*"` or `"<etag>"`, with the quotes; some SDKs send a bare `*`.
- An error body is `{"Message": "ErrorCode:X;..."}` beside the header `iothub-errorcode: X`.
- Keys are shown by identity calls only, never by twin calls.

Source: docs/formats/iothub.md section 5 (api-version 2021-04-12, measured with the Python and Node service SDKs).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from edgeferry.errors import RequestInvalid
from edgeferry.names import require_hub_id
from edgeferry.twin.document import Json, TwinDocument, format_time
from edgeferry.wire.iothub_auth import API_VERSION

ERROR_HEADER = "iothub-errorcode"
METHOD_TIMEOUT_S, METHOD_TIMEOUT_MAX_S = 30, 300
_TIME_FIELDS = ("responseTimeoutInSeconds", "connectTimeoutInSeconds")
METHOD_PAYLOAD_MAX_BYTES = 128 * 1024
NEVER = "0001-01-01T00:00:00"  # how IoT Hub writes a time that has not been
METHOD_NAME_MAX_CHARS = 100
API_VERSION_PATTERN = r"20[0-9]{2}-[0-9]{2}-[0-9]{2}(-preview)?"

# code -> HTTP status; the codes are IoT Hub's
STATUS_OF_CODE: Mapping[str, int] = MappingProxyType(
    {
        "ArgumentInvalid": 400,
        "InvalidConfigurationTargetCondition": 400,
        "InvalidConfigurationCustomMetricsQuery": 400,
        "InvalidConfigurationContent": 400,
        "CannotModifyImmutableConfigurationContent": 400,
        "InvalidProtocolVersion": 400,
        "BulkRegistryOperationFailure": 400,
        "IotHubUnauthorizedAccess": 401,
        "DeviceNotFound": 404,
        "ModuleNotFound": 404,
        "DeviceNotOnline": 404,
        "ConfigurationNotFound": 404,
        "NotFound": 404,
        "MethodNotAllowed": 405,
        "DeviceAlreadyExists": 409,
        "ModuleAlreadyExistsOnDevice": 409,
        "ConfigurationAlreadyExists": 409,
        "PreconditionFailed": 412,
        "MessageTooLarge": 413,
        "ServerError": 500,
        "ServiceUnavailable": 503,
        "GatewayTimeout": 504,
    }
)


class Identity(NamedTuple):
    """A device, or with `module_id` one of its modules."""

    device_id: str
    module_id: str | None = None

    def __str__(self) -> str:
        return f"{self.device_id}/{self.module_id}" if self.module_id else self.device_id


@dataclass(frozen=True, slots=True)
class IdentityRecord:
    """What the registry holds of one identity. `generation_id` tells a new one from a deleted one of the same name."""

    identity: Identity
    generation_id: str
    primary_key: str = field(repr=False)
    secondary_key: str = field(repr=False)
    etag: str
    is_enabled: bool = True
    managed_by: str | None = None
    created_at: float = 0.0
    status_reason: str | None = None
    is_edge: bool = False

    @property
    def keys(self) -> tuple[str, str]:
        """Both keys; either opens the door."""
        return self.primary_key, self.secondary_key


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What is known of an identity's connection; times are Unix seconds, None for never."""

    is_connected: bool = False
    changed_at: float | None = None
    last_activity_at: float | None = None


@dataclass(frozen=True, slots=True)
class MethodRequest:
    """A direct method as the service calls it."""

    name: str
    payload: Any = None
    response_timeout_s: float = 30.0
    connect_timeout_s: float = 0.0


def require_identity(device_id: Any, module_id: Any = None) -> Identity:
    """Both ids checked.

    Raises:
        NameInvalid: an id is no text, empty, too long or holds a sign that is not allowed.
    """
    return Identity(require_hub_id(device_id), None if module_id is None else require_hub_id(module_id))


def require_key(key: Any) -> str:
    """A symmetric key as a caller may choose it: base64 of 16 to 64 bytes; raises RequestInvalid."""
    try:
        size = len(base64.b64decode(key, validate=True)) if isinstance(key, str) else 0
    except ValueError as error:
        raise RequestInvalid("expected a key in base64") from error
    if not 16 <= size <= 64:
        raise RequestInvalid("expected a key of 16 to 64 bytes, in base64")
    return str(key)


def get_identity_path(identity: Identity) -> str:
    """`/devices/{d}[/modules/{m}]`, ids url-encoded."""
    return "/devices/" + _get_id_path(identity)


QUERY_PATH = "/devices/query"


def get_twin_path(identity: Identity) -> str:
    """`/twins/{d}[/modules/{m}]`, ids url-encoded."""
    return "/twins/" + _get_id_path(identity)


def get_method_path(identity: Identity) -> str:
    """`/twins/{d}[/modules/{m}]/methods`."""
    return get_twin_path(identity) + "/methods"


def add_api_version(path: str) -> str:
    """The path with the query that every call carries."""
    return f"{path}?api-version={API_VERSION}"


def require_api_version(version: str | None) -> None:
    """Checks the api-version of a call: the form of a date, whichever.

    Raises:
        RequestInvalid: none, or another form (code InvalidProtocolVersion, as IoT Hub's).
    """
    if version is None or not re.fullmatch(API_VERSION_PATTERN, version):
        raise RequestInvalid(
            f"expected the query api-version={API_VERSION}, found {version!r:.40}",
            service_code="InvalidProtocolVersion",
        )


def format_etag(etag: str) -> str:
    """As it stands in `ETag` and `If-Match`: quoted."""
    return f'"{etag}"'


def parse_if_match(header: str | None) -> str | None:
    """The etag that the caller insists on; None for "whatever is there" (no header, `*` or `"*"`)."""
    if header is None:
        return None
    bare = header.strip().removeprefix("W/").strip('"')
    return None if bare == "*" else bare


def make_method_body(request: MethodRequest) -> bytes:
    """The body of a method call."""
    fields: Json = {"methodName": request.name, "payload": request.payload}
    fields["responseTimeoutInSeconds"] = int(request.response_timeout_s)
    fields["connectTimeoutInSeconds"] = int(request.connect_timeout_s)
    return msgspec.json.encode(fields)


def parse_method_request(body: Json) -> MethodRequest:
    """Reads the body of a method call.

    Raises:
        RequestInvalid: no name, or a time-out that is no number from 0 to 300.
    """
    name = body.get("methodName")
    if not isinstance(name, str) or not 0 < len(name) <= METHOD_NAME_MAX_CHARS:
        raise RequestInvalid(f"expected 'methodName' of 1 to {METHOD_NAME_MAX_CHARS} characters")
    times = [0 if body.get(field) is None else body[field] for field in _TIME_FIELDS]
    if any(isinstance(time, bool) or not isinstance(time, int | float) for time in times):
        raise RequestInvalid("expected time-outs in seconds")
    if not all(0 <= time <= METHOD_TIMEOUT_MAX_S for time in times):
        raise RequestInvalid(f"expected time-outs of 0 to {METHOD_TIMEOUT_MAX_S} seconds")
    return MethodRequest(name, body.get("payload"), float(times[0] or METHOD_TIMEOUT_S), float(times[1]))


def make_error_body(code: str, message: str) -> bytes:
    """The body of a refusal."""
    return msgspec.json.encode({"Message": f"ErrorCode:{code};{message}", "ExceptionMessage": ""})


def find_error_code(body: bytes) -> str | None:
    """The code in the body of a refusal, None when there is none; never raises."""
    match = re.search(rb"ErrorCode:([A-Za-z0-9]{1,80})", body[:10_000])
    return match[1].decode("ascii") if match else None


def make_identity_body(record: IdentityRecord, facts: ConnectionFacts) -> Json:
    """A device or module as registry calls show it, keys included."""
    fields = _get_id_fields(record.identity)
    if record.identity.module_id is not None:
        fields["managedBy"] = record.managed_by
    else:
        fields |= {"status": _get_status(record), "statusReason": record.status_reason, "statusUpdatedTime": NEVER}
        fields["capabilities"] = {"iotEdge": record.is_edge}
    key_pair = {"primaryKey": record.primary_key, "secondaryKey": record.secondary_key}
    return fields | {
        "generationId": record.generation_id,
        "etag": record.etag,
        "connectionState": _get_connection_state(facts),
        "connectionStateUpdatedTime": _format_or_never(facts.changed_at),
        "lastActivityTime": _format_or_never(facts.last_activity_at),
        "cloudToDeviceMessageCount": 0,
        "authentication": {"symmetricKey": key_pair, "x509Thumbprint": _NO_THUMBPRINT, "type": "sas"},
    }


def make_twin_body(record: IdentityRecord, twin: TwinDocument, facts: ConnectionFacts) -> Json:
    """A twin as the service sees it, with metadata and without keys."""
    sections = {"desired": twin.desired.to_dict(metadata=True), "reported": twin.reported.to_dict(metadata=True)}
    is_device = record.identity.module_id is None
    ours: Json = {"capabilities": {"iotEdge": record.is_edge}, "statusReason": record.status_reason}
    return (
        _get_id_fields(record.identity)
        | (ours if is_device else {})
        | {
            "etag": twin.etag,
            "deviceEtag": record.etag,
            "status": _get_status(record),
            "statusUpdateTime": NEVER,
            "connectionState": _get_connection_state(facts),
            "lastActivityTime": _format_or_never(facts.last_activity_at),
            "cloudToDeviceMessageCount": 0,
            "authenticationType": "sas",
            "x509Thumbprint": _NO_THUMBPRINT,
            "modelId": "",
            "version": twin.version,
            "tags": twin.tags,
            "properties": sections,
        }
    )


def parse_twin_write(body: Json) -> tuple[Json | None, Json | None]:
    """The tags and desired properties that a PATCH or PUT writes, None for what it leaves alone.

    Raises:
        RequestInvalid: a section is no object.
    """
    properties = _require_object(body.get("properties"), "properties") or {}
    return _require_object(body.get("tags"), "tags"), _require_object(properties.get("desired"), "properties.desired")


_NO_THUMBPRINT = {"primaryThumbprint": None, "secondaryThumbprint": None}


def _get_id_path(identity: Identity) -> str:
    module = f"/modules/{quote(identity.module_id, safe='')}" if identity.module_id else ""
    return quote(identity.device_id, safe="") + module


def _get_id_fields(identity: Identity) -> Json:
    module: Json = {} if identity.module_id is None else {"moduleId": identity.module_id}
    return {"deviceId": identity.device_id} | module


def _get_status(record: IdentityRecord) -> str:
    return "enabled" if record.is_enabled else "disabled"


def _get_connection_state(facts: ConnectionFacts) -> str:
    return "Connected" if facts.is_connected else "Disconnected"


def _format_or_never(time: float | None) -> str:
    return NEVER if time is None else format_time(time)


def _require_object(value: Any, name: str) -> Json | None:
    if value is not None and not isinstance(value, dict):
        raise RequestInvalid(f"expected '{name}' to be an object, found {type(value).__name__}")
    return value
