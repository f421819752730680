"""The hub's database in PostgreSQL, for several hub processes that serve one fleet.

Rules:
- Whoever writes holds one advisory lock until the commit: writers of all processes stand in one line, as in SQLite.
  Group commit (hub_db.py) makes that cheap; what it buys: no deadlocks, and rows whose ids rise in the order of
  commits, so that a reader who asks for "everything after id n" misses nothing.
- NOTIFY is a bell: the listener reads the events themselves from their table, by id, also after it was cut off.
- Ids that are lower than those that were seen tell that the store went back in time (a replica took over, a backup was
  restored): then everybody begins anew.
- A process that stands still in the middle of a transaction loses it after some seconds: it must not hold the lock.
- A connection that is lost within a transaction fails that one, clearly; one that was lost before is opened again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import msgspec
import psycopg
import structlog
from psycopg import errors as postgres
from psycopg.pq import TransactionStatus

from edgeferry.errors import ConfigInvalid, NoSpace, StorageBusy, StorageError, StorageFailed
from edgeferry.storage.hub_events import Event, EventsMissed
from edgeferry.storage.hub_schema import SCHEMA_VERSION, get_statements, to_postgres
from edgeferry.storage.hub_tables import EVENTS_KEPT_S, HubTables

WRITERS_LOCK, MIGRATION_LOCK = 0x6564_6765, 0x6665_7272  # any two numbers, the same in every process
LOCK_TIMEOUT_MS = 10_000
IDLE_TIMEOUT_MS = 15_000
CONNECT_TIMEOUT_S = 10
EVENTS_PAGE = 500
LISTEN_EVERY_S = 0.5
CUT_OFF_WAIT_S = 1.0
VANISHED_MS = 30_000  # a host that acknowledges nothing for so long is gone; TCP itself waits a quarter of an hour
_log = structlog.get_logger(__name__)


class PostgresConnection:
    """`Sql` over one psycopg connection that is opened again when it was lost."""

    is_shared = True
    clock = "extract(epoch FROM clock_timestamp())::float8"

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = _connect(url)

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        """Runs one statement."""
        return self._connection.execute(_to_native(statement), parameters)

    def begin(self, *, writes: bool) -> None:
        """BEGIN; a writer stands in line behind the writers of every process."""
        try:
            self._begin(writes=writes)
        except psycopg.OperationalError:
            if not self._connection.closed:
                raise
            self._begin(writes=writes)  # it was cut off since the last transaction: nothing of this one is lost

    def _begin(self, *, writes: bool) -> None:
        if self._connection.closed:
            self._connection = _connect(self._url)
        if not writes:
            self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            return
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (WRITERS_LOCK,))

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, even a failed one."""
        return self._connection.info.transaction_status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)

    def get_data_version(self) -> int:
        """Everybody who writes here tells: there is nothing else to notice."""
        return 0

    def notify(self) -> None:
        """Rings the bell of every listener at the commit."""
        self._connection.execute("NOTIFY edgeferry_hub")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """psycopg's errors as ours."""
        with _translated():
            yield

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def open_postgres(url: str) -> PostgresConnection:
    """The database at a `postgresql://` URL, brought to the newest schema.

    Raises:
        ConfigInvalid: the URL cannot be read.
        StorageFailed: it cannot be reached, or a newer release wrote it. No message shows the URL: it may hold a
            password.
    """
    with _translated():
        sql = PostgresConnection(url)
        try:
            _migrate(sql)
        except BaseException:
            sql.close()
            raise
    return sql


