"""Bytes from the network into a partial file, and small objects into memory.

What this file leaves to others: what to fetch and from where (`steps.py`), whether it is right (the digest), when to
try again (`lane.py`).

Rules:
- A download goes on from the partial file's own length, whatever URL it comes from today.
- Bytes are kept as they arrive, even when the transfer then breaks; a server that starts over makes us start over.
- An object that changed under us starts over; with a known size a server that speaks of another is refused.
- A server without ranges begins anew every time: what no budget holds whole is refused before its first byte.
- The rate cap holds for payload bytes; waiting is left to TCP's own flow control.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from edgeferry.agent.gate import Gate
from edgeferry.agent.threads import in_thread
from edgeferry.errors import BundleTooLarge, LinkBroken, ObjectChanged
from edgeferry.link.rate import TokenBucket, make_bucket
from edgeferry.storage.partial import PartialFile
from edgeferry.transport.http import HttpClient, RangeReply

_SYNC_EVERY_BYTES = 4 << 20
_NO_END = 1 << 62

Progress = Callable[[int], None]
"""Is told how many bytes of the artifact are here."""
Begin = Callable[[RangeReply], Awaitable[None]]
"""Is told what the server sends before a byte of it is kept; may raise to refuse it."""


class Fetcher:
    """One road for payload bytes, each booked at the gate; `rate_bps` in bits per second, 0 for no cap."""

    def __init__(self, http: HttpClient, gate: Gate, *, rate_bps: int = 0) -> None:
        self._http = http
        self._gate = gate
        self._bucket: TokenBucket | None = None
        self.set_rate(rate_bps)

    def set_rate(self, rate_bps: int) -> None:
        """Changes the cap, also of a download that runs."""
        self._bucket = make_bucket(rate_bps / 8, now_s=time.monotonic()) if rate_bps > 0 else None

    async def download(
        self,
        url: str,
        partial: PartialFile,
        *,
        size_bytes: int | None,
        progress: Progress,
        etag: str | None = None,
        begin: Begin | None = None,
        most_bytes: int | None = None,
    ) -> None:
        """Fetches the rest of an object into `partial`.

        Args:
            url: http or https, query included.
            partial: what is here already.
            size_bytes: the object's length as the manifest says it; None for classic updates.
            progress: is told the partial file's length after each block.
            etag: of the object that the partial bytes came from, where the digest of the whole is not the name.
            begin: is told the size and tag of the object that is being fetched.
            most_bytes: what the budget allows; None: any number.

        Raises:
            BudgetSpent: `most_bytes` came, and the object is not whole.
            BudgetTooSmall: the server sends no parts, and the whole has no room in `most_bytes`.
            LinkError, AccessError: the transfer ended early; what came is in `partial`.
            ObjectChanged: the object is another one now; `partial` is empty again.
            BundleTooLarge: nobody announced a size, and it is more than `partial` takes.
            NoSpace: the disk is full; what fitted is in `partial`.
        """
        if size_bytes is not None and partial.length_bytes == size_bytes:
            return
        start, stop = partial.length_bytes, None
        if most_bytes is not None and (size_bytes is None or start + most_bytes < size_bytes):
            stop = start + most_bytes  # what is not asked for is not sent, and not paid for
        try:
            async with self._http.open_range(
                url, start=start, stop=stop, if_match=etag, total_bytes=size_bytes
            ) as reply:
                self._require_room(reply, size_bytes or start, most_bytes)
                if reply.start == 0:
                    partial.truncate(0)
                if size_bytes is None:
                    _require_bounded(reply.total_bytes or 0, partial)
                if begin is not None:
                    await begin(reply)
                await self._take(reply, partial, progress, size_bytes=size_bytes, most_bytes=most_bytes)
        except ObjectChanged:
            partial.truncate(0)
            raise

    async def fill(
        self,
        url: str,
        partial: PartialFile,
        *,
        start: int,
        stop: int,
        progress: Progress,
        most_bytes: int | None = None,
    ) -> bool:
        """Fetches bytes `start` to `stop` of an object whose bytes are all here, in the place of damaged ones.

        Returns:
            False when the server has no ranges: then the whole object has come instead.

        Raises:
            BudgetTooSmall: the server has no ranges, and the whole has no room in `most_bytes`.
            LinkError, AccessError: the transfer ended early; what came is in `partial`.
        """
        size_bytes = partial.length_bytes
        async with self._http.open_range(url, start=start, stop=stop, total_bytes=size_bytes) as reply:
            self._require_room(reply, size_bytes, most_bytes)
            if reply.status == 200:
                partial.truncate(0)
                await self._take(reply, partial, progress, size_bytes=size_bytes, most_bytes=most_bytes)
                return False
            async for block in reply.blocks:
                partial.overwrite(start, block)
                start += len(block)
                progress(size_bytes)
                await self._pace(len(block))
            await in_thread(partial.sync)
        if start != stop:
            raise LinkBroken(f"expected bytes up to {stop}, the answer ended at {start}")
        return True

    def _require_room(self, reply: RangeReply, known_bytes: int, most_bytes: int | None) -> None:
        """Refuses a whole object in place of a part where it is longer than `most_bytes`, before a byte of it is read.

        `known_bytes` of it there are at least, where the server does not say.
        """
        size_bytes = reply.total_bytes or known_bytes
        if reply.status == 200 and most_bytes is not None and size_bytes > most_bytes:
            raise self._gate.make_too_small("a file whose server sends no parts of it", size_bytes, most_bytes)

    async def fetch_small(self, url: str, *, max_bytes: int) -> bytes:
        """A small object whole, or its first bytes, more than `max_bytes` of them, where it is longer.

        Raises:
            LinkError, AccessError: the transfer ended early.
        """
        data = bytearray()
        async with self._http.open_range(url) as reply:
            async for block in reply.blocks:
                data += block
                await self._pace(len(block))
                if len(data) > max_bytes:
                    break
        return bytes(data)

    async def _take(
        self,
        reply: RangeReply,
        partial: PartialFile,
        progress: Progress,
        *,
        size_bytes: int | None,
        most_bytes: int | None,
    ) -> None:
        began = synced = partial.length_bytes
        total_bytes = reply.total_bytes if size_bytes is None else size_bytes
        async for block in reply.blocks:
            if total_bytes is None:
                _require_bounded(partial.length_bytes + len(block), partial)
            partial.append(block)
            progress(partial.length_bytes)
            if partial.length_bytes - synced >= _SYNC_EVERY_BYTES:
                await in_thread(partial.sync)
                synced = partial.length_bytes
            await self._pace(len(block))
            if partial.length_bytes - began >= (most_bytes or _NO_END):
                break
        await in_thread(partial.sync)
        if partial.length_bytes - began >= (most_bytes or _NO_END) and partial.length_bytes != total_bytes:
            raise self._gate.make_spent(f"the budget held {partial.length_bytes - began} bytes of this object")
        if total_bytes is not None and partial.length_bytes != total_bytes:
            raise LinkBroken(f"expected {total_bytes} bytes, the answer ended after {partial.length_bytes}")

    async def _pace(self, size_bytes: int) -> None:
        """After each block: books the next ones, and waits as the rate cap wants it."""
        await self._gate.book()
        if self._bucket is not None:
            self._bucket, wait_s = self._bucket.take(size_bytes, time.monotonic())
            await asyncio.sleep(wait_s)


def _require_bounded(size_bytes: int, partial: PartialFile) -> None:
    """What nobody announced is bounded by what this device takes."""
    if size_bytes > partial.max_bytes:
        raise BundleTooLarge(f"expected a bundle of at most {partial.max_bytes} bytes, the server sends {size_bytes}")


def make_url(repo: str, path: str, sas: str) -> str:
    """Where an object of the published repository is to be had."""
    return f"{repo.rstrip('/')}/{quote(path)}" + (f"?{sas}" if sas else "")
