"""MQTT 3.1.1 packets: bytes in, frozen values out, and back. Sans-IO; both directions, QoS 0 and 1.

Order of packets, packet ids, sessions and keep-alive stand in mqtt_session.py; topics of IoT Hub in iothub_topics.py.

Rules:
- A decoder never holds more than one unfinished packet of at most `limit_bytes` beside what was just fed to it; a
  longer one is refused when its header arrives, before its body does.
- Whatever arrives becomes packets or raises ProtocolViolated or LimitExceeded; then the connection is to be closed.
- A packet in memory is no larger than on the wire: lists of filters and codes, whose items cost 20 times their bytes,
  are bounded.
- QoS 2 has no packets here: IoT Hub closes the connection on it.

Source: MQTT 3.1.1 (OASIS Standard, 29 October 2014), section 3; numbers in brackets are its normative statements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edgeferry.errors import LimitExceeded, ProtocolViolated

PACKET_MAX_BYTES = 256 * 1024 + 64 * 1024  # a message of 256 KB (IoT Hub) and the longest topic
STRING_MAX_BYTES = 65_535  # [MQTT-1.5.3]
FILTERS_READ_MAX = 100  # IoT Hub takes 5 in one SUBSCRIBE and keeps 50
LENGTH_MAX_BYTES = 4  # bytes of the remaining length [MQTT-2.2.3]

CONNACK_ACCEPTED, CONNACK_WRONG_LEVEL, CONNACK_UNAVAILABLE, CONNACK_NOT_AUTHORISED = 0, 1, 3, 5
SUBACK_REFUSED = 0x80


@dataclass(frozen=True, slots=True)
class Connect:
    """The first packet of a client. A will is read and dropped: the hub has no use for it."""

    client_id: str
    clean_session: bool = True
    keepalive_s: int = 60
    user_name: str | None = None
    password: bytes | None = field(default=None, repr=False)
    level: int = 4


@dataclass(frozen=True, slots=True)
class ConnAck:
    """The answer to Connect; `code` is 0 or a refusal."""

    code: int
    session_present: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """A message; `packet_id` is set just when `qos` is 1."""

    topic: str
    payload: bytes = b""
    qos: int = 0
    packet_id: int | None = None
    dup: bool = False
    retain: bool = False


@dataclass(frozen=True, slots=True)
class PubAck:
    """The receiver has taken over a QoS 1 message."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Filters with the QoS asked for."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class SubAck:
    """One code for each filter: the QoS granted, or SUBACK_REFUSED."""

    packet_id: int
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Filters to forget."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnsubAck:
    """The answer to Unsubscribe."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class PingReq:
    """The client is alive."""


@dataclass(frozen=True, slots=True)
class PingResp:
    """So is the server."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """An orderly end."""


Packet = (
    Connect | ConnAck | Publish | PubAck | Subscribe | SubAck | Unsubscribe | UnsubAck | PingReq | PingResp | Disconnect
)


class PacketDecoder:
    """Turns a stream of bytes into packets. After it raised, it must not be fed again.

    `limit_bytes` may be raised once the peer is known.
    """

    def __init__(self, limit_bytes: int = PACKET_MAX_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a packet that has not wholly arrived."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Packet]:
        """Takes bytes, returns the packets that they complete; none of them when it raises.

        Raises:
            ProtocolViolated: the bytes are not MQTT 3.1.1, or QoS 2.
            LimitExceeded: a packet is longer than `limit_bytes`, or names too many filters.
        """
        self._buffer += data
        packets: list[Packet] = []
        position = 0
        while (span := self._find_body(position)) is not None:
            start, end = span
            packets.append(decode_body(self._buffer[position], bytes(self._buffer[start:end])))
            position = end
        del self._buffer[:position]
        return packets

    def _find_body(self, position: int) -> tuple[int, int] | None:
        """Where the body of the packet at `position` begins and ends, None until all of it is here."""
        length = 0
        for index in range(LENGTH_MAX_BYTES):
            at = position + 1 + index
            if at >= len(self._buffer):
                return None
            length |= (self._buffer[at] & 0x7F) << (7 * index)
            if self._buffer[at] < 0x80:
                if length > self.limit_bytes:
                    raise LimitExceeded(f"expected a packet of at most {self.limit_bytes} bytes, found {length}")
                return (at + 1, at + 1 + length) if at + 1 + length <= len(self._buffer) else None
        raise ProtocolViolated("the remaining length has more than four bytes")


class _Reader:
    """Reads the fields of one body; every read past the end is a violation."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.body):
            raise ProtocolViolated("a packet ends in the middle of a field")
        piece, self.at = self.body[self.at : end], end
        return piece

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def packet_id(self) -> int:
        number = self.number()
        if number == 0:
            raise ProtocolViolated("a packet id is never 0 [MQTT-2.3.1-1]")
        return number

    def data(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        try:
            text = self.data().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProtocolViolated("a string is not UTF-8 [MQTT-1.5.3-1]") from error
        if "\x00" in text:
            raise ProtocolViolated("a string holds U+0000 [MQTT-1.5.3-2]")
        return text

    def rest(self) -> bytes:
        return self.take(len(self.body) - self.at)

    @property
    def is_done(self) -> bool:
        return self.at == len(self.body)


def decode_body(head: int, body: bytes) -> Packet:
    """One packet from its first byte and its body.

    Raises:
        ProtocolViolated: it does not follow the standard.
        LimitExceeded: it names more filters or codes than are read.
    """
    kind, flags = head >> 4, head & 0x0F
    if kind == 3:
        return _read_publish(flags, _Reader(body))
    if kind not in _KINDS:
        raise ProtocolViolated(f"packet type {kind} is not spoken here")
    wanted_flags, read = _KINDS[kind]
    if flags != wanted_flags:
        raise ProtocolViolated(f"packet type {kind} has flags {flags} [MQTT-2.2.2-2]")
    reader = _Reader(body)
    packet = read(reader)
    if not reader.is_done:
        raise ProtocolViolated(f"packet type {kind} has bytes behind its end")
    return packet


def encode(packet: Packet) -> bytes:
    """The bytes of a packet.

    Raises:
        LimitExceeded: a string is longer than 65,535 bytes.
    """
    match packet:
        case Publish():
            return _encode_publish(packet)
        case PubAck(packet_id):
            return b"\x40\x02" + packet_id.to_bytes(2, "big")
        case Connect():
            return _frame(0x10, _encode_connect(packet))
        case ConnAck(code, session_present):
            return bytes((0x20, 2, session_present, code))
        case Subscribe(packet_id, filters):
            listed = b"".join(_text(name) + bytes((qos,)) for name, qos in filters)
            return _frame(0x82, packet_id.to_bytes(2, "big") + listed)
        case SubAck(packet_id, codes):
            return _frame(0x90, packet_id.to_bytes(2, "big") + bytes(codes))
        case Unsubscribe(packet_id, names):
            return _frame(0xA2, packet_id.to_bytes(2, "big") + b"".join(map(_text, names)))
        case UnsubAck(packet_id):
            return b"\xb0\x02" + packet_id.to_bytes(2, "big")
        case PingReq():
            return b"\xc0\x00"
        case PingResp():
            return b"\xd0\x00"
        case Disconnect():
            return b"\xe0\x00"


def _read_publish(flags: int, reader: _Reader) -> Publish:
    qos, dup, retain = (flags >> 1) & 3, bool(flags & 8), bool(flags & 1)
    if qos > 1:
        raise ProtocolViolated(f"expected QoS 0 or 1, found {qos}")
    if dup and not qos:
        raise ProtocolViolated("DUP is set on a QoS 0 message [MQTT-3.3.1-2]")
    topic = reader.text()
    if not topic or "#" in topic or "+" in topic:
        raise ProtocolViolated("the topic of a message is empty or holds a wildcard [MQTT-3.3.2-2]")
    packet_id = reader.packet_id() if qos else None
    return Publish(topic, reader.rest(), qos, packet_id, dup, retain)


def _read_connect(reader: _Reader) -> Connect:
    if reader.text() not in ("MQTT", "MQIsdp"):
        raise ProtocolViolated("the protocol's name is not MQTT [MQTT-3.1.2-1]")
    level, flags, keepalive_s = reader.byte(), reader.byte(), reader.number()
    will_qos, has_will = (flags >> 3) & 3, bool(flags & 4)
    will_is_sound = will_qos < 3 if has_will else not flags & 0x38
    if flags & 1 or not will_is_sound or flags & 0xC0 == 0x40:
        raise ProtocolViolated(f"the connect flags {flags:#04x} contradict each other [MQTT-3.1.2-3]")
    client_id = reader.text()
    if has_will:
        reader.text()
        reader.data()
    user_name = reader.text() if flags & 0x80 else None
    password = reader.data() if flags & 0x40 else None
    return Connect(client_id, bool(flags & 2), keepalive_s, user_name, password, level)


def _read_connack(reader: _Reader) -> ConnAck:
    flags, code = reader.byte(), reader.byte()
    if flags > 1 or (flags and code):
        raise ProtocolViolated("the flags of a CONNACK do not fit its code [MQTT-3.2.2-4]")
    return ConnAck(code, bool(flags))


def _read_subscribe(reader: _Reader) -> Subscribe:
    packet_id, filters = reader.packet_id(), []
    while not reader.is_done:
        name, qos = _require_filter(reader.text()), reader.byte()
        if qos > 2:
            raise ProtocolViolated(f"expected a QoS of 0, 1 or 2, found {qos} [MQTT-3.8.3-4]")
        filters.append((name, qos))
        _require_few(len(filters))
    if not filters:
        raise ProtocolViolated("a SUBSCRIBE names no filter [MQTT-3.8.3-3]")
    return Subscribe(packet_id, tuple(filters))


def _read_suback(reader: _Reader) -> SubAck:
    packet_id, coded = reader.packet_id(), reader.rest()
    _require_few(len(coded))
    codes = tuple(coded)
    if not codes or any(code > 2 and code != SUBACK_REFUSED for code in codes):
        raise ProtocolViolated("a SUBACK has no code, or one that does not exist [MQTT-3.9.3-2]")
    return SubAck(packet_id, codes)


def _read_unsubscribe(reader: _Reader) -> Unsubscribe:
    packet_id, names = reader.packet_id(), []
    while not reader.is_done:
        names.append(_require_filter(reader.text()))
        _require_few(len(names))
    if not names:
        raise ProtocolViolated("an UNSUBSCRIBE names no filter [MQTT-3.10.3-2]")
    return Unsubscribe(packet_id, tuple(names))


_KINDS: dict[int, tuple[int, Callable[[_Reader], Packet]]] = {
    1: (0, _read_connect),
    2: (0, _read_connack),
    4: (0, lambda reader: PubAck(reader.packet_id())),
    8: (2, _read_subscribe),
    9: (0, _read_suback),
    10: (2, _read_unsubscribe),
    11: (0, lambda reader: UnsubAck(reader.packet_id())),
    12: (0, lambda reader: PingReq()),
    13: (0, lambda reader: PingResp()),
    14: (0, lambda reader: Disconnect()),
}


def _require_filter(name: str) -> str:
    """A filter as section 4.7.1 allows it: `#` alone at the end, `+` alone in its level."""
    levels = name.split("/")
    for index, level in enumerate(levels):
        is_wild = "#" in level or "+" in level
        if is_wild and (len(level) > 1 or (level == "#" and index < len(levels) - 1)):
            raise ProtocolViolated(f"a filter uses a wildcard wrongly: {name!r:.120} [MQTT-4.7.1]")
    if not name:
        raise ProtocolViolated("a filter is empty [MQTT-4.7.3-1]")
    return name


def _require_few(count: int) -> None:
    if count > FILTERS_READ_MAX:
        raise LimitExceeded(f"expected at most {FILTERS_READ_MAX} filters or codes in one packet")


def _encode_publish(packet: Publish) -> bytes:
    head = 0x30 | (packet.dup << 3) | (packet.qos << 1) | packet.retain
    middle = packet.packet_id.to_bytes(2, "big") if packet.packet_id is not None else b""
    return _frame(head, _text(packet.topic) + middle + packet.payload)


def _encode_connect(packet: Connect) -> bytes:
    name, word = packet.user_name, packet.password
    flags = (packet.clean_session << 1) | ((word is not None) << 6) | ((name is not None) << 7)
    body = (
        _text("MQTT") + bytes((packet.level, flags)) + packet.keepalive_s.to_bytes(2, "big") + _text(packet.client_id)
    )
    body += _text(name) if name is not None else b""
    return body + (len(word).to_bytes(2, "big") + word if word is not None else b"")


def _frame(head: int, body: bytes) -> bytes:
    length, coded = len(body), bytearray((head,))
    while length > 0x7F:
        coded.append(0x80 | (length & 0x7F))
        length >>= 7
    coded.append(length)
    return bytes(coded) + body


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    if len(data) > STRING_MAX_BYTES:
        raise LimitExceeded(f"expected a string of at most {STRING_MAX_BYTES} bytes, found {len(data)}")
    return len(data).to_bytes(2, "big") + data
