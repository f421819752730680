"""The request edge: around every handler, the place where an error becomes an answer and a request is counted.

Rules:
- One of the three places where `except Exception` stands: what nobody foresaw is logged whole and answered as a defect.
- A caller who leaves while waiting is noticed: the work is cancelled and the place in the queue is free again.
- Nothing of a query string is logged: it may hold a token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar, cast

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeferry.errors import EdgeferryError, InvariantBroken, MethodRefused, NotFound, RequestError
from edgeferry.serve.body import LingeringResponse, is_body_left
from edgeferry.serve.metrics import Metrics
from edgeferry.serve.statuses import make_error_response

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")
_log = structlog.get_logger(__name__)
_GONE = 499
"""Counted for callers who left; never sent. nginx's number for it."""
_WATCH_AFTER_S = 0.05
"""Most answers are there sooner: watching from the start would cost each of them a task of its own."""


class EdgeEndpoint:
    """A handler as an ASGI application: answered, counted, and never raising."""

    def __init__(self, route: str, handler: Handler, metrics: Metrics) -> None:
        self._route = route
        self._handler = handler
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        started = time.monotonic()
        request = Request(scope, receive, send)
        response = await self._answer(request)
        answer: ASGIApp = LingeringResponse(response) if is_body_left(request) else response
        try:
            await answer(scope, receive, send)
        finally:
            self._metrics.count_request(self._route, response.status_code, time.monotonic() - started)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except EdgeferryError as error:
            _log_error(self._route, error)
            return make_error_response(error, path=self._route)
        except Exception:  # noqa: BLE001 - the request edge: whatever nobody foresaw is answered as a defect
            _log.exception("request_failed", route=self._route)
            return make_error_response(InvariantBroken("unexpected error in a request"), path=self._route)


class DirectRoutes:
    """ASGI middleware: endpoints that need no pattern to be found, by method and path; all others go on to `app`."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[tuple[str, str], ASGIApp]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        endpoint = self._endpoints.get((scope.get("method", ""), scope.get("path", "")), self._app)
        await endpoint(scope, receive, send)


def _log_error(route: str, error: EdgeferryError) -> None:
    if not isinstance(error, RequestError):
        _log.error("request_failed", route=route, code=error.code, message=error.message)


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses (404, 405), in the shape of all errors."""
    path: str = request.scope["path"]  # request.url is made of the Host header too, in older Starlettes
    if isinstance(error, HTTPException) and error.status_code == 405:
        refused = MethodRefused(f"expected another method than {request.method:.20} here")
        response = make_error_response(refused, dict(error.headers or {}), path=path)
    else:
        missing = NotFound(f"nothing is served at {path!r:.80}")
        response = make_error_response(missing, path=path)
    answer = LingeringResponse(response) if is_body_left(request) else response
    return cast("Response", answer)  # Starlette only calls it, as the ASGI application that it is


async def run_unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`; when the caller leaves first, cancels it and raises ClientDisconnect. The body has been read."""
    watch = _Watch(request)
    timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, watch.begin)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.end():
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        watch.end()


class _Watch:
    """Cancels the task that made it when the caller of its request leaves."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._working = asyncio.current_task()
        self._watching: asyncio.Task[None] | None = None
        self._is_gone = False

    def begin(self) -> None:
        self._watching = asyncio.create_task(self._wait_gone())

    def end(self) -> bool:
        """Stops to watch; True when the caller left and nobody else cancelled the task."""
        if self._watching is not None:
            self._watching.cancel()
        gone, self._is_gone = self._is_gone, False
        return gone and self._working is not None and self._working.uncancel() == 0

    async def _wait_gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        if self._working is not None:
            self._is_gone = self._working.cancel()
