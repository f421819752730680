"""Microsoft's unmodified SDKs for Node.js as real peers: where they are, and the scripts that run them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures_azure import make_runner

NODE = Path(__file__).resolve().parent / "hub" / "node"


@pytest.fixture(scope="session")
def node_program() -> str:
    """Node.js, where the SDKs are installed; skips, saying so, where they are not (`make node-sdk`)."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("Node.js is not installed: the tests of Microsoft's SDKs for it need it")
    if not (NODE / "node_modules" / ".package-lock.json").exists():
        pytest.skip("Microsoft's SDKs for Node.js are not installed: run `make node-sdk`")
    return program


@pytest.fixture
def run_node(node_program: str) -> Callable[..., Any]:
    """`async with run_node(script, *arguments, **environment) as peer`: an SdkScript that is killed at the end."""
    return make_runner(node_program)
