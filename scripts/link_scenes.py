"""What `make bench-link` measures: an update over a thin link, and a device that has nothing to do.

What this file leaves to others: the link and the site (tests/link/), what is asked of the figures (bench_link.py).

Rules:
- Everything is real: the hub with TLS and the repository it publishes on the right, `edgeferry device run` on the left.
- The version is deployed before the device starts, so that every connection is a fresh one and all of it is counted.
- Counts are the link's. What the left side sent counts as it was sent, what it received as it arrived.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from delta_child import read_memory
from hub_site import read_cpu_s

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from edgeferry.link.forecast import TLS_RECORD_BYTES
from edgeferry.transport.mqtt import HubSettings
from link.measure import run_bulk
from link.profiles import LTE_M, Profile
from link.thin_link import open_link
from link.thin_site import HTTPS_PORT, MQTT_PORT, QUICK, Device, Prepared, ThinSite, open_thin_site

BULKS_UNDER_LOSS = 3
"""Chance decides how fast TCP is where packets are lost: the median of some transfers is compared, of either kind."""
UPDATE_TIMEOUT_S = 600.0
_RECORD_BYTES = 1 << 14
"""RFC 8446: the longest TLS record; asyncio's server writes such."""
_DAY_S = 86400
_QUIET_S = 5.0
_SETTLE_S = 85.0
"""A kept HTTP connection is closed after 75 s (transport/http_server.py); that is no cost of being idle."""
RENEW_BEFORE_S = 120.0
"""How long before its token's end a device connects anew (agent/hub_link.py)."""
_SEED = 20261126


@dataclass(frozen=True, slots=True)
class Update:
    """One update, from the start of a device that has nothing to its last report. Bytes.

    Attributes:
        goodput_bps: the artifact's bits over the seconds from its first byte to its last; None: it did not come whole
            through one connection.
        https, mqtt: what went through either door both ways above TCP, each byte counted once; payload included.
        wire: IP bytes that the device sent and received.
        ledger: what the device says of that.
    """

    seconds: float
    goodput_bps: float | None
    https: int
    mqtt: int
    wire: int
    ledger: int


@dataclass(frozen=True, slots=True)
class LinkRun:
    """A profile, and what bulk transfers and updates came to on it."""

    profile: Profile
    artifact_bytes: int
    payload_bytes: int
    bulk_bps: list[float]
    updates: list[Update]

    @property
    def best_bps(self) -> float:
        """What a transfer may be asked for: no more than the link has, nor than plain TCP makes of it."""
        return min(float(self.profile.bps), median(self.bulk_bps))

    @property
    def goodput_bps(self) -> float:
        """The artifact's rate, 0 when one of its transfers broke."""
        return median(update.goodput_bps or 0.0 for update in self.updates)

    @property
    def frame_bytes(self) -> int:
        """What TLS puts around the payload: it grows with it, as TCP's own headers do."""
        return math.ceil(self.payload_bytes / _RECORD_BYTES) * TLS_RECORD_BYTES

    @property
    def overhead_bytes(self) -> int:
        """What the dearest update took above TCP and TLS's frames of the payload: all that is not the payload."""
        return max(update.https + update.mqtt for update in self.updates) - self.payload_bytes - self.frame_bytes


@dataclass(frozen=True, slots=True)
class Idle:
    """A connected device with nothing to do; IP bytes.

    `ping_bytes` crossed within `pings` keepalives, `connect_bytes` for one connection, closed and made again, which
    lasts `connection_s`.
    `resident_bytes` and `cpu_share` are the main process', without a worker.
    """

    keepalive_s: int
    pings: int
    ping_bytes: int
    connect_bytes: int
    connection_s: float
    resident_bytes: int
    cpu_share: float

    @property
    def day_bytes(self) -> float:
        """Bytes a day: keepalives, and a new connection whenever the token's time is up."""
        return (
            self.ping_bytes / self.pings * _DAY_S / self.keepalive_s + self.connect_bytes * _DAY_S / self.connection_s
        )


def run_updates(profile: Profile, prepared: Prepared, folder: Path) -> LinkRun:
    """Bulk transfers and updates over links of `profile`, one after the other."""
    count = BULKS_UNDER_LOSS if profile.loss else 1
    runs = [_run_update(profile, prepared, folder / f"{number}", number) for number in range(count)]
    bulk_bps, updates = [bps for bps, _ in runs], [update for _, update in runs]
    return LinkRun(profile, prepared.artifact_bytes, prepared.payload_bytes, bulk_bps, updates)


def _run_update(profile: Profile, prepared: Prepared, folder: Path, number: int) -> tuple[float, Update]:
    with open_link(profile, seed=_SEED + number) as link:
        bulk = run_bulk(link, prepared.artifact_bytes)
        with open_thin_site(link, prepared, folder) as site:
            began = time.monotonic()
            device = site.start_device()
            site.wait_state(device, "ACTIVE", UPDATE_TIMEOUT_S)
            took_s = time.monotonic() - began
            site.wait_quiet(_QUIET_S)
            assert site.read_reported()["state"] == "ACTIVE"
            return bulk.bps, _read_update(site, device, took_s, prepared)


def _read_update(site: ThinSite, device: Device, took_s: float, prepared: Prepared) -> Update:
    counts = site.link.counts(traces=True)
    answer_bytes, answer_s = counts.find_answer(HTTPS_PORT) or (0, 0.0)
    whole = answer_bytes >= prepared.artifact_bytes
    return Update(
        seconds=took_s,
        goodput_bps=prepared.artifact_bytes * 8 / answer_s if whole else None,
        https=counts.sum_stream_bytes(HTTPS_PORT),
        mqtt=counts.sum_stream_bytes(MQTT_PORT),
        wire=counts.sum_left_ip_bytes(HTTPS_PORT) + counts.sum_left_ip_bytes(MQTT_PORT),
        ledger=(device.find_status() or {})["ledger"]["total_bytes"],
    )


def run_idle(keepalive_s: int, prepared: Prepared, folder: Path, *, pings: int) -> Idle:
    """A loader that has done its update."""
    settings = f"{QUICK}[link]\nkeepalive_s = {keepalive_s}\n"
    with open_link(LTE_M) as link, open_thin_site(link, prepared, folder) as site:

        def start() -> Device:
            return site.start_device("--role", "loader", settings=settings)

        device = start()
        site.wait_state(device, "ACTIVE", UPDATE_TIMEOUT_S)
        time.sleep(_SETTLE_S)
        crossed, used_s = link.counts().left_ip_bytes, read_cpu_s(device.child.pid)
        time.sleep(keepalive_s * pings)
        idle = Idle(
            keepalive_s=keepalive_s,
            pings=pings,
            ping_bytes=link.counts().left_ip_bytes - crossed,
            connect_bytes=0,
            connection_s=HubSettings().token_ttl_s - RENEW_BEFORE_S,
            resident_bytes=read_memory(str(device.child.pid), "VmRSS"),
            cpu_share=(read_cpu_s(device.child.pid) - used_s) / (keepalive_s * pings),
        )
        crossed = link.counts().sum_left_ip_bytes(MQTT_PORT)
        device.stop()
        site.wait_connected(start(), UPDATE_TIMEOUT_S)
        site.wait_quiet(_QUIET_S)
        return replace(idle, connect_bytes=link.counts().sum_left_ip_bytes(MQTT_PORT) - crossed)
