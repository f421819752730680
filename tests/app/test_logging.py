"""Secrets never reach a log line, whoever writes it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edgeferry.app.logging import redact

SCRIPT = """
import logging, structlog
from edgeferry.app.logging import configure_logging
configure_logging(as_json=True)
structlog.get_logger("a").info("downloading", url="https://store/c/m.zip?sv=1&sig=topsecret")
logging.getLogger("b").warning("token=%s for %s", "topsecret", "HostName=h;SharedAccessKey=topsecret")
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a/b?sig=xyz", "https://a/b?***"),
        ("see https://a/b?se=1&sig=xyz now", "see https://a/b?*** now"),
        ("HostName=h;SharedAccessKey=abc=;DeviceId=d", "HostName=h;SharedAccessKey=***;DeviceId=d"),
        ("sr=x&sig=abc%3D&se=5", "sr=x&sig=***&se=5"),
        ("plain words", "plain words"),
    ],
)
def test_secrets_are_struck_out(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_log_lines_are_json_without_secrets() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning"]
    assert "topsecret" not in done.stderr
