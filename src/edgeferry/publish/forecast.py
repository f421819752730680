"""What an update will take, per device and for the fleet, before anything is sent; and whether a budget holds it.

The routes are `link/route.py`'s, as devices take them; bytes, time and money `link/forecast.py`'s; who reads the
repository and by whose right is decided in `app/operator.py`.

Rules:
- A device has what it reports as active, of every model. It may have more (what it ran before, what is pinned): then it
  fetches less than is said here, never more.
- Its link is what its twin says, then what the operator says; where neither tells a speed, bytes and money stand alone.
- What a twin holds is not believed further than its type; what makes no sense is told as a note and passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edgeferry.errors import EdgeferryError
from edgeferry.link.budget import Spent, get_day
from edgeferry.link.forecast import (
    ANSWER_HEAD_BYTES,
    METADATA_BYTES,
    PROFILES,
    TLS_CHAIN_BYTES,
    Forecast,
    Load,
    find_link_rate,
    forecast_transfer,
)
from edgeferry.link.policy import LinkPolicy, read_link_policy
from edgeferry.link.route import Step, list_digests, plan_steps
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Manifest
from edgeferry.publish.deploy import Order, make_deploy_patch
from edgeferry.publish.hub_service import HubService, Json
from edgeferry.publish.patches import read_bundled, read_manifest
from edgeferry.trust.bundle_object import get_bundle_path
from edgeferry.trust.draft import Draft, Listed, ObjectReader
from edgeferry.twin.contract import SECTION
from edgeferry.twin.document import merge
from edgeferry.wire.service_api import Identity

PUBLIC_CHAIN_BYTES, PUBLIC_HEAD_BYTES = 4500, 600
"""Certificates with session tickets, and heads of answers, of public clouds' blob stores (`link/forecast.py`)."""
_NO_SPEED = PROFILES["lte"]
"""What bytes are counted with where nobody tells a speed: it decides how many segments are acknowledged, no more."""
_MODELS_MAX = 64
_BELL_VERSION_BYTES = len(',"$version":12')

Holding = tuple[str, str]
"""A model and a version."""


