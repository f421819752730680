"""The link to test on does what it says: rate, delay, loss, queue, cuts, counts; and nothing of it stays behind."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from link.measure import run_bulk, run_datagrams
from link.profiles import LTE_M, Profile
from link.thin_link import TESTS, DirectionCounts, Link, open_link

pytestmark = pytest.mark.usefixtures("needs_link")
QUICK = Profile("quick", 20_000_000, 0.02)
SEGMENT_SHARE = 1448 / 1500
"""Of a full segment's IP bytes is payload: 20 bytes of IP, 20 of TCP and 12 of its timestamps are not."""
LATE_S = 0.05
"""How late a process on a busy machine may wake up."""


def list_namespaces() -> list[str]:
    shown = json.loads(subprocess.run(["ip", "-j", "netns"], check=True, capture_output=True).stdout or "[]")
    return [found["name"] for found in shown]


def is_running(pid: int) -> bool:
    """False for one that has ended, also while nobody has collected it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def read_interface_bytes(link: Link) -> tuple[int, int]:
    """What the left side's own network stack counted: received and sent."""
    [shown] = json.loads(link.left.run(["ip", "-s", "-j", "link", "show", "thin0"]).stdout)
    return shown["stats64"]["rx"]["bytes"], shown["stats64"]["tx"]["bytes"]


def find_rate(down: DirectionCounts) -> float:
    """Payload bits per second between the first and the last arrival of the one stream."""
    [trace] = [flow.trace for flow in down.flows if flow.stream_bytes]
    (began_at, began), (ended_at, ended) = trace[0], trace[-1]
    return (ended - began) * 8 / (ended_at - began_at)


@pytest.mark.parametrize("profile", [Profile("plain", 2_000_000, 0.05), LTE_M], ids=lambda one: one.name)
def test_a_bulk_transfer_gets_the_rate_less_its_headers(profile: Profile) -> None:
    size_bytes = int(profile.bps / 8 * 2)
    with open_link(profile) as link:
        assert run_bulk(link, size_bytes).received_bytes == size_bytes
        assert find_rate(link.counts(traces=True).down) == pytest.approx(profile.bps * SEGMENT_SHARE, rel=0.02)


def test_a_datagram_takes_its_time_on_the_wire_and_half_the_round_trip() -> None:
    profile = Profile("far", 400_000, 0.5)
    with open_link(profile) as link:
        took_s = run_datagrams(link, count=10, size_bytes=972, every_s=0.05, quiet_s=0.6)
    due_s = 1000 * 8 / profile.bps + profile.rtt_s / 2
    assert len(took_s) == 10
    assert all(took >= due_s for took in took_s.values())
    assert min(took_s.values()) < due_s + LATE_S


def lose_datagrams(seed: int) -> set[int]:
    """The numbers that did not arrive; the link's own count agrees."""
    with open_link(Profile("lossy", 20_000_000, 0.02, loss=0.1), seed=seed) as link:
        arrived = run_datagrams(link, count=1000, size_bytes=100, every_s=0.0005, quiet_s=0.4)
        up = link.counts().up
    assert (up.entered.packets, up.dropped.packets, up.lost.packets) == (1000, 0, 1000 - len(arrived))
    return set(range(1000)) - set(arrived)


def test_a_share_of_the_packets_is_lost_and_the_seed_says_which() -> None:
    lost = lose_datagrams(1)
    deviation = math.sqrt(1000 * 0.1 * 0.9)
    assert abs(len(lost) - 100) < 4 * deviation
    assert lose_datagrams(1) == lost
    assert lose_datagrams(2) != lost


def test_a_full_queue_drops_the_last_to_come() -> None:
    with open_link(Profile("hoarding", 400_000, 0.02, queue_s=0.2)) as link:
        took_s = run_datagrams(link, count=40, size_bytes=972, every_s=0, quiet_s=0.5)
        up = link.counts().up
    assert up.dropped.packets == 40 - len(took_s) > 20
    assert set(range(10)) <= set(took_s)
    assert max(took_s.values()) < 0.2 + 0.02 + 0.02 + LATE_S


def test_what_is_sent_while_the_link_is_cut_is_gone_and_afterwards_packets_pass_again() -> None:
    with open_link(QUICK) as link:
        link.cut(after_s=0.4, for_s=0.4)
        arrived = sorted(run_datagrams(link, count=120, size_bytes=100, every_s=0.01, quiet_s=0.6))
        lost = link.counts().up.lost.packets
    gone = sorted(set(range(120)) - set(arrived))
    assert 20 < len(gone) == lost
    assert gone == list(range(gone[0], gone[-1] + 1))
    assert gone[0] > 0
    assert gone[-1] < 119


def test_counts_of_datagrams_are_what_was_sent() -> None:
    with open_link(QUICK) as link:
        run_datagrams(link, count=50, size_bytes=333, every_s=0, quiet_s=0.3)
        counts = link.counts()
        [flow] = counts.up.flows
        assert (flow.entered.packets, flow.entered.payload_bytes) == (50, 50 * 333)
        assert flow.entered == flow.arrived == counts.up.arrived
        assert counts.left_ip_bytes == 50 * (333 + 28) == sum(read_interface_bytes(link))


def test_counts_of_a_tcp_transfer_are_those_of_the_network_stack() -> None:
    with open_link(Profile("lossy", 4_000_000, 0.02, loss=0.02), seed=3) as link:
        run_bulk(link, 400_000)
        time.sleep(0.2)  # the last acknowledgements
        counts = link.counts()
        assert counts.stream_bytes == counts.down.sum_stream_bytes(7007) == 400_000
        assert counts.down.entered.payload_bytes > 400_000  # what was lost was sent again
        assert (counts.down.arrived.ip_bytes, counts.up.entered.ip_bytes) == read_interface_bytes(link)


def test_nothing_of_a_link_stays_behind_when_a_test_fails() -> None:
    with pytest.raises(ZeroDivisionError), open_link(QUICK) as link:
        child = link.left.start(["sleep", "600"])
        assert link.left.namespace in list_namespaces()
        raise ZeroDivisionError
    assert child.returncode == -signal.SIGTERM
    assert not {link.left.namespace, link.right.namespace} & set(list_namespaces())


_STAY = """
import time
from link.profiles import LTE_M
from link.thin_link import open_link
with open_link(LTE_M) as link:
    child = link.left.start(["sleep", "600"])
    print(child.pid, link.left.namespace, link.right.namespace, flush=True)
    time.sleep(600)
"""


def test_nothing_of_a_link_stays_behind_when_its_process_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    child = subprocess.Popen([sys.executable, "-c", _STAY], stdout=subprocess.PIPE, env=environment, cwd=tmp_path)
    assert child.stdout is not None
    pid, *names = child.stdout.readline().decode().split()
    assert set(names) <= set(list_namespaces())
    child.kill()
    child.communicate()
    deadline = time.monotonic() + 10
    while set(names) & set(list_namespaces()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(names) & set(list_namespaces())
    assert not is_running(int(pid))
