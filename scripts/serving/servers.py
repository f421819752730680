"""Running servers: edgeferry, its peers, and the limit in one process, all over the same model and picture.

Rules:
- Every server is a process group of its own, and ends with its block; its output goes to a file of its own.
- Cold start runs from the start of the process to the end of the first answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .load import Connection, Shot, Target
from .peers import HERE, ROOT, Peer, Place, ask_raw

START_TIMEOUT_S = 90.0
_FIRST_PORT = 21000
_PORTS_EACH = 4
_POLL_S = 0.01


class NotStarted(Exception):
    """A server did not come to answer; says why."""


@dataclass(frozen=True, slots=True)
class Site:
    """What is served: a folder with the model and its spec, and how the command line is told of it."""

    folder: Path
    model: Path
    labels: Path | None = None

    def make_variables(self) -> dict[str, str]:
        """For the processes that load `pipeline.py`."""
        path = os.pathsep.join([str(ROOT / "src"), str(HERE)])
        return {"PYTHONPATH": path, "SERVED_MODEL": str(self.folder), "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    ask: Callable[[str, bytes], Target]
    cold_s: float

    def make_target(self, picture: bytes) -> Target:
        """The request of a picture."""
        return self.ask(self.url, picture)


@contextlib.contextmanager
def open_ours(site: Site, picture: bytes) -> Iterator[Server]:
    """`edgeferry serve`."""
    port = _find_port()
    command = [sys.executable, "-m", "edgeferry.cli.main", "serve", site.model, "--port", str(port)]
    command += ["--log-level", "warning", *(["--labels", site.labels] if site.labels else [])]
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    with _run("edgeferry", command, variables, site.folder, port) as (process, began):
        url = f"http://127.0.0.1:{port}"
        yield Server(
            "edgeferry", process, url, ask_raw, _wait_first("edgeferry", process, ask_raw(url, picture), began)
        )


@contextlib.contextmanager
def open_peer(peer: Peer, site: Site, picture: bytes) -> Iterator[Server]:
    """A peer, whose environment has been made; raises NotStarted."""
    folder = site.folder / "".join(letter if letter.isalnum() else "-" for letter in peer.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    port = _find_port()
    command, own = peer.start(Place(ROOT / f".venv-{peer.environment}", folder, port))
    with _run(peer.name, command, site.make_variables() | {"PORT": str(port)} | own, folder, port) as (process, began):
        url = f"http://127.0.0.1:{port}"
        yield Server(peer.name, process, url, peer.ask, _wait_first(peer.name, process, peer.ask(url, picture), began))


class Limit:
    """The pipeline in a loop in one process: what a server could cost at the least."""

    def __init__(self, site: Site) -> None:
        variables = {**os.environ, **site.make_variables()}
        command = [sys.executable, str(HERE / "limit.py")]
        self._process = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, picture: Path, *, callers: int, requests: int) -> tuple[float, list[float]]:
        """CPU seconds of one answer, and the seconds that each took."""
        if self._process.stdin is None or self._process.stdout is None:
            raise NotStarted("the limit has no pipes")
        self._process.stdin.write(f"{requests} {callers} {picture}\n".encode())
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return told["cpu_s"] / requests, told["took_s"]

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def _run(
    name: str, command: Sequence[str | Path], variables: dict[str, str], folder: Path, port: int
) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    began = time.perf_counter()
    with (folder / f"{port}.log").open("wb") as log:
        try:
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=HERE,
                env={**os.environ, **variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise NotStarted(f"{name} cannot be started: {error}") from error
    try:
        yield process, began
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(8)


def _find_port() -> int:
    """A port of which the next few are free too: MLServer wants three."""
    own = _FIRST_PORT + os.getpid() % 500 * 20  # benches may run beside each other
    for first in range(own, own + 2000, _PORTS_EACH):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + _PORTS_EACH):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise NotStarted("no free ports")


def _wait_first(name: str, process: subprocess.Popen[bytes], target: Target, began: float) -> float:
    """Seconds from the start until the first answer; raises NotStarted."""
    request, said = target.make_request(), "nothing listens"
    while time.perf_counter() - began < START_TIMEOUT_S and process.poll() is None:
        connection = Connection(target.address)
        shot = asyncio.run(_shoot(connection, request))
        if shot.status == 200:
            return time.perf_counter() - began
        said = f"{shot.status} {shot.fault} {shot.body[:200].decode('latin-1')}"
        time.sleep(_POLL_S)
    code = process.poll()
    raise NotStarted(f"{name} did not answer: {said if code is None else f'ended with {code}'}")


async def _shoot(connection: Connection, request: bytes) -> Shot:
    try:
        now = time.perf_counter()
        return await connection.shoot(request, now, now)
    finally:
        connection.close()
