"""Automatic configurations at work: kept, applied to the twins they match, counted.

What one says and how several are merged stands in twin/configuration.py.

Rules:
- Whatever may change which twins match (a new identity, a write of tags or desired properties) applies configurations
  in the transaction of that very write. What changes otherwise (reported properties, connections) is found by a pass
  over the fleet, again and again.
- A pass goes page by page: a large fleet never holds up other writes for long.
- A device whose twin would pass a limit takes none of them; the log says so, and the pass goes on.
- A module's identity is made when an IoT Edge deployment names it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import structlog

from edgeferry.errors import Conflict, LimitExceeded, NameInvalid, NotFound, RequestInvalid
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
    holds,
    make_configuration_body,
    make_desired,
    parse_configuration,
    parse_content,
)
from edgeferry.twin.document import Json, TwinDocument, make_patch, make_twin, write_twin
from edgeferry.twin.query import Query, parse_query
from edgeferry.wire.service_api import Identity, make_twin_body, require_identity

PAGE_ROWS = 100
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Configurations:
    """Configurations of one hub. `clock` gives Unix seconds."""

    db: HubDb
    clock: Callable[[], float]

    async def write(self, name: str, body: Json, if_match: str | None, *, must_exist: bool) -> Json:
        """Stores a configuration and applies it to the fleet.

        Raises:
            RequestInvalid, LimitExceeded: it cannot be read, or there are too many.
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
            parse_configuration(stored)
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
        return await self._show(configuration)

    async def show_all(self, limit: int) -> list[Json]:
        """Every configuration with its counts of now, by id."""
        configurations = await self.db.read(read_all)
        return [await self._show(one) for one in configurations[:limit]]

    async def apply_content(self, device_id: str, content: Json) -> None:
        """Writes a content to one device, once; makes the modules that it declares.

        Raises:
            NotFound: no such device.
            RequestInvalid, LimitExceeded: it cannot be read, or cannot stand in a twin.
        """
        parsed, now = parse_content(content), self.clock()

        def work(tables: HubTables) -> None:
            view = tables.require_view(Identity(device_id))
            _write_content(tables, view, [parsed], now)
            apply_to_device(tables, device_id, now)

        await self.db.write(work)

    async def apply_all(self) -> None:
        """One pass over the fleet."""
        if not await self.db.read(lambda tables: tables.list_configurations()):
            return
        after: Identity | None = None
        while True:
            last, now = after, self.clock()

            def work(tables: HubTables, last: Identity | None = last, now: float = now) -> Identity | None:
                page = tables.read_views(modules=False, after=last, limit=PAGE_ROWS)
                configurations = read_all(tables)
                for view in page:
                    _apply(tables, view, configurations, now)
                return page[-1].record.identity if page else None

            after = await self.db.write(work)
            if after is None:
                return

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
        return totals

    async def _show(self, configuration: Configuration) -> Json:
        targeted, applied, after = 0, 0, None
        while True:
            after, *more = await self.db.read(partial(_count_page, after=after, configuration=configuration))
            targeted, applied = targeted + more[0], applied + more[1]
            if after is None:
                break
        counted = await self.count(parse_query(text) for text in configuration.metrics.values())
        counts = {"targetedCount": targeted, "appliedCount": applied}
        results = dict(zip(configuration.metrics, counted, strict=True))
        return make_configuration_body(configuration, counts=counts, results=results)


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
    """Every configuration, by id."""
    return [_decode(body) for _, body in tables.list_configurations()]


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
        _apply(tables, tables.require_view(Identity(device_id)), configurations, now)


def _apply(tables: HubTables, view: IdentityView, configurations: list[Configuration], now: float) -> None:
    """Writes what matches. A device that cannot take all of it stays as it is: it holds up no other, and no caller."""
    try:
        tables.run_apart(lambda inner: _write_matching(inner, view, configurations, now))
    except (LimitExceeded, RequestInvalid, NameInvalid) as error:
        _log.warning("a device cannot take its configurations", id=str(view.record.identity), reason=error.message)


def _write_matching(tables: HubTables, view: IdentityView, configurations: list[Configuration], now: float) -> None:
    body = show_view(view)
    matching = [one for one in configurations if one.target.source == "devices" and one.target.selects(body)]
    if matching:
        _write_content(tables, view, [one.content for one in choose(matching)], now)
    for_modules = [one for one in configurations if one.target.source == "devices.modules"]
    if not for_modules:
        return
    for module in tables.read_modules(view.record.identity.device_id):
        seen = show_view(module)
        chosen = choose([one for one in for_modules if one.target.selects(seen)])
        _write_desired(tables, module, [one.content.module for one in chosen], now)


def _write_content(tables: HubTables, view: IdentityView, contents: list[Content], now: float) -> None:
    """Writes contents over each other to a device and its modules."""
    device_id = view.record.identity.device_id
    _write_desired(tables, view, [one.device for one in contents], now)
    for name in dict.fromkeys(name for one in contents for name in one.get_declared_modules()):
        identity = require_identity(device_id, name)
        if tables.find_identity(identity) is None:
            tables.add_identity(make_record(identity, now, managed_by="iotEdge"), make_twin(now))
    for name in dict.fromkeys(name for one in contents for name in one.modules):
        identity = Identity(device_id, name)
        if tables.find_identity(identity) is not None:
            module = tables.require_view(identity)
            _write_desired(tables, module, [one.modules.get(name, {}) for one in contents], now)


def _write_desired(tables: HubTables, view: IdentityView, contributions: list[Mapping[str, Any]], now: float) -> None:
    identity, before = view.record.identity, view.twin.desired.body
    patch = make_patch(before, make_desired(before, contributions))
    if not patch:
        return

    def change(twin: TwinDocument) -> tuple[TwinDocument, Json | None]:
        return write_twin(twin, tags=None, desired=patch, now=now)

    told = tables.change_twin(identity, change)
    if told is not None:
        tables.tell(DesiredWritten(identity, told))


def _count_page(
    tables: HubTables, after: Identity | None, configuration: Configuration
) -> tuple[Identity | None, int, int]:
    """The end of the next page (None: there is none), how many twins in it match, and how many of those hold."""
    target = configuration.target
    page = tables.read_views(modules=target.source == "devices.modules", after=after, limit=PAGE_ROWS)
    matching = [view for view in page if target.selects(show_view(view))]
    applied = sum(_is_applied(tables, view, configuration) for view in matching)
    return (page[-1].record.identity if page else None), len(matching), applied


def _is_applied(tables: HubTables, view: IdentityView, configuration: Configuration) -> bool:
    """Whether a twin that matches has what the configuration says."""
    content, identity = configuration.content, view.record.identity
    if identity.module_id is not None:
        return holds(view.twin.desired.body, content.module)
    if not holds(view.twin.desired.body, content.device):
        return False
    twins = {name: tables.find_twin(Identity(identity.device_id, name)) for name in content.modules}
    return all(twin is not None and holds(twin.desired.body, content.modules[name]) for name, twin in twins.items())


def _decode(body: bytes) -> Configuration:
    return parse_configuration(msgspec.json.decode(body, type=StoredConfiguration))
