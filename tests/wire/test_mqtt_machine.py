"""Decoder and order of one connection as a machine: packets, rubbish and silence against a small model."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeferry.errors import LimitExceeded, ProtocolViolated
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.mqtt_session import Connection
from wire.mqtt_strategies import CONNECTS, FROM_A_CLIENT, FROM_A_SERVER_ONLY

LIMIT_BYTES = 2_000
RUBBISH = st.sampled_from(
    [
        b"\x00\x00",
        b"\xf0\x00",
        b"\xc0\x01\x00",
        b"\x34\x05\x00\x01a\x00\x01",
        b"\xe0\x80\x80\x80\x80\x01",
        b"\x40\x02\x00\x00",
    ]
)
TOO_LONG = mqtt.encode(mqtt.Publish("t", bytes(LIMIT_BYTES)))


@dataclass
class Model:
    """What must be so: what lies on the wire, what was heard, and when silence ends it."""

    heard_at: int
    keepalive_s: int | None = None
    ends: list[tuple[int, mqtt.Packet | None]] = field(
        default_factory=list
    )  # where each packet ends; None is a violation

    def get_deadline(self) -> float:
        if self.keepalive_s is None:
            return self.heard_at + 30
        half_as_long_again = self.keepalive_s + self.keepalive_s / 2
        return self.heard_at + (1767 if not 0 < half_as_long_again < 1767 else half_as_long_again)

    def is_allowed(self, packet: mqtt.Packet) -> bool:
        if self.keepalive_s is None:
            return isinstance(packet, mqtt.Connect)
        return not isinstance(packet, mqtt.Connect | mqtt.ConnAck | mqtt.SubAck | mqtt.UnsubAck | mqtt.PingResp)


class OneConnection(RuleBasedStateMachine):
    """Bytes are put on a wire, arrive in pieces, and are read; the machine is over at the first violation."""

    @initialize(opened_at=st.integers(0, 1000))
    def open(self, opened_at: int) -> None:
        self.now = opened_at
        self.decoder = mqtt.PacketDecoder(LIMIT_BYTES)
        self.order = Connection(float(opened_at))
        self.model = Model(opened_at)
        self.wire = b""
        self.arrived = 0
        self.is_over = False

    @rule(packet=CONNECTS | FROM_A_CLIENT | FROM_A_CLIENT | FROM_A_SERVER_ONLY)
    def send(self, packet: mqtt.Packet) -> None:
        self.wire += mqtt.encode(packet)
        self.model.ends.append((len(self.wire), packet))

    @rule(packet=FROM_A_CLIENT)
    @precondition(lambda self: self.model.keepalive_s is not None)
    def send_in_order(self, packet: mqtt.Packet) -> None:
        self.send(packet)

    @rule(connect=CONNECTS)
    @precondition(lambda self: not self.wire)
    def send_connect(self, connect: mqtt.Connect) -> None:
        self.send(connect)

    @rule(rubbish=RUBBISH | st.just(TOO_LONG))
    @precondition(lambda self: self.model.keepalive_s is not None)
    def send_rubbish(self, rubbish: bytes) -> None:
        self.wire += rubbish
        self.model.ends.append((len(self.wire), None))

    @rule(seconds=st.integers(0, 2000))
    def be_silent(self, seconds: int) -> None:
        self.now += seconds

    @rule(size=st.integers(1, 80) | st.just(5000))
    @precondition(lambda self: not self.is_over and self.arrived < len(self.wire))
    def arrive(self, size: int) -> None:
        chunk = self.wire[self.arrived : self.arrived + size]
        self.arrived += len(chunk)
        read: list[mqtt.Packet] = []
        try:
            for packet in self.decoder.feed(chunk):
                self.order.receive(packet, now=float(self.now))
                read.append(packet)
        except (ProtocolViolated, LimitExceeded):
            self.is_over = True
        self._compare(read)

    def _compare(self, read: list[mqtt.Packet]) -> None:
        """Walks the model over what has arrived by now."""
        for packet in read:
            end, wanted = self.model.ends.pop(0)
            assert packet == wanted and end <= self.arrived and self.model.is_allowed(packet)
            self.model.heard_at = self.now
            if isinstance(packet, mqtt.Connect):
                self.model.keepalive_s = packet.keepalive_s
        here = [packet for end, packet in self.model.ends if end <= self.arrived]
        if not self.is_over:
            assert not here, "something that has arrived was neither read nor refused"
        elif self.model.ends[0][1] is not None:
            assert any(packet is None or not self.model.is_allowed(packet) for packet in self._get_reached())

    def _get_reached(self) -> list[mqtt.Packet | None]:
        """What lies behind, up to the one that has begun to arrive: a header alone may be a violation."""
        begun = sum(1 for end, _ in self.model.ends if end <= self.arrived) + 1
        return [packet for _, packet in self.model.ends[:begun]]

    @invariant()
    def the_deadline_is_that_of_the_model(self) -> None:
        if not self.is_over:
            assert self.order.get_deadline() == self.model.get_deadline()
            assert self.order.is_connected == (self.model.keepalive_s is not None)

    @invariant()
    def what_is_held_is_what_has_not_been_read(self) -> None:
        if not self.is_over:
            first_end, packet = self.model.ends[0] if self.model.ends else (len(self.wire), None)
            size = len(mqtt.encode(packet)) if packet else self.decoder.buffered_bytes
            assert self.decoder.buffered_bytes <= size <= first_end
            assert self.decoder.buffered_bytes < LIMIT_BYTES + 5


OneConnection.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_one_connection_is_as_the_model_says = OneConnection.TestCase
