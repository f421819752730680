"""A real PostgreSQL: one cluster per test session on a free loopback port, one database for each test that asks.

Rules:
- PostgreSQL does not run as root: then it runs as the user `postgres` that its package makes.
- Its folder lies in /tmp with a name of its own and is removed at the end; the server is stopped by its own id.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)


@dataclass
class Postgres:
    """A cluster. `url` names its administrator's database."""

    folder: Path
    port: int
    run: Callable[..., subprocess.CompletedProcess[str]] = field(repr=False)
    server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.make_url("postgres")

    def make_url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def make_database(self, *, tablespace: str | None = None) -> str:
        """Creates an empty database; returns its URL."""
        name = f"hub_{uuid.uuid4().hex}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0" + (f" TABLESPACE {tablespace}" if tablespace else ""))
        return self.make_url(name)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Runs a statement through psql; returns what it printed, unadorned."""
        words = ["psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-c", statement, self.make_url(database)]
        return self.run(words).stdout.strip()

    def start(self, before: Sequence[str] = ()) -> None:
        """Starts the server, behind the words `before`, and waits until it answers."""
        words = ["postgres", "-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)]
        words += ["-h", "127.0.0.1", "-c", "shared_buffers=16MB", "-c", "max_connections=100", "-c", "jit=off"]
        with (self.folder / "log").open("ab") as log:
            self.server = subprocess.Popen([*before, *_as_postgres(words)], stdout=log, stderr=log, cwd=self.folder)
        for _ in range(300):
            if subprocess.run(_as_postgres(["pg_isready", "-q", "-d", self.url]), check=False).returncode == 0:
                return
            if self.server.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-800:]}")

    def kill(self) -> None:
        """kill -9 of the server's first process, by its id; returns when the others have noticed and ended."""
        assert self.server is not None
        pid = self.server.pid
        others = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self.server.kill()
        self.server.wait(30)
        self.server = None
        for _ in range(300):
            if not any(Path(f"/proc/{other}").exists() for other in others):
                return
            time.sleep(0.1)
        raise RuntimeError("PostgreSQL's processes outlived their first")

    def stop(self) -> None:
        """Ends the server, whoever is connected."""
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(30)
            self.server = None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running cluster; skips, saying so, where PostgreSQL is not installed."""
    if not _FOLDERS and shutil.which("initdb") is None:
        pytest.skip("PostgreSQL is not installed: run 'make postgres' as root, or install its server package")
    if os.geteuid() == 0 and not _has_user("postgres"):
        pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres': install its server package")
    folder = Path(tempfile.mkdtemp(prefix="edgeferry-postgres-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        words = ["initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        _run([*words, "--no-sync", "--wal-segsize=1"])
        cluster = Postgres(folder, _find_free_port(), _run)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    """An empty database of this test's own."""
    return postgres.make_database()


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(_as_postgres(words), capture_output=True, text=True, check=False, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def _as_postgres(words: Sequence[str]) -> list[str]:
    """The command with its full path, as the user `postgres` when we are root."""
    program = next((str(folder / words[0]) for folder in _FOLDERS if (folder / words[0]).exists()), words[0])
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    return [*user, program, *words[1:]]


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
