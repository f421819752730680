"""What the MQTT doors allow, and what they count: connections, packets per identity, refused keys per address.

Sockets stand in transport/accept_loop.py, bytes in mqtt_pipe.py. Time is seconds of any one monotonic clock, passed in.

Rules:
- What is kept about others is bounded: identities and addresses are forgotten once they have nothing on record.
- A rate delays and never refuses: SDKs repeat a refused GET twin at once, thousands of times a second.
- A bucket belongs to the identity: to reconnect does not refill it.
- Wrong keys cost time, good ones never do, whatever else comes from that address.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edgeferry.link.rate import TokenBucket

RATES_MAX = 50_000  # identities whose bucket is not full
ADDRESSES_MAX = 10_000  # addresses that sent a wrong key within the last minute
REFUSALS_FREE = 20
REFUSALS_WINDOW_S = 60.0
REFUSAL_DELAY_S = 0.1  # doubled with each refusal more
REFUSAL_DELAY_MAX_S = 5.0


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """How much the MQTT doors let in; 0 stands for no limit where it says so.

    Attributes:
        connections: at once; fewer where the process may not open that many files.
        connections_per_address: at once from one address (a /64 of IPv6), 0 for any number.
        handshakes: TLS handshakes at once; the others wait in order. `handshake_s` for one.
        connect_s: from the first moment until CONNECT is here. `packet_s` for a packet that began.
        packets_per_s: of one identity, 0 for any number; `packets_burst` may come at once.
        stop_s: for everything to end when the hub stops.
    """

    connections: int = 20_000
    connections_per_address: int = 10_000
    handshakes: int = 64
    handshake_s: float = 30.0
    connect_s: float = 30.0
    packet_s: float = 600.0  # 256 KB at 4 kbit/s take nine minutes
    packets_per_s: float = 100.0
    packets_burst: float = 1000.0
    stop_s: float = 10.0


@dataclass(slots=True)
class DoorCounters:
    """What happened at the MQTT doors since the hub started; `connections` is now.

    Bytes are those of MQTT packets, without WebSocket frames and TLS.
    """

    connections: int = 0
    accepted: int = 0
    refused_by_address: int = 0
    refused_in_all: int = 0
    refused_connects: int = 0
    handshake_failures: int = 0
    accept_pauses: int = 0
    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    delayed_s: float = 0.0


class ConnectionGate:
    """Counts who is connected; `enter` and `leave` go in pairs."""

    def __init__(self, limits: DoorLimits, counters: DoorCounters) -> None:
        self.connections_max = limits.connections
        self._per_address_max = limits.connections_per_address
        self._counters = counters
        self._by_address: dict[str, int] = {}
        self._is_shut = False

    def enter(self, address: str) -> bool:
        """Whether one more connection from this address may stay; it is counted either way."""
        held = self._by_address.get(address, 0)
        if self._is_shut or self._counters.connections >= self.connections_max:
            self._counters.refused_in_all += 1
            return False
        if self._per_address_max and held >= self._per_address_max:
            self._counters.refused_by_address += 1
            return False
        self._by_address[address] = held + 1
        self._counters.connections += 1
        self._counters.accepted += 1
        return True

    def leave(self, address: str) -> None:
        """A connection that had entered is gone."""
        self._counters.connections -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def note_failure(self) -> None:
        """A TLS handshake failed, or never began."""
        self._counters.handshake_failures += 1

    def note_pause(self) -> None:
        """Nothing could be accepted for a moment."""
        self._counters.accept_pauses += 1

    def shut(self) -> None:
        """Nobody enters any more."""
        self._is_shut = True


class PacketRates:
    """One token bucket for each identity that has sent lately."""

    def __init__(self, limits: DoorLimits) -> None:
        self._per_s = limits.packets_per_s
        self._burst = max(1.0, limits.packets_burst)
        self._buckets: dict[str, TokenBucket] = {}  # the one used longest ago stands first

    def take(self, name: str, now: float) -> float:
        """Spends one packet of this identity; returns the seconds to wait before it is done."""
        if not self._per_s:
            return 0.0
        self._forget(now)
        bucket = self._buckets.pop(name, None) or TokenBucket(self._per_s, self._burst, self._burst, now)
        self._buckets[name], wait_s = bucket.take(1, now)
        return wait_s

    def __len__(self) -> int:
        """Identities that are remembered."""
        return len(self._buckets)

    def _forget(self, now: float) -> None:
        """Drops the two longest unused if they are full again, and any when there are too many."""
        for name in list(_take_two(self._buckets)):
            saved = self._buckets[name].take(0, now)[0].tokens_bytes
            if saved >= self._burst or len(self._buckets) >= RATES_MAX:
                del self._buckets[name]


class GuessingBrake:
    """Refused CONNECTs of each address within the last minute."""

    def __init__(self) -> None:
        self._refusals: dict[str, deque[float]] = {}  # the address refused longest ago stands first

    def note(self, address: str, now: float) -> float:
        """Notes a refusal; returns the seconds to wait before it is told."""
        self._forget(now)
        times = self._refusals.pop(address, None) or deque[float](maxlen=REFUSALS_FREE * 2)
        times.append(now)
        self._refusals[address] = times
        recent = sum(one > now - REFUSALS_WINDOW_S for one in times)
        if recent <= REFUSALS_FREE:
            return 0.0
        return min(REFUSAL_DELAY_MAX_S, REFUSAL_DELAY_S * 2.0 ** (recent - REFUSALS_FREE - 1))

    def __len__(self) -> int:
        """Addresses that are remembered."""
        return len(self._refusals)

    def _forget(self, now: float) -> None:
        for address in list(_take_two(self._refusals)):
            if self._refusals[address][-1] <= now - REFUSALS_WINDOW_S or len(self._refusals) >= ADDRESSES_MAX:
                del self._refusals[address]


def _take_two(names: dict[str, TokenBucket] | dict[str, deque[float]]) -> list[str]:
    return [name for name, _ in zip(names, range(2), strict=False)]
