"""Hostile streams of MQTT: conversations as they are, broken in many ways, and the hub's reading of them without a hub.

Needs Python and `edgeferry.wire`, no more: the coverage-guided fuzzer imports it in an environment of its own.

Rules:
- A stream is reached by its seed alone.
- `read_as_hub` takes bytes as hub/mqtt_front.py and hub/device_link.py do: limits, order, names, tokens, topics.
  Whoever has a readable name and token counts as admitted, whatever the signature: what follows is to be read too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeferry.errors import HubRefused, LimitExceeded, ProtocolViolated
from edgeferry.wire import iothub_topics as topics
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import (
    make_sas_token,
    make_user_name,
    parse_sas_token,
    parse_user_name,
    verify_sas_token,
)
from edgeferry.wire.mqtt_session import Connection, matches

UNKNOWN_MAX_BYTES = 2_000  # small, so that short streams reach it; the hub's own is 16 KB
KNOWN_MAX_BYTES = 4_000
HEADER_MAX_BYTES = 5
OWN_ERRORS = (ProtocolViolated, LimitExceeded, HubRefused)
KEY = "AAECAwQFBgcICQoLDA0ODw=="
HOST, DEVICE, MODULE = "hub.example", "d", "m"
WILL = bytes.fromhex("10 18 0004 4d515454 04 2e 003c 0001 64 0001 77 0006 6c6173742121")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stream ended: the packets that were taken, and the error or the orderly end if there was one."""

    packets: tuple[mqtt.Packet, ...]
    error: Exception | None = None
    is_over: bool = False
    unfinished_bytes: int = 0


Reader = Callable[[Sequence[bytes]], Outcome]


# --- conversations ----------------------------------------------------------------------------------------------------
def make_connect(module: str | None = MODULE, *, key: str = KEY, expires_at: int = 2_000_000_000) -> mqtt.Connect:
    """A CONNECT as SDKs send it."""
    user = make_user_name(HOST, DEVICE, module, client_type="py-azure-iot-device/2.14.0 (Linux; x86_64)")
    resource = f"{HOST}/devices/{DEVICE}" + (f"/modules/{module}" if module else "")
    token = make_sas_token(resource, key, expires_at)
    client_id = f"{DEVICE}/{module}" if module else DEVICE
    return mqtt.Connect(client_id, clean_session=False, keepalive_s=60, user_name=user, password=token.encode())


def _up(message: topics.Uplink, module: str | None, payload: bytes, packet_id: int | None) -> mqtt.Publish:
    topic = topics.make_uplink_topic(message, device_id=DEVICE, module_id=module)
    return mqtt.Publish(topic, payload, 1 if packet_id else 0, packet_id)


def _down(
    message: topics.Downlink, module: str | None, payload: bytes = b"{}", packet_id: int | None = None
) -> mqtt.Publish:
    topic = topics.make_downlink_topic(message, device_id=DEVICE, module_id=module)
    return mqtt.Publish(topic, payload, 1 if packet_id else 0, packet_id)


def make_talk(module: str | None) -> list[mqtt.Packet]:
    """What an identity sends after its CONNECT: every type of packet a client has, every topic."""
    bag = {"$.on": "out", "$.ct": "application/json", "$.ce": "utf-8", "a b": "ü/1", "alone": None, "empty": ""}
    filters = [topics.TWIN_RESPONSE_FILTER, topics.DESIRED_PATCH_FILTER, topics.METHOD_FILTER]
    filters += [topics.get_input_filter(DEVICE, module)] if module else [f"devices/{DEVICE}/messages/devicebound/#"]
    return [
        mqtt.Subscribe(1, tuple((name, 1) for name in filters)),
        _up(topics.TwinGet("1f3a"), module, b" ", 2),
        _up(topics.ReportedPatch("2"), module, b'{"a":{"b":[1,null]}}', 3),
        _up(topics.MethodAnswer("3", 200), module, b'{"ok":true}', 4),
        _up(topics.MethodAnswer("4", -1), module, b"", None),
        _up(topics.Telemetry("out", bag), module, b'{"t":21.5}', 5),
        _up(topics.Telemetry(None, {}), module, b"\xff\x00plain", None),
        replace(_up(topics.Telemetry(None, {"k": "v"}), module, b"again", 6), dup=True, retain=True),
        mqtt.PubAck(7),
        mqtt.PingReq(),
        mqtt.Unsubscribe(8, (filters[0], filters[3])),
        mqtt.Disconnect(),
    ]


def make_answers(module: str | None) -> list[mqtt.Packet]:
    """What a hub sends: every type of packet a server has, every topic."""
    return [
        mqtt.ConnAck(0, True),
        mqtt.SubAck(1, (0, 1, mqtt.SUBACK_REFUSED)),
        mqtt.UnsubAck(8),
        mqtt.PubAck(5),
        mqtt.PingResp(),
        _down(topics.TwinResponse("1f3a", 200), module, b'{"desired":{"$version":1},"reported":{"$version":1}}'),
        _down(topics.TwinResponse("2", 204, 17), module, b""),
        _down(topics.DesiredPatch(18), module, b'{"a":1,"$version":18}'),
        _down(topics.DesiredPatch(None), module),
        _down(topics.MethodCall("reset it", "9"), module, b"null"),
        _down(topics.InputMessage("in/1", {"$.cdid": "d", "$.mid": "x y", "alone": None}), module or MODULE, b"x", 9),
        mqtt.ConnAck(5),
    ]


