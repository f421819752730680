"""Pictures from URLs that callers name, as serving's FetchPort: only from hosts that the settings name.

What this file leaves to others: HTTP itself (`transport/http.py`), the routes (`serve/custom_vision.py`).

Rules:
- No host is named by default, and then nothing is fetched: a URL in a request must not reach what only this device
  reaches. There is no word for "any host", and no redirect is followed.
- What a URL may look like is narrower than any parser's idea of it: two of them never see different hosts in one.
- Size, time and number at once are bounded. No part of the answer but a picture's verdict goes back to the caller.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from edgeferry.errors import (
    ConfigError,
    ConfigInvalid,
    FetchForbidden,
    LinkError,
    PictureUnreadable,
    QueueFull,
    RequestInvalid,
)

if TYPE_CHECKING:
    from edgeferry.transport.http import HttpClient

FETCHES_MAX = 4
_TIMEOUT_S = 10.0
_HOST = r"[a-z0-9]([a-z0-9._-]{0,252})|\[[0-9a-f:.]{2,45}\]"
_URL = re.compile(rf"(?P<scheme>https?)://(?P<host>{_HOST})(:(?P<port>[0-9]{{1,5}}))?([/?][!-~]*)?", re.IGNORECASE)
_ALLOWED = re.compile(rf"(?P<host>{_HOST})(:(?P<port>[0-9]{{1,5}}))?")
_PORTS = {"http": "80", "https": "443"}


class PictureFetch:
    """Fetches over `http` what lies on `hosts`, at most `max_bytes` of it."""

    def __init__(self, http: HttpClient, hosts: Iterable[str], max_bytes: int) -> None:
        self._http = http
        self._allowed = read_picture_hosts(hosts)
        self._max_bytes = max_bytes
        self._running = 0

    async def fetch_picture(self, url: str) -> bytes:
        """The picture at `url`; raises as FetchPort.fetch_picture."""
        self._require_allowed(url)
        if self._running >= FETCHES_MAX:
            raise QueueFull(f"expected fewer than {FETCHES_MAX} pictures being fetched, found {self._running}")
        self._running += 1
        try:
            return await self._fetch(url)
        finally:
            self._running -= 1

    def _require_allowed(self, url: str) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise RequestInvalid("expected a plain http or https URL without user and fragment, found another")
        host, port = match["host"].lower(), match["port"] or _PORTS[match["scheme"].lower()]
        plain = port in _PORTS.values()
        if f"{host}:{int(port)}" not in self._allowed and not (plain and host in self._allowed):
            raise FetchForbidden(f"expected a host among picture_hosts, found {host}:{int(port)}")

    async def _fetch(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await self._http.fetch(url, max_bytes=self._max_bytes)
        except (LinkError, ConfigError) as error:
            raise RequestInvalid(f"expected a picture at that URL, found an error: {error.code}") from error
        except TimeoutError as error:
            raise RequestInvalid(f"expected a picture from that URL within {_TIMEOUT_S:g} s, found none") from error
        if answer.status != 200:
            raise RequestInvalid(f"expected a picture at that URL, found status {answer.status}")
        if not answer.body:
            raise PictureUnreadable("expected a picture at that URL, found 0 bytes")
        return answer.body


def read_picture_hosts(hosts: Iterable[str]) -> frozenset[str]:
    """`host` (its ports 80 and 443) and `host:port` in lower case; raises ConfigInvalid for anything else."""
    found = frozenset(host.strip().lower() for host in hosts if host.strip())
    wrong = next((host for host in sorted(found) if not _ALLOWED.fullmatch(host)), None)
    if wrong is not None:
        raise ConfigInvalid(f"expected host or host:port in picture_hosts, found {wrong!r:.80}")
    return found


@asynccontextmanager
async def open_picture_fetch(hosts: Iterable[str], *, max_bytes: int) -> AsyncIterator[PictureFetch | None]:
    """A PictureFetch for as long as the block runs, or None where `hosts` names none; raises ConfigInvalid."""
    allowed = read_picture_hosts(hosts)
    if not allowed:
        yield None
        return
    from edgeferry.transport.http import HttpSettings, open_http  # serving without hosts starts without aiohttp

    settings = HttpSettings(
        connect_timeout_s=_TIMEOUT_S, read_timeout_s=_TIMEOUT_S, answer_timeout_s=_TIMEOUT_S, max_redirects=0
    )
    async with open_http(settings) as http:
        yield PictureFetch(http, allowed, max_bytes)
