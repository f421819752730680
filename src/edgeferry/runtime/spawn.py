"""spawn: starts the worker's process, and holds what it says on stderr.

What this file leaves to others: what is said over the socket (`child.py`), what the process does (`worker.py`).

Rules:
- `python -m`, never fork; in a session of its own, so that a terminal's Ctrl-C reaches only us.
- The environment is a short list of names: connection strings and keys of this device are not among them.
- It is there once its first byte has come: it ends with us from then on, also when it stands still.
- Of stdout and stderr the last STDERR_MAX_BYTES are kept, for diagnosis; the rest is read and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from dataclasses import dataclass

from edgeferry.errors import WorkerStartFailed
from edgeferry.runtime.shared_bodies import SharedBodies

STDERR_MAX_BYTES = 4096
_BLOCK_BYTES = 4096
_SEND_BUFFER_BYTES = 4 << 20
"""A large picture in one go, as far as the kernel allows it; else it goes in pieces, with a wake-up for each."""
_LAST_WORDS_TIMEOUT_S = 1.0

_PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV",
    "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8",
)  # fmt: skip

_SET = {
    "MALLOC_ARENA_MAX": "2",  # each further arena takes 64 MB of address space, which RLIMIT_AS counts
    # What one picture has freed the next one wants: given back and asked for again, its pages cost a tenth of all CPU.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "OMP_NUM_THREADS": "1",  # numpy's BLAS would start a thread per core when imported
    "OPENBLAS_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


@dataclass(frozen=True, slots=True)
class Spawned:
    """A started process, our end of its socket, memory that both map, and the tail of what it prints."""

    process: asyncio.subprocess.Process
    sock: socket.socket
    bodies: SharedBodies
    printed: bytearray
    printing: asyncio.Task[None]

    def kill(self) -> None:
        """Ends the process at once, if it has not ended yet."""
        _kill(self.process)

    async def wait(self) -> int:
        """Waits until the process has ended and all it printed is here; returns its exit code."""
        code = await self.process.wait()
        await asyncio.wait((self.printing,), timeout=_LAST_WORDS_TIMEOUT_S)
        return code

    def get_printed(self) -> str:
        """What it said last, as one line."""
        return " ".join(self.printed.decode("utf-8", "replace").split())


async def spawn_worker(timeout_s: float, *, idle: bool = False) -> Spawned:
    """Starts `python -m edgeferry.runtime.worker_start`; waits `timeout_s` seconds at most for its first byte.

    `idle`: it imports where nobody else wants the core.

    Raises:
        WorkerStartFailed: there is no such process.
    """
    bodies = SharedBodies()
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "edgeferry.runtime.worker_start", str(theirs.fileno()), str(bodies.fd)),
            *(["idle"] if idle else []),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=[fd for fd in (theirs.fileno(), bodies.fd) if fd >= 0],
            env=_make_environment(),
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        bodies.close()
        raise WorkerStartFailed(f"cannot start a worker process: {error.strerror}") from error
    finally:
        theirs.close()
    if idle:
        _make_idle(process)
    printed = bytearray()
    spawned = Spawned(process, ours, bodies, printed, asyncio.create_task(_keep_tail(process, printed)))
    try:
        await _wait_first_byte(ours, timeout_s)
    except BaseException:
        spawned.kill()
        ours.close()
        bodies.close()
        await spawned.wait()
        raise
    return spawned


def _make_idle(process: asyncio.subprocess.Process) -> None:
    """Lets it run only where nobody else wants the core, from its start on. Threads it starts do not inherit that."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(process.pid, os.SCHED_IDLE | os.SCHED_RESET_ON_FORK, os.sched_param(0))


async def _wait_first_byte(ours: socket.socket, timeout_s: float) -> None:
    """Also returns when the process has died or says nothing: whoever waits for it to be ready will tell."""
    ours.setblocking(False)
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_recv(ours, 1)


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        # Not process.kill(): Popen polls first, and would take the exit code from asyncio's own waiting thread.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _make_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _SET


async def _keep_tail(process: asyncio.subprocess.Process, tail: bytearray) -> None:
    if process.stdout is None:
        return
    while block := await process.stdout.read(_BLOCK_BYTES):
        tail += block
        del tail[:-STDERR_MAX_BYTES]
