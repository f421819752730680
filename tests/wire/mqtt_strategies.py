"""Every packet that may be written, every way to cut a stream, and ways to break one."""

from __future__ import annotations

from hypothesis import strategies as st

from edgeferry.wire import mqtt_packets as mqtt

IDS = st.integers(1, 0xFFFF)
NUMBERS = st.integers(0, 0xFFFF)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
LEVELS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#/"), max_size=6)
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(LEVELS | st.just("+"), max_size=4),
    st.sampled_from([("#",), ("+",), ("x",)]),
)
CREDENTIALS = st.none() | st.tuples(TEXTS, st.none() | st.binary(max_size=40))
CONNECTS = st.builds(
    lambda client_id, clean, keepalive_s, known, level: mqtt.Connect(
        client_id, clean, keepalive_s, known[0] if known else None, known[1] if known else None, level
    ),
    TEXTS,
    st.booleans(),
    NUMBERS,
    CREDENTIALS,
    st.integers(0, 255),
)
PUBLISHES = st.builds(
    lambda topic, payload, packet_id, dup, retain: mqtt.Publish(
        topic, payload, 1 if packet_id else 0, packet_id, dup and packet_id is not None, retain
    ),
    TOPICS,
    st.binary(max_size=300),
    st.none() | IDS,
    st.booleans(),
    st.booleans(),
)
FROM_A_CLIENT = (
    PUBLISHES
    | st.builds(mqtt.PubAck, IDS)
    | st.builds(mqtt.Subscribe, IDS, st.lists(st.tuples(FILTERS, st.integers(0, 2)), min_size=1, max_size=4).map(tuple))
    | st.builds(mqtt.Unsubscribe, IDS, st.lists(FILTERS, min_size=1, max_size=4).map(tuple))
    | st.just(mqtt.PingReq())
    | st.just(mqtt.Disconnect())
)
FROM_A_SERVER_ONLY = (
    st.builds(mqtt.ConnAck, st.just(0), st.booleans())
    | st.builds(mqtt.ConnAck, st.integers(1, 255))
    | st.builds(
        mqtt.SubAck, IDS, st.lists(st.sampled_from((0, 1, 2, mqtt.SUBACK_REFUSED)), min_size=1, max_size=4).map(tuple)
    )
    | st.builds(mqtt.UnsubAck, IDS)
    | st.just(mqtt.PingResp())
)
PACKETS = CONNECTS | FROM_A_CLIENT | FROM_A_SERVER_ONLY
CUTS = st.lists(st.integers(1, 60), max_size=60)
DAMAGES = st.lists(
    st.tuples(st.integers(0, 2_000), st.integers(0, 6), st.binary(max_size=6)), min_size=1, max_size=6
)  # at, bytes taken out, bytes put in


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The chunks of these sizes, and the rest."""
    chunks = []
    for size in sizes:
        chunks.append(stream[:size])
        stream = stream[size:]
    return [*chunks, stream]


def damage(stream: bytes, damages: list[tuple[int, int, bytes]]) -> bytes:
    """The stream with each damage done to it, in order."""
    for at, taken, put in damages:
        start = at % (len(stream) + 1)
        stream = stream[:start] + put + stream[start + taken :]
    return stream
