"""Sessions: order of packets, redelivery, packet ids, keep-alive, filters."""

from __future__ import annotations

import pytest

from edgeferry.errors import ProtocolViolated
from edgeferry.wire import mqtt_packets as mqtt
from edgeferry.wire.mqtt_session import INFLIGHT_MAX, Connection, Session, get_silence_limit_s, matches

CONNECT = mqtt.Connect("d", keepalive_s=60)
MESSAGE = mqtt.Publish("t", b"x")


def test_connect_comes_first_and_once() -> None:
    with pytest.raises(ProtocolViolated):
        Connection(0.0).receive(mqtt.PingReq(), now=1.0)
    connection = Connection(0.0)
    connection.receive(CONNECT, now=1.0)
    connection.receive(mqtt.PingReq(), now=2.0)
    with pytest.raises(ProtocolViolated):
        connection.receive(CONNECT, now=3.0)


@pytest.mark.parametrize("packet", [mqtt.ConnAck(0), mqtt.SubAck(1, (0,)), mqtt.UnsubAck(1), mqtt.PingResp()])
def test_a_server_refuses_what_only_servers_send(packet: mqtt.Packet) -> None:
    connection = Connection(0.0)
    connection.receive(CONNECT, now=0.0)
    with pytest.raises(ProtocolViolated):
        connection.receive(packet, now=1.0)


def test_silence_ends_a_connection_after_one_and_a_half_keepalives() -> None:
    connection = Connection(10.0)
    assert connection.get_deadline() == 40.0
    connection.receive(CONNECT, now=20.0)
    assert connection.get_deadline() == 110.0
    connection.receive(mqtt.PingReq(), now=50.0)
    assert connection.get_deadline() == 140.0
    assert (get_silence_limit_s(0), get_silence_limit_s(1740)) == (1767.0, 1767.0)


def test_a_delivery_sent_again_keeps_its_id_and_says_so() -> None:
    session = Session()
    first, second = session.deliver("a", MESSAGE), session.deliver("b", MESSAGE)
    assert (first.packet_id, first.qos, first.dup) == (1, 1, False) and second.packet_id == 2
    again = session.deliver("a", MESSAGE)
    assert (again.packet_id, again.dup) == (1, True)
    assert session.acknowledge(1) == "a" and session.acknowledge(1) is None
    assert list(session.inflight) == ["b"]


def test_packet_ids_wrap_around_those_in_use() -> None:
    session = Session()
    session.deliver("kept", MESSAGE)
    for n in range(0xFFFF):
        packet_id = session.deliver(n, MESSAGE).packet_id
        assert packet_id is not None and 1 < packet_id <= 0xFFFF
        assert session.acknowledge(packet_id) == n


def test_the_window_fills_and_opens() -> None:
    session = Session()
    for n in range(INFLIGHT_MAX):
        assert session.has_room
        session.deliver(n, MESSAGE)
    assert not session.has_room
    session.forget(3)
    assert session.has_room


@pytest.mark.parametrize(
    ("topic_filter", "topic", "fits"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("+/b", "a/b", True),
        ("#", "$iothub/x", False),
        ("$iothub/twin/res/#", "$iothub/twin/res/200/?$rid=1", True),
        ("devices/d/modules/m/inputs/#", "devices/d/modules/m2/inputs/x", False),
    ],
)
def test_a_filter_takes_just_its_topics(topic_filter: str, topic: str, fits: bool) -> None:
    assert matches(topic_filter, topic) is fits


def test_the_highest_granted_qos_counts() -> None:
    session = Session({"a/#": 0, "a/b": 1})
    assert (session.get_qos("a/b"), session.get_qos("a/c"), session.get_qos("b")) == (1, 0, None)
