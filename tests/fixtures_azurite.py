"""Azurite, the blob server that speaks as Azure does: one process per test session, in memory, on a free port."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's well-known account and key (its documentation): not a secret."""


@dataclass(frozen=True)
class Azurite:
    """A running blob server. `url` is the account's; `environ` holds the credentials as commands take them."""

    url: str

    @property
    def environ(self) -> dict[str, str]:
        return {"AZURE_STORAGE_ACCOUNT_KEY": KEY}

    def make_container(self) -> str:
        """Creates a container and returns its URL."""
        name = f"c{uuid.uuid4().hex}"
        date = formatdate(usegmt=True)
        head = f"x-ms-date:{date}\nx-ms-version:2021-08-06\n"
        text = "PUT" + "\n" * 12 + head + f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
        headers = {
            "x-ms-date": date,
            "x-ms-version": "2021-08-06",
            "Authorization": f"SharedKey {ACCOUNT}:{signature}",
            "Content-Length": "0",
        }
        request = urllib.request.Request(f"{self.url}/{name}?restype=container", method="PUT", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.status == 201
        return f"{self.url}/{name}"


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """A real Azurite; skips, saying so, where it is not installed (`make azurite`)."""
    program = ROOT / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        pytest.skip("Azurite is not installed: run `make azurite` (needs Node.js)")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]
        options += ["--disableTelemetry", "--skipApiVersionCheck"]
        log = Path(folder) / "log"
        with log.open("wb") as output:
            server = subprocess.Popen([str(program), *options], stdout=output, stderr=output, cwd=folder)
        try:
            yield Azurite(f"http://127.0.0.1:{_wait_for_port(server, log)}/{ACCOUNT}")
        finally:
            server.terminate()
            server.wait(10)


def _wait_for_port(server: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        found = re.search(rb"successfully listen\w* on http://127\.0\.0\.1:(\d+)", log.read_bytes())
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise RuntimeError(f"Azurite did not start: {log.read_text(errors='replace')[-500:]}")
