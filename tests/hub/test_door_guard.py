"""What the doors allow, without a socket: a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.hub import door_guard
from edgeferry.hub.door_guard import ConnectionGate, DoorCounters, DoorLimits, GuessingBrake, PacketRates
from edgeferry.transport.accept_loop import get_address


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=60))
def test_the_gate_never_lets_in_more_than_its_limits_and_forgets_who_left(steps: list[tuple[bool, str]]) -> None:
    counters = DoorCounters()
    gate = ConnectionGate(DoorLimits(connections=4, connections_per_address=2), counters)
    inside: list[str] = []
    for comes, address in steps:
        if comes:
            fits = len(inside) < 4 and inside.count(address) < 2
            assert gate.enter(address) == fits
            inside += [address] * fits
        elif address in inside:
            gate.leave(address)
            inside.remove(address)
        assert counters.connections == len(inside)
    refused = counters.refused_in_all + counters.refused_by_address
    assert counters.accepted + refused == sum(comes for comes, _ in steps)
    for address in inside:
        gate.leave(address)
    assert not gate._by_address


def test_a_gate_without_a_limit_per_address_has_one_in_all() -> None:
    gate = ConnectionGate(DoorLimits(connections=3, connections_per_address=0), DoorCounters())
    assert [gate.enter("a") for _ in range(4)] == [True, True, True, False]


def test_a_shut_gate_lets_nobody_in() -> None:
    gate = ConnectionGate(DoorLimits(), DoorCounters())
    gate.shut()
    assert not gate.enter("a")


@given(st.lists(st.floats(0, 0.02), min_size=1, max_size=400))
def test_no_identity_gets_more_packets_done_than_its_rate_and_one_burst(pauses: list[float]) -> None:
    rates, now = PacketRates(DoorLimits(packets_per_s=100, packets_burst=20)), 1000.0
    for count, pause in enumerate(pauses, start=1):
        now += pause + rates.take("d/a", now + pause)
        assert count <= 20 + (now - 1000.0) * 100 + 1e-6


def test_one_identity_does_not_slow_another() -> None:
    rates = PacketRates(DoorLimits(packets_per_s=1, packets_burst=1))
    assert rates.take("d/a", 0.0) == 0.0 < rates.take("d/a", 0.0)
    assert rates.take("d/b", 0.0) == 0.0


def test_full_buckets_are_forgotten_and_others_not() -> None:
    rates = PacketRates(DoorLimits(packets_per_s=1, packets_burst=10))
    for number in range(100):
        rates.take(f"d/{number}", 0.0)
    assert len(rates) == 100
    for number in range(100):
        rates.take("d/loud", 100.0 + number / 1000)
    assert len(rates) == 1


def test_buckets_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_guard, "RATES_MAX", 50)
    rates = PacketRates(DoorLimits(packets_per_s=0.001, packets_burst=10))
    for number in range(500):
        rates.take(f"d/{number}", 0.0)
    assert len(rates) <= 51


def test_a_rate_of_zero_is_no_limit() -> None:
    rates = PacketRates(DoorLimits(packets_per_s=0))
    assert sum(rates.take("d/a", 0.0) for _ in range(5000)) == 0.0


def test_refusals_cost_nothing_until_there_are_many_within_a_minute_then_more_and_more() -> None:
    brake = GuessingBrake()
    assert [brake.note("a", 0.0) for _ in range(20)] == [0.0] * 20
    delays = [brake.note("a", 1.0) for _ in range(30)]
    assert delays == sorted(delays) and 0 < delays[0] < delays[1] and delays[-1] == 5.0
    assert brake.note("b", 1.0) == 0.0
    assert brake.note("a", 61.5) == 0.0


def test_addresses_that_were_refused_are_forgotten_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_guard, "ADDRESSES_MAX", 50)
    brake = GuessingBrake()
    for number in range(500):
        brake.note(str(number), 0.0)
    assert len(brake) <= 51
    for _ in range(60):
        brake.note("a", 61.0)
    assert len(brake) == 1


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("192.0.2.7", 1234), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1234, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1234, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1234, 0, 2), "fe80::/64"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_client_of_ipv6_is_counted_by_its_network(peer: object, address: str) -> None:
    assert get_address(peer) == address
