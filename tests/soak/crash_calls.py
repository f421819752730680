"""Every call of a process that reaches the disk, the journal or the network, counted; one of them kills the process.

What this file leaves to others: what the process does (`crash_device.py`), which call is the last one
(`test_device_crashes.py`).

Rules:
- Calls are wrapped where the program finds them: the functions of `os`, binary files that are written, SQLite's
  statements, sockets of the internet. Nothing of the program is changed.
- `half`: a write of which only the first half arrives.
- Names and contents that no fsync has covered are noted in a log outside the process, and what they replaced is kept
  beside it: `cut_power` makes of a killed process a machine that lost its power (`power_cut.py`).
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from soak.power_cut import DiskLog

Side = Literal["before", "half", "after"]

_OS_CALLS = {
    "fsync": "fsync",
    "fdatasync": "fsync",
    "rename": "rename",
    "replace": "rename",
    "link": "link",
    "symlink": "link",
    "unlink": "unlink",
    "remove": "unlink",
    "rmdir": "unlink",
    "mkdir": "create",
    "ftruncate": "truncate",
    "truncate": "truncate",
}
_SOCKET_CALLS = {"connect": "connect", "send": "send", "sendall": "send", "recv": "recv", "recv_into": "recv"}
KINDS = ("write", *dict.fromkeys(_OS_CALLS.values()), "commit", *dict.fromkeys(_SOCKET_CALLS.values()), "hub", "serve")
"""`hub`: what is said to the hub; `serve`: proving and switching."""


@dataclass(frozen=True)
class Point:
    """The call at which the process dies: the `nth` of its kind, from 0."""

    kind: str
    nth: int
    side: Side

    def __str__(self) -> str:
        return f"{self.side} {self.kind} {self.nth}"


@dataclass
class Calls:
    """Counts calls by kind, and dies at `point`."""

    point: Point | None
    disk: DiskLog | None = None
    counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, kind: str) -> Side | None:
        """Counts a call that is about to be made; dies before it, or says on which other side of it to die."""
        with self._lock:
            nth = self.counts[kind]
            self.counts[kind] += 1
        if self.point is None or (self.point.kind, self.point.nth) != (kind, nth):
            return None
        if self.point.side == "before":
            die()
        return self.point.side

    def finish(self, side: Side | None) -> None:
        """Dies after a call that `begin` said to be the last."""
        if side is not None:
            die()

    def run(self, kind: str, call: Callable[[], Any]) -> Any:
        """Makes a call that has no halves."""
        side = self.begin(kind)
        outcome = call()
        self.finish(side)
        return outcome

    def write(self, size: int, call: Callable[[int], Any]) -> Any:
        """Makes a write of `size` bytes; `call(n)` writes the first n of them."""
        side = self.begin("write")
        outcome = call(size // 2 if side == "half" else size)
        self.finish(side)
        return outcome


def die() -> None:
    """kill -9, from inside."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def arm(calls: Calls) -> None:
    """Wraps all that is counted, for the rest of this process's life."""
    for name, kind in _OS_CALLS.items():
        setattr(os, name, _wrap_os(calls, name, kind))
    for name in ("write", "pwrite"):
        setattr(os, name, _wrap_write(calls, name))
    os.open = _wrap_open(calls)
    io.open = builtins.open = _wrap_files(calls)  # type: ignore[assignment]
    sqlite3.connect = _wrap_sqlite(calls)  # type: ignore[assignment]
    for name, kind in _SOCKET_CALLS.items():
        setattr(socket.socket, name, _wrap_socket(calls, name, kind))


def _wrap_os(calls: Calls, name: str, kind: str) -> Callable[..., Any]:
    plain = getattr(os, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        if calls.disk is None:
            return calls.run(kind, lambda: plain(*args, **kwargs))
        disk = calls.disk
        return calls.run(kind, lambda: disk.run(name, args, kwargs, lambda: plain(*args, **kwargs)))

    return counted


def _wrap_write(calls: Calls, name: str) -> Callable[..., int]:
    plain = getattr(os, name)

    def counted(handle: int, data: Any, *where: int) -> int:
        whole = memoryview(data)

        def put(size: int) -> int:
            if calls.disk is not None:
                calls.disk.note_data(handle)
            return int(plain(handle, whole[:size], *where))

        return int(calls.write(len(whole), put))

    return counted


def _wrap_open(calls: Calls) -> Callable[..., int]:
    plain = os.open

    def counted(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if not flags & os.O_CREAT or os.path.lexists(path):
            return plain(path, flags, *args, **kwargs)
        return int(calls.run("create", lambda: _create(calls, path, lambda: plain(path, flags, *args, **kwargs))))

    return counted


def _create(calls: Calls, path: Any, call: Callable[[], Any]) -> Any:
    made = call()
    if calls.disk is not None:
        calls.disk.note_new(os.path.abspath(os.fspath(path)))  # noqa: PTH100 - links are not followed
    return made


def _wrap_files(calls: Calls) -> Callable[..., Any]:
    plain = io.open

    class CountedFile(io.FileIO):
        def write(self, data: Any) -> int:
            whole = memoryview(data)

            def put(size: int) -> int:
                if calls.disk is not None:
                    calls.disk.note_data(self.fileno())
                return io.FileIO.write(self, whole[:size])

            return int(calls.write(len(whole), put))

    def counted(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opener = kwargs.get("opener")
        if "b" not in mode or not set("wxa+") & set(mode):
            return plain(file, mode, *args, **kwargs)

        def make() -> CountedFile:
            return CountedFile(file, mode.replace("b", ""), kwargs.get("closefd", True), opener)

        is_new = not isinstance(file, int) and opener is None and not os.path.lexists(file)
        raw = calls.run("create", lambda: _create(calls, file, make)) if is_new else make()
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    return counted


def _wrap_sqlite(calls: Calls) -> Callable[..., sqlite3.Connection]:
    plain = sqlite3.connect

    class CountedConnection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql.startswith(("SELECT", "PRAGMA")):
                return super().execute(sql, *args)
            call = super().execute
            return calls.run("commit", lambda: call(sql, *args))  # type: ignore[no-any-return]

        def executescript(self, sql: str) -> sqlite3.Cursor:
            call = super().executescript
            return calls.run("commit", lambda: call(sql))  # type: ignore[no-any-return]

    return lambda *args, **kwargs: plain(*args, factory=CountedConnection, **kwargs)


def _wrap_socket(calls: Calls, name: str, kind: str) -> Callable[..., Any]:
    plain = getattr(socket.socket, name)

    def counted(self: socket.socket, *args: Any) -> Any:
        if self.family not in (socket.AF_INET, socket.AF_INET6):
            return plain(self, *args)  # the loop's own
        return calls.run(kind, lambda: plain(self, *args))

    return counted
