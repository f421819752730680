"""The hub's half of one MQTT session: which packet may come now, what waits for a PUBACK, how long silence may last.

Bytes stand in mqtt_packets.py; sockets, storage and the meaning of topics belong to the hub. Time is seconds of any one
clock, passed in.

Rules:
- CONNECT comes first and once. What a server never receives is a violation.
- A QoS 1 delivery keeps its packet id until its PUBACK; sent again it carries the same id and DUP [MQTT-4.4.0-1].
- The session outlives its connections when the client asked for it (clean session 0); Connection does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from edgeferry.errors import ProtocolViolated
from edgeferry.wire.mqtt_packets import ConnAck, Connect, Packet, PingResp, Publish, SubAck, UnsubAck

KEEPALIVE_CAP_S = 1767.0  # docs/formats/iothub.md section 2: 1.5 x keepalive, capped
KEEPALIVE_FACTOR = 1.5
CONNECT_TIMEOUT_S = 30.0
FILTERS_MAX = 5
INFLIGHT_MAX = 32
_FROM_A_SERVER_ONLY = (ConnAck, SubAck, UnsubAck, PingResp)


@dataclass(slots=True)
class Connection:
    """Order and silence of one connection.

    Attributes:
        heard_at: when the last packet came (at first: when the connection opened).
        keepalive_s: as the client asked, 0 for none.
    """

    heard_at: float
    is_connected: bool = False
    keepalive_s: int = 0

    def receive(self, packet: Packet, *, now: float) -> None:
        """Checks that this packet may come now.

        Raises:
            ProtocolViolated: not CONNECT first, CONNECT twice, or a packet that only servers send.
        """
        if isinstance(packet, Connect) == self.is_connected:
            raise ProtocolViolated("CONNECT comes first and once [MQTT-3.1.0-1, MQTT-3.1.0-2]")
        if isinstance(packet, _FROM_A_SERVER_ONLY):
            raise ProtocolViolated(f"a client never sends {type(packet).__name__}")
        if isinstance(packet, Connect):
            self.is_connected, self.keepalive_s = True, packet.keepalive_s
        self.heard_at = now

    def get_deadline(self) -> float:
        """When the connection is to be closed if nothing comes before."""
        return self.heard_at + (get_silence_limit_s(self.keepalive_s) if self.is_connected else CONNECT_TIMEOUT_S)


def get_silence_limit_s(keepalive_s: int) -> float:
    """1.5 times the keep-alive, capped; without one, the cap [MQTT-3.1.2-24]."""
    return min(keepalive_s * KEEPALIVE_FACTOR, KEEPALIVE_CAP_S) if keepalive_s else KEEPALIVE_CAP_S


@dataclass(slots=True)
class Session:
    """Subscriptions and unacknowledged deliveries of one identity.

    A delivery is known by a `key` of the caller's (the row of a queue): its payload is not kept here. `inflight` holds
    the packet id of each that was sent and not acknowledged; a session that goes on is made with both.
    """

    subscriptions: dict[str, int] = field(default_factory=dict)
    inflight: dict[int, int] = field(default_factory=dict)
    _last_id: int = 0

    def get_qos(self, topic: str) -> int | None:
        """The QoS granted for this topic, None when nothing subscribed matches it."""
        granted = [qos for name, qos in self.subscriptions.items() if matches(name, topic)]
        return max(granted) if granted else None

    @property
    def has_room(self) -> bool:
        """Whether another QoS 1 delivery may be sent before a PUBACK comes."""
        return len(self.inflight) < INFLIGHT_MAX

    def deliver(self, key: int, message: Publish) -> Publish:
        """The packet to send at QoS 1; a key that was sent before keeps its packet id and carries DUP."""
        if key in self.inflight:
            return replace(message, qos=1, packet_id=self.inflight[key], dup=True)
        self.inflight[key] = self._next_id()
        return replace(message, qos=1, packet_id=self.inflight[key])

    def acknowledge(self, packet_id: int) -> int | None:
        """The key of the delivery that is done, None for an id that nothing waits for."""
        for key, waiting in self.inflight.items():
            if waiting == packet_id:
                del self.inflight[key]
                return key
        return None

    def forget(self, key: int) -> None:
        """Gives up a delivery (its time to live is over): its packet id is free again."""
        self.inflight.pop(key, None)

    def _next_id(self) -> int:
        taken = set(self.inflight.values())
        while True:
            self._last_id = self._last_id % 0xFFFF + 1
            if self._last_id not in taken:
                return self._last_id


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter takes a topic (section 4.7); unlike there, a wildcard may stand for a `$` level by name only."""
    if "#" not in topic_filter and "+" not in topic_filter:
        return topic_filter == topic
    if topic.startswith("$") and not topic_filter.startswith("$"):
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)
