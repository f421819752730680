"""`open_link(profile)`: two network namespaces with a thin link between them, for as long as the block runs.

What this file leaves to others: carrying packets (`pump.py`).

Rules:
- Needs root, `ip` (iproute2) and /dev/net/tun; `find_missing` says in words what is not there.
- Names are unique for each process. What was started in a namespace is ended by its id, before the link goes.
- A device lives on the left, the cloud on the right: `up` is left to right.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from link.pipe import TCP, Count
from link.profiles import Profile

TESTS = Path(__file__).resolve().parent.parent
TUN = Path("/dev/net/tun")
_TUN_DEVICE = os.makedev(10, 200)
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
"""linux/if_tun.h: packets as they are, without a head of the driver's own."""
_STOP_TIMEOUT_S = 10.0
_NUMBERS = itertools.count()


def find_missing() -> str | None:
    """What this machine lacks for a link, in words; None when nothing is missing."""
    if os.geteuid() != 0:
        return "a link between network namespaces needs root: run the tests as root, or in a container"
    try:
        with open_namespace(f"ef{os.getpid()}-probe"):
            os.close(_open_tun(f"ef{os.getpid()}p"))
    except FileNotFoundError:
        return "a link between network namespaces needs the command ip: install iproute2 (make iproute2)"
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces or /dev/net/tun may not be used here: {error}"
    return None


