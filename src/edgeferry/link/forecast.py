"""Bytes on the wire, seconds and money of an update, before anything is sent.

What this file leaves to others: which artifacts an update takes (`route.py`), when they may go (`budget.py`).

Rules:
- What is counted is what the device's own network stack sends and receives, IP headers included: what its ledger
  counts. What is lost on its way to the device is not among it; the acknowledgements that a loss costs are.
- One connection for all downloads, one GET each; one to the hub, which is there already unless the load says otherwise.
- A constant says where it comes from; what differs from site to site (certificates, answer heads, URLs) is a parameter.
- Seconds are those that the link is needed for. What a device takes to prove a version is not among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgeferry.link.budget import Plan, Spent, plan_transfer
from edgeferry.link.policy import LinkPolicy

HEADER_BYTES = 52
"""IPv4 and TCP with the time-stamp option (RFC 791, RFC 9293, RFC 7323): 20 + 20 + 12."""
_SYN_MORE_BYTES = 8
"""What the options of a SYN take more (MSS, SACK permitted, window scale), as Linux sends them."""
_SACK_BYTES = 12
"""RFC 2018: one block, padded."""
_TEARDOWN_SEGMENTS = 3
_INITIAL_SEGMENTS = 10
"""RFC 6928: a sender's first window."""
_DELAYED_ACK_MAX_S = 0.2
"""Linux: TCP_DELACK_MAX. Segments that come this far apart are acknowledged each by itself, close ones in pairs,
between in proportion (measured: 0.53 of segments at 2 Mbit/s, 0.6 at 300 kbit/s, 0.83 at 88, 0.98 at 60)."""
_LOSS_FACTOR = 1.22
"""Mathis et al., The Macroscopic Behavior of the TCP Congestion Avoidance Algorithm, 1997: MSS / RTT * C / sqrt(p)."""

TLS_RECORD_BYTES = 22
"""RFC 8446: head 5, content type 1, tag 16; for each 16 KB that are written, and each write."""
_TLS_RECORD_MAX_BYTES = 1 << 14
_TLS_HELLO_BYTES, _TLS_FINISHED_BYTES, _TLS_CLOSE_BYTES = 267, 80, 24
_TLS_SERVER_BYTES = 371
"""TLS 1.3 as OpenSSL 3.0 speaks it, measured: the client's two flights; the server's without its certificates (EC
P-256; RSA takes some 190 more). Our hub gives no session tickets."""
TLS_CHAIN_BYTES = 486
"""DER of the certificate that our hub sends, an EC leaf; public clouds send some 4000, and tickets
of some 500."""

REQUEST_HEAD_BYTES = 81
"""A GET of ours without what its URL takes: request line, Host, User-Agent, Accept-Encoding."""
ANSWER_HEAD_BYTES = 177
"""Head of an answer of our hub; blob stores of public clouds send some 600."""
URL_BYTES = 180
"""Host, path of a blob, and a signature of our hub; a shared access signature of a public cloud takes some 100 more."""
METADATA_BYTES = 2900
"""The bundle object of a model with three versions (docs/benchmarks.md)."""

_MQTT_CONNECT_BYTES = (245, 134)
"""CONNECT with a shared access signature, and SUBSCRIBE: measured with our client, names of usual length."""
_MQTT_ACCEPT_BYTES = (4, 8)
_MQTT_TWIN_GET_BYTES, _MQTT_TWIN_HEAD_BYTES, _MQTT_BELL_HEAD_BYTES = 28, 31, 55
_MQTT_REPORT_BYTES, _MQTT_REPORT_ANSWER_BYTES = 163, 43
"""A reported patch of one state (measured mean), and the hub's answer."""
_MQTT_MESSAGE_BYTES, _MQTT_PUBACK_BYTES = 315, 4
_MQTT_PING_BYTES = 2
_PING_SEGMENTS = 3
"""A ping, the answer that acknowledges it, and the acknowledgement of that."""
REPORTS = 2
"""What an update reports at the least: that it serves on probation, and that it stays. Measured: two to four in all."""
_PROVING_S = 1.0
_GATHER_MIN_S, _GATHER_MAX_S, _GATHER_FACTOR = 0.1, 10.0, 30.0
REPORT_EVERY_S, PROGRESS_MAX_S = 60.0, 900.0
"""Progress is reported after the one, then after twice as long each time, to the other."""
TWIN_BYTES = 350
"""A twin that names one model."""
BELL_BYTES = 250
"""A twin patch that changes one model and its SAS."""
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class LinkRate:
    """A link: bits per second, round trip in seconds, largest packet, share of packets lost on the way."""

    bps: float
    rtt_s: float
    mtu: int = 1500
    loss: float = 0.0

    @property
    def mss(self) -> int:
        """Bytes of a full segment."""
        return self.mtu - HEADER_BYTES

    @property
    def tcp_bps(self) -> float:
        """What one TCP connection makes of it: where packets are lost, no more than congestion control dares."""
        if not self.loss or not self.rtt_s:
            return self.bps
        return min(self.bps, self.mtu * 8 / self.rtt_s * _LOSS_FACTOR / math.sqrt(self.loss))


