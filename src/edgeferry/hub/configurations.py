"""Automatic configurations at work: kept, applied to the twins they match, counted.

What one says and how several are merged stands in twin/configuration.py.

Rules:
- Whatever may change which twins match (a new identity, a write of tags or desired properties) applies configurations
  in the transaction of that very write. What changes otherwise (reported properties, connections) is found by a pass
  over the fleet, again and again.
- A pass goes page by page, each bounded in rows and in time: a large fleet or large contents never hold up other
  writes for long.
- A configuration that would push a twin over its limits is left out there and told in the log: others go on.
- A module's identity is made when an IoT Edge deployment names it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import msgspec
import structlog

from edgeferry.errors import Conflict, LimitExceeded, NotFound, RequestInvalid
from edgeferry.hub.identity_records import make_etag, make_record
from edgeferry.storage.hub_db import HubDb
from edgeferry.storage.hub_events import DesiredWritten
from edgeferry.storage.hub_tables import HubTables, IdentityView
from edgeferry.twin.configuration import (
    CONFIGURATIONS_MAX,
    Configuration,
    Content,
    StoredConfiguration,
    choose,
    judge,
    make_configuration_body,
    make_desired,
    parse_configuration,
    parse_content,
    require_same_content,
)
from edgeferry.twin.document import Json, TwinDocument, make_patch, make_twin, write_twin
from edgeferry.twin.query import Query, parse_query
from edgeferry.wire.service_api import Identity, make_twin_body, require_identity

PAGE_ROWS = 100
PAGE_S = 0.1  # then a page ends, however few rows it had: other work waits for the same thread
_LEFT_OUT = "a configuration would push a twin over its limits and is left out there"
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Configurations:
    """Configurations of one hub. `clock` gives Unix seconds."""

    db: HubDb
    clock: Callable[[], float]

    async def write(self, name: str, body: Json, if_match: str | None, *, must_exist: bool) -> Json:
        """Stores a configuration and applies it to the fleet.

        Raises:
            RequestInvalid, LimitExceeded: it cannot be read, changes the content, or there are too many.
            Conflict: it exists (without `must_exist`), or `if_match` is stale.
            NotFound: `must_exist`, and it does not.
        """
        now = self.clock()

        def work(tables: HubTables) -> None:
            before = find(tables, name)
            if before is None and must_exist:
                raise NotFound(f"there is no configuration {name}", service_code="ConfigurationNotFound")
            if before is not None and not must_exist:
                raise Conflict(f"{name} exists already", service_code="ConfigurationAlreadyExists")
            if before is not None and if_match not in (None, before.etag):
                raise Conflict(f"{name} has changed since it was read", service_code="PreconditionFailed")
            if before is None and len(tables.list_configurations()) >= CONFIGURATIONS_MAX:
                raise LimitExceeded(f"expected at most {CONFIGURATIONS_MAX} configurations")
            stored = StoredConfiguration(name, body, make_etag(), before.created_at if before else now, now)
            parsed = parse_configuration(stored)
            if before is not None:
                require_same_content(before, parsed)
            tables.write_configuration(name, msgspec.json.encode(stored))

        await self.db.write(work)
        await self.apply_all()
        return await self.show(name)

    async def delete(self, name: str, if_match: str | None) -> None:
        """Deletes one; raises NotFound, or Conflict when `if_match` is stale. Lower priorities take its place."""

        def work(tables: HubTables) -> None:
            before = require(tables, name)
            if if_match not in (None, before.etag):
                raise Conflict(f"{name} has changed since it was read", service_code="PreconditionFailed")
            tables.delete_configuration(name)

        await self.db.write(work)
        await self.apply_all()

    async def show(self, name: str) -> Json:
        """A configuration with its counts of now; raises NotFound."""
        configuration = await self.db.read(lambda tables: require(tables, name))
        [shown] = await self._show([configuration])
        return shown

    async def show_all(self, limit: int) -> list[Json]:
        """Every configuration with its counts of now, by id."""
        configurations = await self.db.read(read_all)
        return await self._show(configurations[:limit])

    async def apply_content(self, device_id: str, content: Json) -> None:
        """Writes a content to one device, once; makes the modules that it declares.

        Raises:
            NotFound: no such device.
            RequestInvalid, LimitExceeded: it cannot be read, or cannot stand in a twin.
        """
        parsed, now = parse_content(content), self.clock()
        if parsed.module:
            raise RequestInvalid("'moduleContent' goes with a target condition, not with one device")

        def work(tables: HubTables) -> None:
            device = tables.require_view(Identity(device_id))
            _add_declared(tables, device_id, [parsed], now)
            for view in (device, *tables.read_modules(device_id)):
                paths = parsed.get_paths(view.record.identity.module_id)
                _write_desired(tables, view, make_desired(view.twin.desired.body, [paths]), now)
            apply_to_device(tables, device_id, now)

        await self.db.write(work)

    async def apply_all(self) -> None:
        """One pass over the fleet."""
        if not await self.db.read(lambda tables: tables.list_configurations()):
            return
        left_out: dict[str, list[Identity]] = {}
        after: Identity | None = None
        while True:
            after, more = await self.db.write(partial(_apply_page, after=after, now=self.clock()))
            for name, identity in more:
                left_out.setdefault(name, []).append(identity)
            if after is None:
                break
        for name, twins in left_out.items():  # one line for each, however large the fleet
            _log.warning(_LEFT_OUT, configuration=name, twins=len(twins), first=str(twins[0]))

    async def count(self, queries: Iterable[Query]) -> list[int]:
        """How many twins each query selects."""
        wanted = list(queries)
        totals = [0] * len(wanted)
        if not wanted:
            return totals
        async for view in iterate(self.db):
            body = show_view(view)
            source = "devices.modules" if view.record.identity.module_id else "devices"
            for index, query in enumerate(wanted):
                totals[index] += query.source == source and query.selects(body)
            await asyncio.sleep(0)  # many queries take long at each twin
        return totals

    async def _show(self, configurations: list[Configuration]) -> list[Json]:
        targeted, applied = Counter[str](), Counter[str]()
        after: Identity | None = None
        while True:
            after, *more = await self.db.read(partial(_count_page, after=after))
            targeted, applied = targeted + more[0], applied + more[1]
            if after is None:
                break
        queries = [parse_query(text) for one in configurations for text in one.metrics.values()]
        counted = iter(await self.count(queries))
        shown = []
        for one in configurations:
            counts = {"targetedCount": targeted[one.name], "appliedCount": applied[one.name]}
            results = {metric: next(counted) for metric in one.metrics}
            shown.append(make_configuration_body(one, counts=counts, results=results))
        return shown


async def iterate(db: HubDb, *, modules: bool | None = None) -> AsyncIterator[IdentityView]:
    """Every device, every module, or with None both, page by page."""
    for kind in (False, True) if modules is None else (modules,):
        after: Identity | None = None
        while True:
            page = await db.read(partial(HubTables.read_views, modules=kind, after=after, limit=PAGE_ROWS))
            for view in page:
                yield view
            if not page:
                break
            after = page[-1].record.identity


def show_view(view: IdentityView) -> Json:
    """A twin as queries see it."""
    return make_twin_body(view.record, view.twin, view.facts)


def read_all(tables: HubTables) -> list[Configuration]:
    """Every configuration, by id; one that a later release wrote and this one cannot read is left out, and told."""
    found: list[Configuration] = []
    for name, body in tables.list_configurations():
        try:
            found.append(_decode(body))
        except (RequestInvalid, LimitExceeded, msgspec.MsgspecError):
            _log.error("a stored configuration cannot be read and is left out", configuration=name)
    return found


def find(tables: HubTables, name: str) -> Configuration | None:
    """One configuration, or None."""
    body = tables.find_configuration(name)
    return _decode(body) if body is not None else None


def require(tables: HubTables, name: str) -> Configuration:
    """One configuration; raises NotFound."""
    configuration = find(tables, name)
    if configuration is None:
        raise NotFound(f"there is no configuration {name}", service_code="ConfigurationNotFound")
    return configuration


def apply_to_device(tables: HubTables, device_id: str, now: float) -> None:
    """Applies every configuration to one device and its modules, inside the caller's transaction."""
    configurations = read_all(tables)
    if configurations:
        for name, identity in _apply(tables, tables.require_view(Identity(device_id)), configurations, now):
            _log.warning(_LEFT_OUT, configuration=name, twins=1, first=str(identity))


