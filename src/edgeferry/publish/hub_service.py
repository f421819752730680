"""The service side of a hub, as publishing and deploying need it: what devices run, what they are asked to run.

Works alike with our hub and Azure IoT Hub: paths and etags are `wire/service_api.py`'s, tokens `wire/iothub_auth.py`'s.

Rules:
- A twin is changed on top of what was read (If-Match); who was overtaken reads again.
- The token is made for each request and lives minutes; it never enters an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edgeferry.errors import ConfigInvalid, Conflict, HubRefused, LinkBroken
from edgeferry.transport.http import HttpAnswer, HttpClient, require_ok
from edgeferry.wire.iothub_auth import ConnectionString, make_sas_token
from edgeferry.wire.service_api import (
    QUERY_PATH,
    Identity,
    add_api_version,
    find_error_code,
    get_twin_path,
    require_identity,
)

TWIN_MAX_BYTES = 1 << 20
PAGE_ROWS, PAGES_MAX = 100, 2000
"""How a query is asked: rows of a page, and pages after which what was counted so far will do."""
TOKEN_LIFE_S = 600
TRIES = 5

Json = dict[str, Any]
MakePatch = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From the desired properties as they are to a twin patch for them; empty when nothing is to be done."""


@dataclass(frozen=True, slots=True)
class HubService:
    """A hub and the right to change its twins. `clock` gives Unix seconds."""

    http: HttpClient
    connection: ConnectionString
    clock: Callable[[], float]

    async def change_desired(self, identity: Identity, make_patch: MakePatch) -> bool:
        """Merges what `make_patch` gives into the desired properties; tells whether there was anything to change.

        Raises:
            ConfigInvalid: the hub does not know this device or module.
            HubRefused: it does not know us.
            Conflict: others kept changing the twin at the same time.
            LinkError: no answer, or none that makes sense.
        """
        for _ in range(TRIES):
            twin = await self.fetch_twin(identity)
            desired = _get_desired(twin)
            patch = make_patch(desired)
            if is_part_of(patch, desired):
                return False
            if await self._patch(identity, patch, str(twin.get("etag", "*"))):
                return True
        raise Conflict(f"the twin of {identity} kept changing at the same time")

    async def fetch_twin(self, identity: Identity) -> Json:
        """The whole twin as the service shows it."""
        answer = _require_known(await self._send("GET", get_twin_path(identity)), identity)
        try:
            return msgspec.json.decode(answer.body, type=Json)
        except msgspec.MsgspecError as error:
            raise LinkBroken(f"expected a twin of {identity} as JSON") from error

    async def count_active(self, model: str) -> dict[str, int]:
        """How many devices and modules report each version of `model` as their active one.

        Raises:
            HubRefused: the hub does not know us.
            LinkError: no answer, or none that makes sense.
        """
        path = _get_active_path(model)
        found: Counter[str] = Counter()
        for source in ("devices", "devices.modules"):
            text = f"SELECT {path} AS version FROM {source} WHERE is_string({path})"  # noqa: S608 - a checked name
            async for row in self._fetch_rows(text):
                found.update(version for version in [row.get("version")] if isinstance(version, str))
        return dict(found)

    async def list_running(self, model: str) -> list[Identity]:
        """The devices and modules that report some version of `model` as their active one; raises as `count_active`."""
        path, found = _get_active_path(model), []
        for columns, source in (("deviceId", "devices"), ("deviceId, moduleId", "devices.modules")):
            text = f"SELECT {columns} FROM {source} WHERE is_string({path})"  # noqa: S608 - a checked name
            async for row in self._fetch_rows(text):
                found.append(require_identity(str(row.get("deviceId")), row.get("moduleId")))
        return sorted(found, key=str)

    async def _fetch_rows(self, text: str) -> AsyncIterator[Json]:
        token = ""
        for _ in range(PAGES_MAX):
            rows, token = await self._fetch_page(text, token)
            for row in rows:
                yield row
            if not token:
                return

    async def _fetch_page(self, text: str, token: str) -> tuple[list[Json], str]:
        """Rows, and the token of the page behind them (empty: there is none)."""
        headers = {"x-ms-max-item-count": str(PAGE_ROWS), **({"x-ms-continuation": token} if token else {})}
        answer = await self._send("POST", QUERY_PATH, body=msgspec.json.encode({"query": text}), headers=headers)
        if answer.status in (401, 403):
            raise HubRefused("the hub refused a query over twins: check the policy and its key")
        try:
            rows = msgspec.json.decode(require_ok(answer).body, type=list[Json])
        except msgspec.MsgspecError as error:
            raise LinkBroken("expected the rows of a query as JSON") from error
        return rows, answer.headers.get("x-ms-continuation", "")

    async def _patch(self, identity: Identity, patch: Mapping[str, Any], etag: str) -> bool:
        body = msgspec.json.encode({"properties": {"desired": patch}})
        answer = await self._send("PATCH", get_twin_path(identity), body=body, headers={"If-Match": f'"{etag}"'})
        if answer.status == 412:
            return False
        _require_known(answer, identity)
        return True

    async def _send(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        key, policy = self.connection.shared_access_key, self.connection.shared_access_key_name
        token = make_sas_token(self.connection.host_name, key, int(self.clock()) + TOKEN_LIFE_S, policy)
        return await self.http.fetch(
            f"https://{self.connection.host_name}{add_api_version(path)}",
            max_bytes=TWIN_MAX_BYTES,
            method=method,
            body=body,
            headers={"Authorization": token, "Content-Type": "application/json", **(headers or {})},
        )


def _get_active_path(model: str) -> str:
    return f"properties.reported.edgeferry.models.[[{model}]].active"


def is_part_of(patch: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether merging `patch` would change nothing: null means absent."""
    for name, value in patch.items():
        old = document.get(name)
        if isinstance(value, Mapping):
            if not is_part_of(value, old if isinstance(old, Mapping) else {}):
                return False
        elif value != old:
            return False
    return True


def _get_desired(twin: Json) -> Mapping[str, Any]:
    properties = twin.get("properties")
    desired = properties.get("desired") if isinstance(properties, Mapping) else None
    return desired if isinstance(desired, Mapping) else {}


def _require_known(answer: HttpAnswer, identity: Identity) -> HttpAnswer:
    if answer.status in (401, 403):
        raise HubRefused(f"the hub refused access to the twin of {identity}: check the policy and its key")
    if answer.status == 404:
        code = find_error_code(answer.body) or "not found"
        raise ConfigInvalid(f"the hub does not know {identity} ({code})")
    if answer.status == 400:
        code = find_error_code(answer.body) or "bad request"
        raise ConfigInvalid(f"the hub does not take these desired properties for {identity} ({code})")
    return require_ok(answer)
