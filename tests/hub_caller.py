"""The hub's REST, called by hand: every byte of the request is the test's."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from edgeferry.app.hub import RunningHub
from edgeferry.wire.iothub_auth import API_VERSION, make_sas_token
from edgeferry.wire.service_api import ERROR_HEADER, find_error_code


@dataclass(frozen=True)
class Answer:
    """What came back; `code` is IoT Hub's, from the header."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        return self.headers.get(ERROR_HEADER)

    @property
    def content_type(self) -> str:
        return self.headers["Content-Type"].partition(";")[0]

    @property
    def allowed(self) -> list[str]:
        return self.headers["Allow"].split(", ")


class ServiceCaller:
    """`await call(method, path, ...)`, with a good token and api-version unless told otherwise.

    `path` goes out as it stands; `body` too when it is bytes, else as JSON.
    """

    def __init__(self, session: aiohttp.ClientSession, hub: RunningHub) -> None:
        self.session, self.hub = session, hub

    async def __call__(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        token: str | None = None,
        version: str | None = API_VERSION,
        if_match: str | None = None,
        query: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = {"Authorization": self.make_token() if token is None else token, **(headers or {})}
        sent |= {"If-Match": if_match} if if_match is not None else {}
        texts = [*([] if version is None else [f"api-version={version}"]), *([query] if query else [])]
        url = URL(f"{self.hub.service_url}{path}?{'&'.join(texts)}".rstrip("?"), encoded=True)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self.session.request(method, url, headers=sent, data=data) as answer:
            return await _read(answer)

    def make_token(self) -> str:
        host, keys = f"localhost:{self.hub.https_port}", self.hub.policies.keys
        return make_sas_token(host, keys["iothubowner"], int(time.time()) + 60, "iothubowner")


async def _read(answer: aiohttp.ClientResponse) -> Answer:
    """The answer; a refusal has its code in header and body."""
    found = Answer(answer.status, answer.headers, await answer.read())
    if found.status >= 400 and found.code != "BulkRegistryOperationFailure":
        assert found.code == find_error_code(found.body)
    return found


@asynccontextmanager
async def open_caller(hub: RunningHub) -> AsyncIterator[ServiceCaller]:
    """A caller that trusts the hub's CA."""
    context = ssl.create_default_context(cafile=str(hub.ca_pem_path))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield ServiceCaller(session, hub)
