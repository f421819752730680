"""Accepts TCP connections: who may stay is asked before TLS, and only so many TLS handshakes run at once.

What is spoken on a connection stands in http_server.py and in hub/mqtt_front.py, who may stay in hub/door_guard.py.

Rules:
- A handshake begins when bytes are here and a slot is free; slots go by order of arrival. 5,000 that come back at once
  wait for each other instead of running into their time-outs together.
- A client that is slow with its handshake gives its slot back and goes on without one.
- Out of file descriptors: a line in the log, a pause, then on. The limits keep it from coming to that.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

ACCEPT_BATCH = 64  # in one turn of the event loop
ACCEPT_PAUSE_S = 0.5
SLOT_HOLD_S = 2.0
SHUTDOWN_TIMEOUT_S = 5.0
FILES_MARGIN_MAX = 1024  # for databases and published files
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HandshakeLimits:
    """TLS handshakes at once, seconds for one, seconds until its first byte, and seconds for all to end at the stop."""

    at_once: int = 64
    timeout_s: float = 30.0
    silence_s: float = 30.0
    stop_s: float = 10.0


class Gate(Protocol):
    """Who may stay; told what happened."""

    def enter(self, address: str) -> bool:
        """Whether one more connection from this address may stay."""

    def leave(self, address: str) -> None:
        """A connection that had entered is gone."""

    def note_failure(self) -> None:
        """No connection came about."""

    def note_pause(self) -> None:
        """Nothing can be accepted for a moment."""


class CountingGate:
    """So many may stay in all, and half of them from one address; who is over that is closed before TLS."""

    def __init__(self, connections_max: int) -> None:
        self._left = connections_max
        self._per_address_max = max(1, connections_max // 2)
        self._by_address: dict[str, int] = {}

    def enter(self, address: str) -> bool:
        """Whether one more may stay."""
        held = self._by_address.get(address, 0)
        if self._left <= 0 or held >= self._per_address_max:
            return False
        self._left -= 1
        self._by_address[address] = held + 1
        return True

    def leave(self, address: str) -> None:
        """One that had entered is gone."""
        self._left += 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def note_failure(self) -> None:
        """Told in the log only."""

    def note_pause(self) -> None:
        """Told in the log only."""


class Guest(asyncio.Protocol):
    """What speaks on a connection. Once it `has_begun`, it tells the gate of its own end."""

    has_begun = False


MakeGuest = Callable[[str, float], Guest]


def raise_file_limit() -> int:
    """Lets this process open as many files as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            _log.warning("the limit of open files stays", limit=soft, reason=str(error))
    return soft


def get_connections_max(files: int) -> int:
    """How many connections fit into so many open files, beside those of HTTP doors and everything else."""
    return files - get_http_connections_max(files) - min(FILES_MARGIN_MAX, files // 8)


def get_http_connections_max(files: int) -> int:
    """How many connections the HTTP doors may hold of so many open files."""
    return files // 4


@dataclass(slots=True)
class AcceptLoop:
    """Listens from `start` to `close`. `make_guest` gets the address and the moment from which the client's time
    counts: when it was accepted, what it waited for others left out."""

    listener: socket.socket
    make_guest: MakeGuest
    tls: ssl.SSLContext | None
    limits: HandshakeLimits
    gate: Gate
    _slots: asyncio.Semaphore = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to accept."""
        self._slots = asyncio.Semaphore(self.limits.at_once)
        self.listener.setblocking(False)
        self._listen()

    async def close(self) -> None:
        """Stops to accept, and gives up handshakes."""
        self._loop.remove_reader(self.listener.fileno())
        if self._retry is not None:
            self._retry.cancel()
        self.listener.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=self.limits.stop_s)

    def _listen(self) -> None:
        self._retry = None
        self._loop.add_reader(self.listener.fileno(), self._accept_some)

    def _accept_some(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, peer = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(error)
                return
            self._welcome(sock, get_address(peer))

    def _pause(self, error: OSError) -> None:
        """The listening socket stays readable: to try again at once would only spin."""
        self.gate.note_pause()
        _log.warning("cannot accept connections for a moment", reason=error.strerror, pause_s=ACCEPT_PAUSE_S)
        self._loop.remove_reader(self.listener.fileno())
        self._retry = self._loop.call_later(ACCEPT_PAUSE_S, self._listen)

    def _welcome(self, sock: socket.socket, address: str) -> None:
        if not self.gate.enter(address):
            sock.close()
            return
        sock.setblocking(False)
        task = self._loop.create_task(self._take_in(sock, address), name="tls handshake")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_in(self, sock: socket.socket, address: str) -> None:
        """From an accepted socket to a guest that speaks; who does not get there is closed and leaves the gate."""
        guest = self.make_guest(address, self._loop.time())
        try:
            if self.tls is None:
                await self._loop.connect_accepted_socket(lambda: guest, sock)
            else:
                guest = await self._shake_hands(sock, address, self.tls)
        except OSError as error:  # so are a time-out and a refusal by TLS
            self.gate.note_failure()
            _log.debug("no connection came about", address=address, reason=str(error) or type(error).__name__)
        finally:
            if not guest.has_begun:
                sock.close()
                self.gate.leave(address)

    async def _shake_hands(self, sock: socket.socket, address: str, tls: ssl.SSLContext) -> Guest:
        silent_s = await self._wait_for_bytes(sock)
        async with self._slots:
            guest = self.make_guest(address, self._loop.time() - silent_s)
            hello = self._loop.create_task(self._wrap(guest, sock, tls))
            try:
                await asyncio.wait({hello}, timeout=SLOT_HOLD_S)
            except asyncio.CancelledError:
                hello.cancel()
                raise
        await hello
        return guest

    async def _wrap(self, guest: Guest, sock: socket.socket, tls: ssl.SSLContext) -> None:
        await self._loop.connect_accepted_socket(
            lambda: guest,
            sock,
            ssl=tls,
            ssl_handshake_timeout=self.limits.timeout_s,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )

    async def _wait_for_bytes(self, sock: socket.socket) -> float:
        """Returns the seconds until the client sent something; TimeoutError if it does not."""
        accepted_at, here = self._loop.time(), self._loop.create_future()
        self._loop.add_reader(sock.fileno(), _tell, here)
        try:
            async with asyncio.timeout(self.limits.silence_s):
                await here
        finally:
            self._loop.remove_reader(sock.fileno())
        return self._loop.time() - accepted_at


def get_address(peer: object) -> str:
    """Whom connections are counted for: an IPv4 address, a /64 of IPv6 (one client has all of it)."""
    text = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def _tell(here: asyncio.Future[None]) -> None:
    if not here.done():
        here.set_result(None)
