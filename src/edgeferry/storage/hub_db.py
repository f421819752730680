"""The one thread that owns the hub's database: work comes in, shares a transaction, and is answered once it is on disk.

The SQL stands in hub_tables.py; the event loop never waits for the disk itself.

Rules:
- An awaited `write` is on disk (synchronous=FULL) when it returns. Work that waits together shares one commit.
- A piece of work that fails undoes itself only. When the commit fails, every write in it fails; reads are done again.
- Work runs in the order in which it was handed over.
- What writes told comes out of `events`, in the order of commits: here from our own writes, from a shared store also
  from those of other processes. Nobody hears of a write before whoever waits for it, or for a read of what was before
  it, has gone on: a link that was just written stands when the first event for it comes.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgeferry.errors import EdgeferryError, StorageFailed
from edgeferry.storage.hub_events import Event
from edgeferry.storage.hub_store import HubStore, open_tables
from edgeferry.storage.hub_tables import HubTables

Outcome = TypeVar("Outcome")
BATCH_MAX = 256


@dataclass(slots=True)
class _Job:
    work: Callable[[HubTables], Any]
    writes: bool
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class DbCounters:
    """What the store has done since the process started."""

    jobs: int = 0
    batches: int = 0
    failures: int = 0


class HubDb:
    """Asynchronous reads and writes of the hub's tables. `events`: what was told, for one consumer."""

    def __init__(self, store: HubStore, loop: asyncio.AbstractEventLoop) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.counters = DbCounters()
        self._store = store
        self._loop = loop
        self._jobs: queue.SimpleQueue[_Job | tuple[Event, ...] | None] = queue.SimpleQueue()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="hub-db", daemon=True)

    async def start(self) -> None:
        """Opens the database in its thread; raises StorageError."""
        self._thread.start()
        await self._opened

    async def close(self) -> None:
        """Finishes what was handed over, then closes."""
        self._is_closed = True  # set on the loop's thread, where work is handed over: nothing comes behind the None
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def read(self, work: Callable[[HubTables], Outcome]) -> Outcome:
        """Runs `work` on the database thread; it must not write."""
        return await self._hand_over(work, writes=False)

    async def write(self, work: Callable[[HubTables], Outcome]) -> Outcome:
        """Runs `work` and returns when it is on disk.

        Raises:
            StorageError: the disk did not do as asked; nothing was written.
        """
        return await self._hand_over(work, writes=True)

    async def _hand_over(self, work: Callable[[HubTables], Outcome], *, writes: bool) -> Outcome:
        if self._is_closed or not self._thread.is_alive():
            raise StorageFailed("the hub's database is closed")
        job = _Job(work, writes, self._loop.create_future())
        self._jobs.put(job)
        result: Outcome = await job.future
        return result

    def _run(self) -> None:
        try:
            with open_tables(self._store.folder, self._store.url) as tables:
                self._call_loop(self._opened.set_result, None)
                while batch := self._take_batch():
                    self._bring_events([event for one in batch if isinstance(one, tuple) for event in one])
                    self._run_jobs(tables, [one for one in batch if isinstance(one, _Job)])
        except EdgeferryError as error:
            self._call_loop(self._opened.set_exception, error)

    def _take_batch(self) -> list[_Job | tuple[Event, ...]]:
        """Everything that waits, at least one job or events; empty when it is time to stop."""
        first = self._jobs.get()
        batch = [] if first is None else [first]
        while batch and len(batch) < BATCH_MAX:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            batch.append(job)
        return batch

    def _bring_events(self, events: Sequence[Event]) -> None:
        """Hands on what other processes told; batches before this one are answered."""
        if events:
            self._call_loop(self._finish, (events, []))

    def _run_jobs(self, tables: HubTables, jobs: list[_Job]) -> None:
        if jobs:
            run_batch(tables, jobs)
            self._call_loop(self._finish, (tables.take_told(), jobs))

    def deliver(self, events: Sequence[Event]) -> None:
        """Takes events of a shared store in, from any thread: they wait for the batch that may have told them."""
        self._jobs.put(tuple(events))

    def _finish(self, told: tuple[Sequence[Event], list[_Job]]) -> None:
        events, jobs = told
        self.counters.batches += bool(jobs)
        self.counters.jobs += len(jobs)
        self.counters.failures += sum(job.error is not None for job in jobs)
        _answer(jobs)
        if events:
            self._loop.call_soon(self._bring, events)  # behind those who were just answered

    def _bring(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.put_nowait(event)

    def _call_loop(self, call: Callable[[Any], object], value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, value)
        except RuntimeError:  # the loop has closed: nobody waits any more
            return


def run_batch(tables: HubTables, jobs: list[_Job]) -> None:
    """Runs jobs in one transaction and puts result or error into each."""
    writes = any(job.writes for job in jobs)
    try:
        with tables.transaction(writes=writes):
            for job in jobs:
                _run_job(tables, job)
                if not tables.is_in_transaction():
                    raise job.error or StorageFailed("the transaction ended by itself")
    except EdgeferryError as error:
        for job in jobs:
            job.error = error
        if writes:
            reads = [job for job in jobs if not job.writes]
            if reads:
                run_batch(tables, reads)


def _run_job(tables: HubTables, job: _Job) -> None:
    try:
        job.result, job.error = tables.run_apart(job.work), None
    except Exception as error:  # noqa: BLE001 - the edge of a task: a defect in one piece of work belongs to its caller
        job.error = error


def _answer(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


@asynccontextmanager
async def open_hub_db(folder: Path, url: str | None = None) -> AsyncIterator[HubDb]:
    """The database of a hub for as long as the block runs.

    Raises:
        StorageError: it cannot be opened.
        ConfigError: its URL is not one, or psycopg is missing.
    """
    db = HubDb(HubStore(folder, url), asyncio.get_running_loop())
    await db.start()
    try:
        async with _listening(db, url):
            yield db
    finally:
        await db.close()


@asynccontextmanager
async def _listening(db: HubDb, url: str | None) -> AsyncIterator[None]:
    """Brings in what other processes of a shared store tell."""
    if url is None:
        yield
        return
    from edgeferry.storage.hub_postgres import PostgresListener

    listener = await asyncio.to_thread(PostgresListener, url, db.deliver)
    try:
        yield
    finally:
        await asyncio.to_thread(listener.stop)
