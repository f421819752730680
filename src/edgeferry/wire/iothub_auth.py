"""Who speaks to the hub: connection strings, the MQTT user name, and shared access signatures, both ways.

Sockets, stores of keys and the clock belong to others; `now` and `expires_at` are Unix seconds passed in.

Rules:
- The string that is signed is `sr + "\\n" + se` with `sr` as it stands in the token (url-encoded). Service SDKs sign
  the raw host name; both forms are accepted, each compared in constant time.
- Fields of a token come in any order: it is read as a map. `+` is a literal plus.
- A key never enters a message, a `repr` or a log.

Source: docs/formats/iothub.md section 2 (measured with azure-iot-device 2.14.0 and azure-iot-hub 2.7.0).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import quote, unquote

from edgeferry.errors import ConfigInvalid, HubRefused

TOKEN_MAX_CHARS = 4096
USER_NAME_MAX_CHARS = 4096
CONNECTION_STRING_MAX_CHARS = 4096
API_VERSION = "2021-04-12"
_TOKEN_HEAD = "SharedAccessSignature "  # noqa: S105 - the scheme's name, not a secret


@dataclass(frozen=True, slots=True)
class ConnectionString:
    """One parsed connection string of a device, a module or a service policy."""

    host_name: str
    shared_access_key: str = field(repr=False)
    device_id: str | None = None
    module_id: str | None = None
    shared_access_key_name: str | None = None
    gateway_host_name: str | None = None

    @property
    def resource(self) -> str:
        """What a token of this string is for: `host[/devices/d[/modules/m]]`, not url-encoded."""
        return make_resource(self.host_name, self.device_id, self.module_id)

    @property
    def peer_host(self) -> str:
        """The name to open the TCP connection to: the gateway when there is one."""
        return self.gateway_host_name or self.host_name

    def __str__(self) -> str:
        parts = [f"{word}={getattr(self, name)}" for word, name in _WORDS.items() if getattr(self, name)]
        return ";".join(parts)


_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "HostName": "host_name",
        "DeviceId": "device_id",
        "ModuleId": "module_id",
        "SharedAccessKeyName": "shared_access_key_name",
        "SharedAccessKey": "shared_access_key",
        "GatewayHostName": "gateway_host_name",
    }
)


@dataclass(frozen=True, slots=True)
class SasToken:
    """The fields of one token as sent; `resource` keeps its url-encoding because that is what was signed."""

    resource: str
    signature: str = field(repr=False)
    expires_at: int
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class UserName:
    """The MQTT user name: `{host}/{device}[/{module}]/?api-version=...&DeviceClientType=...`."""

    host_name: str
    device_id: str
    module_id: str | None = None
    api_version: str = API_VERSION

    @property
    def resource(self) -> str:
        """What the password must be a token for."""
        return make_resource(self.host_name, self.device_id, self.module_id)


def parse_connection_string(text: str) -> ConnectionString:
    """Reads `HostName=...;DeviceId=...;SharedAccessKey=...` in any order; words of later releases are ignored.

    Raises:
        ConfigInvalid: a field is missing or stands twice, or the key is not base64; the message never shows the key.
    """
    if len(text) > CONNECTION_STRING_MAX_CHARS:
        raise ConfigInvalid(f"a connection string has at most {CONNECTION_STRING_MAX_CHARS} characters")
    found: dict[str, str] = {}
    for part in filter(None, text.strip().split(";")):
        word, equals, value = part.partition("=")
        if not equals or not value or word in found:
            raise ConfigInvalid("a connection string is a list of Name=value, separated by ';', each name once")
        found[word] = value
    for word in ("HostName", "SharedAccessKey"):
        if word not in found:
            raise ConfigInvalid(f"the connection string has no {word}")
    if not ("DeviceId" in found or "SharedAccessKeyName" in found) or ("ModuleId" in found and "DeviceId" not in found):
        raise ConfigInvalid("the connection string names neither a device nor a policy")
    _decode_key(found["SharedAccessKey"])
    return ConnectionString(**{name: found[word] for word, name in _WORDS.items() if word in found})


def make_resource(host_name: str, device_id: str | None = None, module_id: str | None = None) -> str:
    """`host[/devices/d[/modules/m]]`, not url-encoded."""
    device = f"/devices/{device_id}" if device_id else ""
    return host_name + device + (f"/modules/{module_id}" if module_id else "")


def make_signature(key_base64: str, data: bytes) -> str:
    """Base64 of the HMAC-SHA256 of `data`; the workload API answers `sign` with this.

    Raises:
        ConfigInvalid: the key is not base64.
    """
    return base64.b64encode(hmac.new(_decode_key(key_base64), data, hashlib.sha256).digest()).decode("ascii")


def make_sas_token(resource: str, key_base64: str, expires_at: int, policy: str | None = None) -> str:
    """A token for `resource` (not url-encoded) until `expires_at` (Unix seconds), signed with a key held here."""
    return format_sas_token(
        resource, make_signature(key_base64, get_string_to_sign(resource, expires_at)), expires_at, policy
    )


def get_string_to_sign(resource: str, expires_at: int) -> bytes:
    """The bytes a token signs; a module without a key of its own hands them to the workload API."""
    return f"{quote(resource, safe='')}\n{expires_at}".encode()


def format_sas_token(resource: str, signature: str, expires_at: int, policy: str | None = None) -> str:
    """The token's text from its parts; `signature` is base64 of the HMAC over `get_string_to_sign`."""
    tail = f"&skn={quote(policy, safe='')}" if policy else ""
    return f"{_TOKEN_HEAD}sr={quote(resource, safe='')}&sig={quote(signature, safe='')}&se={expires_at}{tail}"