# --- values -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Ways:
    """What the operator says of links whose twins are silent: a named profile, or rate and round trip."""

    profile: str = ""
    bps: int = 0
    rtt_s: float = 0.0
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers for the repository, in bytes: certificates that it sends (0: no TLS), head of an answer."""

    chain_bytes: int = TLS_CHAIN_BYTES
    head_bytes: int = ANSWER_HEAD_BYTES


@dataclass(frozen=True, slots=True)
class Shelf:
    """What is published: the version, other manifests that come along with it, those of what devices have.

    `metadata`: bytes of each signed object that a device fetches first; `contents`: digests of files that it brings.
    """

    manifest: Manifest
    others: tuple[Manifest, ...]
    held: Mapping[Holding, Manifest]
    metadata: tuple[int, ...]
    contents: frozenset[Digest] = frozenset()

    def find_version(self, digest: str) -> str:
        """The version that a file belongs to, where it is known."""
        known = (*self.held.values(), *self.others)
        return next((one.version for one in known for entry in one.files if entry.sha256 == digest), "")


@dataclass(frozen=True, slots=True)
class Seen:
    """A device as its twin shows it; of one that cannot be read, why."""

    identity: Identity
    desired: Json
    reported: Json
    error: EdgeferryError | None = None

    @property
    def active(self) -> dict[str, str]:
        """What it reports to run, by model."""
        models = _get_json(_get_json(self.reported, SECTION), "models")
        found = {name: _get_json(models, name).get("active") for name in list(models)[:_MODELS_MAX]}
        return {name: version for name, version in found.items() if isinstance(version, str) and version}


class StepForecast(msgspec.Struct, frozen=True, kw_only=True):
    """One download: `full`, `patch` (from a file of version `base`, where that is known) or `golden`: a picture."""

    kind: str
    bytes: int
    path: str = ""
    base: str = ""


class DeviceForecast(msgspec.Struct, frozen=True, kw_only=True):
    """One device. Times are Unix seconds, None where they cannot be told; `reason` says why.

    Attributes:
        needed: False where it runs this version already.
        link_class: of its link: on a free one nothing is paid.
        wire_bytes: all that crosses the wire, both ways, headers of IP and TCP included; with what it costs to go on in
            another sitting, where the link's speed tells how many there are.
        transfer_s: what its link is busy for.
        sittings: in how many goes, as windows and budgets let it.
        reason: link_unknown, link_forbidden, never_ends.
    """

    device: str
    active: str = ""
    needed: bool = True
    steps: tuple[StepForecast, ...] = ()
    link_class: str = ""
    payload_bytes: int = 0
    wire_bytes: int = 0
    transfer_s: float | None = None
    starts_at: float | None = None
    finishes_at: float | None = None
    sittings: int = 0
    money: float = 0.0
    currency: str = ""
    priced: bool = False
    reason: str = ""
    notes: tuple[str, ...] = ()
    error: dict[str, str] | None = None


class FleetForecast(msgspec.Struct, frozen=True, kw_only=True):
    """All devices, and their sums over `updates` of them; `finishes_at` of the last, None where one cannot be told."""

    model: str
    version: str
    made_at: float
    devices: tuple[DeviceForecast, ...]
    updates: int = 0
    payload_bytes: int = 0
    wire_bytes: int = 0
    money: dict[str, float] = {}
    finishes_at: float | None = None


# --- looking ----------------------------------------------------------------------------------------------------------
async def survey(hub: HubService, identities: Sequence[Identity]) -> list[Seen]:
    """The twins, one after the other; one that cannot be read does not keep the others from being seen."""
    found = []
    for identity in identities:
        try:
            properties = _get_json(await hub.fetch_twin(identity), "properties")
            desired, reported = _get_json(properties, "desired"), _get_json(properties, "reported")
            found.append(Seen(identity, desired, reported))
        except EdgeferryError as error:
            found.append(Seen(identity, {}, {}, error))
    return found


def read_shelf(reader: ObjectReader, draft: Draft, listed: Listed, *, holdings: AbstractSet[Holding]) -> Shelf:
    """What of the repository a forecast needs; `holdings`: what devices report. A version not published has no files.

    Raises:
        MetadataUntrusted: a manifest is missing or not the one that was signed.
    """
    bundled = read_bundled(reader, draft.list_versions(listed.model))
    others = bundled.list_others(listed.version)
    apart = () if len(others) < len(bundled.manifests) else (listed.size_bytes,)
    found = ((one, draft.find_version(*one)) for one in sorted(holdings))
    return Shelf(
        manifest=read_manifest(reader, listed),
        others=others,
        held={holding: read_manifest(reader, known) for holding, known in found if known is not None},
        metadata=(bundled.size_bytes or METADATA_BYTES, *apart),
        contents=bundled.contents,
    )


def list_holdings(seen: Iterable[Seen]) -> frozenset[Holding]:
    """Every model and version that some device reports to run."""
    return frozenset(holding for one in seen for holding in one.active.items())


# --- foreseeing -------------------------------------------------------------------------------------------------------
def forecast_fleet(
    order: Order, seen: Sequence[Seen], shelf: Shelf, *, server: Server, ways: Ways, now: float
) -> FleetForecast:
    """What it takes until the devices run `order`, from `now` on."""
    devices = tuple(_forecast_device(order, one, shelf, server=server, ways=ways, now=now) for one in seen)
    due = [one for one in devices if one.needed]
    ends = [one.finishes_at for one in due]
    currencies = sorted({one.currency for one in due if one.priced})
    return FleetForecast(
        model=order.model,
        version=order.version,
        made_at=now,
        devices=devices,
        updates=len(due),
        payload_bytes=sum(one.payload_bytes for one in due),
        wire_bytes=sum(one.wire_bytes for one in due),
        money={unit: sum(one.money for one in due if one.currency == unit) for unit in currencies},
        finishes_at=None if None in ends else max((at for at in ends if at is not None), default=None),
    )


def _forecast_device(
    order: Order, seen: Seen, shelf: Shelf, *, server: Server, ways: Ways, now: float
) -> DeviceForecast:
    name, active = str(seen.identity), seen.active.get(order.model, "")
    if seen.error is not None:
        return DeviceForecast(device=name, needed=False, error=seen.error.to_dict())
    if active == order.version:
        return DeviceForecast(device=name, active=active, needed=False)
    policy, problems = read_link_policy(_get_link(seen), LinkPolicy(link_bps=ways.bps, rtt_s=ways.rtt_s))
    held = [shelf.held[one] for one in seen.active.items() if one in shelf.held]
    have = frozenset(digest for manifest in held for digest in list_digests(manifest))
    steps = plan_steps(shelf.manifest, have | shelf.contents, others=shelf.others)
    found = _forecast_steps(order, seen, steps, shelf=shelf, server=server, policy=policy, ways=ways, now=now)
    known = find_link_rate(policy, ways.profile) is not None
    report = DeviceForecast(
        device=name,
        active=active,
        steps=tuple(_list_steps(steps, shelf)),
        link_class=policy.get_class(ways.interface),
        payload_bytes=found.payload_bytes,
        wire_bytes=found.wire_bytes,
        money=round(found.money, 6),
        currency=policy.currency,
        priced=policy.price_per_mb > 0 or policy.get_class(ways.interface) == "free",
        notes=tuple(f"{SECTION}.link.{one.key}: {one.message}" for one in problems),
    )
    return _add_times(report, found) if known else msgspec.structs.replace(report, reason="link_unknown")


def _add_times(report: DeviceForecast, found: Forecast) -> DeviceForecast:
    return msgspec.structs.replace(
        report,
        transfer_s=found.transfer_s,
        starts_at=found.starts_at,
        finishes_at=found.finishes_at,
        wire_bytes=found.sent_bytes,
        sittings=len(found.plan.sittings),
        reason=found.plan.reason,
    )


def _forecast_steps(
    order: Order,
    seen: Seen,
    steps: Sequence[Step],
    *,
    shelf: Shelf,
    server: Server,
    policy: LinkPolicy,
    ways: Ways,
    now: float,
) -> Forecast:
    load = Load(
        artifacts=tuple(step.source.size for step in steps),
        metadata=shelf.metadata,
        url_bytes=_count_url_bytes(order, steps),
        chain_bytes=server.chain_bytes,
        answer_head_bytes=server.head_bytes,
        twin_bytes=_count_twin_bytes(order, seen),
        bell_bytes=len(msgspec.json.encode(make_deploy_patch(order, seen.desired))) + _BELL_VERSION_BYTES,
    )
    return forecast_transfer(
        load,
        find_link_rate(policy, ways.profile) or _NO_SPEED,
        policy,
        now=now,
        spent=_read_spent(seen, policy, now),
        priority=_get_priority(order, seen),
        interface=ways.interface,
    )


def _count_url_bytes(order: Order, steps: Sequence[Step]) -> int:
    """Host, path and query of a request, on average."""
    paths = [get_bundle_path(order.model), *(Digest.from_str(step.source.blob).blob_path for step in steps)]
    repo, query = order.repo.partition("://")[2], f"?{order.sas}" if order.sas else ""
    return len(repo) + 1 + len(query) + sum(map(len, paths)) // len(paths)


def _count_twin_bytes(order: Order, seen: Seen) -> int:
    """JSON of what the device reads once it is told: both sections, without the service's own notes."""
    desired = merge(seen.desired, make_deploy_patch(order, seen.desired))
    view = {"desired": desired, "reported": seen.reported}
    plain = {name: {key: value for key, value in one.items() if key != "$metadata"} for name, one in view.items()}
    return len(msgspec.json.encode(plain))