PROFILES: Mapping[str, LinkRate] = {
    "nb-iot": LinkRate(60_000, 1.6),
    "lte-m": LinkRate(300_000, 0.1),
    "certus-100": LinkRate(88_000, 0.7),
    "vsat-512": LinkRate(512_000, 0.6, loss=0.01),
    "lte": LinkRate(10_000_000, 0.05),
    "ethernet": LinkRate(100_000_000, 0.001),
}
"""NB-IoT and LTE-M: 3GPP release 13 as networks give them. Certus 100 and VSAT: as sold, the latter geostationary."""


def find_link_rate(policy: LinkPolicy, profile: str = "") -> LinkRate | None:
    """The link that the policy tells of, else the named profile, else None; the round trip may be the profile's."""
    named = PROFILES.get(profile)
    if not policy.link_bps:
        return named
    return LinkRate(policy.link_bps, policy.rtt_s or (named.rtt_s if named else 0.0))


@dataclass(frozen=True, slots=True)
class Load:
    """What an update moves.

    Attributes:
        artifacts: payload bytes of each download: files as they travel, golden inputs.
        metadata: bytes of each signed object that is fetched before.
        url_bytes: host, path and query of a request, on average.
        chain_bytes: DER of the certificates that the server sends; 0: no TLS.
        answer_head_bytes: head of an HTTP answer.
        twin_bytes: JSON of the whole twin's desired and reported properties.
        bell_bytes: JSON of the twin patch that tells of the update.
        hub_connects: whether the hub's connection is made for this update.
        report_every_s: after which progress of a download is reported first.
    """

    artifacts: tuple[int, ...]
    metadata: tuple[int, ...] = (METADATA_BYTES,)
    url_bytes: int = URL_BYTES
    chain_bytes: int = TLS_CHAIN_BYTES
    answer_head_bytes: int = ANSWER_HEAD_BYTES
    twin_bytes: int = TWIN_BYTES
    bell_bytes: int = BELL_BYTES
    hub_connects: bool = False
    report_every_s: float = REPORT_EVERY_S

    @property
    def payload_bytes(self) -> int:
        """Of all artifacts."""
        return sum(self.artifacts)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an update will take. `transfer_s` is the link's own time; `plan` tells when it starts and finishes."""

    payload_bytes: int
    wire_bytes: int
    transfer_s: float
    money: float
    currency: str
    plan: Plan

    @property
    def sent_bytes(self) -> int:
        """What crosses the wire with what further sittings cost, as far as the plan goes."""
        return max(self.wire_bytes, sum(sitting.size_bytes for sitting in self.plan.sittings))

    @property
    def starts_at(self) -> float | None:
        """Unix seconds; None: never."""
        return self.plan.starts_at

    @property
    def finishes_at(self) -> float | None:
        """Unix seconds; None: never, and `plan.reason` says why."""
        return self.plan.finishes_at


