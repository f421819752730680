"""The hub's database: identities, twins, queues, bounds; the thread that owns it; errors of the disk."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgeferry.errors import Conflict, NotFound, StorageBusy, StorageError, StorageFailed
from edgeferry.storage import hub_queues, hub_sqlite
from edgeferry.storage.hub_db import HubDb, open_hub_db
from edgeferry.storage.hub_events import Event, InputQueued
from edgeferry.storage.hub_queues import QueuedMessage, UpstreamMessage
from edgeferry.storage.hub_sqlite import DB_NAME
from edgeferry.storage.hub_store import HubStore, copy_store, open_tables
from edgeferry.storage.hub_tables import HubTables
from edgeferry.twin.document import TwinDocument, make_twin, patch_reported
from edgeferry.wire.service_api import Identity, IdentityRecord

NOW = 1_800_000_000.0
DEVICE, MODULE = Identity("d"), Identity("d", "m")


def make_record(identity: Identity) -> IdentityRecord:
    return IdentityRecord(identity, "g1", "a2V5MQ==", "a2V5Mg==", "tag", True, "me", NOW)


def make_message(text: str, expires_at: float = NOW) -> QueuedMessage:
    return QueuedMessage(0, "in", {"k": None, "ä": "+"}, text.encode(), expires_at)


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> HubStore:
    """An empty store of either kind."""
    url = request.getfixturevalue("database_url") if request.param == "postgres" else None
    return HubStore(tmp_path / "hub", url)


@pytest.fixture
def tables(store: HubStore) -> Iterator[HubTables]:
    with open_tables(store.folder, store.url) as opened:
        with opened.transaction():
            opened.add_identity(make_record(DEVICE), make_twin(NOW))
            opened.add_identity(make_record(MODULE), make_twin(NOW))
        yield opened


def test_identities_are_kept_and_listed(tables: HubTables) -> None:
    assert tables.find_identity(MODULE) == make_record(MODULE)
    assert [one.record for one in tables.read_views(modules=False, after=None, limit=9)] == [make_record(DEVICE)]
    assert [one.record for one in tables.read_views(modules=True, after=None, limit=9)] == [make_record(MODULE)]
    assert tables.read_views(modules=True, after=MODULE, limit=9) == []
    assert [one.record for one in tables.read_modules("d")] == [make_record(MODULE)]
    tables.write_identity(replace(make_record(MODULE), is_enabled=False, etag="t2"))
    assert tables.require_identity(MODULE).is_enabled is False


@pytest.mark.parametrize(
    ("identity", "error", "code"),
    [
        (DEVICE, Conflict, "DeviceAlreadyExists"),
        (MODULE, Conflict, "ModuleAlreadyExistsOnDevice"),
        (Identity("e", "m"), NotFound, "DeviceNotFound"),
    ],
)
def test_an_identity_is_made_once_and_below_its_device(
    tables: HubTables, identity: Identity, error: type[Exception], code: str
) -> None:
    with pytest.raises(error) as caught:
        tables.add_identity(make_record(identity), make_twin(NOW))
    assert caught.value.values["service_code"] == code  # type: ignore[attr-defined]


def test_deleting_a_device_deletes_all_of_it(tables: HubTables) -> None:
    tables.sessions.write_subscriptions(MODULE, {"#": 1})
    tables.queues.push(MODULE, make_message("x"))
    tables.delete_identity(DEVICE)
    assert tables.find_identity(MODULE) is None
    assert tables.queues.read(MODULE, after=0, limit=9) == []
    assert tables.sessions.read_subscriptions(MODULE) is None
    with pytest.raises(NotFound):
        tables.delete_identity(DEVICE)


def test_a_twin_is_read_as_it_was_written(tables: HubTables) -> None:
    def change(twin: TwinDocument) -> tuple[TwinDocument, int]:
        return patch_reported(twin, {"n": 1.5, "deep": {"list": [1, "ä"]}}, now=NOW), 7

    assert tables.change_twin(MODULE, change) == 7
    assert tables.read_twin(MODULE) == change(make_twin(NOW))[0]
    with pytest.raises(NotFound):
        tables.read_twin(Identity("d", "none"))


def test_a_queue_keeps_order_until_messages_are_dropped_or_expire(tables: HubTables) -> None:
    for number in range(5):
        tables.queues.push(MODULE, make_message(str(number), NOW + number))
    first = tables.queues.read(MODULE, after=0, limit=3)
    assert [one.payload for one in first] == [b"0", b"1", b"2"] and first[0].properties == {"k": None, "ä": "+"}
    tables.queues.drop([first[1].id])
    assert tables.queues.drop_expired(NOW) == 1
    assert [one.payload for one in tables.queues.read(MODULE, after=0, limit=9)] == [b"2", b"3", b"4"]


def test_a_full_queue_loses_its_oldest(tables: HubTables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_queues, "QUEUE_MAX_ROWS", 3)
    for number in range(5):
        tables.queues.push(MODULE, make_message(str(number)))
    assert [one.payload for one in tables.queues.read(MODULE, after=0, limit=9)] == [b"2", b"3", b"4"]


def test_each_queue_is_bounded_by_bytes_too(tables: HubTables) -> None:
    other = Identity(MODULE.device_id, "other")
    tables.add_identity(make_record(other), make_twin(NOW))
    for number in range(4):
        tables.queues.push(MODULE, make_message(str(number) * 100))
    tables.queues.push(other, make_message("x" * 100))
    assert tables.queues.trim(max_bytes=250) == 2
    assert [one.payload[:1] for one in tables.queues.read(MODULE, after=0, limit=9)] == [b"2", b"3"]
    assert len(tables.queues.read(other, after=0, limit=9)) == 1


def test_the_upstream_store_is_bounded_by_rows_and_bytes(tables: HubTables) -> None:
    for number in range(6):
        tables.queues.append_upstream(UpstreamMessage(0, MODULE, "out", {}, b"%d" % number * 100, NOW))
    assert tables.queues.trim_upstream(max_rows=4, max_bytes=10**6) == 2
    assert tables.queues.trim_upstream(max_rows=4, max_bytes=250) == 2
    kept = tables.queues.read_upstream()
    assert [(one.id, one.payload[:1]) for one in kept] == [(5, b"4"), (6, b"5")]
    assert (kept[0].identity, kept[0].output, kept[0].received_at) == (MODULE, "out", NOW)
    assert [one.id for one in tables.queues.read_upstream(after=5)] == [6]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_copy_in_either_kind_of_store_is_a_hub_of_its_own(
    tables: HubTables, store: HubStore, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tables.queues.push(MODULE, make_message("waits"))
    for number in range(3):
        tables.queues.append_upstream(UpstreamMessage(0, MODULE, "out", {}, b"%d" % number, NOW))
    tables.sessions.write_subscriptions(MODULE, {"#": 1})
    tables.write_setting("policy.service", "key")
    tables.write_configuration("c", b"{}")
    url = request.getfixturevalue("postgres").make_database() if kind == "postgres" else None
    target = HubStore(tmp_path / "copy", url)
    copy_store(store, target)
    if url is None:
        assert (tmp_path / "copy" / DB_NAME).stat().st_mode & 0o777 == 0o600
    with open_tables(target.folder, target.url) as copy:
        assert copy.find_identity(MODULE) == make_record(MODULE) and copy.read_twin(MODULE) == tables.read_twin(MODULE)
        assert copy.queues.read(MODULE, after=0, limit=9) == tables.queues.read(MODULE, after=0, limit=9)
        assert copy.sessions.read_subscriptions(MODULE) == {"#": 1} and copy.find_setting("policy.service") == "key"
        assert copy.list_configurations() == [("c", b"{}")]
        copy.queues.append_upstream(UpstreamMessage(0, MODULE, "out", {}, b"new", NOW))
        assert [one.id for one in copy.queues.read_upstream()] == [1, 2, 3, 4]
    with pytest.raises(StorageFailed, match="empty"):
        copy_store(store, target)


def test_the_file_is_for_its_owner_and_of_a_known_schema(tmp_path: Path) -> None:
    path = tmp_path / "hub" / DB_NAME
    with open_tables(tmp_path / "hub"):
        pass
    assert path.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version=99")
    with pytest.raises(StorageFailed, match="99"), open_tables(tmp_path / "hub"):
        pass


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DB_NAME).write_bytes(b"not a database" * 100)
    with pytest.raises(StorageFailed), open_tables(tmp_path):
        pass


async def test_work_that_fails_undoes_only_itself(store: HubStore) -> None:
    async with open_hub_db(store.folder, store.url) as db:
        await db.write(lambda tables: tables.add_identity(make_record(DEVICE), make_twin(NOW)))

        def fail(tables: HubTables) -> None:
            tables.write_setting("bad", "1")
            raise ZeroDivisionError

        outcomes = await asyncio.gather(
            db.write(lambda tables: tables.write_setting("one", "1")),
            db.write(fail),
            db.write(lambda tables: tables.write_setting("two", "2")),
            db.read(lambda tables: tables.find_identity(DEVICE)),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], ZeroDivisionError) and outcomes[3] == make_record(DEVICE)
        found = [await db.read(lambda tables, name=name: tables.find_setting(name)) for name in ("one", "bad", "two")]
        assert found == ["1", None, "2"]


async def test_concurrent_writes_share_commits_and_lose_nothing(store: HubStore) -> None:
    async with open_hub_db(store.folder, store.url) as db:
        await db.write(lambda tables: tables.write_setting("n", "0"))

        def add(tables: HubTables) -> None:
            tables.write_setting("n", str(int(tables.find_setting("n") or 0) + 1))

        await asyncio.gather(*(db.write(add) for _ in range(600)))
        assert await db.read(lambda tables: tables.find_setting("n")) == "600"


async def note_order(db: HubDb, order: list[str], *names: str) -> None:
    """Writes that tell, each in a batch of its own while the loop is busy; notes who was written and heard of."""

    async def write(name: str) -> None:
        await db.write(lambda tables: tables.tell(InputQueued(Identity(name))))
        order.append(f"written {name}")

    async def hear() -> None:
        for _ in names:
            event = await db.events.get()
            assert isinstance(event, InputQueued)
            order.append(f"heard {event.identity}")

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(hear())
        await asyncio.sleep(0)
        for name in names:
            group.create_task(write(name))
            asyncio.get_running_loop().call_soon(time.sleep, 0.1)


async def test_who_waits_for_a_write_goes_on_before_anybody_hears_of_it(
    store: HubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hub_db(store.folder, store.url) as db:
        order: list[str] = []
        await note_order(db, order, "a", "b", "c")
        take_told = HubTables.take_told

        def take_late(tables: HubTables) -> list[Event]:
            time.sleep(0.3)  # committed, and not answered yet
            return take_told(tables)

        monkeypatch.setattr(HubTables, "take_told", take_late)
        await note_order(db, order, "d")
    assert [order.index(f"written {name}") < order.index(f"heard {name}") for name in "abcd"] == [True] * 4, order
    assert [one for one in order if one.startswith("heard")] == [f"heard {name}" for name in "abcd"]


async def test_all_work_runs_on_one_thread_and_none_after_close(store: HubStore) -> None:
    async with open_hub_db(store.folder, store.url) as db:
        threads = {await db.read(lambda _: threading.get_ident()) for _ in range(3)}
        assert len(threads) == 1 and threads != {threading.get_ident()}
    with pytest.raises(StorageFailed):
        await db.read(lambda _: None)


async def test_a_full_disk_refuses_writes_serves_reads_and_recovers(tmp_path: Path) -> None:
    async with open_hub_db(tmp_path) as db:
        await db.write(lambda tables: tables.write_setting("kept", "1"))
        size = max(path.stat().st_size for path in tmp_path.iterdir())
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, hard))
        try:
            with pytest.raises(StorageError):
                for number in range(100):
                    await db.write(lambda tables, n=number: tables.write_setting(f"big{n}", "x" * 10_000))
            assert await db.read(lambda tables: tables.find_setting("kept")) == "1"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await db.write(lambda tables: tables.write_setting("again", "2"))
        assert await db.read(lambda tables: tables.find_setting("again")) == "2"


async def test_a_database_that_another_process_holds_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_sqlite, "BUSY_TIMEOUT_S", 0.1)
    async with open_hub_db(tmp_path) as db:
        with contextlib.closing(sqlite3.connect(tmp_path / DB_NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageBusy):
                await db.write(lambda tables: tables.write_setting("x", "1"))
        await db.write(lambda tables: tables.write_setting("x", "1"))


async def test_a_write_of_another_process_shows_in_the_data_version(tmp_path: Path) -> None:
    async with open_hub_db(tmp_path) as db:
        before = await db.read(lambda tables: tables.get_data_version())
        await db.write(lambda tables: tables.write_setting("own", "1"))
        assert await db.read(lambda tables: tables.get_data_version()) == before
        with open_tables(tmp_path) as other, other.transaction():
            other.write_setting("theirs", "1")
        assert await db.read(lambda tables: tables.get_data_version()) != before