class PostgresListener:
    """Brings the events of every process to one callable, from a thread of its own, until it is stopped."""

    def __init__(self, url: str, deliver: Callable[[Sequence[Event]], None]) -> None:
        self._url = url
        self._deliver = deliver
        self._stopped = threading.Event()
        self._sql = open_postgres(url)
        self._last_id = self._read_last_id()
        self._seen_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="hub-events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; no event is delivered after."""
        self._stopped.set()
        self._thread.join()
        self._sql.close()

    def _read_last_id(self) -> int:
        tables = HubTables(self._sql)
        with tables.transaction(writes=False):
            return tables.get_last_event_id()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except (psycopg.Error, StorageError) as error:
                _log.warning("events of the shared store are cut off", reason=type(error).__name__)
                self._stopped.wait(CUT_OFF_WAIT_S)
            except Exception:  # noqa: BLE001 - the edge of a thread: a process that hears of nothing is worse
                _log.exception("events of the shared store failed")
                self._stopped.wait(CUT_OFF_WAIT_S)

    def _listen(self) -> None:
        with _connect(self._url) as bell:
            bell.execute("LISTEN edgeferry_hub")
            newest = bell.execute("SELECT last_value FROM events_id_seq").fetchone()
            if newest is not None and newest[0] < self._last_id:
                self._begin_anew()
            while not self._stopped.is_set():
                self._deliver_new()
                for _ in bell.notifies(timeout=LISTEN_EVERY_S, stop_after=1):
                    pass

    def _deliver_new(self) -> None:
        tables = HubTables(self._sql)
        while True:
            try:
                with tables.transaction(writes=False):
                    page = tables.read_events(after=self._last_id, limit=EVENTS_PAGE)
            except msgspec.MsgspecError:  # another release told it
                self._begin_anew()
                return
            if time.monotonic() - self._seen_at > EVENTS_KEPT_S / 2:
                self._deliver([EventsMissed()])
            self._seen_at = time.monotonic()
            if not page:
                return
            self._last_id = page[-1][0]
            self._deliver([event for _, event in page])

    def _begin_anew(self) -> None:
        self._last_id = self._read_last_id()
        self._deliver([EventsMissed()])


def _connect(url: str) -> psycopg.Connection[Any]:
    options = f"-c lock_timeout={LOCK_TIMEOUT_MS} -c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS}"
    return psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        options=f"{options} -c statement_timeout=0 -c client_min_messages=warning",
        application_name="edgeferry hub",
        keepalives_idle=15,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=VANISHED_MS,
    )


def _migrate(sql: PostgresConnection) -> None:
    """Brings a database, new or old, to the newest schema; all or nothing, one process at a time."""
    sql.execute("BEGIN")
    try:
        sql.execute("SELECT pg_advisory_xact_lock(?)", (MIGRATION_LOCK,))
        sql.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        row = sql.execute("SELECT version FROM schema_version").fetchone()
        for statement in get_statements(row[0] if row else 0):
            sql.execute(to_postgres(statement))
        if row is None or row[0] != SCHEMA_VERSION:
            sql.execute("DELETE FROM schema_version")
            sql.execute("INSERT INTO schema_version (version) VALUES (?)", (SCHEMA_VERSION,))
        sql.execute("COMMIT")
    except BaseException:
        if sql.in_transaction:
            sql.execute("ROLLBACK")
        raise


@lru_cache(maxsize=256)
def _to_native(statement: str) -> bytes:
    """`?` as psycopg's `%s`; our statements hold neither sign otherwise."""
    return statement.replace("?", "%s").encode("utf-8")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.ProgrammingError as error:
        if error.sqlstate is None:  # psycopg's own: the URL
            raise ConfigInvalid("expected a database URL like 'postgresql://user@host/name'") from error
        raise StorageFailed(f"the hub's database refused: {type(error).__name__}") from error
    except psycopg.Error as error:
        raise _translate(error) from error


def _translate(error: psycopg.Error) -> StorageError:
    """What was met, without psycopg's text: it may hold parts of the URL or of a row."""
    if isinstance(error, postgres.DiskFull):
        return NoSpace("the disk of the hub's database is full")
    if isinstance(error, postgres.LockNotAvailable | postgres.SerializationFailure | postgres.DeadlockDetected):
        return StorageBusy("another process holds the hub's database")
    if isinstance(error, psycopg.OperationalError):
        return StorageFailed(f"the hub's database cannot be reached: {type(error).__name__}")
    return StorageFailed(f"the hub's database failed: {type(error).__name__} {error.sqlstate or ''}".rstrip())
