"""A hub on a disk that a test fills and frees, on either store.

SQLite: as root on a small tmpfs in a mount namespace of the hub's own; elsewhere with its longest file limited.
PostgreSQL: the hub's database lies in a tablespace on a small tmpfs in a mount namespace of the server's own; the
write-ahead log lies elsewhere, so that the server itself lives on. Needs root.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fixtures_postgres import Postgres
from hub_process import HubProcess, HubStart

MOUNT = 'mkdir -p "$0" && mount -t tmpfs -o size=16m,mode=700,uid="$1" tmpfs "$0" && shift && exec "$@"'


def may_mount(folder: Path) -> bool:
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def on_small_disk(folder: Path, owner: int) -> tuple[str, ...]:
    """The words in front of a command that give it a small tmpfs at `folder`, seen by itself only."""
    return ("unshare", "-m", "sh", "-c", MOUNT, str(folder), str(owner))


@dataclass
class Site:
    """A hub to start, and how its disk is filled and freed. `hub` is set once it runs."""

    start: HubStart
    hub: HubProcess | None = field(default=None, init=False)

    @property
    def beside(self) -> tuple[str, ...]:
        """The words in front of a command that is to see what the hub sees."""
        return ()

    def fill(self) -> None:
        raise NotImplementedError

    def free(self) -> None:
        raise NotImplementedError


@dataclass
class TmpfsSite(Site):
    """The disk is the tmpfs at `folder`, as the process `get_pid()` sees it."""

    folder: Path
    get_pid: Callable[[], int]

    @property
    def _filler(self) -> Path:
        return Path(f"/proc/{self.get_pid()}/root{self.folder}/filler")

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(65_536))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def free(self) -> None:
        self._filler.unlink()


@dataclass
class SqliteSite(TmpfsSite):
    """The hub's own folder is the tmpfs."""

    @property
    def beside(self) -> tuple[str, ...]:
        return ("nsenter", "-m", "-t", str(self.get_pid()), "--")


@dataclass
class LimitedSite(Site):
    """No tmpfs may be mounted: no file of the hub grows any more."""

    def fill(self) -> None:
        self._limit(max(path.stat().st_size for path in self.start.data.iterdir()) + 4096)

    def free(self) -> None:
        self._limit(None)

    def _limit(self, size_bytes: int | None) -> None:
        assert self.hub is not None
        pid = self.hub.child.pid
        _, longest = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (longest if size_bytes is None else size_bytes, longest))


@contextmanager
def open_sqlite_site(folder: Path) -> Iterator[Site]:
    """A hub whose own folder is the small disk."""
    start = HubStart(folder)
    folder.mkdir()
    if not may_mount(folder):
        yield LimitedSite(start)
        return
    start.before = on_small_disk(start.data, os.geteuid())
    made = SqliteSite(start, start.data, lambda: made.hub.child.pid if made.hub else 0)
    yield made


@contextmanager
def open_postgres_site(folder: Path, postgres: Postgres) -> Iterator[Site]:
    """A hub on a cluster that runs with a small disk beside its own, and as before at the end."""
    folder.mkdir()
    if not may_mount(folder):
        pytest.skip("a tablespace on a small disk needs root: run the tests as root, or in a container")
    disk = postgres.folder / "small"
    postgres.stop()
    try:
        postgres.start(on_small_disk(disk, postgres.folder.stat().st_uid))
        server = postgres.server
        assert server is not None
        postgres.sql(f"CREATE TABLESPACE small LOCATION '{disk}'")
        url = postgres.make_database(tablespace="small")
        try:
            yield TmpfsSite(HubStart(folder, url), disk, lambda: server.pid)
        finally:
            postgres.sql(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
            postgres.sql("DROP TABLESPACE small")
    finally:
        postgres.stop()
        postgres.start()


@contextmanager
def open_site(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A hub on an empty store, `sqlite` or `postgres`."""
    if kind == "sqlite":
        with open_sqlite_site(folder) as site:
            yield site
        return
    with open_postgres_site(folder, request.getfixturevalue("postgres")) as site:
        yield site