# --- what counts for a device and its modules -------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Ranked:
    """One twin, and what each configuration says of it, the last one the highest. `matching` chose this very module."""

    view: IdentityView
    says: list[tuple[str, Mapping[str, Any]]]
    matching: list[Configuration]


def _find_matching(view: IdentityView, configurations: list[Configuration], source: str) -> list[Configuration]:
    wanted = [one for one in configurations if one.target.source == source]
    document = show_view(view) if wanted else {}
    return [one for one in wanted if one.target.selects(document)]


def _rank(
    tables: HubTables, view: IdentityView, chosen: list[Configuration], configurations: list[Configuration]
) -> Iterator[_Ranked]:
    """A device and its modules; `chosen` are the configurations that count for the device."""
    yield _Ranked(view, [(one.name, one.content.device) for one in chosen if one.content.device], [])
    if not any(one.content.modules or one.content.module for one in (*chosen, *configurations)):
        return
    for module in tables.read_modules(view.record.identity.device_id):
        matching, name = _find_matching(module, configurations, "devices.modules"), module.record.identity.module_id
        ranked = choose([*chosen, *matching])
        yield _Ranked(module, [(one.name, paths) for one in ranked if (paths := one.content.get_paths(name))], matching)


def _read_page(tables: HubTables, after: Identity | None) -> Iterator[IdentityView]:
    """The next devices, at least one where there are any, until the page is full or its time is over."""
    ends_at = time.monotonic() + PAGE_S
    for view in tables.read_views(modules=False, after=after, limit=PAGE_ROWS):
        yield view
        if time.monotonic() > ends_at:
            return