def parse_sas_token(text: str) -> SasToken:
    """Reads a token as a map; checks nothing but its form.

    Raises:
        HubRefused: not a token, a field is missing or stands twice, or it is too long.
    """
    if len(text) > TOKEN_MAX_CHARS or not text.startswith(_TOKEN_HEAD):
        raise HubRefused("expected 'SharedAccessSignature sr=...&sig=...&se=...'")
    pairs = [part.partition("=") for part in text[len(_TOKEN_HEAD) :].strip().split("&")]
    fields = {name: value for name, _, value in pairs}
    expiry = fields.get("se", "")
    complete = {"sr", "sig", "se"} <= fields.keys() and len(fields) == len(pairs)
    if not complete or not (expiry.isascii() and expiry.isdigit() and len(expiry) <= 12):
        raise HubRefused("the shared access signature lacks a field, has one twice, or its 'se' is no number")
    policy = unquote(fields["skn"]) if fields.get("skn") else None
    return SasToken(fields["sr"], unquote(fields["sig"]), int(expiry), policy)


def verify_sas_token(token: SasToken, *, resource: str, keys: Iterable[str], now: float) -> None:
    """Checks expiry, resource and signature; every key is tried, so that a secondary key may be in use.

    Args:
        token: what the peer sent.
        resource: what it must be for, not url-encoded; the host part compares without case.
        keys: base64 keys of the identity or policy.
        now: Unix seconds.

    Raises:
        HubRefused: expired, for something else, or not signed with one of the keys.
    """
    if token.expires_at <= now:
        raise HubRefused("the shared access signature has expired", expired_for_s=int(now - token.expires_at))
    if _fold_host(unquote(token.resource)) != _fold_host(resource):
        raise HubRefused("the shared access signature is for another resource")
    if not any([_is_signed_with(token, key) for key in keys]):  # noqa: C419 - all keys are tried: equal time
        raise HubRefused("the shared access signature is not signed with the key known here")


def make_user_name(host_name: str, device_id: str, module_id: str | None = None, *, client_type: str = "") -> str:
    """The MQTT user name; ids are not url-encoded, the query is."""
    path = "/".join(filter(None, (host_name, device_id, module_id)))
    client = f"&DeviceClientType={quote(client_type, safe='')}" if client_type else ""
    return f"{path}/?api-version={API_VERSION}{client}"


def make_client_id(device_id: str, module_id: str | None = None) -> str:
    """The MQTT client id: `{device}` or `{device}/{module}`."""
    return f"{device_id}/{module_id}" if module_id else device_id


def parse_user_name(text: str) -> UserName:
    """Reads the MQTT user name of a device or a module.

    Raises:
        HubRefused: it does not have two or three parts, or no api-version.
    """
    path, _, query = text.partition("/?")
    parts = path.split("/")
    if len(text) > USER_NAME_MAX_CHARS or len(parts) not in (2, 3) or not all(parts):
        raise HubRefused("expected a user name '{host}/{device}[/{module}]/?api-version=...'")
    fields = {name: unquote(value) for name, _, value in (part.partition("=") for part in query.split("&"))}
    if not fields.get("api-version"):
        raise HubRefused("the user name names no api-version")
    return UserName(parts[0], parts[1], parts[2] if len(parts) == 3 else None, fields["api-version"])


def _is_signed_with(token: SasToken, key_base64: str) -> bool:
    raw = unquote(token.resource)
    forms = (token.resource, raw, quote(raw, safe=""))
    wanted = [make_signature(key_base64, f"{form}\n{token.expires_at}".encode()) for form in forms]
    sent = token.signature.encode("utf-8", "replace")
    return any([hmac.compare_digest(one.encode("ascii"), sent) for one in wanted])  # noqa: C419 - equal time for all forms


def _fold_host(resource: str) -> str:
    host, slash, rest = resource.partition("/")
    return host.lower() + slash + rest


def _decode_key(key_base64: str) -> bytes:
    try:
        return base64.b64decode(key_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigInvalid("the shared access key is not base64") from error
