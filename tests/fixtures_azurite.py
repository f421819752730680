"""Azurite, the blob server that speaks as Azure does: one process per test session, in memory, on a free port."""

from __future__ import annotations

import base64
import hashlib
import hmac
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from other_programs import run_server

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
    options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]
    options += ["--disableTelemetry", "--skipApiVersionCheck"]
    port_line = rb"successfully listen\w* on http://127\.0\.0\.1:(\d+)"
    with run_server([str(program), *options], port_line) as port:
        yield Azurite(f"http://127.0.0.1:{port}/{ACCOUNT}")
