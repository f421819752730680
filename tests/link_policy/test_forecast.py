"""What a forecast counts is what real programs send; what it says of time and money follows from rate, policy, price.

That its bytes are those of a whole update on a wire is measured on a link between namespaces (tests/link/).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeferry.agent.tools import AgentSettings
from edgeferry.config import DeviceConfig
from edgeferry.hub.http_files import answer_file
from edgeferry.hub.mqtt_front import make_tls_context
from edgeferry.link import forecast
from edgeferry.link.budget import Spent
from edgeferry.link.forecast import PROFILES, LinkRate, Load, count_stream_bytes, count_wire_bytes, forecast_transfer
from edgeferry.link.policy import LinkPolicy, read_link_policy
from edgeferry.storage.hub_certificates import CertificateFiles, ensure_certificates
from edgeferry.storage.published_files import open_published_file
from edgeferry.transport.http import HttpSettings, open_http, require_ok
from edgeferry.transport.http_server import listen_on_address, open_http_server
from edgeferry.transport.relay import Link, open_relay
from edgeferry.wire import iothub_topics as topics
from edgeferry.wire.iothub_auth import make_client_id, make_resource, make_sas_token, make_user_name
from edgeferry.wire.mqtt_packets import ConnAck, Connect, Packet, PingReq, PubAck, Publish, SubAck, Subscribe, encode

NOW = 1_790_000_000.0
QUIET = LinkRate(100_000, 0.5)
"""A link of a middling sort."""


def get_chain_bytes(files: CertificateFiles) -> int:
    """DER of what a server with these certificates sends."""
    begin = "-----BEGIN"
    parts = files.chain.read_text().split(begin)[1:]
    return sum(len(ssl.PEM_cert_to_DER_cert(begin + part)) for part in parts)


@asynccontextmanager
async def serve_files(folder: Path, link: Link, files: CertificateFiles | None) -> AsyncIterator[str]:
    """The hub's way of answering for files, behind a relay that counts; yields its URL."""

    async def serve(request: Request) -> Response:
        return answer_file(request, open_published_file(folder, request.path_params["path"]))

    tls = None
    if files:
        tls = make_tls_context(str(files.chain), str(files.key))
    sock = listen_on_address("127.0.0.1", 0)
    app = Starlette(routes=[Route("/files/{path:path}", serve)])
    async with open_http_server(app, sock, tls=tls), open_relay(link, sock.getsockname()[1]) as port:
        yield f"{'https' if files else 'http'}://localhost:{port}/files/"


@pytest.mark.parametrize("over_tls", [True, False])
@pytest.mark.parametrize("sizes", [(30_000,), (2900, 120_000), (2900, 100, 40_000, 0, 17_000)])
async def test_a_download_takes_above_tcp_what_our_client_and_server_say(
    tmp_path: Path, sizes: Sequence[int], over_tls: bool
) -> None:
    files = ensure_certificates(tmp_path / "tls", ["localhost"], now=NOW) if over_tls else None
    link, folder = Link(), tmp_path / "site"
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number}.bin").write_bytes(os.urandom(size))
    async with serve_files(folder, link, files) as base:
        ca = files.authority.read_bytes() if files else None
        async with open_http(HttpSettings(ca_pem=ca)) as http:
            for number, size in enumerate(sizes):
                answer = require_ok(await http.fetch(f"{base}{number}.bin", max_bytes=1 << 20))
                assert len(answer.body) == size
    load = Load(
        tuple(sizes),
        metadata=(),
        url_bytes=len(base.partition("://")[2]) + len("0.bin"),
        chain_bytes=get_chain_bytes(files) if files else 0,
    )
    foreseen = count_stream_bytes(load, QUIET) - count_stream_bytes(replace(load, artifacts=()), QUIET)
    assert foreseen == pytest.approx(link.passed_bytes, rel=0.03, abs=0)


def count_bytes(packets: Sequence[Packet]) -> int:
    return sum(len(encode(packet)) for packet in packets)


