"""Small signed files for the verifier, which works in a thread: its only way to the network, and how that is cut off.

What this file leaves to others: the bytes, their booking and pace (`fetch.py`), whether they are right (`trust/`).

Rules:
- Who waits for the thread may be cancelled (a window closes, an order comes): what is being fetched ends at once, the
  thread asks for nothing more, and is waited for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TypeVar

from edgeferry.agent.fetch import Fetcher, make_url
from edgeferry.errors import LinkBroken, LinkDown, LinkTimeout

R = TypeVar("R")
Fetch = Callable[[str, int], bytes]
"""A blocking `fetch(path, max_bytes)`, for a thread that is not the loop's; raises LinkError and AccessError leaves."""
_TIMEOUT_S = 600.0
"""A whole bundle object over the thinnest link that is supported."""


class SmallFetch:
    """Objects of the repository at `repo`, through `fetcher`."""

    def __init__(self, fetcher: Fetcher, *, repo: str, sas: str) -> None:
        self._fetcher = fetcher
        self._repo = repo
        self._sas = sas
        self._loop = asyncio.get_running_loop()
        self._moving = threading.Lock()
        self._ended = False
        self._running: Future[bytes] | None = None

    async def run(self, work: Callable[[Fetch], R]) -> R:
        """What `work(fetch)` returns, from a thread; when cancelled, so is what it fetches."""
        working = asyncio.ensure_future(asyncio.to_thread(work, self._fetch))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            self._end()
            await asyncio.wait([working])
            raise

    def _end(self) -> None:
        with self._moving:
            self._ended = True
            if self._running is not None:
                self._running.cancel()

    def _fetch(self, path: str, max_bytes: int) -> bytes:
        running = self._start(make_url(self._repo, path, self._sas), max_bytes)
        try:
            data = running.result(_TIMEOUT_S)
        except CancelledError as error:
            raise LinkDown(f"nobody waits for {path!r:.80} any longer") from error
        except TimeoutError as error:
            running.cancel()
            raise LinkTimeout(f"no whole answer for {path!r:.80} in time") from error
        if len(data) > max_bytes:
            raise LinkBroken(f"expected at most {max_bytes} bytes at {path!r:.80}, found more")
        return data

    def _start(self, url: str, max_bytes: int) -> Future[bytes]:
        with self._moving:
            if self._ended:
                raise LinkDown("nothing more may be fetched")
            fetching = self._fetcher.fetch_small(url, max_bytes=max_bytes)
            self._running = asyncio.run_coroutine_threadsafe(fetching, self._loop)
            return self._running
