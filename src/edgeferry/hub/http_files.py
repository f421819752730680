"""A published folder over HTTP: signed URLs, single byte ranges, conditions.

Opening files safely stands in storage/published_files.py, signatures in wire/file_signatures.py.

Rules:
- Nothing is served without a good signature; only who may see a file learns that it is not there.
- If-Match (412) comes before If-None-Match (304), both before Range (206, 416), as RFC 9110 section 13.2.2 orders them.
- More than one range, or one that is not in bytes, gets the whole file (200), as RFC 9110 section 14.2 allows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from edgeferry.errors import EdgeferryError, Forbidden, NotFound
from edgeferry.storage.published_files import PublishedFile, open_published_file
from edgeferry.wire.file_signatures import FILES_PREFIX, SERVICE_POLICY, find_file_policy, verify_file_query

PIECE_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class FileDoor:
    """Serves `folder` below `/files/`. `clock` gives Unix seconds."""

    folder: Path
    service_key: str
    clock: Callable[[], float]

    def make_routes(self) -> list[Route]:
        """The one route."""
        return [Route(FILES_PREFIX + "{path:path}", self.serve, methods=["GET", "HEAD"])]

    async def serve(self, request: Request) -> Response:
        """GET and HEAD of one file."""
        path = request.path_params["path"]
        try:
            self._require_signature(request, path)
            file = await asyncio.to_thread(open_published_file, self.folder, path)
        except Forbidden as error:
            return Response(error.message, 403, media_type="text/plain")
        except NotFound as error:
            return Response(error.message, 404, media_type="text/plain")
        try:
            return answer_file(request, file)
        except EdgeferryError:
            file.close()
            raise

    def _require_signature(self, request: Request, path: str) -> None:
        query = request.scope["query_string"].decode("latin-1")
        if find_file_policy(query) != SERVICE_POLICY:
            raise Forbidden("the URL of this file is not signed by this hub's key")
        verify_file_query(query, path=path, key_base64=self.service_key, now=self.clock())


def answer_file(request: Request, file: PublishedFile) -> Response:
    """The response for an open file; it closes the file when it is sent."""
    tag = f'"{file.tag}"'
    headers = {"ETag": tag, "Accept-Ranges": "bytes"}
    if not is_match(request.headers.get("if-match", "*"), tag):
        return _close(file, Response(status_code=412, headers=headers))
    if "if-none-match" in request.headers and is_match(request.headers["if-none-match"], tag):
        return _close(file, Response(status_code=304, headers=headers))
    span = None
    if request.headers.get("if-range", tag) == tag:
        span = parse_range(request.headers.get("range"), file.size_bytes)
    if span == (0, 0):
        return _close(
            file, Response(status_code=416, headers={"Content-Range": f"bytes */{file.size_bytes}"} | headers)
        )
    start, end = span or (0, file.size_bytes)
    headers["Content-Length"] = str(end - start)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
    status = 200 if span is None else 206
    if request.method == "HEAD":
        return _close(file, Response(status_code=status, headers=headers, media_type="application/octet-stream"))
    return StreamingResponse(_read_pieces(file, start, end), status, headers, "application/octet-stream")


def parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """A single byte range as (start, end), end excluded; None for "the whole file"; (0, 0) when nothing lies in it."""
    match = _RANGE.fullmatch((header or "").strip().replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start, end = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return None
    return (start, end) if start < end else (0, 0)


def is_match(header: str, tag: str) -> bool:
    """Whether a list of entity tags names this one; a weak tag never matches a strong one here."""
    return header.strip() == "*" or tag in [one.strip() for one in header.split(",")]


async def _read_pieces(file: PublishedFile, start: int, end: int) -> AsyncIterator[bytes]:
    try:
        while start < end:
            piece = await asyncio.to_thread(file.read_at, start, min(PIECE_BYTES, end - start))
            if not piece:  # truncated under us: the connection must end short of its Content-Length
                return
            start += len(piece)
            yield piece
    finally:
        file.close()


def _close(file: PublishedFile, response: Response) -> Response:
    file.close()
    return response
