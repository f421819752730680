"""The service REST of a hub, called by hand."""

from __future__ import annotations

import time
from typing import Any

import aiohttp

from edgeferry.app.hub import RunningHub
from edgeferry.wire import service_api as api
from edgeferry.wire.iothub_auth import make_sas_token


class Caller:
    """Requests with a good token, unless told otherwise."""

    def __init__(self, session: aiohttp.ClientSession, hub: RunningHub) -> None:
        self.session, self.hub = session, hub

    def token(self, resource: str | None = None, *, key: str | None = None, policy: str | None = "iothubowner") -> str:
        host = resource or f"localhost:{self.hub.https_port}"
        keys = self.hub.policies.keys
        return make_sas_token(host, key or keys.get(policy or "", keys["service"]), int(time.time()) + 60, policy)

    async def __call__(
        self, method: str, path: str, *, token: str | None = None, data: bytes | None = None, **headers: str
    ) -> tuple[int, Any, str | None]:
        sent = {"Authorization": token if token is not None else self.token(), **headers}
        url = self.hub.service_url + api.add_api_version(path)
        async with self.session.request(method, url, headers=sent, data=data) as answer:
            code = answer.headers.get(api.ERROR_HEADER)
            body = await answer.read()
            assert code == api.find_error_code(body) or answer.status < 400
            return answer.status, body, code
