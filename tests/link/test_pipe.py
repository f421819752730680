"""One direction of a link, without a link: what holds for any packets at any times."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from link.pipe import TCP, UDP, Flow, Pipe, read_head
from link.profiles import Profile

START_S = 1000.0
MOMENTS = st.lists(st.tuples(st.floats(0, 0.5), st.integers(40, 1500)), min_size=1, max_size=60)
"""Seconds since the packet before, and IP bytes."""


def make_tcp(size_bytes: int, *, sequence: int = 0, flags: int = 0x10) -> bytes:
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size_bytes, 0, 0, 64, TCP, 0, bytes(4), bytes(4))
    tcp = struct.pack("!HHIIBBHHH", 40001, 443, sequence % (1 << 32), 0, 0x50, flags, 0, 0, 0)
    return (ip + tcp).ljust(size_bytes, b"\0")


@given(MOMENTS, st.sampled_from([0.0, 0.3]), st.sampled_from([0.05, 10.0]))
def test_every_packet_arrives_is_dropped_or_is_lost(
    moments: list[tuple[float, int]], loss: float, queue_s: float
) -> None:
    pipe, now = Pipe(Profile("any", 100_000, 0.4, loss=loss, queue_s=queue_s), 7), START_S
    for pause_s, size_bytes in moments:
        now += pause_s
        packet = make_tcp(size_bytes)
        due_at = pipe.put(packet, now)
        if due_at is not None:
            pipe.take(packet, due_at)
    [flow] = pipe.flows.values()
    ends = (flow.arrived, pipe.dropped, pipe.lost)
    for name in ("packets", "ip_bytes", "payload_bytes"):
        assert getattr(flow.entered, name) == sum(getattr(end, name) for end in ends)
    assert flow.entered.ip_bytes == sum(size_bytes for _, size_bytes in moments)


@given(MOMENTS)
def test_packets_keep_their_order_their_delay_and_the_rate(moments: list[tuple[float, int]]) -> None:
    profile, now, before = Profile("any", 100_000, 0.4, queue_s=100), START_S, 0.0
    pipe = Pipe(profile, 7)
    for pause_s, size_bytes in moments:
        now += pause_s
        due_at = pipe.put(make_tcp(size_bytes), now)
        assert due_at is not None
        sending_s = size_bytes * 8 / profile.bps
        assert abs(due_at - max(before + sending_s, now + sending_s + 0.2)) < 1e-6
        before = due_at


def test_a_packet_waits_no_longer_than_the_queue_is() -> None:
    pipe = Pipe(Profile("any", 8_000, 0.0, queue_s=3.0), 7)
    due = [pipe.put(make_tcp(1000), START_S) for _ in range(10)]
    assert due[:4] == [START_S + second for second in (1, 2, 3, 4)]
    assert due[4:] == [None] * 6
    assert pipe.put(make_tcp(1000), START_S + 1.0) == START_S + 5


def test_a_cut_empties_the_queue_and_loses_what_is_sent() -> None:
    pipe = Pipe(Profile("any", 8_000, 0.0, queue_s=3.0), 7)
    pipe.put(make_tcp(1000), START_S)
    pipe.cut()
    assert pipe.put(make_tcp(1000), START_S) is None
    pipe.restore()
    assert pipe.put(make_tcp(1000), START_S + 0.5) == START_S + 1.5


def test_what_is_sent_twice_does_not_move_the_stream_also_where_its_numbers_wrap() -> None:
    pipe, first = Pipe(Profile("any", 8_000, 0.0), 7), (1 << 32) - 500
    for now, packet in enumerate(
        [
            make_tcp(40, sequence=first - 1, flags=0x02),
            make_tcp(1040, sequence=first),
            make_tcp(1040, sequence=first),
            make_tcp(40, sequence=first + 1000),
            make_tcp(540, sequence=first + 1000),
        ]
    ):
        pipe.take(packet, now)
    [flow] = pipe.flows.values()
    assert (flow.stream_bytes, flow.arrived.payload_bytes) == (1500, 2500)
    assert flow.trace == [(1, 1000), (4, 1500)]


def test_heads_are_read_with_their_options() -> None:
    packet = bytearray(make_tcp(140, sequence=9))
    packet[32] = 0x80  # 12 bytes of TCP options
    assert read_head(bytes(packet)) == (Flow(TCP, 40001, 443), 88, 9, False)
    packet[9] = UDP
    assert read_head(bytes(packet))[:2] == (Flow(UDP, 40001, 443), 112)
    packet[9] = 1
    assert read_head(bytes(packet))[:2] == (Flow(1, 0, 0), 120)
