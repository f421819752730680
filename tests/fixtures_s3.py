"""moto's server, an HTTP double of Amazon S3: one process per test session, in memory, on a free port.

It checks no signature; an anonymous request sees what a bucket's policy gives to everybody, as with S3.
"""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from other_programs import require_environment, run_server

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class S3:
    """A running server. `environ` holds its address and credentials as commands take them."""

    url: str

    @property
    def environ(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.url, **keys}

    def make_bucket(self, *, public: bool = False) -> str:
        """Creates a bucket, whose objects anybody may read if it is public; returns its name."""
        name = f"b{uuid.uuid4().hex}"
        self._put(f"{self.url}/{name}")
        if public:
            self.set_policy(name, ("Allow", "*"))
        return name

    def set_policy(self, bucket: str, *rules: tuple[str, str]) -> None:
        """Lets everybody read, or not, the objects of a pattern: rules are (Allow or Deny, pattern)."""
        statements = [
            {
                "Effect": effect,
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{bucket}/{pattern}",
            }
            for effect, pattern in rules
        ]
        policy = {"Version": "2012-10-17", "Statement": statements}
        self._put(f"{self.url}/{bucket}?policy", json.dumps(policy).encode())

    def _put(self, url: str, data: bytes = b"") -> None:
        request = urllib.request.Request(url, data=data, method="PUT", headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.status in (200, 204)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A running moto; makes its environment when that is missing, skips, saying so, when that cannot be made."""
    python = require_environment("moto", "moto")
    words = [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with run_server(words, rb"Running on http://127\.0\.0\.1:(\d+)") as port:
        yield S3(f"http://127.0.0.1:{port}")
