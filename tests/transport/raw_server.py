"""A loopback HTTP server that answers with exactly the bytes a test gives it, well-formed or not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = bytes | Callable[[str, asyncio.StreamWriter], Awaitable[None]]
"""Bytes to send, or a coroutine that is given the request's head and does as it likes; then it is hung up."""


@dataclass
class RawServer:
    """`url` is the root; `heads` the requests so far; `answer` may be changed while it runs."""

    url: str
    answer: Answer
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    def header(self, name: str, *, of: int = -1) -> str | None:
        """A header of one request, or None."""
        for line in self.heads[of].split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return None


@asynccontextmanager
async def open_raw_server(
    answer: Answer, *, tls: ssl.SSLContext | None = None, keep_alive: bool = False
) -> AsyncIterator[RawServer]:
    """Serves while the block runs; handlers that hang are cancelled at its end."""
    running: set[asyncio.Task[object]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        served.connections += 1
        try:
            while True:
                served.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
                await _send(served.answer, served.heads[-1], writer)
                if not keep_alive:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            running.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    served = RawServer(f"{'https' if tls else 'http'}://127.0.0.1:{port}", answer)
    try:
        yield served
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _send(answer: Answer, head: str, writer: asyncio.StreamWriter) -> None:
    if isinstance(answer, bytes):
        writer.write(answer)
        await writer.drain()
    else:
        await answer(head, writer)


def make_answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A well-formed answer; `content_length="-"` leaves the length out."""
    fields = {
        "Content-Length": str(len(body)),
        **{name.replace("_", "-").title(): text for name, text in headers.items()},
    }
    lines = [f"{name}: {text}" for name, text in fields.items() if text != "-"]
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode("latin-1") + body
