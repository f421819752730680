"""What the coverage-guided fuzzer feeds: one row for each reader of hostile bytes. Needs `edgeferry.wire`, no more.

Rules:
- A target is a row of TARGETS: a name, what reads, and seeds; the tests run every row.
- A reader takes whatever bytes come; whatever it raises is a defect.
- Of an input for streams the first byte says how it is cut, so that the fuzzer may choose the chunks too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import hostile_mqtt as hostile
from edgeferry.errors import ConfigInvalid
from edgeferry.wire import iothub_auth as auth
from edgeferry.wire import iothub_topics as topics
from edgeferry.wire import mqtt_packets as mqtt


@dataclass(frozen=True)
class Target:
    """Something that reads hostile bytes, and bytes to begin with."""

    read: Callable[[bytes], None]
    make_seed: Callable[[random.Random], bytes]


def cut(data: bytes) -> list[bytes]:
    """The rest of the input in chunks of as many bytes as its first byte says; 0 leaves it whole."""
    size = data[0] if data else 0
    return [data[at : at + size] for at in range(1, len(data), size)] if size else [data[1:]]


def read_hub(data: bytes) -> None:
    """A hostile client before the hub."""
    hostile.read_as_hub(cut(data))


def read_cuts(data: bytes) -> None:
    """The codec alone: the same in any cut, and packets that survive their bytes."""
    hostile.require_same_in_any_cut(data[1:], cut(data))


def read_device(data: bytes) -> None:
    """A hostile hub before the device."""
    hostile.read_as_device(cut(data))


def read_texts(data: bytes) -> None:
    """Texts on their own: tokens, names, connection strings, bags."""
    text = data.decode("utf-8", "replace")
    for parse in (auth.parse_sas_token, auth.parse_user_name, auth.parse_connection_string, topics.decode_bag):
        try:
            parse(text)
        except (*hostile.OWN_ERRORS, ConfigInvalid):
            continue


def read_planted(data: bytes) -> None:
    """A defect that no seed meets, to show that one is found and told."""
    if any(isinstance(packet, mqtt.PubAck) and packet.packet_id > 255 for packet in hostile.decode([data]).packets):
        raise IndexError("planted")


def make_text(dice: random.Random) -> bytes:
    connect = hostile.make_connect()
    texts = (
        (connect.password or b"").decode(),
        connect.user_name or "",
        f"HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey={hostile.KEY};GatewayHostName=g",
        "%24.on=out&a%20b=%C3%BC&alone&empty=/",
    )
    return hostile.mutate_text(dice.choice(texts), dice).encode()


def make_client_stream(dice: random.Random) -> bytes:
    return bytes([dice.choice((0, 0, 1, 7, 60))]) + hostile.make_stream(dice)


def make_hub_stream(dice: random.Random) -> bytes:
    pieces = dice.choices(hostile.ANSWER_PIECES, k=3)
    return bytes([dice.choice((0, 0, 1, 7, 60))]) + hostile.mutate_bytes(b"".join(pieces), dice)


TARGETS = {
    "hub": Target(read_hub, make_client_stream),
    "cuts": Target(read_cuts, make_client_stream),
    "device": Target(read_device, make_hub_stream),
    "texts": Target(read_texts, make_text),
}
PLANTED = Target(read_planted, lambda _: mqtt.encode(mqtt.PubAck(7)) * 3)
