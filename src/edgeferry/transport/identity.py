"""Who a device or module is to its hub, and how it proves that: with a key held here, or with what its host signs.

Connecting is `mqtt.py`'s; the form of tokens `wire/iothub_auth.py`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from edgeferry.wire.iothub_auth import format_sas_token, get_string_to_sign, make_resource, make_signature

Sign = Callable[[bytes], Awaitable[str]]
"""Gives the base64 HMAC-SHA256 of its argument with this identity's key: held here, or by the workload API."""


@dataclass(frozen=True, slots=True)
class HubIdentity:
    """Who connects where: `host` is the hub's name, `gateway` the peer where it is another; no `module`: a device."""

    host: str
    device: str
    sign: Sign = field(repr=False)
    module: str = ""
    gateway: str = ""
    ca_pem: bytes | None = field(default=None, repr=False)
    port: int = 8883

    async def make_password(self, expires_at: int) -> str:
        """The token until `expires_at` (Unix seconds)."""
        resource = make_resource(self.host, self.device, self.module or None)
        return format_sas_token(resource, await self.sign(get_string_to_sign(resource, expires_at)), expires_at)


def make_key_sign(key_base64: str) -> Sign:
    """Signs with a key held here; ConfigInvalid when it is used and is no base64."""

    async def sign(data: bytes) -> str:
        return make_signature(key_base64, data)

    return sign
