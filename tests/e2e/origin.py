"""An origin of files that can be told to misbehave: runs on the test's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Origin:
    """`files` are served with ranges and etags, `behaviours` answer in their own way; both by path. Counts bytes.

    `folders` are served below the prefix that is their key; files and behaviours stand before what lies in them.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range header or "") of every request."""
    sent_bytes: dict[str, int] = field(default_factory=dict)

    def put(self, path: str, data: bytes) -> str:
        """Serves `data` at `path`; returns its URL, with a query that looks like a signature."""
        self.files[path] = data
        return self.get_url(path)

    def behave(self, path: str, behaviour: Behaviour) -> str:
        self.behaviours[path] = behaviour
        return self.get_url(path)

    def get_url(self, path: str) -> str:
        return f"{self.url}/{path}?sv=2024-01-01&sig={SIGNATURE}"

    def list_ranges(self, path: str) -> list[str]:
        return [found for name, found in self.ranges if name == path]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        self.ranges.append((path, request.headers.get("Range", "")))
        if path in self.behaviours:
            return await self.behaviours[path](request)
        data = self.files.get(path, self._find_below_folder(path))
        if data is None:
            return web.Response(status=404, text="<html>not here</html>", content_type="text/html")
        return await self.send(request, data)

    def _find_below_folder(self, path: str) -> bytes | None:
        prefix, _, rest = path.partition("/")
        file = self.folders[prefix] / rest if prefix in self.folders else None
        return file.read_bytes() if file is not None and file.is_file() else None

    async def send(
        self, request: web.Request, data: bytes, *, stop_after: int | None = None, block_bytes: int = 65536
    ) -> web.StreamResponse:
        """Sends `data`, or the range of it that was asked for; cuts the connection after `stop_after` bytes."""
        path, wanted = request.match_info["path"], request.headers.get("Range")
        first, _, last = (wanted or "").removeprefix("bytes=").partition("-")
        start, stop = int(first or 0), min(len(data), int(last) + 1 if last else len(data))
        headers = {"ETag": f'"{path}-{len(data)}"', "Content-Length": str(stop - start)}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if wanted else 200, headers=headers)
        await response.prepare(request)
        end = stop if stop_after is None else min(stop, start + stop_after)
        for at in range(start, end, block_bytes):
            block = data[at : min(end, at + block_bytes)]
            with suppress(ConnectionError):
                await response.write(block)
            self.sent_bytes[path] = self.sent_bytes.get(path, 0) + len(block)
        if end < len(data):
            await asyncio.sleep(0.2)  # so that what was sent is read before the connection is gone
            if request.transport is not None:
                request.transport.abort()
        return response


SIGNATURE = "c2VjcmV0LXNpZ25hdHVyZS1vZi10ZXN0cw%3D%3D"
"""In every URL of an Origin: no log and no report may ever hold it."""


def answer_status(status: int, body: str = "no", content_type: str = "text/plain", **headers: str) -> Behaviour:
    async def behave(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body, content_type=content_type, headers=headers)

    return behave


@asynccontextmanager
async def open_origin() -> AsyncIterator[Origin]:
    origin = Origin()
    app = web.Application()
    app.router.add_get("/{path:.*}", origin.answer)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        origin.url = f"http://{host}:{port}"
        yield origin
    finally:
        await runner.cleanup()
