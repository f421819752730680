"""An HTTP server inside the hub's event loop: over TLS, plain on loopback, or on a unix socket.

Rules:
- uvicorn neither takes over signals nor logs: both belong to the process.
- The server stops when its block ends; requests that run get five seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from edgeferry.errors import ConfigInvalid

STOP_PATIENCE_S = 5
BACKLOG = 2048


def listen_on_address(host: str, port: int) -> socket.socket:
    """A bound, listening TCP socket; port 0 picks a free one.

    Raises:
        ConfigInvalid: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigInvalid(f"cannot listen on {host}:{port}: {error.strerror}") from error
    # asyncio sets it only on sockets made with IPPROTO_TCP: without it answers wait 40 ms for the client's delayed ACK
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def listen_on_path(path: Path) -> socket.socket:
    """A listening unix socket that only its owner may use; one left behind by a dead process is replaced.

    Raises:
        ConfigInvalid: something else lies at `path`, or it cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            path.unlink()
        sock.bind(str(path))
        os.chmod(path, 0o600)  # noqa: PTH101 - the same call, on the path that bind took
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigInvalid(f"cannot listen on {path}: {error.strerror or error}") from error
    return sock


@asynccontextmanager
async def open_http_server(app: Starlette, sock: socket.socket, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
    """Serves `app` on a listening socket for as long as the block runs."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_PATIENCE_S,
        ssl_context_factory=(lambda _config, _default: tls) if tls else None,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment] # signals are the process's
    task = asyncio.create_task(server.serve(sockets=[sock]), name="http server")
    try:
        while not (server.started or task.done()):  # noqa: ASYNC110 - uvicorn tells by an attribute, not by an event
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await task
        sock.close()
