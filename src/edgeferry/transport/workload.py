"""The IoT Edge workload API, client side: what a module asks the security daemon of its own host.

Rules:
- A module holds no key: tokens are signed by the daemon, over a unix socket.

Source: docs/formats/iothub.md section 2 (`/trust-bundle`, `/modules/{m}/genid/{g}/sign`).
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

from edgeferry.errors import ConfigInvalid, ProtocolViolated
from edgeferry.transport.http import HttpSettings, open_http, require_ok

API_VERSION = "2019-01-30"
_ANSWER_MAX_BYTES = 256 << 10


class _TrustBundle(msgspec.Struct):
    certificate: str


class _Signed(msgspec.Struct):
    digest: str


_Answer = TypeVar("_Answer", _TrustBundle, _Signed)


class Workload:
    """The API at `url` (`unix:///run/...` or `http://...`, the variable IOTEDGE_WORKLOADURI)."""

    def __init__(self, url: str, api_version: str = API_VERSION) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("unix", "http") or not (parts.path or parts.netloc):
            raise ConfigInvalid(f"expected a workload URL like unix:///path or http://host, found {url!r:.120}")
        is_unix = parts.scheme == "unix"
        self._settings = HttpSettings(unix_socket=Path(unquote(parts.path)) if is_unix else None, answer_timeout_s=30.0)
        self._base = "http://workload" if is_unix else url.rstrip("/")
        self._api_version = api_version

    async def fetch_trust_bundle(self) -> bytes:
        """PEM of the authorities that this host trusts: the gateway's among them."""
        return (await self._call("trust-bundle", _TrustBundle)).certificate.encode()

    async def sign(self, module: str, generation: str, *, data: bytes) -> str:
        """Base64 of the HMAC-SHA256 of `data` with the module's own key.

        Raises:
            LinkError, AccessError leaves: the daemon cannot be reached or says no.
            ProtocolViolated: its answer is not what the API promises.
        """
        path = f"modules/{quote(module, safe='')}/genid/{quote(generation, safe='')}/sign"
        order = {"keyId": "primary", "algo": "HMACSHA256", "data": base64.b64encode(data).decode("ascii")}
        return (await self._call(path, _Signed, body=msgspec.json.encode(order))).digest

    async def _call(self, path: str, answer_type: type[_Answer], *, body: bytes | None = None) -> _Answer:
        url = f"{self._base}/{path}?api-version={quote(self._api_version, safe='')}"
        method, headers = ("GET", {}) if body is None else ("POST", {"Content-Type": "application/json"})
        async with open_http(self._settings) as http:
            answer = await http.fetch(url, max_bytes=_ANSWER_MAX_BYTES, method=method, headers=headers, body=body)
        try:
            return msgspec.json.decode(require_ok(answer).body, type=answer_type)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProtocolViolated(f"the workload API gave no answer of the promised shape for {path}") from error