TALKS = {module: make_talk(module) for module in (None, MODULE)}
ANSWERS = make_answers(MODULE)
CONNECTS = {module: make_connect(module) for module in (None, MODULE)}
PIECES = {module: [mqtt.encode(packet) for packet in talk] for module, talk in TALKS.items()}
ANSWER_PIECES = [mqtt.encode(packet) for packet in ANSWERS]
ALL_PIECES = [WILL, *map(mqtt.encode, CONNECTS.values()), *PIECES[None], *PIECES[MODULE], *ANSWER_PIECES]


# --- breaking them ----------------------------------------------------------------------------------------------------
SPICE = (
    b"\xff" * 4,
    b"\0\0",
    b"\x80\x80\x80\x80\x01",
    b"\x7f",
    b"\xff\xff\xff\x7f",
    b"\x30\x02\0\0",
    b"%00",
    b"%",
    b"&&=",
)
WORDS = (
    "%",
    "%zz",
    "%ff",
    "&",
    "=",
    "/",
    "?",
    "$rid=",
    "&sr=",
    "-",
    "٣",
    "\ud7ff",
    "~" * 300,
    "1" * 19,
    "/../",
    "se=1",
    " ",
)


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    """Flips, puts in, cuts, doubles; one to four times."""
    broken = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at, kind = int(dice.random() * (len(broken) + 1)), int(dice.random() * 6)
        if kind == 0 and at < len(broken):
            broken[at] = int(dice.random() * 256)
        elif kind == 1 and at < len(broken):
            broken[at] ^= 1 << int(dice.random() * 8)
        elif kind == 2:
            broken[at : at + int(dice.random() * 5)] = dice.choice(SPICE)
        elif kind == 3:
            del broken[at : at + 1 + int(dice.random() * 16)]
        elif kind == 4:
            broken[at:at] = broken[at : at + 1 + int(dice.random() * 32)]
        elif dice.random() < 0.2:
            del broken[at:]
    return bytes(broken)


def mutate_text(text: str, dice: random.Random) -> str:
    """Puts a word in or takes some characters out: the lengths of the packet around it stay true."""
    at = int(dice.random() * (len(text) + 1))
    return text[:at] + dice.choice(WORDS) + text[at + int(dice.random() * 4) :]


def mutate_packet(packet: mqtt.Packet, dice: random.Random) -> bytes:
    """A well-formed packet whose texts are not: what lies behind the codec is reached."""
    if isinstance(packet, mqtt.Publish):
        return mqtt.encode(replace(packet, topic=mutate_text(packet.topic, dice)))
    if isinstance(packet, mqtt.Connect) and dice.random() < 0.5:
        return mqtt.encode(replace(packet, user_name=mutate_text(packet.user_name or "", dice)))
    if isinstance(packet, mqtt.Connect):
        word = (packet.password or b"").decode()
        return mqtt.encode(replace(packet, password=mutate_text(word, dice).encode()))
    if isinstance(packet, mqtt.Subscribe):
        return mqtt.encode(replace(packet, filters=((mutate_text(packet.filters[0][0], dice), 1), *packet.filters[1:])))
    return mqtt.encode(packet)


def make_body(dice: random.Random, module: str | None) -> bytes:
    """Some packets that may follow a CONNECT; mostly one of them is broken, spliced with another, or out of place."""
    pieces = PIECES[module] if dice.random() < 0.8 else ALL_PIECES
    body, kind = [dice.choice(pieces) for _ in range(1 + int(dice.random() * 4))], dice.random()
    if kind < 0.2:
        body.append(mutate_packet(dice.choice(TALKS[module]), dice))
    elif kind < 0.6:
        body[-1] = mutate_bytes(body[-1], dice)
    elif kind < 0.65:
        other = dice.choice(ALL_PIECES)
        body[-1] = body[-1][: int(dice.random() * len(body[-1]))] + other[int(dice.random() * len(other)) :]
    return b"".join(body)


def make_stream(dice: random.Random, connects: Mapping[str | None, mqtt.Connect] = CONNECTS) -> bytes:
    """A short stream: mostly a CONNECT and what follows it, broken somewhere; at times raw random."""
    module, kind = MODULE if dice.random() < 0.5 else None, dice.random()
    if kind < 0.05:
        return dice.randbytes(int(dice.random() * 120))
    body = make_body(dice, module)
    if kind < 0.12:
        return body
    if kind < 0.25:
        return mutate_packet(connects[module], dice) + body
    stream = mqtt.encode(connects[module]) + body
    return mutate_bytes(stream, dice) if kind < 0.35 else stream