# --- applying ---------------------------------------------------------------------------------------------------------
def _apply_page(
    tables: HubTables, after: Identity | None, now: float
) -> tuple[Identity | None, list[tuple[str, Identity]]]:
    """The end of the next page (None: there is none), and which configuration was left out at which twin."""
    configurations, left_out, last = read_all(tables), [], None
    for view in _read_page(tables, after):
        left_out += _apply(tables, view, configurations, now)
        last = view.record.identity
    return last, left_out


def _apply(
    tables: HubTables, view: IdentityView, configurations: list[Configuration], now: float
) -> list[tuple[str, Identity]]:
    chosen = choose(_find_matching(view, configurations, "devices"))
    _add_declared(tables, view.record.identity.device_id, [one.content for one in chosen], now)
    return [
        left_out for ranked in _rank(tables, view, chosen, configurations) for left_out in _write(tables, ranked, now)
    ]


def _add_declared(tables: HubTables, device_id: str, contents: list[Content], now: float) -> None:
    for name in dict.fromkeys(name for one in contents for name in one.get_declared_modules()):
        identity = require_identity(device_id, name)
        if tables.find_identity(identity) is None:
            tables.add_identity(make_record(identity, now, managed_by="iotEdge"), make_twin(now))


def _write(tables: HubTables, ranked: _Ranked, now: float) -> list[tuple[str, Identity]]:
    """Writes all, or what fits: from the lowest up, each that would pass a limit is left out. Returns those."""
    twin, left_out = ranked.view.twin, list[tuple[str, Identity]]()
    desired = make_desired(twin.desired.body, [paths for _, paths in ranked.says])
    with suppress(LimitExceeded):
        _write_desired(tables, ranked.view, desired, now)
        return []
    desired = twin.desired.body
    for name, paths in ranked.says:
        further = make_desired(desired, [paths])
        if _fits(twin, further, now):
            desired = further
        else:
            left_out.append((name, ranked.view.record.identity))
    _write_desired(tables, ranked.view, desired, now)
    return left_out


def _fits(twin: TwinDocument, desired: Json, now: float) -> bool:
    try:
        write_twin(twin, tags=None, desired=make_patch(twin.desired.body, desired), now=now)
    except LimitExceeded:
        return False
    return True


def _write_desired(tables: HubTables, view: IdentityView, desired: Json, now: float) -> None:
    patch = make_patch(view.twin.desired.body, desired)
    if not patch:
        return

    def change(twin: TwinDocument) -> tuple[TwinDocument, Json | None]:
        return write_twin(twin, tags=None, desired=patch, now=now)

    told = tables.change_twin(view.record.identity, change)
    if told is not None:
        tables.tell(DesiredWritten(view.record.identity, told))


# --- counting ---------------------------------------------------------------------------------------------------------
def _count_page(tables: HubTables, after: Identity | None) -> tuple[Identity | None, Counter[str], Counter[str]]:
    """The end of the next page (None: there is none), and by configuration how many twins match, and how many hold."""
    configurations, last = read_all(tables), None
    targeted, applied = Counter[str](), Counter[str]()
    for view in _read_page(tables, after):
        _count(tables, view, configurations, targeted, applied)
        last = view.record.identity
    return last, targeted, applied


def _count(
    tables: HubTables,
    view: IdentityView,
    configurations: list[Configuration],
    targeted: Counter[str],
    applied: Counter[str],
) -> None:
    matching = _find_matching(view, configurations, "devices")
    targeted.update(one.name for one in matching)
    chosen = choose(matching)
    verdicts: dict[str, list[bool]] = {one.name: [] for one in chosen}
    for ranked in _rank(tables, view, chosen, configurations):
        standing = judge(ranked.view.twin.desired.body, ranked.says)
        targeted.update(one.name for one in ranked.matching)
        applied.update(one.name for one in ranked.matching if standing.get(one.name))
        for name in standing.keys() & verdicts.keys():
            verdicts[name].append(standing[name])
    for one in chosen:  # it stands at every twin that it speaks of, and is to be seen at one of them
        wanted = bool(one.content.device) + len(one.content.modules)
        applied[one.name] += len(verdicts[one.name]) == wanted and any(verdicts[one.name])


@lru_cache(
    maxsize=CONFIGURATIONS_MAX
)  # every write of a twin reads all of them; what is read is never changed in place
def _decode(body: bytes) -> Configuration:
    return parse_configuration(msgspec.json.decode(body, type=StoredConfiguration))
