"""One direction of a link: when a packet arrives, whether it does, and what was counted. No I/O, no clock.

Rules:
- A packet that meets a full queue is dropped before the wire; one that is lost has taken its time on the wire.
- `entered` is what the sender's stack gave, `arrived` what the receiver's stack got. All sizes are IP bytes.
- The position of a TCP stream is the furthest byte that arrived: what is sent twice does not move it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from link.profiles import Profile

TCP, UDP = 6, 17
_SYN = 0x02
_HALF, _MASK = 1 << 31, (1 << 32) - 1
_UDP_HEAD_BYTES = 8


class Flow(NamedTuple):
    """A conversation as one direction sees it; ports are 0 for what has none."""

    protocol: int
    source_port: int
    target_port: int


class Head(NamedTuple):
    """What the heads of an IPv4 packet say."""

    flow: Flow
    payload_bytes: int
    sequence: int = 0
    is_syn: bool = False


def read_head(packet: bytes) -> Head:
    """Reads the heads of an IPv4 packet (RFC 791, 768, 9293)."""
    start, protocol = (packet[0] & 15) * 4, packet[9]
    if protocol not in (TCP, UDP) or packet[0] >> 4 != 4:
        return Head(Flow(protocol, 0, 0), len(packet) - start)
    flow = Flow(protocol, int.from_bytes(packet[start : start + 2]), int.from_bytes(packet[start + 2 : start + 4]))
    if protocol == UDP:
        return Head(flow, len(packet) - start - _UDP_HEAD_BYTES)
    payload_bytes = len(packet) - start - (packet[start + 12] >> 4) * 4
    sequence = int.from_bytes(packet[start + 4 : start + 8])
    return Head(flow, payload_bytes, sequence, bool(packet[start + 13] & _SYN))


@dataclass(slots=True)
class Count:
    """Packets and their IP bytes; `payload_bytes` is what lies above TCP or UDP, what was sent twice included."""

    packets: int = 0
    ip_bytes: int = 0
    payload_bytes: int = 0

    def add(self, packet: bytes, head: Head) -> None:
        """Counts one packet."""
        self.packets += 1
        self.ip_bytes += len(packet)
        self.payload_bytes += head.payload_bytes


@dataclass(slots=True)
class FlowCount:
    """One conversation in one direction. `trace`: (time, position) whenever the stream's end moved."""

    entered: Count = field(default_factory=Count)
    arrived: Count = field(default_factory=Count)
    stream_bytes: int = 0
    trace: list[tuple[float, int]] = field(default_factory=list)
    _base: int | None = None

    def follow(self, head: Head, now: float) -> None:
        """Moves the stream's end."""
        if head.is_syn or self._base is None:
            self._base = head.sequence + head.is_syn
        end = (head.sequence + head.is_syn + head.payload_bytes - self._base) & _MASK
        if head.payload_bytes and self.stream_bytes < end < _HALF:
            self.stream_bytes = end
            self.trace.append((now, end))


class Pipe:
    """One direction. Loss is drawn from `seed`: the same packets in the same order are lost again."""

    def __init__(self, profile: Profile, seed: int) -> None:
        self._profile = profile
        self._dice = random.Random(seed)
        self._free_at = 0.0
        self.is_cut = False
        self.dropped, self.lost = Count(), Count()
        self.flows: defaultdict[Flow, FlowCount] = defaultdict(FlowCount)

    def put(self, packet: bytes, now: float) -> float | None:
        """Takes a packet; returns when it arrives, None when it never does."""
        head = read_head(packet)
        self.flows[head.flow].entered.add(packet, head)
        if not self.is_cut and self._free_at - now > self._profile.queue_s:
            self.dropped.add(packet, head)
            return None
        self._free_at = max(now, self._free_at) + len(packet) * 8 / self._profile.bps
        if self.is_cut or self._dice.random() < self._profile.loss:
            self.lose(packet)
            return None
        return self._free_at + self._profile.rtt_s / 2

    def lose(self, packet: bytes) -> None:
        """Counts a packet that was under way and will not arrive."""
        self.lost.add(packet, read_head(packet))

    def take(self, packet: bytes, now: float) -> None:
        """Counts a packet that arrives."""
        head = read_head(packet)
        flow = self.flows[head.flow]
        flow.arrived.add(packet, head)
        if head.flow.protocol == TCP:
            flow.follow(head, now)

    def cut(self) -> None:
        """From now on everything is lost, and the queue is empty."""
        self.is_cut, self._free_at = True, 0.0

    def restore(self) -> None:
        """From now on packets pass again."""
        self.is_cut, self._free_at = False, 0.0