@dataclass
class End:
    """One side of a link: its address, and commands that run there."""

    namespace: str
    address: str
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def before(self) -> tuple[str, ...]:
        """The words in front of a command that let it run on this side; its process id stays its own."""
        return ("ip", "netns", "exec", self.namespace)

    def run(self, words: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; raises when it fails."""
        return subprocess.run([*self.before, *words], check=True, capture_output=True, text=True, **options)

    def start(self, words: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        """Starts a command, which ends with the link at the latest."""
        child = subprocess.Popen([*self.before, *words], **options)
        self._started.append(child)
        return child

    def stop_all(self) -> None:
        """Ends what was started here, the newest first."""
        for child in reversed(self._started):
            stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """Asks a process to end, and ends it when it does not."""
    child.terminate()
    try:
        child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


Trace = Sequence[tuple[float, int]]
"""(time.monotonic, end of the stream) as bytes arrived."""


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """One conversation in one direction."""

    protocol: int
    left_port: int
    right_port: int
    entered: Count
    arrived: Count
    stream_bytes: int
    trace: Trace


@dataclass(frozen=True, slots=True)
class DirectionCounts:
    """One direction: what its sender gave, what the queue dropped, what was lost, what its receiver got."""

    entered: Count
    arrived: Count
    dropped: Count
    lost: Count
    flows: tuple[FlowFacts, ...]

    def sum_stream_bytes(self, right_port: int) -> int:
        """Bytes above TCP, each counted once, of all connections to a port of the right side."""
        return sum(flow.stream_bytes for flow in self.flows if flow.right_port == right_port)


@dataclass(frozen=True, slots=True)
class Counts:
    """Both directions at one moment."""

    up: DirectionCounts
    down: DirectionCounts

    @property
    def left_ip_bytes(self) -> int:
        """IP bytes that the left side sent and received: what its network stack and its bill know."""
        return self.up.entered.ip_bytes + self.down.arrived.ip_bytes

    @property
    def stream_bytes(self) -> int:
        """Bytes above TCP, both ways, each counted once."""
        return sum(f.stream_bytes for way in (self.up, self.down) for f in way.flows if f.protocol == TCP)

    def sum_stream_bytes(self, right_port: int) -> int:
        """The same, of all connections to a port of the right side."""
        return self.up.sum_stream_bytes(right_port) + self.down.sum_stream_bytes(right_port)

    def sum_left_ip_bytes(self, right_port: int) -> int:
        """`left_ip_bytes` of all conversations with a port of the right side."""
        up, down = ([flow for flow in way.flows if flow.right_port == right_port] for way in (self.up, self.down))
        return sum(flow.entered.ip_bytes for flow in up) + sum(flow.arrived.ip_bytes for flow in down)

    def find_answer(self, right_port: int) -> tuple[int, float] | None:
        """The largest answer of a port where requests follow upon whole answers: its bytes, and the seconds from its
        first byte to its last. None without an answer, or without traces."""
        asked = {flow.left_port: flow.trace for flow in self.up.flows if flow.right_port == right_port}
        streams = [flow for flow in self.down.flows if flow.right_port == right_port]
        found = [answer for flow in streams for answer in _list_answers(asked.get(flow.left_port, ()), flow.trace)]
        return max(found, default=None)


_CLOSE_NOTIFY_BYTES = 24
"""RFC 8446: a connection that is let go says so in a record of this length, whenever that is. It is no answer's."""


def _list_answers(asked: Trace, came: Trace) -> Iterator[tuple[int, float]]:
    """What came between a request's arrival and the next one's; a goodbye long after the last byte is not of it."""
    if len(came) > 1 and came[-1][1] - came[-2][1] == _CLOSE_NOTIFY_BYTES:
        came = came[:-1]
    ends = [at for at, _ in asked[1:]] + [float("inf")]
    for (from_at, _), until_at in zip(asked, ends, strict=True):
        before = max((end for at, end in came if at <= from_at), default=0)
        answer = [(at, end) for at, end in came if from_at < at <= until_at]
        if answer:
            yield answer[-1][1] - before, answer[-1][0] - answer[0][0]


@dataclass
class Link:
    """A link that carries packets."""

    profile: Profile
    left: End
    right: End
    _control: socket.socket
    _pump: subprocess.Popen[bytes]

    def cut(self, *, after_s: float = 0.0, for_s: float | None = None) -> None:
        """Takes the link down: what is under way is lost, and what is sent. `for_s`: then it comes back by itself."""
        self._ask({"do": "cut", "after_s": after_s})
        if for_s is not None:
            self.restore(after_s=after_s + for_s)

    def restore(self, *, after_s: float = 0.0) -> None:
        """Brings the link up again."""
        self._ask({"do": "restore", "after_s": after_s})

    def counts(self, *, traces: bool = False) -> Counts:
        """What crossed since the link was opened; `traces`: with the times at which each stream grew."""
        found = self._ask({"do": "counts", "traces": traces})
        return Counts(_read_direction(found["up"], is_up=True), _read_direction(found["down"], is_up=False))

    def _ask(self, question: dict[str, Any]) -> Any:
        self._control.sendall(json.dumps(question).encode() + b"\n")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            part = self._control.recv(1 << 20)
            if not part:
                raise ConnectionError(f"the pump ended with {self._pump.wait()}")
            answer += part
        return json.loads(answer)


def _read_direction(found: dict[str, Any], *, is_up: bool) -> DirectionCounts:
    flows = tuple(_read_flow(flow, is_up=is_up) for flow in found["flows"])
    entered, arrived = (_add_up([getattr(flow, name) for flow in flows]) for name in ("entered", "arrived"))
    return DirectionCounts(entered, arrived, Count(**found["dropped"]), Count(**found["lost"]), flows)


def _read_flow(flow: dict[str, Any], *, is_up: bool) -> FlowFacts:
    left, right = ("source_port", "target_port") if is_up else ("target_port", "source_port")
    return FlowFacts(
        protocol=flow["protocol"],
        left_port=flow[left],
        right_port=flow[right],
        entered=Count(**flow["entered"]),
        arrived=Count(**flow["arrived"]),
        stream_bytes=flow["stream_bytes"],
        trace=tuple((at, end) for at, end in flow["trace"]),
    )


def _add_up(counts: Sequence[Count]) -> Count:
    return Count(*(sum(getattr(one, name) for one in counts) for name in ("packets", "ip_bytes", "payload_bytes")))


@contextmanager
def open_link(profile: Profile, *, seed: int = 0) -> Iterator[Link]:
    """A link of `profile` between two new namespaces; which packets are lost follows from `seed`."""
    name = f"ef{os.getpid()}-{next(_NUMBERS)}"
    with ExitStack() as stack:
        left = End(stack.enter_context(open_namespace(f"{name}l")), "10.77.0.1")
        right = End(stack.enter_context(open_namespace(f"{name}r")), "10.77.0.2")
        devices = [_make_device(stack, end, profile.mtu) for end in (left, right)]
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        with theirs:
            pump = _start_pump(profile, seed, (theirs.fileno(), *devices), (left.namespace, right.namespace))
        stack.callback(_end_pump, pump, ours)
        for end in (left, right):
            stack.callback(end.stop_all)
        yield Link(profile, left, right, ours, pump)


def _start_pump(
    profile: Profile, seed: int, handles: tuple[int, ...], namespaces: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    told = dict(zip(("control", "left", "right"), handles, strict=True))
    facts = {"profile": asdict(profile), "seed": seed, "namespaces": namespaces, **told}
    command = [sys.executable, "-m", "link.pump", json.dumps(facts)]
    return subprocess.Popen(command, pass_fds=handles, env={**os.environ, "PYTHONPATH": str(TESTS)})


def _end_pump(pump: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    try:
        pump.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        stop(pump)


# --- namespaces and devices -------------------------------------------------------------------------------------------
@contextmanager
def open_namespace(name: str) -> Iterator[str]:
    """A network namespace with its loopback up."""
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        with suppress(subprocess.CalledProcessError):  # the pump has removed it
            _ip("netns", "delete", name)


def _make_device(stack: ExitStack, end: End, mtu: int) -> int:
    """A TUN device with the address of `end`, in its namespace; returns the file number of the other side of it."""
    name = f"ef{os.getpid() % 100_000}t{next(_NUMBERS)}"
    handle = _open_tun(name)
    stack.callback(os.close, handle)
    _ip("link", "set", "dev", name, "netns", end.namespace, "name", "thin0")
    inside = ("-n", end.namespace)
    # without an address of its own IPv6 stays silent, and only what is sent on purpose is counted
    _ip(*inside, "link", "set", "dev", "thin0", "mtu", str(mtu), "addrgenmode", "none")
    _ip(*inside, "link", "set", "dev", "thin0", "up")
    _ip(*inside, "address", "add", f"{end.address}/30", "dev", "thin0")
    return handle


def _open_tun(name: str) -> int:
    if not TUN.exists():
        TUN.parent.mkdir(exist_ok=True)
        os.mknod(TUN, stat.S_IFCHR | 0o666, _TUN_DEVICE)
    handle = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(handle)
        raise
    return handle


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
