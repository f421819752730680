"""Programs of others that tests run for real: environments made when missing, servers started, stopped by id."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_START_TIMEOUT_S = 60.0


def require_environment(name: str, what: str) -> Path:
    """The python of the environment `name`, made when it is missing; skips, saying so, when it cannot be made."""
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_sdk_env.py", name],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"{what} cannot be installed from its pins under requirements/: {made.stderr[-500:]}")
    return Path(made.stdout.strip())


@contextmanager
def run_server(words: Sequence[str], port_line: bytes) -> Iterator[int]:
    """Runs a server and yields the port that `port_line`, a pattern with one group, finds in what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(words, stdout=output, stderr=output, cwd=folder)
        try:
            yield _wait_for_port(server, log, port_line)
        finally:
            server.terminate()
            server.wait(10)


def _wait_for_port(server: subprocess.Popen[bytes], log: Path, port_line: bytes) -> int:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        found = re.search(port_line, log.read_bytes())
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise RuntimeError(f"{server.args!r:.80} did not start: {log.read_text(errors='replace')[-500:]}")
