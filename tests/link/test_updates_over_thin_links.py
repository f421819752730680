"""Updates over thin links, hub and device as real processes: they end, and little is sent twice.

What is sent again is what the hub put on the link beyond what an update without trouble takes: a second connection's
handshake and heads, and metadata asked for again, count against the limit too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from edgeferry.link.forecast import LinkRate, Load, count_wire_bytes
from edgeferry.trust.bundle_object import get_bundle_path
from link.profiles import CERTUS_100, LTE_M, NB_IOT, VSAT_512, Profile
from link.thin_link import open_link
from link.thin_site import HTTPS_PORT, MODEL, MQTT_PORT, Device, Prepared, ThinSite, open_thin_site, prepare

pytestmark = pytest.mark.usefixtures("needs_link")
BALLAST_BYTES = 150_000
RESENT_MAX_BYTES = 64 << 10
"""One chunk."""
CUT_S = 5.0
TIMEOUT_S = 120.0
LEDGER_MAX_SHARE = 0.02
FORECAST_MAX_SHARE = 0.03
STEADY_VSAT = replace(VSAT_512, loss=0.0)
"""What chance loses is sent again too, and is not what is measured."""


@dataclass
class Shop:
    """A published model, and a site of its own for each test.

    `sent_bytes`: what the repository sends for an update without trouble, by link.
    """

    prepared: Prepared
    folder: Path
    sent_bytes: dict[Profile, int] = field(default_factory=dict)
    _count: int = 0

    @contextmanager
    def open(self, profile: Profile) -> Iterator[tuple[ThinSite, Device]]:
        """A site whose device has just started."""
        self._count += 1
        with open_link(profile) as link, open_thin_site(link, self.prepared, self.folder / f"{self._count}") as site:
            yield site, site.start_device()

    def get_sent_bytes(self, profile: Profile) -> int:
        """`sent_bytes` of a link, tried when no test has."""
        if profile not in self.sent_bytes:
            with self.open(profile) as (site, device):
                site.wait_state(device, "ACTIVE", TIMEOUT_S)
                self.sent_bytes[profile] = count_sent(site)
        return self.sent_bytes[profile]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    return Shop(prepare(folder / "prepared", BALLAST_BYTES), folder)


def count_sent(site: ThinSite) -> int:
    """Bytes above TCP that the repository put on the link, those that were sent again included."""
    flows = site.link.counts().down.flows
    return sum(flow.entered.payload_bytes for flow in flows if flow.right_port == HTTPS_PORT)


def foresee_wire_bytes(prepared: Prepared, profile: Profile) -> int:
    """What an operator would have been told of this update, who knows what is published and the link."""
    bundle = prepared.folder / "site" / get_bundle_path(MODEL)
    others = prepared.payload_bytes - prepared.artifact_bytes
    artifacts = (prepared.artifact_bytes, *([others] if others else []))
    load = Load(artifacts, (bundle.stat().st_size,), hub_connects=True)
    return count_wire_bytes(load, LinkRate(profile.bps, profile.rtt_s, profile.mtu, profile.loss))


def list_profiles(*, vsat: Profile) -> list[object]:
    """All links; those that need more than seconds are for the soak."""
    slow = [pytest.param(one, id=one.name, marks=pytest.mark.soak) for one in (NB_IOT, CERTUS_100, vsat)]
    return [pytest.param(LTE_M, id=LTE_M.name), *slow]


@pytest.mark.parametrize("profile", list_profiles(vsat=VSAT_512))
def test_an_update_over_a_thin_link_ends_active_and_its_ledger_and_forecast_are_right(
    shop: Shop, profile: Profile
) -> None:
    with shop.open(profile) as (site, device):
        site.wait_state(device, "ACTIVE", TIMEOUT_S)
        site.wait(device, lambda: site.read_reported().get("state") == "ACTIVE", TIMEOUT_S)  # states gather
        site.wait_quiet(1.0 + 2 * profile.rtt_s)
        assert site.read_reported() == {"target": "1.0.0", "state": "ACTIVE", "active": "1.0.0"}
        shop.sent_bytes[profile] = count_sent(site)
        counts = site.link.counts()
        wire_bytes = counts.sum_left_ip_bytes(HTTPS_PORT) + counts.sum_left_ip_bytes(MQTT_PORT)
        assert wire_bytes == counts.left_ip_bytes > shop.prepared.payload_bytes
        booked = (device.find_status() or {})["ledger"]["total_bytes"]
        assert booked == pytest.approx(wire_bytes, rel=LEDGER_MAX_SHARE)
        assert foresee_wire_bytes(shop.prepared, profile) == pytest.approx(wire_bytes, rel=FORECAST_MAX_SHARE)


@pytest.mark.soak
@pytest.mark.parametrize("profile", list_profiles(vsat=STEADY_VSAT))
def test_a_cut_in_the_middle_of_a_download_sends_at_most_one_chunk_again(shop: Shop, profile: Profile) -> None:
    unbroken_bytes = shop.get_sent_bytes(profile)
    with shop.open(profile) as (site, device):
        site.wait_downloaded(device, shop.prepared.artifact_bytes // 2, TIMEOUT_S)
        site.link.cut(for_s=CUT_S)
        site.wait_state(device, "ACTIVE", TIMEOUT_S)
        assert site.link.counts().down.lost.packets > 0
        assert 0 < count_sent(site) - unbroken_bytes <= RESENT_MAX_BYTES


@pytest.mark.soak
@pytest.mark.parametrize("profile", list_profiles(vsat=STEADY_VSAT))
def test_a_kill_in_the_middle_of_a_download_sends_at_most_one_chunk_again(shop: Shop, profile: Profile) -> None:
    unbroken_bytes = shop.get_sent_bytes(profile)
    with shop.open(profile) as (site, device):
        site.wait_downloaded(device, shop.prepared.artifact_bytes // 2, TIMEOUT_S)
        device.kill()
        again = site.start_device()
        site.wait_state(again, "ACTIVE", TIMEOUT_S)
        assert 0 < count_sent(site) - unbroken_bytes <= RESENT_MAX_BYTES
