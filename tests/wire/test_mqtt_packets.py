"""MQTT packets: vectors, round trips, any cut of the stream, and 2,000 streams of rubbish."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.errors import LimitExceeded, ProtocolError, ProtocolViolated
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.mqtt_packets import PacketDecoder, encode

PACKETS: list[mqtt.Packet] = [
    mqtt.Connect("d/m", False, 60, "h/d/m/?api-version=1", b"secret"),
    mqtt.Connect("", True, 0),
    mqtt.ConnAck(0, True),
    mqtt.ConnAck(5),
    mqtt.Publish("$iothub/twin/GET/?$rid=1", b" ", 1, 7),
    mqtt.Publish("a", b"x" * 300, 1, 65535, True),
    mqtt.Publish("ä/b", b"", retain=True),
    mqtt.PubAck(1),
    mqtt.Subscribe(2, (("$iothub/twin/res/#", 0), ("+/x", 1), ("#", 2))),
    mqtt.SubAck(2, (0, 1, 0x80)),
    mqtt.Unsubscribe(3, ("a/+/b",)),
    mqtt.UnsubAck(3),
    mqtt.PingReq(),
    mqtt.PingResp(),
    mqtt.Disconnect(),
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), max_size=20)


@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: type(packet).__name__)
def test_a_packet_survives_its_bytes(packet: mqtt.Packet) -> None:
    assert PacketDecoder().feed(encode(packet)) == [packet]


def test_a_packet_written_by_hand_is_read() -> None:
    data = bytes.fromhex("10 11 0004 4d515454 04 02 003c 0005 68656c6c6f")
    assert PacketDecoder().feed(data) == [mqtt.Connect("hello", True, 60)]
    assert encode(mqtt.Publish("a", b"b", 1, 10)) == bytes.fromhex("32 06 0001 61 000a 62")


@given(st.lists(st.integers(1, 40), max_size=60), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_stream_may_be_cut_anywhere(cuts: list[int], shuffle: random.Random) -> None:
    packets = shuffle.sample(PACKETS, len(PACKETS))
    stream, decoder, found = b"".join(map(encode, packets)), PacketDecoder(), []
    for cut in cuts:
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert found + decoder.feed(stream) == packets
    assert decoder.buffered_bytes == 0


@given(TEXTS.filter(bool), st.binary(max_size=200), st.none() | st.integers(1, 65535), st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_message_survives_its_bytes(topic: str, payload: bytes, packet_id: int | None, retain: bool) -> None:
    packet = mqtt.Publish(topic, payload, 1 if packet_id else 0, packet_id, False, retain)
    assert PacketDecoder().feed(encode(packet)) == [packet]


@pytest.mark.parametrize(
    "data",
    [
        "00 00",  # reserved type
        "f0 00",
        "50 02 0001",  # QoS 2
        "34 05 0001 61 0001",
        "36 05 0001 61 0001",
        "38 03 0001 61",  # DUP at QoS 0
        "30 03 0001 23",  # a wildcard in a topic
        "30 02 0000",  # no topic
        "30 03 0002 61",  # cut inside
        "30 03 0001 00",  # U+0000
        "30 03 0001 ff",  # not UTF-8
        "30 05 0003 eda080",  # a surrogate
        "32 05 0001 61 0000",  # packet id 0
        "40 03 0001 00",  # bytes behind the end
        "41 02 0001",  # flags
        "80 06 0001 0001 61 00",
        "82 02 0001",  # no filter
        "82 06 0001 0001 61 03",
        "82 08 0001 0003 612f2b62 00",
        "82 08 0001 0003 232f61 00",
        "a2 02 0001",
        "90 02 0001",
        "90 03 0001 07",
        "20 02 0200",
        "20 02 0105",
        "c0 01 00",
        "10 0e 0004 4d515453 04 02 003c 0002 6869",  # another protocol
        "10 0e 0004 4d515454 04 03 003c 0002 6869",  # reserved flag
        "10 0e 0004 4d515454 04 42 003c 0002 6869",  # password without a user
        "10 0e 0004 4d515454 04 0a 003c 0002 6869",  # will QoS without a will
        "c0 ff ff ff ff 01",
    ],
)
def test_a_packet_against_the_standard_is_refused(data: str) -> None:
    with pytest.raises(ProtocolViolated):
        PacketDecoder().feed(bytes.fromhex(data))


def test_a_long_packet_is_refused_at_its_header() -> None:
    decoder = PacketDecoder(limit_bytes=1000)
    assert decoder.feed(b"\x30\xe8\x07") == []
    with pytest.raises(LimitExceeded):
        PacketDecoder(limit_bytes=1000).feed(b"\x30\xe9\x07")


def test_a_string_that_is_too_long_is_not_written() -> None:
    mqtt.encode(mqtt.Publish("t" * 65_535))
    with pytest.raises(LimitExceeded):
        mqtt.encode(mqtt.Publish("t" * 65_536))


def test_a_decoder_never_holds_more_than_one_packet() -> None:
    decoder, stream = PacketDecoder(limit_bytes=1000), encode(mqtt.Publish("t", b"x" * 900)) * 50
    for start in range(0, len(stream), 333):
        decoder.feed(stream[start : start + 333])
        assert decoder.buffered_bytes <= 1005


def mutate(seed: int) -> bytes:
    """Packets with bytes flipped, cut, doubled or put in."""
    dice = random.Random(seed)
    data = bytearray(b"".join(encode(dice.choice(PACKETS)) for _ in range(dice.randint(0, 4))))
    for _ in range(dice.randint(1, 6)):
        at = dice.randint(0, len(data))
        piece = bytes(dice.choices((0, 1, 2, 0x7F, 0x80, 0xFF, dice.randint(0, 255)), k=dice.randint(0, 5)))
        data[at : at + dice.randint(0, 4)] = piece
    return bytes(data)


@pytest.mark.parametrize("block", range(20))
def test_two_thousand_streams_of_rubbish_are_read_or_refused(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        stream, decoder, dice = mutate(seed), PacketDecoder(limit_bytes=2000), random.Random(seed)
        try:
            while stream:
                cut = dice.randint(1, 50)
                for packet in decoder.feed(stream[:cut]):
                    assert PacketDecoder().feed(encode(packet)) == [packet]
                stream = stream[cut:]
                assert decoder.buffered_bytes <= 2005
        except ProtocolError:
            continue