def forecast_transfer(
    load: Load,
    link: LinkRate,
    policy: LinkPolicy,
    *,
    now: float,
    spent: Spent | None = None,
    priority: int = 0,
    interface: str = "",
) -> Forecast:
    """What `load` takes over `link` from `now` on, as the policy lets it go."""
    bps = min(link.tcp_bps, policy.rate_bps or link.tcp_bps)
    wire_bytes = count_wire_bytes(load, link)
    transfer_s = _count_waits(load, link, bps) + wire_bytes * 8 / bps
    plan = plan_transfer(
        policy,
        spent or Spent(),
        now=now,
        wire_bytes=wire_bytes,
        bps=wire_bytes * 8 / transfer_s,
        priority=priority,
        interface=interface,
        resume_bytes=count_resume_bytes(load, link),
    )
    planned = sum(sitting.size_bytes for sitting in plan.sittings)
    free = policy.get_class(interface) == "free"
    money = 0.0 if free else policy.get_price(max(wire_bytes, planned))
    return Forecast(load.payload_bytes, wire_bytes, transfer_s, money, policy.currency, plan)


def count_wire_bytes(load: Load, link: LinkRate) -> int:
    """Bytes on the wire of the whole update, both ways, downloads and hub."""
    return sum(talk.count_wire_bytes() for talk in (_make_downloads(load, link), _make_hub(load, link)))


def count_stream_bytes(load: Load, link: LinkRate) -> int:
    """The same above TCP."""
    return sum(talk.up[0] + talk.down[0] for talk in (_make_downloads(load, link), _make_hub(load, link)))


def count_resume_bytes(load: Load, link: LinkRate) -> int:
    """What a download costs more that goes on after a pause: a connection and a request."""
    again = _Talk(link, load.chain_bytes).connect().ask(load.url_bytes, load.answer_head_bytes, 0).close()
    return again.count_wire_bytes()


def count_idle_day_bytes(link: LinkRate, *, keepalive_s: int, token_ttl_s: int, chain_bytes: int) -> int:
    """Bytes on the wire of a day in which a connected device has nothing to do.

    Each ping is answered; the connection is made anew before its token ends, and the twin read again.
    """
    talk = _Talk(link, chain_bytes).say([_MQTT_PING_BYTES], [_MQTT_PING_BYTES])
    ping = talk.up[0] + talk.down[0] + _PING_SEGMENTS * HEADER_BYTES
    again = _connect_hub(link, chain_bytes, TWIN_BYTES).close().count_wire_bytes()
    return math.ceil(_DAY_S / keepalive_s * ping + _DAY_S / token_ttl_s * again)


def _make_downloads(load: Load, link: LinkRate) -> _Talk:
    objects = (*load.metadata, *load.artifacts)
    talk = _Talk(link, load.chain_bytes)
    if not objects:
        return talk
    talk = talk.connect()
    for size_bytes in objects:
        talk = talk.ask(load.url_bytes, load.answer_head_bytes, size_bytes)
    return talk.close()


def _make_hub(load: Load, link: LinkRate) -> _Talk:
    talk = _Talk(link, load.chain_bytes)
    if load.hub_connects:
        talk = _connect_hub(link, load.chain_bytes, load.twin_bytes)
    else:
        twin_bytes = _MQTT_TWIN_HEAD_BYTES + load.twin_bytes
        talk = talk.say([], [_MQTT_BELL_HEAD_BYTES + load.bell_bytes])
        talk = talk.say([_MQTT_TWIN_GET_BYTES], [twin_bytes])
    for _ in range(_count_reports(load, link)):
        talk = talk.say([_MQTT_REPORT_BYTES], [_MQTT_REPORT_ANSWER_BYTES])
    return talk.say([_MQTT_MESSAGE_BYTES], [_MQTT_PUBACK_BYTES])


def _connect_hub(link: LinkRate, chain_bytes: int, twin_bytes: int) -> _Talk:
    talk = _Talk(link, chain_bytes).connect().say(_MQTT_CONNECT_BYTES, _MQTT_ACCEPT_BYTES)
    return talk.say([_MQTT_TWIN_GET_BYTES], [_MQTT_TWIN_HEAD_BYTES + twin_bytes])


def get_gather_s(answer_s: float) -> float:
    """How long a device waits for further states before a report: long on a link on which the last one took long."""
    return min(_GATHER_MAX_S, max(_GATHER_MIN_S, _GATHER_FACTOR * answer_s))


