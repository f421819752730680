"""The service REST called plainly: a test's own view of a hub, without any SDK and without the hub's rooms."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from edgeferry.app.hub import RunningHub
from edgeferry.wire.iothub_auth import ConnectionString, make_sas_token, parse_connection_string
from edgeferry.wire.service_api import Identity, add_api_version, get_identity_path, get_method_path, get_twin_path


class ServiceRefused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


@dataclass(frozen=True)
class ServiceView:
    """Calls of one policy; each answers with the JSON of a 2xx and raises ServiceRefused on anything else."""

    session: aiohttp.ClientSession
    known: ConnectionString

    async def fetch_identity(self, identity: Identity) -> Any:
        """A device or a module as registered."""
        return await self._call("GET", get_identity_path(identity))

    async def fetch_twin(self, identity: Identity) -> Any:
        """The whole twin."""
        return await self._call("GET", get_twin_path(identity))

    async def fetch_reported(self, identity: Identity) -> dict[str, Any]:
        """What the device reported, without what the hub adds."""
        reported = (await self.fetch_twin(identity))["properties"]["reported"]
        return {name: value for name, value in reported.items() if not name.startswith("$")}

    async def patch_desired(self, identity: Identity, desired: dict[str, Any]) -> Any:
        """Merges into the desired properties."""
        return await self._call("PATCH", get_twin_path(identity), {"properties": {"desired": desired}})

    async def put_desired(self, identity: Identity, desired: dict[str, Any]) -> Any:
        """Replaces the desired properties."""
        return await self._call("PUT", get_twin_path(identity), {"properties": {"desired": desired}})

    async def call_method(self, identity: Identity, name: str, payload: Any = None, *, timeout_s: int = 20) -> Any:
        """`{"status", "payload"}`; waits for a device that is just coming back."""
        times = {"responseTimeoutInSeconds": timeout_s, "connectTimeoutInSeconds": timeout_s}
        body = {"methodName": name, "payload": payload, **times}
        return await self._call("POST", get_method_path(identity), body)

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        host, key, policy = self.known.host_name, self.known.shared_access_key, self.known.shared_access_key_name
        token = make_sas_token(host, key, int(time.time()) + 600, policy)
        url = f"https://{host}{add_api_version(path)}"
        async with self.session.request(method, url, json=body, headers={"Authorization": token}) as answer:
            if not answer.ok:
                raise ServiceRefused(answer.status, await answer.text())
            return await answer.json()


@asynccontextmanager
async def open_service_view(hub: RunningHub) -> AsyncIterator[ServiceView]:
    """A view of `hub` for as long as the block runs."""
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(hub.ca_pem_path)))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield ServiceView(session, parse_connection_string(hub.get_policy_connection_string()))