def test_what_is_said_to_a_hub_takes_what_its_packets_take() -> None:
    host, device, module = "hub.example-farm.net", "platform-7", "edgeferry"
    ids = {"device_id": device, "module_id": module}
    token = make_sas_token(make_resource(host, device, module), "a2V5" * 8, int(NOW))
    user = make_user_name(host, device, module, client_type="edgeferry")
    bell = topics.get_input_filter(device, module)
    filters = (topics.TWIN_RESPONSE_FILTER, topics.DESIRED_PATCH_FILTER, topics.METHOD_FILTER, bell)
    connecting = [
        Connect(make_client_id(device, module), user_name=user, password=token.encode()),
        Subscribe(1, tuple((name, 1) for name in filters)),
    ]
    asked = Publish(topics.make_uplink_topic(topics.TwinGet("1"), **ids), b"", 0)
    report = b'{"edgeferry":{"models":{"detector":{"state":"DOWNLOADING","target":"1.1.0","progress":0.25}}}}'
    reported = Publish(topics.make_uplink_topic(topics.ReportedPatch("7"), **ids), report, 0)
    rows = [
        (connecting, sum(forecast._MQTT_CONNECT_BYTES), 0.15),
        ([ConnAck(0), SubAck(1, (1, 1, 1, 1))], sum(forecast._MQTT_ACCEPT_BYTES), 0.0),
        ([asked], forecast._MQTT_TWIN_GET_BYTES, 0.1),
        ([reported], forecast._MQTT_REPORT_BYTES, 0.15),
        ([PubAck(3)], forecast._MQTT_PUBACK_BYTES, 0.0),
        ([PingReq()], forecast._MQTT_PING_BYTES, 0.0),
    ]
    found = [(count_bytes(packets), size) for packets, size, _ in rows]
    assert [size for _, size in found] == [
        pytest.approx(real, rel=row[2]) for (real, _), row in zip(found, rows, strict=True)
    ]


@pytest.mark.parametrize(
    ("download_s", "reports"),
    [(1, 0), (59, 1), (60, 2), (179, 2), (180, 3), (420, 4), (900, 5), (1799, 5), (1800, 6), (2700, 7)],
)
def test_the_longer_a_download_takes_the_rarer_is_its_progress(download_s: float, reports: int) -> None:
    load = Load((int(download_s * QUIET.bps / 8),))
    assert forecast._count_reports(load, QUIET) - forecast.REPORTS == reports


def test_progress_is_counted_as_a_device_reports_it_unless_told_otherwise() -> None:
    assert Load(()).report_every_s == DeviceConfig().report_every_s == AgentSettings().report_every_s


@pytest.mark.parametrize(("rtt_s", "reports"), [(0.001, 4), (0.1, 3), (1.0, 2)])
def test_the_slower_the_link_the_fewer_reports_tell_of_states(rtt_s: float, reports: int) -> None:
    link = LinkRate(QUIET.bps, rtt_s)
    assert forecast._count_reports(Load((int(5 * link.bps / 8),)), link) == reports


# --- the model of TCP ------------------------------------------------------------------------------------------------
LINKS = st.builds(
    LinkRate, st.floats(5000, 1e8), st.floats(0, 3), st.sampled_from([576, 1280, 1500]), st.floats(0, 0.05)
)
LOADS = st.builds(
    Load,
    st.lists(st.integers(0, 3_000_000), max_size=4).map(tuple),
    chain_bytes=st.sampled_from([0, 900, 4000]),
    hub_connects=st.booleans(),
)


@given(LOADS, LINKS, st.integers(1, 100_000))
def test_more_bytes_never_take_less_and_headers_take_their_share(load: Load, link: LinkRate, more: int) -> None:
    wire, stream = count_wire_bytes(load, link), count_stream_bytes(load, link)
    assert load.payload_bytes + sum(load.metadata) < stream < wire
    segments = stream / link.mss
    assert wire - stream >= segments * forecast.HEADER_BYTES * 1.5 - 1  # each second one is acknowledged at the least
    bigger = replace(load, artifacts=(*load.artifacts, more))
    assert count_wire_bytes(bigger, link) >= wire + more
    assert count_wire_bytes(load, replace(link, loss=0.0)) <= wire
    assert count_wire_bytes(replace(load, hub_connects=True), link) >= wire
    assert count_wire_bytes(load, replace(link, mtu=1500)) <= wire + 4 * forecast.HEADER_BYTES


@given(LOADS, LINKS)
def test_no_link_is_faster_than_its_rate_and_none_is_kept_waiting_for_ever(load: Load, link: LinkRate) -> None:
    found = forecast_transfer(load, link, LinkPolicy(), now=NOW)
    assert found.wire_bytes * 8 / link.bps <= found.transfer_s
    waits_s = found.transfer_s - found.wire_bytes * 8 / link.tcp_bps
    objects = len(load.metadata) + len(load.artifacts)
    assert waits_s >= link.rtt_s * (objects + 1) * (1 - 1e-6) - 1e-6 * found.transfer_s
    assert waits_s <= link.rtt_s * (9 + len(load.artifacts) + 20)
    if found.finishes_at is not None:
        assert found.finishes_at - NOW == pytest.approx(found.transfer_s, abs=1e-3)
    assert found.money == 0.0 and found.payload_bytes == load.payload_bytes