def _count_reports(load: Load, link: LinkRate) -> int:
    left_s, every_s = load.payload_bytes * 8 / link.tcp_bps, load.report_every_s
    gather_s = get_gather_s(link.rtt_s)
    count = REPORTS + (left_s > gather_s) + (gather_s < _PROVING_S)
    while every_s < PROGRESS_MAX_S and left_s >= every_s:
        left_s, every_s, count = left_s - every_s, every_s * 2, count + 1
    return count + int(left_s / max(load.report_every_s, min(every_s, PROGRESS_MAX_S)))


def _count_waits(load: Load, link: LinkRate, bps: float) -> float:
    """Seconds in which the link is quiet: round trips that are waited for, and windows that TCP has yet to open."""
    objects = len(load.metadata) + len(load.artifacts)
    trips = (1 + bool(load.chain_bytes) + objects if objects else 0) + (5 if load.hub_connects else 1)
    opening_s, window_bytes = 0.0, float(_INITIAL_SEGMENTS * link.mss)
    while window_bytes < min(bps * link.rtt_s / 8, load.payload_bytes):
        opening_s += link.rtt_s - window_bytes * 8 / bps
        window_bytes *= 2
    return trips * link.rtt_s + opening_s


@dataclass(frozen=True, slots=True)
class _Talk:
    """One TCP connection, above TCP: bytes and data segments of either side, and segments of its begin and end."""

    link: LinkRate
    chain_bytes: int
    up: tuple[int, int] = (0, 0)
    down: tuple[int, int] = (0, 0)
    bare_segments: int = 0
    more_bytes: int = 0

    def connect(self) -> _Talk:
        """The handshakes of TCP and, where there are certificates, of TLS."""
        begun = replace(self, bare_segments=self.bare_segments + 3, more_bytes=2 * _SYN_MORE_BYTES)
        if not self.chain_bytes:
            return begun
        ups = (_TLS_HELLO_BYTES, _TLS_FINISHED_BYTES)
        return begun._write(ups, [_TLS_SERVER_BYTES + self.chain_bytes])

    def close(self) -> _Talk:
        """The end of it, said by either side."""
        ended = self._write(*([(_TLS_CLOSE_BYTES,)] * 2)) if self.chain_bytes else self
        return replace(ended, bare_segments=ended.bare_segments + _TEARDOWN_SEGMENTS)

    def ask(self, url_bytes: int, head_bytes: int, body_bytes: int) -> _Talk:
        """A GET and its answer, whose head goes by itself."""
        body = (body_bytes,) if body_bytes else ()
        return self.say([REQUEST_HEAD_BYTES + url_bytes], [head_bytes, *body])

    def say(self, ups: Sequence[int], downs: Sequence[int]) -> _Talk:
        """Writes of either side, each in records of its own."""
        return self._write([self._wrap(size) for size in ups], [self._wrap(size) for size in downs])

    def count_wire_bytes(self) -> int:
        """With IP and TCP headers, acknowledgements, and what losses cost the device."""
        ups, downs = self.up[1], self.down[1]
        acks = self._get_ack_share() * downs + ups / 2
        lost = downs * self.link.loss
        flight = max(1.0, self.link.tcp_bps * self.link.rtt_s / 8 / self.link.mtu)
        late_acks = lost * flight / 2  # behind a loss each segment is acknowledged, with what came beside it
        packets = ups * (1 + self.link.loss) + downs + acks + late_acks + self.bare_segments
        options = (late_acks + lost * flight / 2) * _SACK_BYTES + self.more_bytes
        return math.ceil(packets * HEADER_BYTES + self.up[0] + self.down[0] + options)

    def _get_ack_share(self) -> float:
        every_s = self.link.mtu * 8 / self.link.bps
        return 0.5 + 0.5 * min(1.0, every_s / _DELAYED_ACK_MAX_S)

    def _wrap(self, size_bytes: int) -> int:
        records = math.ceil(size_bytes / _TLS_RECORD_MAX_BYTES) if self.chain_bytes else 0
        return size_bytes + records * TLS_RECORD_BYTES

    def _write(self, ups: Sequence[int], downs: Sequence[int]) -> _Talk:
        up, down = (
            (way[0] + sum(sizes), way[1] + sum(math.ceil(size / self.link.mss) for size in sizes))
            for way, sizes in ((self.up, ups), (self.down, downs))
        )
        return replace(self, up=up, down=down)
