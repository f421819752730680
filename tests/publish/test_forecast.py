"""What a deployment will take, of a real repository and a real hub's twins; and what a budget refuses.

That devices then take so many bytes is measured on a real link (tests/link/test_forecasts.py).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from tests.publish.desk import make_model, make_picture, make_request, say_nothing
from tests.publish.town import Town, open_town

from edgeferry.app import operator
from edgeferry.errors import ConfigInvalid, NameInvalid, ObjectMissing, OverBudget
from edgeferry.link.forecast import PROFILES
from edgeferry.publish.deploy import Order
from edgeferry.publish.forecast import (
    DeviceForecast,
    FleetForecast,
    Seen,
    Server,
    Shelf,
    Ways,
    forecast_fleet,
    list_holdings,
    read_shelf,
)
from edgeferry.publish.publisher import publish
from edgeferry.publish.report import PublishReport
from edgeferry.publish.spending import Spending, require_within
from edgeferry.trust.bundle_object import make_bundle_object
from edgeferry.trust.draft import ObjectReader, open_draft
from edgeferry.trust.signer import Desk
from edgeferry.twin.document import format_time
from edgeferry.wire.service_api import Identity

pytestmark = pytest.mark.asyncio(loop_scope="module")
NOW = dt.datetime(2026, 11, 26, 12, tzinfo=dt.UTC).timestamp()
DAY_S = 86_400
MIDNIGHT, NEXT_MONTH = (dt.datetime(2026, *day, tzinfo=dt.UTC).timestamp() for day in ((11, 27), (12, 1)))
GOLDEN = {"a.png": make_picture(90), "a.json": b'{"objects": [{"label": "high"}]}'}
LTE_M = Ways(profile="lte-m")
REPO = "https://hub.example/files"


@dataclass(frozen=True)
class Shop:
    """A town where 1.1.0 and 1.2.0 are published too, each with a patch from the one before; reports by version."""

    town: Town
    reports: dict[str, PublishReport]

    @property
    def desk(self) -> Desk:
        return self.town.desk


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with open_town(tmp_path_factory.mktemp("shop")) as town:
        shop = Shop(town, {"1.0.0": town.report})
        for version, changed in (("1.1.0", 40), ("1.2.0", 90)):
            before = list(shop.reports)[-1]
            request = make_request(
                version, model_data=make_model(changed=changed), golden_files=GOLDEN, bases=(before,)
            )
            shop.reports[version] = publish(request, town.desk, say=say_nothing)
        yield shop


def make_seen(
    active: str = "", *, link: Any = None, ledger: Any = None, told_at: float = NOW, priority: int = 0
) -> Seen:
    """The module d/m, as the hub shows its twin."""
    section: dict[str, Any] = {"models": {"gauge": {"active": active}} if active else {}}
    section |= {"ledger": ledger} if ledger else {}
    stamp = {"$lastUpdated": format_time(told_at)}
    reported = {"edgeferry": section, "$metadata": {"edgeferry": {"ledger": stamp}}, "$version": 9}
    desired = {"edgeferry": {"link": link or {}, "models": {"gauge": {"priority": priority}}}}
    return Seen(Identity("d", "m"), desired, reported)


def foresee(shop: Shop, *seen: Seen, version: str = "1.2.0", ways: Ways = LTE_M, now: float = NOW) -> FleetForecast:
    draft = open_draft(shop.desk.store, shop.desk.keys)
    listed = draft.find_version("gauge", version)
    assert listed is not None
    shelf = read_shelf(shop.desk.store, draft, listed, holdings=list_holdings(seen))
    order = Order("gauge", version, listed.digest, REPO, "sig=1")
    return forecast_fleet(order, seen, shelf, server=Server(), ways=ways, now=now)


def foresee_one(shop: Shop, seen: Seen, **changes: Any) -> DeviceForecast:
    [one] = foresee(shop, seen, **changes).devices
    return one


# --- routes -----------------------------------------------------------------------------------------------------------
async def test_payload_is_what_publishing_told_of_each_base(shop: Shop) -> None:
    report = shop.reports["1.2.0"]
    told = {update.base: update.bytes for update in report.updates}
    one = foresee_one(shop, make_seen("1.1.0"))
    assert one.payload_bytes == told["1.1.0"]
    assert [(step.kind, step.base) for step in one.steps] == [("patch", "1.1.0")]
    fresh = foresee_one(shop, make_seen())
    assert fresh.payload_bytes == report.download_bytes
    assert [step.kind for step in fresh.steps] == ["full", "golden"]  # the labels come along with the manifest
    assert one.payload_bytes < one.wire_bytes < fresh.wire_bytes


async def test_a_device_that_missed_a_version_is_foreseen_patch_over_patch(shop: Shop) -> None:
    one = foresee_one(shop, make_seen("1.0.0"))
    assert [(step.kind, step.base) for step in one.steps] == [("patch", "1.0.0"), ("patch", "1.1.0"), ("golden", "")]


async def test_what_a_device_has_of_other_models_is_not_fetched_again(shop: Shop) -> None:
    request = make_request(model="other", model_data=make_model(7), golden_files=GOLDEN)
    publish(request, shop.desk, say=say_nothing)
    seen = make_seen()
    seen.reported["edgeferry"]["models"]["other"] = {"active": "1.0.0"}
    assert [step.kind for step in foresee_one(shop, seen).steps] == ["full"]  # the picture is the other's, too


async def test_a_version_that_is_not_in_the_repository_is_nothing_to_start_from(shop: Shop) -> None:
    assert foresee_one(shop, make_seen("0.1-lost")).steps == foresee_one(shop, make_seen()).steps


async def test_who_runs_the_version_needs_nothing_and_counts_for_nothing(shop: Shop) -> None:
    found = foresee(shop, make_seen("1.2.0"), make_seen("1.1.0"))
    idle, busy = found.devices
    assert (idle.needed, idle.wire_bytes, found.updates) == (False, 0, 1)
    assert (found.wire_bytes, found.finishes_at) == (busy.wire_bytes, busy.finishes_at)


@dataclass(frozen=True)
class EmptyBundles:
    """A store whose bundle objects bring nothing along."""

    store: ObjectReader

    def find(self, path: str, max_bytes: int) -> tuple[bytes, str] | None:
        return (make_bundle_object({}), "") if path.endswith(".zst") else self.store.find(path, max_bytes)


async def test_a_manifest_that_no_bundle_brings_along_is_fetched_by_itself(shop: Shop) -> None:
    draft = open_draft(shop.desk.store, shop.desk.keys)
    listed = draft.find_version("gauge", "1.2.0")
    assert listed is not None
    stores = (shop.desk.store, EmptyBundles(shop.desk.store))
    whole, bare = (read_shelf(store, draft, listed, holdings=frozenset()) for store in stores)
    assert (len(whole.metadata), bare.others) == (1, ())
    assert bare.metadata == (len(make_bundle_object({})), shop.reports["1.2.0"].manifest_bytes)


# --- links ------------------------------------------------------------------------------------------------------------
async def test_the_twin_tells_of_the_link_before_the_operator_does(shop: Shop) -> None:
    slow = foresee_one(shop, make_seen(link={"bps": 9600, "rtt_s": 2.0}))
    quick = foresee_one(shop, make_seen())
    told = foresee_one(shop, make_seen(), ways=Ways(bps=9600, rtt_s=2.0))
    assert slow.transfer_s and quick.transfer_s and slow.transfer_s > 10 * quick.transfer_s
    assert slow.transfer_s == pytest.approx(told.transfer_s, rel=0.02)  # its twin is a little longer
    assert quick.transfer_s > quick.wire_bytes * 8 / PROFILES["lte-m"].bps


async def test_without_a_speed_bytes_and_money_stand_alone(shop: Shop) -> None:
    one = foresee_one(shop, make_seen(link={"price_per_mb": 2.0}), ways=Ways())
    assert (one.reason, one.transfer_s, one.finishes_at) == ("link_unknown", None, None)
    assert one.money == pytest.approx(one.wire_bytes / 1e6 * 2.0, abs=1e-5)


WINDOW = {"windows": [{"cron": "0 2 * * *", "duration_s": 7200}]}
AT_TWO = dt.datetime(2026, 11, 27, 2, tzinfo=dt.UTC).timestamp()


async def test_it_starts_when_the_window_opens_unless_it_is_urgent(shop: Shop) -> None:
    waiting = foresee_one(shop, make_seen(link=WINDOW))
    assert (waiting.starts_at, waiting.sittings) == (AT_TWO, 1)
    assert waiting.transfer_s is not None
    assert waiting.finishes_at == pytest.approx(AT_TWO + waiting.transfer_s, abs=0.1)
    urgent = foresee_one(shop, make_seen(link=WINDOW | {"urgent_priority": 5}, priority=5))
    assert urgent.starts_at == NOW


@pytest.mark.parametrize(
    ("budget", "told_at", "starts_at"),
    [
        ("day_bytes", NOW, MIDNIGHT),
        ("day_bytes", NOW - DAY_S, NOW),
        ("month_bytes", NOW - DAY_S, NEXT_MONTH),
        ("month_bytes", NOW - 30 * DAY_S, NOW),
    ],
)
async def test_what_the_device_has_spent_today_and_this_month_counts(
    shop: Shop, budget: str, told_at: float, starts_at: float
) -> None:
    seen = make_seen(link={budget: 100_000}, ledger={"day": 100_000, "month": 100_000}, told_at=told_at)
    assert foresee_one(shop, seen).starts_at == starts_at


async def test_a_small_budget_spreads_it_and_a_forbidden_link_never_takes_it(shop: Shop) -> None:
    fresh = foresee_one(shop, make_seen(link={"day_bytes": 65_536}))
    assert fresh.wire_bytes > 65_536 / 2
    seen = make_seen(link={"day_bytes": 65_536}, ledger={"day": 50_000, "month": 50_000})
    spread = foresee_one(shop, seen)
    assert (spread.sittings, spread.reason) == (2, "")
    ample = foresee_one(shop, make_seen(link={"day_bytes": 655_360}, ledger={"day": 50_000, "month": 50_000}))
    assert spread.wire_bytes > ample.wire_bytes + 500, "a second sitting has a connection of its own"
    with pytest.raises(OverBudget):
        require_within(Spending(ample.wire_bytes + 500), foresee(shop, seen))
    never = foresee(shop, make_seen(link={"class": "forbidden"}), make_seen())
    assert (never.devices[0].reason, never.devices[0].finishes_at, never.finishes_at) == ("link_forbidden", None, None)


async def test_money_is_summed_by_currency_and_a_free_link_costs_none(shop: Shop) -> None:
    links: list[dict[str, Any]] = [
        {"price_per_mb": 6.5},
        {"price_per_mb": 1.0},
        {"price_per_mb": 6.5, "currency": "NOK"},
        {"price_per_mb": 6.5, "interfaces": {"wlan0": "free"}},
    ]
    found = foresee(shop, *(make_seen(link=link) for link in links), ways=replace(LTE_M, interface="wlan0"))
    prices = [one.money * 1e6 / one.wire_bytes for one in found.devices]
    assert prices == [pytest.approx(price, rel=1e-3, abs=0) for price in (6.5, 1.0, 6.5, 0.0)]
    assert found.money["EUR"] == pytest.approx(found.devices[0].money + found.devices[1].money)
    assert found.money["NOK"] == found.devices[2].money


async def test_what_of_a_policy_cannot_be_followed_is_told_beside_the_figures(shop: Shop) -> None:
    one = foresee_one(shop, make_seen(link={"day_bytes": "much"}))
    assert one.wire_bytes > 0
    assert [note.partition(":")[0] for note in one.notes] == ["edgeferry.link.day_bytes"]


@pytest.mark.parametrize("active", [5, None, "", ["1.0.0"], {"version": "1.0.0"}])
async def test_what_is_no_version_is_not_active(active: Any) -> None:
    seen = Seen(Identity("d"), {}, {"edgeferry": {"models": {"gauge": {"active": active}, "other": {"active": "1"}}}})
    assert seen.active == {"other": "1"}


KEYS = st.sampled_from(["active", "priority", "edgeferry", "ledger", "$lastUpdated"]) | st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=3),
    max_leaves=8,
)
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "models": st.dictionaries(st.sampled_from(["gauge", "x"]), JSON) | JSON,
        "ledger": st.fixed_dictionaries({"day": JSON, "month": JSON}) | JSON,
        "link": st.dictionaries(st.sampled_from(["bps", "rtt_s", "windows", "day_bytes"]), JSON) | JSON,
    },
)
TWINS = st.fixed_dictionaries({}, optional={"edgeferry": SECTIONS | JSON, "$metadata": JSON})


async def test_no_twin_makes_a_forecast_fail(shop: Shop) -> None:
    draft = open_draft(shop.desk.store, shop.desk.keys)
    listed = draft.find_version("gauge", "1.2.0")
    assert listed is not None
    order = Order("gauge", "1.2.0", listed.digest, REPO)
    shelf: Shelf = read_shelf(shop.desk.store, draft, listed, holdings=frozenset())

    @given(TWINS, TWINS)
    def check(desired: dict[str, Any], reported: dict[str, Any]) -> None:
        seen = Seen(Identity("d"), desired, reported)
        assert all(isinstance(version, str) for _, version in list_holdings([seen]))
        [one] = forecast_fleet(order, [seen], shelf, server=Server(), ways=LTE_M, now=NOW).devices
        assert one.payload_bytes == shop.reports["1.2.0"].download_bytes or not one.needed

    check()


# --- the hub, and a budget --------------------------------------------------------------------------------------------
async def test_without_devices_all_that_report_the_model_are_foreseen(shop: Shop) -> None:
    await shop.town.hub.add_module("d2", "m")
    await shop.town.report_active(Identity("d", "m"), {"gauge": "1.1.0"})
    await shop.town.report_active(Identity("d2"), {"gauge": "1.2.0"})
    await shop.town.report_active(Identity("d2", "m"), {"other": "1.0.0"})
    found = await operator.forecast_version(shop.town.make_terms(devices=(), version="1.2.0"), LTE_M)
    assert {one.device: one.needed for one in found.devices} == {"d/m": True, "d2": False}


async def test_a_device_that_nobody_knows_does_not_keep_others_from_being_foreseen(shop: Shop) -> None:
    terms = shop.town.make_terms(devices=("nobody", "d/m"), version="1.2.0")
    found = await operator.forecast_version(terms, LTE_M)
    assert [bool(one.error) for one in found.devices] == [True, False]
    assert found.updates == 1
    with pytest.raises(ConfigInvalid, match="nobody"):
        require_within(Spending(1e9), found)
    with pytest.raises(NameInvalid):
        await operator.forecast_version(replace(terms, devices=("a/b/c",)), LTE_M)


async def test_a_version_that_is_not_published_is_not_foreseen(shop: Shop) -> None:
    with pytest.raises(ObjectMissing, match=r"1\.2\.0"):
        await operator.forecast_version(shop.town.make_terms(version="9.9.9"), LTE_M)


async def test_what_its_server_sends_around_it_counts(shop: Shop) -> None:
    given = {"version": "1.2.0", "site": str(shop.town.folder / "repo"), "sas": "sig=1"}
    repos = ("http://store.example/files", shop.town.repo, "https://store.example/files")
    plain, own, cloud = (shop.town.make_terms(repo=repo, **given) for repo in repos)
    sizes = [(await operator.forecast_version(terms, LTE_M)).wire_bytes for terms in (plain, own, cloud)]
    assert sizes[0] + 900 < sizes[1] < sizes[2] - 3000, "certificates and heads"


async def test_over_the_budget_nothing_is_written_to_any_twin(shop: Shop) -> None:
    await shop.town.report_active(Identity("d", "m"), {"gauge": "1.1.0"})
    given = {"site": str(shop.town.folder / "repo"), "sas": "sig=1"}  # one made here has another length each second
    terms = shop.town.make_terms(devices=("d", "d/m"), version="1.2.0", **given)
    found = await operator.forecast_version(terms, Ways())
    twins = [await shop.town.read_desired(name) for name in terms.devices]
    with pytest.raises(OverBudget, match="2 devices"):
        await operator.deploy_version(terms, check=lambda one: require_within(Spending(found.wire_bytes - 1), one))
    assert [await shop.town.read_desired(name) for name in terms.devices] == twins
    outcome = await operator.deploy_version(terms, check=lambda one: require_within(Spending(found.wire_bytes), one))
    assert [one.changed for one in outcome.devices] == [True, True]