def cut(stream: bytes, dice: random.Random) -> list[bytes]:
    """Chunks as a network could hand them over: whole, halves, some, or byte by byte."""
    kind = dice.random()
    if kind < 0.3:
        return [stream]
    if kind < 0.34:
        return [stream[at : at + 1] for at in range(len(stream))]
    chunks, at = [], 0
    while at < len(stream):
        end = at + 1 + int(dice.random() * (len(stream) if kind < 0.6 else 60))
        chunks.append(stream[at:end])
        at = end
    return chunks


# --- reading them -----------------------------------------------------------------------------------------------------
def feed(decoder: mqtt.PacketDecoder, chunk: bytes) -> list[mqtt.Packet]:
    """`decoder.feed`, and a look at what it holds afterwards, refused or not."""
    try:
        packets = decoder.feed(chunk)
    except OWN_ERRORS:
        assert decoder.buffered_bytes <= decoder.limit_bytes + HEADER_MAX_BYTES + len(chunk)
        raise
    assert decoder.buffered_bytes < decoder.limit_bytes + HEADER_MAX_BYTES
    return packets


def decode(chunks: Iterable[bytes], limit_bytes: int = KNOWN_MAX_BYTES) -> Outcome:
    """The codec alone."""
    decoder, packets = mqtt.PacketDecoder(limit_bytes), list[mqtt.Packet]()
    try:
        for chunk in chunks:
            packets += feed(decoder, chunk)
    except OWN_ERRORS as error:
        return Outcome(tuple(packets), error, is_over=True)
    return Outcome(tuple(packets), None, False, decoder.buffered_bytes)


def read_as_hub(
    chunks: Iterable[bytes], *, unknown_max_bytes: int = UNKNOWN_MAX_BYTES, known_max_bytes: int = KNOWN_MAX_BYTES
) -> Outcome:
    """Decoder, order, then names, tokens and topics, as the hub does it."""
    decoder, order, link = mqtt.PacketDecoder(unknown_max_bytes), Connection(0.0), _Link()
    done: list[mqtt.Packet] = []
    try:
        for number, chunk in enumerate(chunks):
            packets = feed(decoder, chunk)
            for packet in packets:
                order.receive(packet, now=float(number))
            for packet in packets:
                link.take(packet)
                done.append(packet)
                if isinstance(packet, mqtt.Disconnect):
                    return Outcome(tuple(done), None, is_over=True)
            decoder.limit_bytes = known_max_bytes if link.identity else unknown_max_bytes
        assert order.get_deadline() > order.heard_at
    except OWN_ERRORS as error:
        return Outcome(tuple(done), error, is_over=True)
    return Outcome(tuple(done), None, False, decoder.buffered_bytes)


def read_as_device(chunks: Iterable[bytes]) -> Outcome:
    """A hostile hub, read by the codec and the topics that go down."""
    outcome, read = decode(chunks), list[mqtt.Packet]()
    try:
        for packet in outcome.packets:
            if isinstance(packet, mqtt.Publish):
                topics.parse_downlink(packet.topic, device_id=DEVICE, module_id=MODULE)
            read.append(packet)
    except OWN_ERRORS as error:
        return Outcome(tuple(read), error, is_over=True)
    return outcome


def require_same_in_any_cut(stream: bytes, chunks: Sequence[bytes]) -> None:
    """How a stream is cut changes nothing but this: what comes in one chunk with a violation is not taken any more."""
    whole, cut_up, slowly = decode([stream]), decode(chunks), decode(stream[at : at + 1] for at in range(len(stream)))
    assert str(whole.error) == str(cut_up.error) == str(slowly.error)
    assert type(whole.error) is type(cut_up.error) is type(slowly.error)
    assert cut_up.packets == slowly.packets[: len(cut_up.packets)]
    if whole.error is None:
        assert whole == cut_up == slowly
    again = decode([b"".join(map(mqtt.encode, slowly.packets))])
    assert again.error is None and again.packets == slowly.packets and not again.unfinished_bytes


class _Link:
    """What hub/device_link.py does with a packet, as far as wire/ goes."""

    def __init__(self) -> None:
        self.identity: tuple[str, str | None] | None = None

    def take(self, packet: mqtt.Packet) -> None:
        if isinstance(packet, mqtt.Connect):
            self._connect(packet)
        elif self.identity is not None:
            device_id, module_id = self.identity
            if isinstance(packet, mqtt.Publish):
                topics.parse_uplink(packet.topic, device_id=device_id, module_id=module_id)
            elif isinstance(packet, mqtt.Subscribe):
                for name, _ in packet.filters:
                    topics.is_known_filter(name, device_id=device_id, module_id=module_id)
                    matches(name, "$iothub/twin/res/200/?$rid=1")

    def _connect(self, connect: mqtt.Connect) -> None:
        if connect.level != 4:
            raise ProtocolViolated("expected MQTT level 4")
        user = parse_user_name(connect.user_name or "")
        token = parse_sas_token((connect.password or b"").decode("utf-8", "replace"))
        self.identity = (user.device_id, user.module_id)
        try:
            verify_sas_token(token, resource=user.resource, keys=(KEY,), now=0.0)
        except HubRefused:
            return
