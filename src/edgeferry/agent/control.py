"""agent.sock: how commands on this machine speak to a running agent. One JSON line asks, one JSON line answers.

What this file leaves to others: what a command does (`agent.py`), showing the answer (`cli/`).

Rules:
- For this user only (0600, in a folder that is 0700); lines are bounded, and a silent caller is sent away.
- `{"command": "rollback", "payload": {"model": "detector"}}` -> `{"status": 202, "answer": {...}}`.
- The path is reached through its folder's handle: the 108 bytes of a socket's name are less than many paths have.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from edgeferry.errors import LinkDown, LinkTimeout, ProtocolViolated
from edgeferry.storage.files import remove_tree, translate_disk_errors

LINE_MAX_BYTES = 256 << 10
_SILENCE_S = 10.0

RunCommand = Callable[[str, object], Awaitable[tuple[int, dict[str, Any]]]]


class _Question(msgspec.Struct, frozen=True):
    command: str
    payload: object = None


class Answer(msgspec.Struct, frozen=True):
    """What the agent said: `status` like HTTP's."""

    status: int
    answer: dict[str, Any]


@asynccontextmanager
async def open_control(path: Path, run_command: RunCommand) -> AsyncIterator[None]:
    """Listens at `path` as long as the block runs; a socket that a dead process left is replaced.

    Raises:
        StorageFailed: the socket cannot be made.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, ValueError):
            await _serve_lines(reader, writer, run_command)
        writer.close()

    remove_tree(path)
    with translate_disk_errors(path), _open_short(path) as short:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(short)
        path.chmod(0o600)
        server = await asyncio.start_unix_server(serve, sock=listener, limit=LINE_MAX_BYTES)
    try:
        yield
    finally:
        server.close()
        remove_tree(path)


async def _serve_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, run_command: RunCommand) -> None:
    while True:
        async with asyncio.timeout(_SILENCE_S):
            line = await reader.readline()
        if not line:
            return
        try:
            question = msgspec.json.decode(line, type=_Question)
            status, answer = await run_command(question.command, question.payload)
        except msgspec.MsgspecError:
            status, answer = 400, {"error": {"code": "request_invalid", "message": "expected a line of JSON"}}
        writer.write(msgspec.json.encode(Answer(status, answer)) + b"\n")
        await writer.drain()


async def ask_agent(path: Path, command: str, payload: object = None, *, timeout_s: float = 10.0) -> Answer:
    """Asks the agent that listens at `path`.

    Raises:
        LinkDown: no agent runs there. LinkTimeout: it does not answer. ProtocolViolated: it is no agent.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(path, command, payload)
    except TimeoutError as error:
        raise LinkTimeout("the agent did not answer in time") from error
    except OSError as error:
        raise LinkDown(f"no agent runs on this storage folder: {error.strerror or 'no answer'}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolViolated("the answer through agent.sock is not an agent's") from error


async def _ask(path: Path, command: str, payload: object) -> Answer:
    with _open_short(path) as short:
        reader, writer = await asyncio.open_unix_connection(short, limit=LINE_MAX_BYTES)
    try:
        writer.write(msgspec.json.encode(_Question(command, payload)) + b"\n")
        await writer.drain()
        return msgspec.json.decode(await reader.readline(), type=Answer)
    finally:
        writer.close()


@contextmanager
def _open_short(path: Path) -> Iterator[str]:
    """A short name for `path`, good as long as the block runs."""
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)
