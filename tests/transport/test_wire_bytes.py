"""What the meter says against what an interface of our own has counted, and against the other end of the connection."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.transport.wire_scenes import DATA, SCENES, talk

from edgeferry.transport.http import open_http
from edgeferry.transport.thin_socket import open_thin_socket
from edgeferry.transport.wire_bytes import WireMeter, read_wire_bytes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """Scene -> what the meter said and what the wire has carried."""
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    if os.geteuid() != 0 or probe.returncode != 0:
        pytest.skip("only root may make a network namespace")
    command = ["unshare", "-n", sys.executable, "-m", "tests.transport.wire_scenes", str(tmp_path_factory.mktemp("c"))]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests"), str(ROOT / "src")))
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", SCENES)
def test_the_meter_is_within_two_percent_of_what_the_wire_has_carried(
    scenes: dict[str, tuple[int, int]], name: str
) -> None:
    metered, carried = scenes[name]
    assert carried > 4_000
    assert abs(metered - carried) <= 0.02 * carried


def test_a_transfer_costs_more_than_its_payload_and_a_refusal_is_not_free(scenes: dict[str, tuple[int, int]]) -> None:
    whole, left = scenes["a download"][0], scenes["a transfer that the server resets"][0]
    assert len(DATA) < whole < 1.1 * len(DATA)
    assert 0 < left < len(DATA)
    assert scenes["a door where nobody is"][0] == 50 * (60 + 40)


async def test_both_ends_of_a_connection_count_the_same() -> None:
    ends: list[socket.socket] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer.get_extra_info("socket"))
        await talk(reader, writer)

    meter = WireMeter()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, open_http(meter=meter) as http:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for _ in range(3):
            await http.fetch(f"{url}/big", max_bytes=len(DATA))
        here, there = meter.get_bytes(), read_wire_bytes(ends[0])
        assert len(ends) == 1
        assert here > 3 * len(DATA)
        assert here == pytest.approx(there, rel=0.02)
    assert meter.get_bytes() > here, "the close costs segments, and what is closed stays counted"


def test_a_connection_is_counted_to_its_last_segment_and_once_however_often_it_is_closed() -> None:
    meter = WireMeter()
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = open_thin_socket(socket.AF_INET, socket.SOCK_STREAM, 0, meter=meter)
        assert meter.get_bytes() == 0
        sock.connect(server.getsockname())
        opened = meter.get_bytes()
        assert opened == 60 + 60 + 52
        sock.close()
        meter.forget(sock)
        assert opened + 52 <= meter.get_bytes() <= opened + 2 * 52, "our goodbye, and its answer when that comes"
        server.accept()[0].close()
        ended = meter.get_bytes()
        assert opened + 3 * 52 <= ended <= opened + 4 * 52 + 1, (
            "theirs, with our goodbye's answer or after it, and ours"
        )
    assert meter.get_bytes() == ended


def test_connections_that_others_never_end_are_held_in_small_number() -> None:
    meter, before = WireMeter(), count_handles()
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(50):
            with open_thin_socket(socket.AF_INET, socket.SOCK_STREAM, 0, meter=meter) as sock:
                sock.connect(server.getsockname())
        assert 50 * (60 + 60 + 2 * 52) <= meter.get_bytes() <= 50 * (60 + 60 + 3 * 52)
        assert count_handles() - before < 12


def count_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_no_tcp_connection_has_crossed_no_wire() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.send(b"x")
        assert read_wire_bytes(left) == 0
    assert read_wire_bytes(left) == 0