def _read_spent(seen: Seen, policy: LinkPolicy, now: float) -> Spent:
    """What the device says it has spent, as far as that was today and this month; it is not told apart by kind."""
    ledger = _get_json(_get_json(seen.reported, SECTION), "ledger")
    notes = _get_json(_get_json(_get_json(seen.reported, "$metadata"), SECTION), "ledger")
    told, today = get_day(policy, _read_time(notes.get("$lastUpdated"), now)), get_day(policy, now)
    return Spent(
        day_bytes=_get_count(ledger, "day") if told == today else 0,
        month_bytes=_get_count(ledger, "month") if told[:7] == today[:7] else 0,
    )


def _read_time(text: object, now: float) -> float:
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else now
    except (ValueError, OverflowError):
        return now


def _list_steps(steps: Sequence[Step], shelf: Shelf) -> Iterator[StepForecast]:
    paths = {entry.sha256: entry.path for one in (*shelf.others, shelf.manifest) for entry in one.files}
    for step in steps:
        path = paths.get(str(step.target), "")
        base = shelf.find_version(str(step.base)) if step.base else ""
        yield StepForecast(kind=step.source.kind if path else "golden", path=path, bytes=step.source.size, base=base)


# --- what stands in a twin --------------------------------------------------------------------------------------------
def _get_link(seen: Seen) -> Json:
    return _get_json(_get_json(seen.desired, SECTION), "link")


def _get_priority(order: Order, seen: Seen) -> int:
    patch = make_deploy_patch(order, seen.desired)
    priority: int = patch[SECTION]["models"][order.model]["priority"]
    return priority


def _get_json(document: Mapping[str, Any], name: str) -> Json:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _get_count(document: Json, name: str) -> int:
    value = document.get(name)
    return max(0, value) if type(value) is int else 0


def is_tls(url: str) -> bool:
    """Whether a repository is reached over TLS."""
    return urlsplit(url).scheme == "https"
