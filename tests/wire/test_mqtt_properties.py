"""MQTT packets, as properties: any packet, any cut, any damage; bounded memory; time that grows with the bytes only."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Callable
from itertools import accumulate
from typing import get_args

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from edgeferry.errors import LimitExceeded
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.iothub_auth import parse_sas_token
from edgeferry.wire.iothub_topics import decode_bag
from edgeferry.wire.mqtt_packets import PacketDecoder, encode
from hostile_mqtt import ALL_PIECES, OWN_ERRORS, decode, feed, make_stream, read_as_hub, require_same_in_any_cut
from wire.mqtt_strategies import CUTS, DAMAGES, PACKETS, cut, damage

TIMES_LONGER = 4
RATIO_MAX = 6.0  # CPU time for four times as many bytes; 16 if it were quadratic
TRIES = 5


@given(st.lists(PACKETS, max_size=8), CUTS)
@settings(max_examples=300)
def test_any_packets_survive_their_bytes_in_any_cut(packets: list[mqtt.Packet], sizes: list[int]) -> None:
    outcome = decode(cut(b"".join(map(encode, packets)), sizes))
    assert outcome.error is None and outcome.unfinished_bytes == 0
    assert outcome.packets == tuple(packets)


def test_the_pieces_to_break_hold_every_type_of_packet() -> None:
    outcome = decode(ALL_PIECES)
    assert outcome.error is None
    assert {type(packet) for packet in outcome.packets} == set(get_args(mqtt.Packet))


@given(st.lists(PACKETS, min_size=1, max_size=5), st.data())
@settings(max_examples=200)
def test_any_prefix_gives_the_packets_that_are_whole(packets: list[mqtt.Packet], data: st.DataObject) -> None:
    ends = list(accumulate(len(encode(packet)) for packet in packets))
    end = data.draw(st.integers(0, ends[-1]))
    outcome = decode([b"".join(map(encode, packets))[:end]])
    whole = [here for here in ends if here <= end]
    assert outcome.error is None and outcome.packets == tuple(packets[: len(whole)])
    assert outcome.unfinished_bytes == end - max(whole, default=0)


@given(st.lists(PACKETS, min_size=1, max_size=5), DAMAGES, CUTS)
@settings(max_examples=500)
def test_any_damage_gives_packets_or_a_violation_whatever_the_cut(
    packets: list[mqtt.Packet], damages: list[tuple[int, int, bytes]], sizes: list[int]
) -> None:
    stream = damage(b"".join(map(encode, packets)), damages)
    require_same_in_any_cut(stream, cut(stream, sizes))
    event(type(decode([stream]).error).__name__)


@given(st.binary(max_size=300), CUTS)
@settings(max_examples=300)
def test_any_bytes_at_all_give_packets_or_a_violation(stream: bytes, sizes: list[int]) -> None:
    require_same_in_any_cut(stream, cut(stream, sizes))
    read_as_hub(cut(stream, sizes))


@given(st.integers(0, 1 << 48), CUTS)
@settings(max_examples=300)
def test_broken_conversations_end_in_our_own_errors(seed: int, sizes: list[int]) -> None:
    stream = make_stream(random.Random(seed))
    require_same_in_any_cut(stream, cut(stream, sizes))
    read_as_hub(cut(stream, sizes))


@given(st.integers(0, 40), st.lists(st.binary(max_size=60), max_size=20))
@settings(max_examples=200)
def test_a_decoder_holds_no_more_than_its_limit_and_one_header(limit_bytes: int, chunks: list[bytes]) -> None:
    decoder = PacketDecoder(limit_bytes)
    try:
        for chunk in chunks:
            feed(decoder, chunk)
    except OWN_ERRORS as error:
        event(type(error).__name__)


# --- time: it grows with the bytes, not with their square -------------------------------------------------------------
def feed_bytewise(count: int) -> None:
    """A long packet, a byte at a time: each feed must be done without looking at what lies there already."""
    decoder, stream = PacketDecoder(1 << 20), encode(mqtt.Publish("t", bytes(count)))
    for at in range(len(stream)):
        decoder.feed(stream[at : at + 1])
    assert decoder.buffered_bytes == 0


def feed_at_once(piece: bytes) -> Callable[[int], None]:
    def run(count: int) -> None:
        assert len(PacketDecoder().feed(piece * count)) == count

    return run


def feed_out_of_step(count: int) -> None:
    """Each chunk ends one packet and begins the next: what is done must be dropped without moving the rest."""
    decoder, stream = PacketDecoder(), encode(mqtt.Publish("t", bytes(50))) * count
    found = sum(len(decoder.feed(stream[at : at + 37])) for at in range(0, len(stream), 37))
    assert found == count


def feed_long(make: Callable[[int], mqtt.Packet]) -> Callable[[int], None]:
    def run(count: int) -> None:
        decoder = PacketDecoder(1 << 24)
        for _ in range(20):
            decoder.feed(encode(make(count)))

    return run


def read_pairs(count: int) -> None:
    decode_bag("&".join(f"k{number}=%41" for number in range(count)))


def read_escapes(count: int) -> None:
    decode_bag("k=" + "%zz%C3" * count)


LINEAR = {
    "a byte at a time": (feed_bytewise, 75_000),
    "many small packets at once": (feed_at_once(encode(mqtt.PingReq())), 20_000),
    "many messages at once": (feed_at_once(encode(mqtt.Publish("t", b"x" * 20, 1, 7))), 10_000),
    "chunks out of step": (feed_out_of_step, 10_000),
    "many filters of many levels": (feed_long(lambda n: mqtt.Unsubscribe(1, ("/" * n,) * 50)), 1_000),
    "a long filter": (feed_long(lambda n: mqtt.Subscribe(1, (("/" * n, 0),))), 15_000),
    "a long topic": (feed_long(lambda n: mqtt.Publish("ü" * n, bytes(n))), 7_500),
    "a bag of many pairs": (read_pairs, 10_000),
    "a bag of many escapes": (read_escapes, 20_000),
}


def measure_ratio(work: Callable[[int], None], count: int) -> float:
    """CPU time of four times the work over that of the work, best of some tries; the collector, which walks over all
    that this process holds, stays out of it."""

    def spend(size: int) -> float:
        begun = time.process_time()
        work(size)
        return time.process_time() - begun

    gc.collect()
    gc.disable()
    try:
        short = min(spend(count) for _ in range(TRIES))
        return min(spend(TIMES_LONGER * count) for _ in range(TRIES)) / short
    finally:
        gc.enable()


@pytest.mark.parametrize(("work", "count"), LINEAR.values(), ids=LINEAR.keys())
def test_time_grows_with_the_bytes(work: Callable[[int], None], count: int) -> None:
    assert measure_ratio(work, count) < RATIO_MAX


def test_the_measure_sees_what_grows_with_the_square() -> None:
    def copy_always(count: int) -> None:
        held = b""
        for _ in range(count):
            held = bytes([*held, 0])

    assert measure_ratio(copy_always, 400) > RATIO_MAX


# --- memory: what one packet becomes ----------------------------------------------------------------------------------
HUNGRY: dict[str, mqtt.Packet] = {
    "a message": mqtt.Publish("t", bytes(300_000)),
    "a topic": mqtt.Publish("t" * 65_000),
    "short filters": mqtt.Subscribe(1, (("ab", 0),) * 60_000),
    "filters to forget": mqtt.Unsubscribe(1, ("ab",) * 75_000),
    "long filters": mqtt.Subscribe(1, (("/" * 65_000, 0),) * 5),
    "codes": mqtt.SubAck(1, (0,) * 300_000),
    "a client": mqtt.Connect("c" * 65_000, user_name="u" * 65_000, password=bytes(65_000)),
}


@pytest.mark.parametrize("packet", HUNGRY.values(), ids=HUNGRY.keys())
def test_a_packet_in_memory_is_no_larger_than_on_the_wire(packet: mqtt.Packet) -> None:
    stream, decoder = encode(packet), PacketDecoder()
    tracemalloc.start()
    try:
        packets = decoder.feed(stream)
    except LimitExceeded:
        packets = []
    finally:
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert packets in ([], [packet])
    assert kept < len(stream) * 1.1 and peak < len(stream) * 6, f"{len(stream)} bytes became {kept}, at most {peak}"


@pytest.mark.parametrize("length", [300_000, 268_435_455])
def test_what_a_header_promises_is_not_allocated(length: int) -> None:
    head = bytearray(b"\x30")
    while length > 0x7F:
        head.append(0x80 | (length & 0x7F))
        length >>= 7
    tracemalloc.start()
    try:
        PacketDecoder().feed(bytes(head) + bytes([length]) + b"\0\1t")
    except LimitExceeded:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8_000


@pytest.mark.parametrize("text", ["SharedAccessSignature " + "&" * 5_000, "SharedAccessSignature " + "a" * (1 << 20)])
def test_a_long_token_is_refused(text: str) -> None:
    with pytest.raises(OWN_ERRORS):
        parse_sas_token(text)