@pytest.mark.parametrize("name", PROFILES)
def test_a_million_bytes_take_an_eighth_more_at_most_on_every_named_link(name: str) -> None:
    load = Load((1_000_000,), hub_connects=True)
    assert count_wire_bytes(load, PROFILES[name]) < 1.125 * load.payload_bytes


def test_idleness_costs_by_the_ping_and_by_the_token() -> None:
    day = {"chain_bytes": 900}
    often, seldom = (
        forecast.count_idle_day_bytes(QUIET, keepalive_s=seconds, token_ttl_s=86_400, **day) for seconds in (60, 600)
    )
    pings = 1440 - 144
    assert often - seldom == pings * (2 * (2 + forecast.TLS_RECORD_BYTES) + 3 * forecast.HEADER_BYTES)
    hourly = forecast.count_idle_day_bytes(QUIET, keepalive_s=600, token_ttl_s=3600, **day)
    assert 23 * 3000 < hourly - seldom < 23 * 9000


# --- windows, budgets and money --------------------------------------------------------------------------------------
def test_a_forecast_spreads_over_nights_and_pays_for_each_connection_anew() -> None:
    policy, _ = read_link_policy(
        {
            "windows": [{"cron": "0 2 * * *", "duration_s": 3600}],
            "day_bytes": 400_000,
            "price_per_mb": 5.0,
            "currency": "USD",
            "interfaces": {"eth0": "free", "sat0": "forbidden"},
        }
    )
    load = Load((1_000_000,))
    found = forecast_transfer(load, PROFILES["certus-100"], policy, now=NOW, spent=Spent(100_000, 100_000))
    sent = sum(sitting.size_bytes for sitting in found.plan.sittings)
    nights = len(found.plan.sittings)
    again = forecast.count_resume_bytes(load, PROFILES["certus-100"])
    assert nights == 3 and sent == found.wire_bytes + (nights - 1) * again
    assert found.money == pytest.approx(sent * 5.0 / 1e6) and found.currency == "USD"
    assert found.starts_at is not None and found.finishes_at is not None
    assert found.finishes_at - found.starts_at > 2 * 86_000
    free = forecast_transfer(load, PROFILES["ethernet"], policy, now=NOW, interface="eth0")
    assert free.money == 0.0 and free.starts_at == NOW and free.finishes_at == pytest.approx(NOW + free.transfer_s)
    never = forecast_transfer(load, PROFILES["certus-100"], policy, now=NOW, interface="sat0")
    assert (never.finishes_at, never.plan.reason) == (None, "link_forbidden")


def test_a_cap_makes_it_longer_and_not_larger() -> None:
    load = Load((500_000,))
    free, capped = (
        forecast_transfer(load, PROFILES["lte-m"], LinkPolicy(rate_bps=rate), now=NOW) for rate in (0, 64_000)
    )
    assert capped.wire_bytes == free.wire_bytes and capped.transfer_s > 4 * free.transfer_s


def test_the_link_is_what_the_policy_tells_else_the_named_one() -> None:
    told = LinkPolicy(link_bps=9600, rtt_s=2.0)
    assert forecast.find_link_rate(told, "lte-m") == LinkRate(9600, 2.0)
    assert forecast.find_link_rate(replace(told, rtt_s=0.0), "lte-m") == LinkRate(9600, 0.1)
    assert forecast.find_link_rate(LinkPolicy(), "lte-m") == PROFILES["lte-m"]
    assert forecast.find_link_rate(LinkPolicy()) is None


def test_a_link_that_loses_is_slower_and_takes_acknowledgements_of_half_a_flight_for_each_loss() -> None:
    lossy, lossless = PROFILES["vsat-512"], replace(PROFILES["vsat-512"], loss=0.0)
    assert lossless.tcp_bps == 512_000 and 150_000 < lossy.tcp_bps < 300_000
    load = Load((1_000_000,))
    lossy_s, clean_s = (forecast_transfer(load, link, LinkPolicy(), now=NOW).transfer_s for link in (lossy, lossless))
    assert lossy_s > 1.5 * clean_s
    losses, half_flight = 1_000_000 / lossy.mss * lossy.loss, lossy.tcp_bps * lossy.rtt_s / 8 / lossy.mtu / 2
    more = count_wire_bytes(load, lossy) - count_wire_bytes(load, lossless)
    assert more > losses * half_flight * forecast.HEADER_BYTES + losses * half_flight * 12
